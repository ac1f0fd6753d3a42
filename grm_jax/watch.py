"""Watches the steps of a stage from a thread, in each process.

    with watching("rl") as beat:
        for step in ...:
            beat(step)                  # a step begins
            place("rollout")            # what it is at, in a word

A step that takes many times its usual time says so on stderr, once: stage, process, step, place,
and the stacks of all threads. Nothing is ended, and a step that takes its time says nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator

from grm_jax.parallel import processes

# late: a step of FACTOR times the median of those before it, once SEEN were seen, and of FLOOR_S
SEEN, FACTOR, FLOOR_S, LOOK_S, LAST = 5, 8.0, 30.0, 2.0, 101
# or, while the thread that steps is in one of these, of WAITING_S: it compiles, writes a
# checkpoint, or waits for a server
WAITING_S = 600.0
WAITS = ("jax/_src/compiler.py", "/orbax/", "grm_jax/checkpoint/", "grm_jax/reward_models/remote")

_open: list[_Watch] = []  # those that look, the innermost last


@contextlib.contextmanager
def watching(stage: str) -> Iterator[Callable[..., None]]:
    """Opens a context that watches, and gives `beat(step=None)`: another step begins.

    step: its number; where there is none, steps are counted.
    """
    watch = _Watch(stage)
    _open.append(watch)
    thread = threading.Thread(target=watch.look, name=f"watch {stage}", daemon=True)
    thread.start()
    try:
        yield watch.beat
    finally:
        watch.over.set()
        _open.remove(watch)
        thread.join()


def place(word: str) -> None:
    """Says what the present step is at. Nothing happens where nobody watches."""
    if _open:
        _open[-1].place = word


class _Watch:
    def __init__(self, stage):
        self.stage, self.place, self.step = stage, "", None
        self.over, self.thread = threading.Event(), threading.get_ident()
        self.times = deque(maxlen=LAST)
        self.began, self.told = None, None  # told: when the step began that has said so

    def beat(self, step=None):
        now, before = time.monotonic(), self.began
        told, self.began = before is not None and self.told == before, now
        if before is not None:
            self.times.append(now - before)
            if told:
                print(f"{self._who()}: went on after {now - before:.0f} s", file=sys.stderr)
        self.step = step if step is not None else (0 if self.step is None else self.step + 1)
        self.place = ""

    def look(self):
        while not self.over.wait(LOOK_S):
            began = self.began
            if began is None or began == self.told:
                continue
            if self.late(time.monotonic() - began) and began == self.began:
                self._tell(time.monotonic() - began)
                self.told = began

    def late(self, took):
        """Whether a step that has taken so many seconds is to say so."""
        times = list(self.times)
        if len(times) < SEEN or took <= max(FACTOR * statistics.median(times), FLOOR_S):
            return False
        return took > WAITING_S or not self._waits()

    def _waits(self):
        """Whether the thread that steps is where steps may take long."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in WAITS):
                return True
            frame = frame.f_back
        return False

    def _who(self):
        job = processes.count()
        process = ""
        if job > 1:
            process = f", process {processes.index()} of {job} on {socket.gethostname()}"
        at = f", {self.place}" if self.place else ""
        return f"{self.stage}{process}, step {self.step}{at}"

    def _tell(self, took):
        if sys.stderr is None:
            return
        usual, seen = statistics.median(self.times), len(self.times)
        print(
            f"{self._who()}: {took:.0f} s so far, where a step takes {usual:.3g} s (median of "
            f"{seen}). It is not ended; the stacks of all threads:",
            file=sys.stderr,
            flush=True,
        )
        try:
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        except (OSError, ValueError):  # stderr is no file of the system
            for frame in list(sys._current_frames().values()):
                traceback.print_stack(frame, file=sys.stderr)
