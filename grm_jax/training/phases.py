"""Tells how long each phase of a step takes, without waiting for a device; traces steps on demand.

    with Phases("rl", trace) as phases:
        for step in phases.steps(first, total):
            phases.begin("rollout")         # until the next begin
            ...
            phases.begin("update")
            state, metrics = train_step(state, batch)
            phases.until(metrics["loss"])   # what the devices do is done when this is there
            phases.begin("host")
            ...
            phases.seconds(step - 1)        # {"seconds/rollout": ..., ...}

The host hands work to the devices and goes on, so its own clock says little of them. A thread waits
for the arrays given to `until` and notes when they are there. An instant belongs to the phase that
the devices are at, else to the one that the host is at; so the seconds of a step add up to the time
from the end of the step before to its own end.
"""

from __future__ import annotations

import contextlib
import pathlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax import monitoring

from grm_jax import watch
from grm_jax.parallel import processes

HOST = ("host", "checkpoint")  # what is not a phase of its own in the metrics
# a count of steps to trace begins here, counted from the first of a process: those before compile
WARM = 2
# durations that JAX reports, in seconds; tracing is within them or short
_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compiled = {"seconds": 0.0, "programs": 0}


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    if event in _COMPILING:
        _compiled["seconds"] += duration_secs
        _compiled["programs"] += event == _COMPILING[1]


monitoring.register_event_duration_secs_listener(_on_duration)


def programs_compiled() -> int:
    """Counts the programs that this process has compiled, or read from the cache on disk."""
    return int(_compiled["programs"])


class Trace(NamedTuple):
    """Says which steps of each stage to trace, and where to.

    folder: of the traces, one folder in it for each stage.
    first: step number, or None: after WARM steps of a process.
    steps: how many.
    """

    folder: pathlib.Path
    first: int | None
    steps: int

    def of(self, stage: str, begun_at: int) -> tuple[pathlib.Path, int, int]:
        """Returns (folder, first step, the step after the last) of a stage begun at a step."""
        first = begun_at + WARM if self.first is None else self.first
        folder = self.folder / stage
        if processes.count() > 1:  # several on one host would write to one file
            folder /= f"process_{processes.index()}"
        return folder, first, first + self.steps


def trace_of(text: str, folder: pathlib.Path) -> Trace | None:
    """Reads --profile: "10:13" for steps 10, 11 and 12, "3" for three warm steps, "" for none.

    Raises ValueError for another text.
    """
    if not text:
        return None
    first, colon, last = text.partition(":")
    numbers = [first, last] if colon else [first]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"expected FIRST:LAST or a number of steps, got {text!r}")
    steps = int(last) - int(first) if colon else int(first)
    if steps < 1:
        raise ValueError(f"expected at least one step, got {text!r}")
    return Trace(folder, int(first) if colon else None, steps)


class Span(NamedTuple):
    """Holds one phase of a step, in seconds of one clock.

    began, ended: on the host. ready: when the devices were done, None where nobody waits for them.
    compiling: seconds of it that went into compiling.
    """

    name: str
    began: float
    ended: float
    ready: float | None = None
    compiling: float = 0.0


def attribute(spans: Sequence[Span], before: float) -> tuple[dict[str, float], float]:
    """Shares out the time from `before`, the end of the step before, to the end of this step.

    Returns ({step_s, seconds/PHASE}, the end). seconds/compile is what was compiled in it, whatever
    phase it was for; seconds/host all else, checkpoints among it. Together they are step_s.
    """
    cursor, spent = before, {}
    for span in spans:
        if span.name not in HOST:
            stop = max(cursor, span.ended if span.ready is None else span.ready)
            took = stop - max(span.began, cursor) - span.compiling
            spent[span.name] = spent.get(span.name, 0.0) + max(0.0, took)
            cursor = stop
    step_s, compiling = cursor - before, sum(span.compiling for span in spans)
    rest = max(0.0, step_s - sum(spent.values()) - compiling)
    named = spent | {"host": rest, "compile": compiling}
    return {"step_s": step_s} | {f"seconds/{name}": took for name, took in named.items()}, cursor


