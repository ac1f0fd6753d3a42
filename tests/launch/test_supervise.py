"""launch/supervise.py: logs, restarts, signals, leftovers, status, and copies in a bucket (with a
stand-in for gcloud).
"""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "launch"))
import supervise  # noqa: E402

LOG = socket.gethostname() + ".log"
# gs:// is the folder $BUCKETS. rsync copies what is newer or absent; `cp - URL` writes its input.
GCLOUD = """#!/usr/bin/env python3
import os, pathlib, re, shutil, sys
words = sys.argv[1:]
with open(os.environ["BUCKETS"] + "/calls", "a") as calls:
    print(*words, file=calls)
local = lambda url: pathlib.Path(url.replace("gs://", os.environ["BUCKETS"] + "/"))
if os.path.exists(os.environ["BUCKETS"] + "/broken"):
    sys.exit(1)
assert words[0] == "storage"
if words[1] == "cp":
    local(words[3]).parent.mkdir(parents=True, exist_ok=True)
    local(words[3]).write_bytes(sys.stdin.buffer.read())
else:
    exclude = [re.compile(word.removeprefix("--exclude=")) for word in words if word.startswith("--exclude=")]
    source, target = local(words[-2]), local(words[-1])
    for path in source.rglob("*"):
        name = str(path.relative_to(source))
        if path.is_file() and not any(one.match(name) for one in exclude):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(OPTION..., COMMAND) -> (status, log) in this process's place, with no pause before
    restarts.
    """
    monkeypatch.setattr(supervise, "PAUSE_S", 0)

    def run(*options: str, command: list[str]):
        status = supervise.main([f"--logs={tmp_path}/logs", *options, "--", *command])
        return status, (tmp_path / "logs" / LOG).read_text()

    return run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_that_ends_well_runs_once(run, tmp_path, capfd):
    status, log = run(
        f"--status={tmp_path}/job.status",
        command=python("import sys; print('out'); print('err', file=sys.stderr)"),
    )
    assert status == 0 and "out\nerr\n" in log and log.count("attempt ") == 1
    assert (tmp_path / "job.status").read_text() == "ended 0\n"
    assert capfd.readouterr().out == log  # the same on the screen


def test_a_command_that_fails_is_started_again(run, tmp_path):
    count = (
        f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'n')!r}); n = int(p.read_text()) "
        "+ 1 if p.exists() else 1; p.write_text(str(n));"
    )
    status, log = run("--restarts=3", command=python(count + "sys.exit(0 if n == 3 else 7)"))
    assert status == 0 and (tmp_path / "n").read_text() == "3"
    assert log.count("ended with status 7") == 2 and "attempt 3" in log


def test_restarts_have_a_limit(run):
    status, log = run(
        "--restarts=2", command=python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    )
    assert (
        status == 137
        and log.count("ended with status 137") == 3
        and log.endswith("gave up after 2 restarts that came no further\n")
    )


RUN = """
import pathlib, sys
workdir = pathlib.Path({workdir!r})
count = workdir / "count"
n = int(count.read_text()) + 1 if count.is_file() else 1
count.parent.mkdir(exist_ok=True)
count.write_text(str(n))
def made(name, text=""):
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
"""


def failing(tmp_path, what: str, *options: str) -> tuple[int, str, int]:
    """(status, log, attempts) of a run that does `what` and fails, where n is the attempt."""
    code = RUN.format(workdir=str(tmp_path)) + what
    status = supervise.main([f"--logs={tmp_path}/logs", *options, "--", *python(code)])
    attempts = int((tmp_path / "count").read_text())
    return status, (tmp_path / "logs" / LOG).read_text(), attempts


@pytest.mark.parametrize(
    "what",
    [
        "made(f'checkpoints/rl/{n}/state')",
        "made(f'stages/stage{n}.json')",
        "made('judgments/grm/test/greedy.jsonl', 'row' * n)",
        "made(f'trajectories/base/train/{n}.jsonl', 'row')",
    ],
)
def test_restarts_are_counted_anew_after_progress(tmp_path, monkeypatch, what):
    monkeypatch.setattr(supervise, "PAUSE_S", 0)
    status, log, attempts = failing(
        tmp_path, f"if n <= 4: {what}\nsys.exit(7 if n < 12 else 0)", "--restarts=2"
    )
    # the fourth came further, as the last; two more without
    assert attempts == 6 and status == 7 and log.endswith("restarts that came no further\n")


