#!/usr/bin/env bash
# Makes the environments of the peers that speed/compare.py runs beside us, for CPUs.
#
#     bash speed/peers.sh FOLDER [transformers] [llama] [trl] [tunix]
#
# Without names: all. Each is a virtual environment FOLDER/NAME with pinned packages; one that is
# there is left alone. llama.cpp is compiled from its source, which the sdist of llama-cpp-python
# holds, for this machine's CPU (some 10 minutes on 2 cores; needs cmake, a C++ compiler). What
# cannot be installed is said, and speed/compare.py then leaves that peer out and says so.
# 4 GiB of disk. PYTHON names the interpreter (3.11 or later).
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
[ $# -ge 1 ] || set -- transformers llama trl tunix
torch=torch==2.13.0
failed=

make() { # make NAME PACKAGE...: an environment, whole or not there at all
    local name=$1 place=$folder/$1
    shift
    [ -e "$place/done" ] && { echo "$name: is there"; return; }
    rm -rf "$place"
    echo "$name: installing $*"
    if "${PYTHON:-python3}" -m venv "$place" &&
        "$place/bin/python" -m pip install -q "$@" >"$folder/$name.log" 2>&1; then
        "$place/bin/python" -m pip freeze >"$place/done"
        echo "$name: done"
    else
        echo "$name: FAILED, see $folder/$name.log"
        failed="$failed $name"
    fi
}

for name in "$@"; do
    case $name in
    transformers) make transformers $torch transformers==5.23.0 safetensors numpy ;;
    trl) make trl $torch trl==1.16.0 transformers==5.23.0 safetensors numpy ;;
    llama)
        CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DCMAKE_BUILD_TYPE=Release" \
            make llama --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf safetensors numpy
        ;;
    tunix) make tunix google-tunix==0.1.7 safetensors ;;
    *) echo "$name: expected transformers, llama, trl or tunix"; exit 2 ;;
    esac
done
[ -z "$failed" ] || { echo "not installed:$failed"; exit 1; }
