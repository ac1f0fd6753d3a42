"""launch/tpu_pod.sh and tpu_host.sh on a slice of two hosts that are folders, behind a stand-in for
gcloud.
"""

import os
import pathlib
import subprocess
import sys
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
# The slice's state is the file `state`; every host is a folder with a copy of launch/ in grm_jax;
# --worker=all is both.
GCLOUD = """#!/usr/bin/env bash
set -euo pipefail
cd "$POD"
echo "$*" >>calls
worker='' command=''
for word in "$@"; do
  case "$word" in
    --worker=*) worker="${word#*=}" ;;
    --command=*) command="${word#*=}" ;;
  esac
done
case "$4" in
  describe) if [ -f broken ]; then echo 'PERMISSION_DENIED' >&2; exit 1; fi
    if [ -f state ]; then cat state; else echo 'ERROR: NOT_FOUND: no such TPU' >&2; exit 1; fi ;;
  create) echo READY >state ;;
  delete) # and what runs there, whose last word has come before its folder goes
    for status in hosts/*/grm_jax/job.status; do
      read -r said pid <"$status" || continue
      if [ "$said" = running ]; then
        kill "$pid" || true # it may just have ended
        for _ in $(seq 100); do if grep -q ended "$status"; then break; fi; /bin/sleep 0.1; done
      fi
    done
    rm -rf state hosts ;;
  scp) mkdir -p hosts/0 hosts/1 ;;
  ssh)
    if [ "$worker" = all ]; then worker='0 1'; fi
    for w in $worker; do
      mkdir -p "hosts/$w/grm_jax/.venv/bin"
      case "$command" in
        *tpu_host.sh\\ install*) cp -r "$REPO/launch" "hosts/$w/grm_jax" && ln -sf "$JOB_PYTHON" "hosts/$w/grm_jax/.venv/bin/python" ;;
        *'tar -xzf'*) ;;
        *) (cd "hosts/$w" && bash -c "$command") ;;
      esac
    done ;;
esac
"""
# In the place of python: supervise.py runs as it is, with a folder in the place of the mount; the
# job itself is a line of the test's.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -m ]; then exec bash "$POD/job" "$@"; fi
exec {python} "${{@//\\/mnt\\/grm_jax/$POD/mnt}}"
"""


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """pod(ACTION, WORD...): the launcher's result for the slice `grm`. Without the 10 s before a
    restart, and with minutes of 0.3 s.
    """
    for name, text in {
        "gcloud": GCLOUD,
        "sleep": '#!/bin/sh\nexec /bin/sleep "$(case $1 in 60) '
        'echo 0.3 ;; *) echo "$1" ;; esac)"\n',
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "python").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "POD": str(tmp_path),
        "REPO": str(REPO),
        "JOB_PYTHON": str(tmp_path / "python"),
    }
    # git archive writes into the repository's .cache, as in earnest
    yield lambda action, *words: subprocess.run(
        ["bash", "launch/tpu_pod.sh", action, "grm", "--zone=z", *words],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    for status in tmp_path.glob("hosts/*/grm_jax/job.status"):
        if status.read_text().startswith("running "):
            subprocess.run(["kill", status.read_text().split()[1]], capture_output=True)


def job(tmp_path, text: str) -> list[str]:
    """What the job does on a host; the arguments that start it, with a work folder beside the
    hosts.
    """
    (tmp_path / "job").write_text(text + "\n")
    return ["--", "--config=c", f"--workdir={tmp_path}/work"]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def test_install_run_status_logs_stop(pod, tmp_path):
    arguments = job(
        tmp_path,
        "trap 'echo saved; exit 5' TERM; echo \"works on $*, A is $A\"; while true; do sleep "
        "0.1; done",
    )
    assert pod("create", "--accelerator=v5p-16").returncode == 0
    assert pod("install").returncode == 0
    assert "not started" in pod("status").stdout
    began = pod("run", "--env=A=b c", *arguments)
    assert began.returncode == 0 and began.stdout.count(": running ") == 2, began.stderr
    again = pod("run", *arguments)
    assert again.returncode != 0 and "stop it first" in again.stderr
    # both hosts have the name of this machine
    (log,) = wait_for(lambda: list((tmp_path / "work/logs").glob("*.log")))
    assert wait_for(lambda: log.read_text().count("works on -m experiments.spct_rl") == 2)
    assert (
        f"works on -m experiments.spct_rl --config=c --workdir={tmp_path}/work, A is b c"
    ) in pod("logs").stdout
    stopped = pod("stop")
    assert stopped.stdout.count(": ended 5") == 2 and log.read_text().count("saved\n") == 2
    assert pod("status").stdout.split() == ["ended", "5"] * 2


def test_a_host_that_lost_its_job_says_so(pod, tmp_path):
    arguments = job(tmp_path, "while true; do sleep 0.1; done")
    pod("install")
    pod("run", *arguments)
    for path in tmp_path.glob("hosts/*/grm_jax/job.status"):
        pid = int(path.read_text().split()[1])
        child = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(pid, 9)
        [os.kill(int(one), 9) for one in child]
    assert wait_for(lambda: pod("status").stdout.split() == ["ended", "137"] * 2)


def keep(pod, tmp_path, text: str):
    (tmp_path / "job").write_text(text + "\n")
    options = ("--accelerator=v5p-16", "--mount=s:/e", "--recreate=1", "--restarts=0")
    return pod("keep", *options, "--", "--config=c", "--workdir=/mnt/grm_jax/run")


def test_keep_makes_the_slice_again_until_the_job_is_done(pod, tmp_path):
    # The first time the slice is preempted while the job runs, the second time the job ends well.
    text = (
        f"if [ -f {tmp_path}/seen ]; then exit 0; fi; touch {tmp_path}/seen; echo PREEMPTED "
        f">{tmp_path}/state; while true; do sleep 0.1; done"
    )
    done = keep(pod, tmp_path, text)
    calls = [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()]
    assert done.returncode == 0 and "the job is done" in done.stdout, done.stderr
    assert (
        calls.count("create") == 2
        and calls.count("delete") == 1
        and "grm is PREEMPTED" in done.stdout
    )


def test_keep_ends_when_the_job_fails(pod, tmp_path):
    done = keep(pod, tmp_path, "exit 9")
    assert done.returncode != 0 and "the job failed on host 0 with status 9" in done.stderr


STOPPED_ONCE = (
    'case $PWD in */hosts/0/*) ;; *) exit 0 ;; esac; if [ -f "$POD/seen" ]; then exit 0; fi; '
    'touch "$POD/seen"; '
)


def test_keep_survives_the_minutes_of_a_preemption(pod, tmp_path):
    """The job saves and ends with 75, then host 0 does not answer, and only then the slice is said
    to be gone. On the new one the job is done.
    """
    text = STOPPED_ONCE + f"touch {tmp_path}/going; exit 75"
    gcloud = tmp_path / "bin" / "gcloud"
    going = """if [ "$4" = ssh ] && [[ "$command" == *tpu_host.sh\\ status* ]] && [ -f going ]; then
  if [ -f refused ]; then rm going; echo PREEMPTED >state; echo 'Connection refused' >&2; exit 255; fi
  if cat hosts/0/grm_jax/job.status | grep -q ended; then touch refused; fi
