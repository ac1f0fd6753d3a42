# shellcheck shell=bash
# Sourced by the launchers, never run: the environment of a run, and .venv with pinned packages. What glibc and the XLA CPU client read
# when Python starts has to be exported before that.

# Keep large temporaries mapped between calls. Without this every train step gives them back and faults them in again.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1

# The thread pool of the CPU client has the size of the machine. With more virtual devices than cores, queued collectives starve in it.
case "${XLA_FLAGS:-}" in
  *xla_force_host_platform_device_count*) export NPROC="${NPROC:-16}" ;;
esac

find_python() { # prints a Python >= 3.11, $PYTHON if that is set
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
    if [ -n "${PYTHON:-}" ]; then
      echo "PYTHON=$PYTHON is not a Python >= 3.11 that runs" >&2
      return 1
    fi
  done
  echo "No Python >= 3.11 found (python3 is: $(python3 --version 2>&1)). Install one, or set PYTHON=/path/to/python3.11" >&2
  return 1
}

make_venv() { # .venv in the current folder, if it is not there or its Python does not run
  local python
  if .venv/bin/python -c '' 2>/dev/null; then
    return
  fi
  python="$(find_python)"
  echo "Making .venv with $("$python" --version) ($(command -v "$python"))"
  if ! "$python" -m venv --clear .venv; then
    echo "$python -m venv failed. On Debian and Ubuntu it needs the package python3-venv" >&2
    return 1
  fi
}

install() { # install FILE...: the pinned packages of requirement files, unless .venv has just these versions
  local file
  for file in "$@"; do
    if ! .venv/bin/python launch/missing.py "$file"; then
      echo "Installing $file into .venv"
      .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" || return 1
    fi
  done
}
