#!/usr/bin/env bash
# Measures one GPU: MFU of RL and RFT steps of Gemma-2 2B's shapes at 4,096 tokens, and decoding
# against the copy bandwidth of the same run.
#
#     bash speed/gpu.sh [OUT.jsonl] [flags of speed.gpu]
#
# Makes .venv-gpu with jax for CUDA where it is not there (PYTHON names another environment that has
# it). Needs one GPU with 80 GB, no weights, about 10 minutes, most of them compiling. Lines of JSON
# are added to OUT.jsonl, by default docs/performance.jsonl, from which `python -m speed.tables` makes
# the table in docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/performance.jsonl}
shift || true
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv-gpu/bin/python
    if [ ! -e .venv-gpu/done ]; then
        python3 -m venv .venv-gpu
        .venv-gpu/bin/python -m pip install -q -r requirements.txt "jax[cuda12]==$(sed -n 's/^jax==//p' requirements.txt)"
        .venv-gpu/bin/python -m pip install -q tokamax==0.0.12 || echo "without tokamax" >&2
        touch .venv-gpu/done
    fi
fi
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader >&2
"$PYTHON" -m speed.gpu "$@" | tee -a "$out"
