"""Fetches the metrics of a run one step late, and hands them to the sinks that the config names."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from grm_jax.json_files import check_fields, decode
from grm_jax.naming import resolve
from grm_jax.parallel import processes
from grm_jax.whole_files import write_whole

# what of a row is measured: beginnings of names. Equal runs differ in it, and in nothing else
MEASURED = (
    "step_s",
    "seconds/",
    "tokens_per_s",
    "computed_tokens_per_s",
    "mfu",
    "goodput",
    "restarts",
    "hbm_",
)


class Work(NamedTuple):
    """Says what a step had to do.

    needed_tokens: real tokens that the update read. computed_tokens: with the padding.
    flops: model FLOPs of the whole step (models/flops.py). update_flops: of the update alone.
    """

    needed_tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0
    update_flops: float = 0.0


NOTHING = Work()


def check_finite(step: int, metrics: Mapping[str, float], item_ids: Sequence[str] = ()) -> None:
    """Raises FloatingPointError if the train step found its loss or a gradient not finite.

    It names the step and the items of its batch. Once it raises, the state is damaged: do not
    checkpoint it.
    """
    if metrics["nonfinite"]:
        raise FloatingPointError(
            f"step {step}: loss {metrics.get('loss')}, gradient norm {metrics['grad_norm']}; "
            f"items of the batch: {', '.join(item_ids)}"
        )


class LateMetrics:
    """Hands out the metrics of step n once step n + 1 has been dispatched.

    So the host never waits for a step that it has just started.

        # in the loop: the step before this one
        for step, row in late.push(step, metrics, ids):
            log.write(step, row)
        # before a checkpoint, and after the loop
        for step, row in late.flush():
            log.write(step, row)
    """

    def __init__(self, speed: Callable[[int, Work], dict[str, float]] | None = None):
        """Starts without a step.

        speed: gives the measured part of a row, of the step that was just fetched and its work
            (`speed.Speed.row`); without it step_s alone, the seconds between two fetches.
        """
        self._pending, self._speed = None, speed or _between_fetches()

    def push(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        item_ids: Sequence[str] = (),
        work: Work = NOTHING,
    ) -> Iterator[tuple[int, dict]]:
        """Takes the metrics of a step just dispatched; yields (step, floats) of the one before.

        They are checked by `check_finite`. Rows get `work`'s tokens, tokens_per_s (needed ones),
        computed_tokens_per_s, and what `speed` gives.
        """
        previous, self._pending = self._pending, (step, metrics, item_ids, work)
        return self._fetch(previous)

    def flush(self) -> Iterator[tuple[int, dict]]:
        """Yields the same for the step not yet handed out; waits for it."""
        previous, self._pending = self._pending, None
        return self._fetch(previous)

    def _fetch(self, pending):
        if pending is None:
            return iter(())
        step, metrics, item_ids, work = pending
        row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        row |= self._speed(step, work)
        seconds = max(row["step_s"], 1e-9)
        for name, tokens in (("needed", work.needed_tokens), ("computed", work.computed_tokens)):
            if tokens:
                rate = "tokens_per_s" if name == "needed" else "computed_tokens_per_s"
                row |= {f"{name}_tokens": float(tokens), rate: tokens / seconds}
        check_finite(step, row, item_ids)
        return iter([(step, row)])


def _between_fetches() -> Callable[[int, Work], dict[str, float]]:
    fetched_at = time.monotonic()

    def row(step, work):
        nonlocal fetched_at
        before, fetched_at = fetched_at, time.monotonic()
        return {"step_s": fetched_at - before}

    return row


class MetricsLog:
    """Hands the rows of a stage to the sinks that `log.sinks` names.

    A sink is `f(folder, stage, resumed_step)`, a name in SINKS or `package.module:function`; it
    returns an object with `write(step, row)` and `close()`. A row is {metric: float}, None where
    the value is not finite. `resumed_step` is the 0-based step of the restored state: a sink drops
    what it has of this stage from there on, so that every step appears once however often the run
    was killed. Of several processes process 0 alone has sinks.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        stage: str,
        resumed_step: int = 0,
        sinks: Sequence[str] = ("jsonl", "tensorboard"),
    ):
        folder, self._sinks = pathlib.Path(folder), []
        if processes.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            for name in sinks:
                self._sinks.append(resolve(name, SINKS)(folder, stage, resumed_step))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands the numbers of a step to all sinks."""
        row = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        for sink in self._sinks:
            sink.write(step, row)

    def close(self) -> None:
        """Closes all sinks."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class JsonLines:
    """Appends rows {"stage", "step", name: float, ...} to `metrics.jsonl`, which the report reads.

    A row is one write of one line, so a killed run leaves at most its last line torn; opening drops
    it. Raises ValueError, naming file and line, where an earlier line is not JSON.
    """

    def __init__(self, folder: pathlib.Path, stage: str, resumed_step: int):
        _drop_rows(folder / "metrics.jsonl", stage, resumed_step)
        self._stage, self._file = stage, open(folder / "metrics.jsonl", "ab", buffering=0)

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Appends the row of a step, as one line."""
        line = json.dumps({"stage": self._stage, "step": step, **row}, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Writes the numbers of each step to `tensorboard/<stage>`."""

    def __init__(self, folder: pathlib.Path, stage: str, resumed_step: int):
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=resumed_step)

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Writes the numbers of a step, but those that are None."""
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Closes the file of events."""
        self._events.close()


class WeightsAndBiases:
    """Logs to Weights & Biases: a run for each stage, grouped by the name of the work folder.

    The project is WANDB_PROJECT, "grm_jax" if that is not set; the other variables of wandb
    (WANDB_MODE=offline, ...) hold too. The run's id is kept in `wandb/<stage>.id`, so a resumed
    stage goes on in it; wandb leaves out steps that it has already.
    """

    def __init__(self, folder: pathlib.Path, stage: str, resumed_step: int):
        import wandb  # pyright: ignore[reportMissingImports]

        path = folder / "wandb" / f"{stage}.id"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        name = folder.absolute().name
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "grm_jax"),
            dir=str(folder),
            group=name,
            name=f"{name}/{stage}",
            id=path.read_text(encoding="utf-8"),
            resume="allow",
        )

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Logs the numbers of a step, but those that are None."""
        self._run.log({k: value for k, value in row.items() if value is not None}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


SINKS = {"jsonl": JsonLines, "tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_sinks(names: Sequence[str]) -> None:
    """Raises ValueError or TypeError where a sink is unknown, or its package is not installed."""
    for name in names:
        resolve(name, SINKS)
        spec = importlib.util.find_spec("wandb") if name == "wandb" else None
        # without an origin it is a folder "wandb" that an earlier run has left here, no package
        if name == "wandb" and (spec is None or spec.origin is None):
            raise ValueError("'wandb' is not installed: pip install wandb, or leave it out")


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Reads the rows of a metrics.jsonl, without a torn last line.

    Raises ValueError, naming file and line, where another line is no row with stage and step.
    """
    rows, lines = [], pathlib.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or torn
        where = f"{path}:{number}"
        kinds = {"stage": str, "step": int}
        rows.append(check_fields(decode(line, where), kinds, where, kinds))
    return rows


def _drop_rows(path, stage, resumed_step):
    if not path.exists():
        return
    kept = [
        row for row in read_metrics(path) if row["stage"] != stage or row["step"] < resumed_step
    ]
    text = "".join(json.dumps(row) + "\n" for row in kept).encode()
    if text != path.read_bytes():
        write_whole(path, text)
