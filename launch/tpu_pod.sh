#!/usr/bin/env bash
# bash launch/tpu_pod.sh ACTION NAME --zone=ZONE [options] [-- --config=PRESET --workdir=FOLDER [--config.x=y ...]]
# A run on a Cloud TPU slice: one process a host, on all of its hosts. Needs gcloud here, logged in; the hosts need nothing.
#   create    make the slice: --accelerator=v5p-128, --version=IMAGE (else what fits the accelerator), --spot
#   install   put the last commit of this repository and .venv on every host; --mount=SERVER:/EXPORT or gs://BUCKET[/FOLDER] at /mnt/grm_jax
#   run       start the job in the background on every host: --restarts=5, --job=experiments.spct_rl, --env=NAME=VALUE (several).
#             Again, it goes on where the run was
#   status    what every host says of its job
#   logs      the last lines of every host's log: --lines=50, --worker=all
#   stop      SIGTERM to the job on every host, which saves and ends
#   delete    delete the slice
#   keep      create, install and run, look every minute, and do it all again when the slice was preempted, with what these take.
#             --recreate=5: how often, without the run having come further since
#   --dry-run prints what would be done; --project=PROJECT is passed to gcloud
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

action="${1:-}" name="${2:-}"
case "$action" in
  create | install | run | status | logs | stop | delete | keep) ;;
  --help) usage && exit ;;
  *) die "expected an action (create, install, run, status, logs, stop, delete or keep), got '$action'; see --help" ;;
esac
case "$name" in
  '' | -*) die "expected the name of the slice behind '$action', got '$name'" ;;
esac
shift 2

zone='' project='' accelerator='' version='' spot='' mount='' restarts=5 recreate=5 lines=50 worker=all environment=() arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --spot) spot=1 ;;
    --mount=*) mount="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --recreate=*) recreate="${1#*=}" ;;
    --job=*) job="${1#*=}" ;;
    --env=?*=*) environment+=("$1") ;;
    --lines=*) lines="${1#*=}" ;;
    --worker=*) worker="${1#*=}" ;;
    --) shift && arguments=("$@") && break ;;
    *) die "$1: not an option of this launcher; see --help. The job's own arguments stand behind --" ;;
  esac
  shift
done
[ -n "$zone" ] || die "expected --zone=ZONE, such as --zone=us-east5-a"
number restarts "$restarts"
number recreate "$recreate"
number lines "$lines"
case "$mount" in
  '' | gs://?* | ?*:/*) ;;
  *) die "--mount: expected SERVER:/EXPORT or gs://BUCKET[/FOLDER], got '$mount'" ;;
esac

where=("--zone=$zone")
if [ -n "$project" ]; then
  where+=("--project=$project")
fi
tpu_vm=(gcloud compute tpus tpu-vm)

on_hosts() { # on_hosts WORKER WORD...: a command in the copy of the repository
  run "${tpu_vm[@]}" ssh "$name" "${where[@]}" "--worker=$1" "--command=cd grm_jax && $(quote "${@:2}")"
}

create() {
  local image="$version" options=()
  [ -n "$accelerator" ] || die "expected --accelerator=TYPE, such as --accelerator=v5p-128"
  if [ -z "$image" ]; then
    case "$accelerator" in
      v5litepod-*) image=v2-alpha-tpuv5-lite ;;
      v5p-*) image=v2-alpha-tpuv5 ;;
      v6e-*) image=v2-alpha-tpuv6e ;;
      *) die "--accelerator=$accelerator: its image is not known here; give --version=IMAGE" ;;
    esac
  fi
  if [ -n "$spot" ]; then
    options+=(--spot)
  fi
  run "${tpu_vm[@]}" create "$name" "${where[@]}" "--accelerator-type=$accelerator" "--version=$image" "${options[@]}"
}

