"""Shows in one line on stderr how far a stage is, how fast, and when it will be done.

A rich bar on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from grm_jax.parallel.processes import is_main

# plain lines: a stage that is done sooner prints none; then one this often
FIRST_LINE_S, EVERY_S = 5.0, 15.0


@contextlib.contextmanager
def progress(
    label: str, total: int | None, unit: str = "steps", done: int = 0
) -> Iterator[Callable[..., None]]:
    """Opens a context that gives `advance(n=1, **shown)`: n more units are done.

        with progress("rft", total=400, done=restored_step) as advance:
            for ...: advance(loss=row["loss"])

    total: None where no one knows it.
    done: what an earlier process did; it counts as done but not in the speed. Nor does the first
        advance, which compiles.

    `shown` are numbers to print beside them. Of several processes of one job the first prints.
    """
    if not is_main() or sys.stderr is None:  # closed, as a daemon's may be
        yield lambda n=1, **shown: None
        return
    tracker = _Tracker(label, total, unit, done)
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        # rich would send what is printed to stdout to stderr, to keep it clear of the bar
        shared = sys.stdout.isatty()
        with Progress(*columns, console=Console(stderr=True), redirect_stdout=shared) as bar:
            task = bar.add_task(label, total=total, completed=done, text="")

            def advance(n=1, **shown):
                tracker.add(n)
                bar.update(task, completed=tracker.done, text=tracker.text(shown))

            yield advance
    else:
        next_line = tracker.started + FIRST_LINE_S

        def advance(n=1, **shown):
            nonlocal next_line
            tracker.add(n)
            now = time.monotonic()
            if now >= next_line or (
                tracker.done == total and now - tracker.started >= FIRST_LINE_S
            ):
                next_line = now + EVERY_S
                print(f"{label}: {tracker.text(shown)}", file=sys.stderr, flush=True)

        yield advance


@contextlib.contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Opens a `progress` in MB (10**6 bytes) that gives `advance(n_bytes)`; `total` in bytes."""
    done = 0
    with progress(label, -(-total // 10**6), "MB") as advance:

        def advance_bytes(n_bytes):
            nonlocal done
            before, done = done, done + n_bytes
            advance(-(-done // 10**6) - -(-before // 10**6))

        yield advance_bytes


class _Tracker:
    def __init__(self, label, total, unit, done):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.started = time.monotonic()
        self.first = None  # (time, done) after the first advance

    def add(self, n):
        self.done += n
        self.first = self.first or (time.monotonic(), self.done)

    def text(self, shown):
        now = time.monotonic()
        since, already = self.first or (now, self.done)
        of_total = "" if self.total is None else f"/{self.total:,}"
        parts = [f"{self.done:,}{of_total} {self.unit}", f"{_clock(now - self.started)} elapsed"]
        if self.done > already and now > since:
            rate = (self.done - already) / (now - since)
            parts.append(f"{rate:,.3g} {self.unit}/s")
            if self.total is not None:
                parts.append(f"ETA {_clock((self.total - self.done) / rate)}")
        return "  ".join(parts + [f"{name} {value:.4g}" for name, value in shown.items()])


def _clock(seconds):
    return str(datetime.timedelta(seconds=round(seconds)))
