"""Adds up which share of a stage's wall time went into steps that count, over all its starts."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from grm_jax.json_files import check_fields, read_object
from grm_jax.parallel import processes
from grm_jax.whole_files import write_json

FILE = "goodput.json"
USEFUL = ("rollout", "logprobs", "update")  # phases
_KINDS: dict[str, Any] = {"began": float, "starts": int, "useful_s": dict}


class Goodput:
    """Keeps goodput.json of a work folder: {stage: {began, starts, useful_s}}.

    began: Unix time of the stage's first start.
    starts: how often it was started, resumed or not.
    useful_s: {steps done: seconds} at each checkpoint.

    Compiling, host work, checkpoints, time in which nothing ran and steps that a restart does
    again are in the wall time alone. What is here changes no step. Process 0 alone writes.
    """

    def __init__(self, folder: str | os.PathLike, stage: str, first: int):
        self._path, self._stage, self._useful = pathlib.Path(folder) / FILE, stage, 0.0
        self._mine: dict[str, Any] = {"began": time.time(), "starts": 0, "useful_s": {}}
        if not processes.is_main():
            return
        found = self._all().get(stage)
        if found is not None:
            self._mine = check_fields(found, _KINDS, f"{self._path}: {stage}", _KINDS)
        kept = {int(step): s for step, s in self._mine["useful_s"].items() if int(step) <= first}
        self._useful = kept[max(kept)] if kept else 0.0
        self._mine["useful_s"] = {str(step): kept[step] for step in sorted(kept)}
        self._mine["starts"] += 1
        self._write()

    def add(self, row: Mapping[str, float]) -> dict[str, float]:
        """Takes the seconds of a step that is done; returns goodput, of all time, and restarts."""
        self._useful += sum(row.get(f"seconds/{name}", 0.0) for name in USEFUL)
        whole = max(time.time() - self._mine["began"], self._useful, 1e-9)
        return {"goodput": self._useful / whole, "restarts": float(self._mine["starts"] - 1)}

    def mark(self, steps_done: int) -> None:
        """Writes what a run that is resumed from here goes on with."""
        if processes.is_main():
            self._mine["useful_s"][str(steps_done)] = self._useful
            self._write()

    def _all(self) -> dict:
        return read_object(self._path) if self._path.is_file() else {}

    def _write(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._all() | {self._stage: self._mine})