@pytest.mark.parametrize(
    "what",
    [
        "made('metrics.jsonl', 'row' * n)",
        "made('trajectories/rl.jsonl', 'row' * n)",  # made again behind the last checkpoint
        "made(f'checkpoints/rl/{n}.orbax-checkpoint-tmp/state')",
        "made(f'checkpoints/rl/{n}.damaged/state')",
        "made('checkpoints/rl/9/state'); made(f'checkpoints/rl/{9 - n}/state')",
        "made(f'logs/{n}.log')",
    ],
)
def test_what_is_no_progress(tmp_path, monkeypatch, what):
    monkeypatch.setattr(supervise, "PAUSE_S", 0)
    status, _, attempts = failing(tmp_path, f"{what}\nsys.exit(7)", "--restarts=2")
    assert attempts == 3 and status == 7


def test_a_job_that_saved_because_another_host_was_stopped_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "PAUSE_S", 0)
    status, log, attempts = failing(tmp_path, "sys.exit(75 if n < 9 else 0)", "--restarts=1")
    assert (status, attempts) == (0, 9) and "gave up" not in log


def test_without_restarts_the_status_says_whether_it_came_further(tmp_path, monkeypatch):
    """In GKE the JobSet starts pods again, and does not count status 75."""
    status, _, attempts = failing(tmp_path, "made(f'stages/{n}.json'); sys.exit(7)", "--restarts=0")
    assert (status, attempts) == (75, 1)
    status, _, attempts = failing(tmp_path, "sys.exit(7)", "--restarts=0")
    assert (status, attempts) == (7, 2)