fi
"""
    gcloud.write_text(
        gcloud.read_text().replace('case "$4" in\n  describe)', going + 'case "$4" in\n  describe)')
    )
    done = keep(pod, tmp_path, text)
    assert done.returncode == 0 and "the job is done" in done.stdout, done.stdout + done.stderr
    assert (
        ("stopped on host 0 with status 75") in done.stdout
        and "host 0 does not answer" in done.stdout
        and "grm is PREEMPTED" in done.stdout
    )
    assert [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()].count(
        "create"
    ) == 2


def test_keep_starts_a_stopped_job_again_where_the_slice_stays(pod, tmp_path):
    done = keep(pod, tmp_path, STOPPED_ONCE + "exit 75")
    assert done.returncode == 0 and ("stopped on host 0 with status 75") in done.stdout, (
        done.stdout + done.stderr
    )
    assert [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()].count(
        "create"
    ) == 1


def test_keep_counts_a_preemption_only_where_the_run_came_no_further(pod, tmp_path):
    """With --recreate=1 it is preempted four times: three times behind a checkpoint."""
    text = (
        f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) >{tmp_path}/n; "
        f"[ $n -gt 2 ] || mkdir -p {tmp_path}/mnt/run/checkpoints/rl/$n; "
        f"looks() {{ grep -c 'tpu_host.sh progress' {tmp_path}/calls || true; }}; seen=$(looks); "
        f"while [ $(looks) -le $seen ]; do sleep 0.1; done; "
        f"echo PREEMPTED >{tmp_path}/state; while true; do sleep 0.1; done"
    )
    done = keep(pod, tmp_path, "case $PWD in */hosts/0/*) ;; *) exit 0 ;; esac; " + text)
    calls = [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()]
    assert "gave up: grm was made or started 2 times without coming further" in done.stderr
    assert calls.count("create") == 5, done.stdout + done.stderr


def test_keep_does_not_take_an_error_of_gcloud_for_a_lost_slice(pod, tmp_path):
    (tmp_path / "broken").touch()
    done = keep(pod, tmp_path, "exit 0")
    assert (
        done.returncode != 0
        and ("gcloud could not say how grm is: PERMISSION_DENIED") in done.stderr
    )
    assert "create" not in (tmp_path / "calls").read_text()
