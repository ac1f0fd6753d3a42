#!/usr/bin/env bash
# bash launch/test.sh [pytest arguments]: makes .venv, installs what the tests need, and runs those that are not marked slow or tpu_aot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh

make_venv
install requirements.txt requirements-test.txt
if ! install requirements-torch.txt; then
  echo "torch could not be installed: the comparisons with it are skipped, the committed golden values are checked" >&2
fi
# Compiled programs are kept: a second run takes less than half the CPU time of the first, which pays nothing for it.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
# Two workers: compiling keeps one core busy at a time. `-n 0` runs all in this process, as --pdb needs it.
exec .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not tpu_aot" "$@"