def start(tmp_path, *options: str, code: str) -> subprocess.Popen:
    words = [
        sys.executable,
        REPO / "launch/supervise.py",
        f"--logs={tmp_path}/logs",
        f"--status={tmp_path}/status",
        *options,
        "--",
        *python(code),
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "ready\n":
            return process
    raise AssertionError("the command did not start")


READY = "import os, signal, subprocess, sys, time\n"


def test_sigterm_is_passed_on_and_the_command_may_save(tmp_path):
    save = (
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('saved'), "
        "sys.exit(3))); print('ready'); time.sleep(60)"
    )
    process = start(tmp_path, code=READY + save)
    assert (tmp_path / "status").read_text() == f"running {process.pid}\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and "saved\n" in out and "attempt 2" not in out
    assert (tmp_path / "status").read_text() == "ended 3\n"


def test_sigkill_follows_after_the_grace(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
    process = start(tmp_path, "--grace=1", code=READY + deaf)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 137 and "the command has 1 s" in out and time.monotonic() - began < 30
    )


def test_what_the_command_leaves_behind_ends_too(tmp_path):
    child = "child = subprocess.Popen(['sleep', '60']); print(child.pid); print('ready')"
    process = start(tmp_path, "--restarts=0", code=READY + child)
    process.communicate(timeout=30)  # would wait for the child, which holds the output
    assert process.returncode == 0


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder behind gs://b/run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcloud").write_text(GCLOUD)
    (tmp_path / "bin/gcloud").chmod(0o755)
    monkeypatch.setenv(
        "PATH", f"{tmp_path}/bin:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"
    )
    monkeypatch.setenv("BUCKETS", str(tmp_path))
    return tmp_path / "b/run"


MAKE = """
import pathlib
for name in ("config.json", "checkpoints/rl/4/state", "checkpoints/rl/6.orbax-checkpoint-tmp-1/state", "judgments/rl.jsonl", "stages/rft.json"):
    path = pathlib.Path({workdir!r}, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
"""


def files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_work_folder_goes_to_the_bucket_and_comes_back(run, tmp_path, bucket):
    workdir = tmp_path / "work"
    options = ("--bucket=gs://b/run", f"--workdir={workdir}")
    status, _ = run(*options, command=python(MAKE.format(workdir=str(workdir))))
    kept = {
        "launched.txt",
        "config.json",
        "checkpoints/rl/4/state",
        "judgments/rl.jsonl",
        "stages/rft.json",
    }
    assert status == 0 and files(bucket) == kept
    copies = [line.split()[-1] for line in (tmp_path / "calls").read_text().splitlines()][-3:]
    assert copies == ["gs://b/run/checkpoints", "gs://b/run", "gs://b/run/stages"]

    elsewhere = tmp_path / "empty_disk"
    seen = (
        "import pathlib; print(sorted(p.name for p in "
        f"pathlib.Path({str(elsewhere)!r}).rglob('*') if p.is_file()))"
    )
    _, log = run("--bucket=gs://b/run", f"--workdir={elsewhere}", command=python(seen))
    assert str(sorted(pathlib.Path(name).name for name in kept)) in log

    (elsewhere / "config.json").write_text("newer")
    # a run is there: nothing is fetched
    run("--bucket=gs://b/run", f"--workdir={elsewhere}", command=python("pass"))
    assert (
        (elsewhere / "config.json").read_text() == (bucket / "config.json").read_text() == "newer"
    )


def test_a_stage_that_ends_while_it_is_copied_is_not_marked_yet(tmp_path, bucket, monkeypatch):
    workdir = tmp_path / "work"
    (workdir / "stages").mkdir(parents=True)
    (workdir / "config.json").write_text("{}")
    (workdir / "stages/rft.json").write_text("{}")
    real = subprocess.run

    def copy_while_the_next_stage_ends(command, **options):
        done = real(command, **options)
        (workdir / "models").mkdir(exist_ok=True)
        (workdir / "models/grm").write_text("weights")
        (workdir / "stages/rl.json").write_text("{}")
        return done

    monkeypatch.setattr(supervise.subprocess, "run", copy_while_the_next_stage_ends)
    assert supervise.copy("gs://b/run", workdir)
    assert files(bucket) == {"config.json", "stages/rft.json"}


def test_copies_are_made_while_the_command_runs(tmp_path, bucket):
    workdir = tmp_path / "work"
    code = READY + MAKE.format(workdir=str(workdir)) + "\nprint('ready'); time.sleep(60)"
    process = start(
        tmp_path, "--bucket=gs://b/run", f"--workdir={workdir}", "--every=0.2", code=code
    )
    deadline = time.monotonic() + 60
    while "stages/rft.json" not in files(bucket) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert "stages/rft.json" in files(bucket)


def test_a_bucket_that_cannot_be_reached_is_not_an_empty_one(run, tmp_path, bucket):
    (tmp_path / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        run(
            "--bucket=gs://b/run",
            f"--workdir={tmp_path / 'work'}",
            command=python("print('started')"),
        )
    assert not (tmp_path / "logs").exists()


def test_a_copy_that_fails_at_the_end_shows_in_the_status(run, tmp_path, bucket, capfd):
    workdir = tmp_path / "work"
    breaks = (
        MAKE.format(workdir=str(workdir)) + f"pathlib.Path({str(tmp_path / 'broken')!r}).touch()"
    )
    status, _ = run("--bucket=gs://b/run", f"--workdir={workdir}", command=python(breaks))
    assert (
        status == 1
        and ("== the copy to gs://b/run failed: gcloud storage rsync") in capfd.readouterr().out
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--logs=l", "true"], "unrecognized arguments: true"),
        (["--logs=l", "--restarts=-1", "--", "true"], "--restarts: expected a number >= 0, got -1"),
        (["--logs=l"], "expected -- and a command behind the options"),
        (["--", "true"], "the following arguments are required: --logs"),
        (
            ["--logs=l", "--bucket=b/run", "--workdir=w", "--", "true"],
            "--bucket: expected gs://BUCKET/FOLDER with --workdir beside it",
        ),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        supervise.main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_dry_run(capsys):
    supervise.main(
        [
            "--logs=l",
            "--bucket=gs://b/r",
            "--workdir=w",
            "--restarts=1",
            "--dry-run",
            "--",
            "job",
            "--x=a b",
        ]
    )
    assert (
        capsys.readouterr().out
        == f"""\
unless w/config.json is there: gcloud storage cp - gs://b/r/launched.txt
unless w/config.json is there: gcloud storage rsync --recursive gs://b/r w
up to 2 times in which it comes no further: job '--x=a b'
log: l/{LOG}; SIGTERM and SIGINT are passed on, SIGKILL follows after 120 s
every 300 s, and at the end: gcloud storage rsync --recursive '--exclude=.*\\.orbax-checkpoint-tmp.*' w/checkpoints gs://b/r/checkpoints
every 300 s, and at the end: gcloud storage rsync --recursive '--exclude=^(checkpoints|stages)/.*' w gs://b/r
every 300 s, and at the end: gcloud storage rsync --recursive STAGES_DONE gs://b/r/stages
"""
    )