install() {
  local archive=.cache/grm_jax.tar.gz
  if [ -n "$(git status --porcelain)" ]; then
    echo "note: the working tree has changes; the hosts get the last commit, $(git rev-parse --short HEAD)" >&2
  fi
  run mkdir -p .cache
  run git archive --format=tar.gz "--output=$archive" HEAD
  run "${tpu_vm[@]}" scp "$archive" "$name:grm_jax.tar.gz" "${where[@]}" --worker=all
  run "${tpu_vm[@]}" ssh "$name" "${where[@]}" --worker=all "--command=mkdir -p grm_jax && tar -xzf grm_jax.tar.gz -C grm_jax"
  on_hosts all bash launch/tpu_host.sh install ${mount:+"$mount"}
}

start() {
  on_hosts all bash launch/tpu_host.sh start "--restarts=$restarts" "--job=$job" "${environment[@]}" -- "${arguments[@]}"
}

state() { # READY, PREEMPTED, ... or ABSENT
  local said
  if said="$("${tpu_vm[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2>&1)"; then
    echo "$said"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    die "gcloud could not say how $name is: $said"
  fi
}

keep() {
  local is said='' before made=0 errors=0 far='' now
  if [ -n "$dry_run" ]; then
    create && install && start
    echo "every 60 s: $(quote "${tpu_vm[@]}" describe "$name" "${where[@]}" '--format=value(state)'), and if it is READY:"
    on_hosts 0 bash launch/tpu_host.sh status
    echo "if it is PREEMPTED, TERMINATED or absent, up to $recreate times without coming further:"
    delete
    echo "and all from the start"
    return
  fi
  while true; do
    is="$(state)" || is=unknown
    before="$said" said=''
    case "$is" in
      READY)
        said="$(on_hosts 0 bash launch/tpu_host.sh status | tail -n 1)" || said=unknown
        case "$said" in
          running*)
            now="$(on_hosts 0 bash launch/tpu_host.sh progress | tail -n 1)" || now="$far"
            if [ "$now" != "$far" ]; then
              far="$now" made=0 # counted anew
            fi
            ;;
          'ended 0') echo "the job is done" && return ;;
          unknown) echo "== $(date '+%F %T') host 0 does not answer" ;;
          'ended 75' | 'ended 137' | 'ended 143') # stopped or killed: by a preemption, which shows at the next look, or by a hand or a maintenance
            echo "== $(date '+%F %T') the job was stopped on host 0 with status ${said#ended }"
            if [ "$said" = "$before" ]; then
              [ "$made" -le "$recreate" ] || die "gave up: $name was made or started $made times without coming further"
              install && start
              made=$((made + 1)) said=''
            fi
            ;;
          ended*) die "the job failed on host 0 with status ${said#ended }; see bash launch/tpu_pod.sh logs $name --zone=$zone" ;;
          *) install && start ;;
        esac
        ;;
      PREEMPTED | TERMINATED | ABSENT)
        [ "$made" -le "$recreate" ] || die "gave up: $name was made or started $made times without coming further"
        echo "== $(date '+%F %T') $name is $is"
        [ "$is" = ABSENT ] || delete
        create && install && start
        made=$((made + 1))
        ;;
      *) echo "== $(date '+%F %T') $name is $is" ;;
    esac
    case "$is $said" in
      *unknown*) errors=$((errors + 1)) ;;
      *) errors=0 ;;
    esac
    [ "$errors" -lt 5 ] || die "gave up: $name did not answer at 5 looks in a row"
    sleep 60
  done
}

delete() {
  run "${tpu_vm[@]}" delete "$name" "${where[@]}" --quiet
}

case "$action" in
  run | keep) job_command .venv/bin/python "${arguments[@]}" ;; # for its checks
esac
if [ "$action" = keep ]; then
  [[ "$workdir" == /mnt/grm_jax/* ]] ||
    die "--workdir=$workdir: expected a folder in /mnt/grm_jax, the --mount: a preempted slice takes its disks with it"
  [ -n "$mount" ] || die "expected --mount=SERVER:/EXPORT or gs://BUCKET[/FOLDER]"
fi
case "$action" in
  run) start ;;
  status) on_hosts all bash launch/tpu_host.sh status ;;
  logs) on_hosts "$worker" bash launch/tpu_host.sh logs "$lines" ;;
  stop) on_hosts all bash launch/tpu_host.sh stop ;;
  *) "$action" ;;
esac