class _Record:
    """One phase of a step under way, or done but for the devices."""

    def __init__(self, name):
        self.name, self.began, self.ended, self.ready = name, time.monotonic(), None, None
        self.compiled, self.compiling = _compiled["seconds"], 0.0
        self.done = threading.Event()
        self.done.set()

    def end(self):
        self.ended = time.monotonic()
        self.compiling = _compiled["seconds"] - self.compiled

    def span(self):
        self.done.wait()
        ended = self.ended or time.monotonic()
        return Span(self.name, self.began, ended, self.ready, self.compiling)


def _options():
    """Names of phases say what Python is at; every call of it would make a trace of megabytes."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


class Phases:
    """Keeps the phases of the steps of a stage; see the top of this file.

    Steps and phases are those that `watch` speaks of, and that a trace shows.
    """

    def __init__(self, stage: str, trace: Trace | None = None):
        self._stage, self._trace = stage, trace
        self._records: dict[int, list[_Record]] = {}
        self._step, self._annotation, self._tracing = -1, None, False
        self._end = time.monotonic()  # of the last step whose seconds were asked for
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._open = contextlib.ExitStack()
        self._last = None

    def __enter__(self):
        self._beat = self._open.enter_context(watch.watching(self._stage))
        name = f"phases {self._stage}"
        self._waiter = threading.Thread(target=self._wait, name=name, daemon=True)
        self._waiter.start()
        return self

    def __exit__(self, *_):
        self._leave()
        self._stop_trace()
        self._queue.put(None)
        self._waiter.join(timeout=5.0)
        self._open.close()

    def steps(self, first: int, total: int) -> Iterator[int]:
        """Yields the steps from `first` on to `total`, and traces those that are to be."""
        folder, start, stop = (None, -1, -1)
        if self._trace is not None:
            folder, start, stop = self._trace.of(self._stage, first)
        self._end = time.monotonic()
        for step in range(first, total):
            if folder is not None and start <= step < stop and not self._tracing:
                jax.profiler.start_trace(folder, profiler_options=_options())
                self._tracing = True
            self._step, self._records[step] = step, []
            self._beat(step)
            with jax.profiler.StepTraceAnnotation(self._stage, step_num=step):
                self.begin("host")
                yield step
                if self._tracing and step + 1 == min(stop, total) and self._last is not None:
                    jax.block_until_ready(self._last)  # the trace is of whole steps
                self._leave()
            if step + 1 == stop:
                self._stop_trace()

    def begin(self, name: str) -> None:
        """Ends the phase under way, and begins another."""
        self._leave()
        watch.place(name)
        self._records.setdefault(self._step, []).append(_Record(name))
        self._annotation = jax.profiler.TraceAnnotation(name)
        self._annotation.__enter__()

    def until(self, array: jax.Array) -> None:
        """Says that the work of this phase on the devices is done when the array is there."""
        record = self._records[self._step][-1]
        record.done.clear()
        self._last = array
        self._queue.put((record, array))

    def seconds(self, step: int) -> dict[str, float]:
        """Returns step_s and seconds/PHASE of a step (`attribute`); waits for its devices.

        Ask once for each step, in order.
        """
        spans = [record.span() for record in self._records.pop(step)]
        row, self._end = attribute(spans, self._end)
        return row

    def _leave(self):
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        records = self._records.get(self._step)
        if records and records[-1].ended is None:
            records[-1].end()

    def _stop_trace(self):
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def _wait(self):
        while (item := self._queue.get()) is not None:
            record, array = item
            try:
                array.block_until_ready()
            except Exception:  # the thread that steps gets the same, and says so
                pass
            record.ready = time.monotonic()
            record.done.set()
            del item, array, record
