"""launch/slurm.sbatch where a scheduler runs it, with stand-ins for srun, scancel and scontrol."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
# `srun ... env NAME=VALUE ... COMMAND`: what the job does is the file `job` beside the repository
SRUN = """#!/usr/bin/env bash
for word in "$@"; do
  case "$word" in launch/install.sh) exit ;; esac
done
echo run >>"$PLACE/runs"
bash "$PLACE/job" &
echo $! >"$PLACE/pid"
wait $!
status=$?
while kill -0 "$(cat "$PLACE/pid")" 2>/dev/null; do wait "$(cat "$PLACE/pid")"; status=$?; done
exit $status
"""
TOOLS = {
    "srun": SRUN,
    "scancel": '#!/bin/sh\nkill -TERM "$(cat "$PLACE/pid")"\n',
    "scontrol": '#!/bin/sh\necho "$@" >>"$PLACE/requeued"\n',
    "sleep": "#!/bin/sh\nexec /bin/sleep 0.1\n",
}


@pytest.fixture
def submit(tmp_path):
    """submit(JOB, COUNT, OPTION...): a running batch script in its COUNTth time in the queue."""
    shutil.copytree(REPO / "launch", tmp_path / "repository/launch")
    (tmp_path / "repository/.venv/bin").mkdir(parents=True)
    (tmp_path / "repository/.venv/bin/python").symlink_to(sys.executable)
    for name, text in TOOLS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PLACE": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path / "repository"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[0-1]",
    }

    def submit(job: str, *options: str, count: int = 0) -> subprocess.Popen:
        (tmp_path / "job").write_text(f"cd {tmp_path}/work; {job}\n")
        (tmp_path / "runs").unlink(missing_ok=True)
        (tmp_path / "pid").unlink(missing_ok=True)
        words = [*options, "--", "--config=c", f"--workdir={tmp_path}/work"]
        return subprocess.Popen(
            ["bash", str(REPO / "launch/slurm.sbatch"), *words],
            env=environment | {"SLURM_RESTART_COUNT": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return submit


def said(process: subprocess.Popen) -> str:
    return process.communicate(timeout=120)[0]


def runs(tmp_path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


FURTHER = "mkdir -p checkpoints/rl/$(wc -l <../runs)"


def test_restarts_are_counted_anew_after_progress(submit, tmp_path):
    job = f"[ $(wc -l <../runs) -gt 3 ] || {FURTHER}; exit 7"
    process = submit(job, "--restarts=1")
    output = said(process)
    # the third came further, as the last; one more without
    assert process.returncode == 2 and runs(tmp_path) == 4, output
    assert "gave up after 1 restarts that came no further" in output
    assert "ended with status 7; rl 3" in output


def test_a_job_that_saved_elsewhere_is_no_failure(submit, tmp_path):
    process = submit("[ $(wc -l <../runs) -gt 4 ] || exit 75", "--restarts=1")
    assert said(process) and process.returncode == 0 and runs(tmp_path) == 5


def before_the_time_limit(submit, tmp_path, job: str, count: int) -> tuple[int, str]:
    process = submit(job, "--restarts=2", count=count)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (tmp_path / "ready").unlink()
    process.send_signal(signal.SIGUSR1)
    output = said(process)
    return process.returncode, output


def test_the_queue_is_no_limit_to_a_job_that_comes_further(submit, tmp_path):
    saves = "trap 'mkdir -p checkpoints/rl/{}; exit 75' TERM; touch ../ready; "
    waits = "while true; do /bin/sleep 0.1; done"
    for count in range(5):
        status, output = before_the_time_limit(
            submit, tmp_path, saves.format(count + 1) + waits, count
        )
        assert status == 0, output
    assert (tmp_path / "requeued").read_text().splitlines() == ["requeue 7"] * 5
    for count in (5, 6):  # from now on it comes no further: twice more, as --restarts says
        status, output = before_the_time_limit(submit, tmp_path, saves.format(5) + waits, count)
        assert (status == 0) == (count == 5), output
    assert "2 times in the queue again without having come further" in output
    assert (tmp_path / "requeued").read_text().splitlines() == ["requeue 7"] * 6
