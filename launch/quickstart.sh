#!/usr/bin/env bash
# bash launch/quickstart.sh [--config.seed=1 ...]: makes .venv, installs the pinned packages, and runs every stage of SPCT on the tiny world.
# Needs Python >= 3.11 and 2 CPU cores. Run it again to go on after an interruption, or to report again. PYTHON=... picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A device for each core: two samplers on a core each write more than one does on both.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"
source launch/env.sh

make_venv
install requirements.txt
exec .venv/bin/python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/tiny "$@"
