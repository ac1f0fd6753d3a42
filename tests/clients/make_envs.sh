#!/usr/bin/env bash
# bash tests/clients/make_envs.sh [NAME...]: a virtual environment for each client of the server, in .cache/clients, with the packages of its
# lock here. Each lock is whole: nothing else is installed, so that what asks for CUDA stays away. Without names, all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/env.sh

make_env() { # make_env NAME: does nothing where the environment was made from the lock as it is
  local lock="tests/clients/$1.txt" env=".cache/clients/$1"
  if cmp -s "$lock" "$env/lock.txt"; then
    return
  fi
  echo "Making $env from $lock"
  "$(find_python)" -m venv --clear "$env"
  if grep -q '^torch==' "$lock"; then # with what its build for this machine needs
    "$env/bin/pip" install --quiet --disable-pip-version-check -c "$lock" "$(grep '^torch==' "$lock")"
  fi
  "$env/bin/pip" install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r "$lock"
  cp "$lock" "$env/lock.txt"
}

for lock in tests/clients/*.txt; do
  name="$(basename "$lock" .txt)"
  if [ $# -eq 0 ] || [[ " $* " == *" $name "* ]]; then
    make_env "$name"
  fi
done
