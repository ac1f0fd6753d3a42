"""A folder or file is one process's: what the others are told, and when it is free again."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from grm_jax import locks

REPO = pathlib.Path(__file__).resolve().parents[1]
HOLDER = """
import pathlib, sys, time
from grm_jax import locks
locks.hold(pathlib.Path(sys.argv[1]), "it")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_where_and_since_when(other, tmp_path):
    lock = tmp_path / ".lock"
    about = json.loads(lock.read_text())
    host = os.uname().nodename
    assert about["process"] == other.pid and about["host"] == host
    for ago, words in ((5, "[0-9]+ s"), (200, "3 min"), (7300, "2 h 1 min"), (2e5, "2 days")):
        lock.write_text(json.dumps(about | {"since": time.time() - ago}) + "\n")
        said = f"^runs/a is in use by process {other.pid} on {host}, for {words} \\(since 20"
        with pytest.raises(ValueError, match=said):
            locks.hold(lock, "runs/a")
    for written in ("", "{}", "process 7 on host\n"):  # being written, or by an older version
        lock.write_text(written)
        words = written.strip() if written.startswith("process") else "(another process|{})"
        with pytest.raises(ValueError, match=f"runs/a is in use by {words}$"):
            locks.hold(lock, "runs/a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_however_that_ends(other, tmp_path, number):
    os.kill(other.pid, number)
    other.wait()
    release = locks.hold(tmp_path / ".lock", "runs/a")
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    release()


def test_a_process_holds_it_once_and_gives_it_back(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    release = locks.hold(lock, "it")
    locks.hold(lock, "it")
    monkeypatch.chdir(tmp_path)
    locks.hold(pathlib.Path(".lock"), "it")  # the same one
    release()
    assert not lock.exists()
    release()  # nothing is left to give back
    locks.hold(lock, "it")()


def test_a_lock_that_was_removed_in_between_is_not_taken_for_one(tmp_path, monkeypatch):
    """Who gives back removes the file, and another may have opened it before."""
    lock, flock, taken = tmp_path / ".lock", fcntl.flock, []

    def removed_just_before(file, how):
        taken.append(file.fileno())
        if len(taken) == 1:
            lock.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    release = locks.hold(lock, "it")
    assert len(taken) == 2 and lock.is_file()
    release()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks.hold(tmp_path / ".lock", "runs/a")()
    assert "runs/a: no locks here" in caplog.text and "nothing keeps other processes" in caplog.text


def test_a_process_that_ends_with_a_lock_ends_in_no_warning(tmp_path):
    code = (
        "import pathlib, sys; from grm_jax import locks; locks.hold(pathlib.Path(sys.argv[1]), '')"
    )
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", code, str(tmp_path / ".lock")]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
