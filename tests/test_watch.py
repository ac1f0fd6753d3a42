"""A step that takes many times its usual time says where it is, in each process; others say
nothing.
"""

import threading

import pytest

from grm_jax import watch
from tests.parallel.test_processes import by_environment, finish, start

ONE = """
import sys, time
from grm_jax import watch
watch.FLOOR_S, watch.LOOK_S = 0.2, 0.02

def stuck():
    while not watch._open[-1].told:
        time.sleep(0.01)

with watch.watching("rl") as beat:
    for step in range(12):
        beat(step)
        watch.place("rollout")
        time.sleep(0.001)
    beat(12)
    watch.place("update")
    stuck()
    beat(13)
"""
BOTH = """
import pathlib, sys, time
from grm_jax import watch
from grm_jax.parallel import processes
watch.FLOOR_S, watch.LOOK_S = 0.2, 0.02
job = processes.initialize(timeout_s=120, heartbeat_s=100)
told = [pathlib.Path(sys.argv[1]) / f"told_{i}" for i in range(2)]

def tell():
    while not watch._open[-1].told:
        time.sleep(0.01)
    told[job.index].write_text("")

with watch.watching("rft") as beat:
    for step in range(12):
        beat(step)
        time.sleep(0.001)
    beat(12)
    watch.place("update")
    if job.index == 0:  # waits for the other, and cannot say so itself
        import threading
        threading.Thread(target=tell).start()
        processes.barrier("update")
    else:
        tell()
        while not told[0].exists():
            time.sleep(0.01)
        processes.barrier("update")
"""


def test_a_step_that_hangs_shows_where():
    ((status, _, output),) = finish(start(1, "", lambda i: {}, ONE), 120)
    assert status == 0, output
    said = [line for line in output.splitlines() if line.startswith("rl, step 12, update: ")]
    assert len(said) == 2, output  # once while it hangs, once when it goes on
    assert "s so far, where a step takes" in said[0] and "(median of 12)" in said[0]
    assert "went on after" in said[1]
    stacks = output[output.index(said[0]) :]
    assert " in stuck" in stacks and "(most recent call first)" in stacks


def test_each_process_of_a_job_shows_where_it_is(tmp_path):
    job = start(2, str(tmp_path), by_environment(2), BOTH)
    for i, (status, _, output) in enumerate(finish(job, 120)):
        assert status == 0, output
        said = [line for line in output.splitlines() if line.startswith(f"rft, process {i} of 2")]
        assert any("step 12, update:" in line for line in said), output
        assert ("in barrier" if i == 0 else "in tell") in output, output


def step_late(seen: int, last_s: float) -> bool:
    """Whether a step of last_s behind `seen` of a second each would say so."""
    took = watch._Watch("rft")
    took.times.extend([1.0] * seen)
    return took.late(last_s)


@pytest.mark.parametrize(
    "seen, last_s, late",
    [
        (watch.SEEN - 1, 1e6, False),  # it does not know yet what is usual
        (watch.SEEN, watch.FLOOR_S - 1, False),  # many times the usual, and no time
        (watch.SEEN, watch.FLOOR_S + 1, True),
        (500, 60.0, True),
    ],
)
def test_what_is_late(seen, last_s, late):
    assert step_late(seen, last_s) == late


def test_slow_steps_are_late_by_their_own_measure():
    slow = watch._Watch("rl")
    slow.times.extend([60.0, 60.0, 300.0, 60.0, 60.0, 600.0, 60.0])  # two of them compiled
    assert not slow.late(watch.FACTOR * 60 - 1) and slow.late(watch.FACTOR * 60 + 1)


@pytest.mark.parametrize("part", watch.WAITS)
def test_compiling_and_saving_may_take_longer(part):
    seen = {}
    source = "def wait():\n    took.thread = ident()\n    seen['late'] = took.late(600 - 1)\n"
    took = watch._Watch("rft")
    took.times.extend([1.0] * 9)
    names = {"took": took, "seen": seen, "ident": threading.get_ident}
    exec(compile(source, f"/somewhere/{part}/file.py", "exec"), names)
    names["wait"]()
    assert seen == {"late": False} and took.late(600 - 1)


def test_a_healthy_run_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(watch, "LOOK_S", 0.001)
    with watch.watching("judged") as beat:
        for _ in range(300):
            beat()
            watch.place("rollout")
        assert watch._open
    assert not watch._open and capsys.readouterr() == ("", "")
    watch.place("nobody watches")
