"""Ctrl-C and SIGTERM are heard at once, whatever the main thread does; a second one ends all."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from grm_jax import signals

REPO = pathlib.Path(__file__).resolve().parents[1]
# minutes in C, where no handler of Python runs
BUSY = """
import hashlib, sys
from grm_jax import signals

def say(number, times):
    if times > 1:
        signals.end(number, f"{number.name} again")
    print(f"heard {number.name}", file=sys.stderr, flush=True)

with signals.ending(), signals.heard(say):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def start(code: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPO, **pipes)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_long_call_hides_no_signal_and_a_second_one_ends_it(number):
    process = start(BUSY)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(number)
    assert process.stderr.readline() == f"heard {number.name}\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", f"{number.name} again\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_script_ends_in_one_line_wherever_it_is(number):
    process = start(
        "import time; from grm_jax import signals\n"
        "with signals.ending('Again.'):\n    print('busy', flush=True); time.sleep(600)"
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", f"== stopped by {number.name}. Again.\n")
    assert process.returncode == 128 + number


def test_every_script_ends_so():
    scripts = [
        path
        for path in sorted((REPO / "experiments").rglob("*.py"))
        if '__name__ == "__main__"' in path.read_text()
    ]
    assert len(scripts) >= 7
    for path in scripts:
        end = path.read_text().partition('__name__ == "__main__"')[2]
        assert "config_flags.run(main)" in end or "with signals.ending():" in end, path


def test_what_is_ignored_stays_ignored_and_all_is_as_before():
    process = start(  # one of its own: others may have left a handler here
        "import signal; from grm_jax import signals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with signals.heard(lambda number, times: None) as came:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "assert came == [signal.SIGTERM], came\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    )
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_a_thread_hears_nothing():
    """Python lets the main thread alone take signals: a caller's thread goes on as before."""
    heard = []

    def enter():
        with signals.heard(lambda number, times: None) as came:
            heard.append(came)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [[]]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_child_gets_each_signal_once_and_ends_as_it_likes(number):
    """In a group of its own: a terminal's Ctrl-C, which goes to a whole group, would come twice."""
    process = start(
        "import sys; from grm_jax import signals\n"
        "child = 'import signal, sys, time; from grm_jax import signals\\n'\n"
        "child += 'with signals.heard(lambda *_: None) as came:\\n print(1, flush=True)\\n'\n"
        "child += ' while not came: time.sleep(0.01)\\n time.sleep(0.3); sys.exit(len(came))'\n"
        "print(*signals.run([sys.executable, '-c', child]))"
    )
    assert process.stdout.readline() == "1\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == f"1 [{number!r}]\n" and err.startswith(f"{number.name}: passed on to")


def test_what_follows_from_a_signal_is_said_behind_it(monkeypatch):
    monkeypatch.setattr(signals, "SAID_WITHIN_S", 60)
    words = []

    def say(number, times):
        time.sleep(0.1)
        words.append("heard")

    with signals.heard(say) as came:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            words.append(f"stopped {len(came)}")
    assert words == ["heard", "stopped 1", "heard", "stopped 2"]
