#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on every host of a slice, in the repository's copy there.
#   install [SERVER:/EXPORT | gs://BUCKET[/FOLDER]]   .venv, and the share or the bucket at /mnt/grm_jax
#   start [--restarts=5] [--job=MODULE] [--env=NAME=VALUE ...] -- ARGUMENTS   the job, in the background, under launch/supervise.py
#   status | logs [LINES] | stop                      running PID, ended STATUS or not started; the log's last lines; SIGTERM, and wait
#   progress                                          how far the run is (launch/progress.py)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

mount_point=/mnt/grm_jax
uv=0.13.8 # the images of v5e and older come with Python 3.10; uv brings 3.11

install_all() {
  python3 -m pip install --quiet --user "uv==$uv"
  "$HOME/.local/bin/uv" python install --quiet 3.11
  PYTHON="$("$HOME/.local/bin/uv" python find 3.11)" bash launch/install.sh launch/requirements-tpu.txt
  if [ -n "${1:-}" ] && ! mountpoint --quiet "$mount_point"; then
    mount_share "$1"
  fi
}

mount_share() {
  local bucket folder
  sudo mkdir -p "$mount_point"
  case "$1" in
    gs://*)
      bucket="${1#gs://}" folder=''
      if [[ "$bucket" == */?* ]]; then
        folder="${bucket#*/}" bucket="${bucket%%/*}"
      fi
      if ! command -v gcsfuse >/dev/null; then
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
          sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
        sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
      fi
      sudo chown "$(id -u):$(id -g)" "$mount_point"
      # No cached metadata: every host has to see what the others wrote. Orbax renames a folder once a checkpoint is whole.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 ${folder:+"--only-dir=$folder"} "${bucket%/}" "$mount_point"
      ;;
    *)
      sudo apt-get update -q && sudo apt-get install -q -y nfs-common
      sudo mount -t nfs "$1" "$mount_point"
      ;;
  esac
}

status() {
  local said
  said="$(cat job.status 2>/dev/null || echo 'not started')"
  if [ "${said% *}" = running ] && ! kill -0 "${said#* }" 2>/dev/null; then
    said="ended 137" # without a word: the host was started again, or memory ran out
  fi
  echo "$said"
}

start() {
  local restarts=5 began environment=("JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/grm_jax}")
  while [ $# -gt 0 ]; do
    case "$1" in
      --restarts=*) restarts="${1#*=}" ;;
      --job=*) job="${1#*=}" ;;
      --env=*) environment+=("${1#*=}") ;;
      --) shift && break ;;
      *) die "$1: not an option of start" ;;
    esac
    shift
  done
  job_command .venv/bin/python "$@"
  number restarts "$restarts"
  began="$(status)"
  [ "${began% *}" != running ] || die "$(hostname): a job is $began; stop it first"
  rm -f job.status
  echo "$workdir/logs/$(hostname).log" >job.log
  setsid nohup env "${environment[@]}" .venv/bin/python launch/supervise.py --status=job.status "--logs=$workdir/logs" "--restarts=$restarts" \
    -- "${command[@]}" >job.out 2>&1 </dev/null &
  for _ in $(seq 100); do
    [ ! -f job.status ] || break
    sleep 0.1
  done
  echo "$(hostname): $(status)"
}

progress() {
  [ ! -f job.log ] || .venv/bin/python launch/progress.py "$(dirname "$(dirname "$(cat job.log)")")"
}

stop() {
  local said
  said="$(status)"
  if [ "${said% *}" = running ]; then
    kill -TERM "${said#* }"
    while said="$(status)" && [ "${said% *}" = running ]; do
      sleep 1
    done
  fi
  echo "$(hostname): $said"
}

case "${1:-}" in
  install) install_all "${@:2}" ;;
  start) start "${@:2}" ;;
  status) status ;;
  logs) tail -n "${2:-50}" "$(cat job.log 2>/dev/null || echo job.out)" | sed "s/^/$(hostname): /" ;;
  stop) stop ;;
  progress) progress ;;
  *) usage && exit 2 ;;
esac
