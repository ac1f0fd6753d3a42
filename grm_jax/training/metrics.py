"""Metrics of a run: one JSON line and one TensorBoard event per step, fetched from the device one
step late.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
from tensorboardX import SummaryWriter

from grm_jax.parallel import processes


def check_finite(step: int, metrics: Mapping[str, float], item_ids: Sequence[str] = ()) -> None:
    """Raises FloatingPointError, naming the step and the items of its batch, if the train step
    found its loss or a gradient not finite.

    Once it raises, the state is damaged: do not checkpoint it.
    """
    if metrics["nonfinite"]:
        raise FloatingPointError(
            f"step {step}: loss {metrics.get('loss')}, gradient norm {metrics['grad_norm']}; "
            f"items of the batch: {', '.join(item_ids)}"
        )


class LateMetrics:
    """Hands out the metrics of step n once step n + 1 has been dispatched: the host never waits for
    a step that it has just started.

    for step, row in late.push(step, metrics, ids): log.write(step, row)   # in the loop: the step
    before this one for step, row in late.flush(): log.write(step, row)                    # before
    a checkpoint, and after the loop
    """

    def __init__(self):
        self._pending, self._fetched_at = None, time.monotonic()

    def push(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        item_ids: Sequence[str] = (),
        tokens: int = 0,
    ) -> Iterator[tuple[int, dict]]:
        """Take the metrics of a step just dispatched; yield (step, floats) of the one before,
        checked by `check_finite`.

        `tokens` is how many the step trained on. Rows get step_s, the seconds between this fetch
        and the last, and tokens_per_s.
        """
        previous, self._pending = self._pending, (step, metrics, item_ids, tokens)
        return self._fetch(previous)

    def flush(self) -> Iterator[tuple[int, dict]]:
        """The same for the step not yet handed out; waits for it."""
        previous, self._pending = self._pending, None
        return self._fetch(previous)

    def _fetch(self, pending):
        if pending is None:
            return iter(())
        step, metrics, item_ids, tokens = pending
        row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = time.monotonic()
        row["step_s"], self._fetched_at = now - self._fetched_at, now
        if tokens:
            row["tokens_per_s"] = tokens / max(row["step_s"], 1e-9)
        check_finite(step, row, item_ids)
        return iter([(step, row)])


class MetricsLog:
    """Appends rows {"stage", "step", name: float, ...} to `metrics.jsonl`, and the same numbers to
    `tensorboard/<stage>`.

    A row is one write of one line, so a killed run leaves at most its last line torn; opening drops
    it. Opening also drops the rows of this stage from `resumed_step` on (0-based; the step of the
    restored state), so that every step appears once however often the run was killed; TensorBoard
    is told to do the same. A value that is not finite becomes null. Raises ValueError, naming file
    and line, where an earlier line is not JSON. Of several processes process 0 does all this, and
    the others nothing.
    """

    def __init__(self, folder: str | os.PathLike, stage: str, resumed_step: int = 0):
        self._stage, self._writes = stage, processes.is_main()
        if not self._writes:
            return
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _drop_rows(folder / "metrics.jsonl", stage, resumed_step)
        self._file = open(folder / "metrics.jsonl", "ab", buffering=0)
        self._events = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=resumed_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._writes:
            return
        row = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        self._file.write(
            (
                json.dumps({"stage": self._stage, "step": step} | row, allow_nan=False) + "\n"
            ).encode()
        )
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Rows of a metrics.jsonl, without a torn last line. Raises ValueError, naming file and line,
    where another line is not JSON.
    """
    rows, lines = [], pathlib.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or torn
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected a JSON object, found {line[:80]!r}"
            ) from error
    return rows


def _drop_rows(path, stage, resumed_step):
    if not path.exists():
        return
    kept = [
        row for row in read_metrics(path) if row["stage"] != stage or row["step"] < resumed_step
    ]
    text = "".join(json.dumps(row) + "\n" for row in kept).encode()
    if text != path.read_bytes():
        replacement = path.with_suffix(".jsonl.tmp")
        replacement.write_bytes(text)
        os.replace(replacement, path)
