"""Measures a stage: seconds by phase, share of the chips' peak, memory, goodput; one step late."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from grm_jax.models.config import ModelConfig
from grm_jax.models.flops import ADAPTED, TRAINED, forward_flops, token_flops
from grm_jax.parallel import processes
from grm_jax.parallel.hardware import GIB, memory_in_use, peak_flops
from grm_jax.sampling.engine import Counts
from grm_jax.training.goodput import Goodput
from grm_jax.training.metrics import LateMetrics, Work
from grm_jax.training.phases import Phases, Trace

Observed = tuple[Phases, LateMetrics, Goodput]


class Speed:
    """Gives the measured part of the rows of a stage (`metrics.LateMetrics`).

    peak: FLOP/s of all devices together, None where it is not known.
    """

    def __init__(self, phases: Phases, goodput: Goodput, peak: float | None):
        self._phases, self._goodput, self._peak = phases, goodput, peak

    def row(self, step: int, work: Work) -> dict[str, float]:
        """Returns step_s, seconds/PHASE, mfu, mfu_update, hbm_gib, hbm_peak_gib and goodput.

        mfu: model FLOPs of the step over what the chips could do in step_s; mfu_update: of the
        update in its own seconds. Memory is that of the fullest device of process 0, where the
        platform tells.
        """
        row = self._phases.seconds(step)
        if self._peak is not None and work.flops:
            row["mfu"] = work.flops / max(row["step_s"], 1e-9) / self._peak
            update_s = row.get("seconds/update", 0.0)
            if update_s > 0:
                row["mfu_update"] = work.update_flops / update_s / self._peak
        memory = memory_in_use()
        if memory is not None:
            row |= {"hbm_gib": memory[0] / GIB, "hbm_peak_gib": memory[1] / GIB}
        return row | self._goodput.add(row)


@contextlib.contextmanager
def observed(
    folder: str | os.PathLike,
    stage: str,
    first: int,
    mesh: Mesh,
    dtype: str,
    sinks: bool = True,
    trace: Trace | None = None,
) -> Iterator[Observed]:
    """Opens a context that gives the phases of a stage, its late metrics, and its goodput.

    first: step that it goes on from. dtype: of the matrix products, for the peak of a CPU, which is
    measured here, where `sinks` says that someone reads it.
    """
    goodput = Goodput(pathlib.Path(folder), stage, first)
    wanted = sinks and processes.is_main()
    peak = peak_flops(list(mesh.devices.flat), dtype) if wanted else None
    with Phases(stage, trace) as phases:
        yield phases, LateMetrics(Speed(phases, goodput, peak).row), goodput


def fit_work(
    cfg: ModelConfig, positions: list[np.ndarray], logits: int, adapters: bool = False
) -> Work:
    """Counts the work of an update on rows with these positions, of which -1 is padding."""
    needed = sum(int((pos >= 0).sum()) for pos in positions)
    passes = ADAPTED if adapters else TRAINED
    flops = sum(token_flops(cfg, pos, passes=passes) for pos in positions)
    flops += passes.weights * 2.0 * cfg.d_model * cfg.vocab_size * logits
    return Work(needed, sum(pos.size for pos in positions), flops, flops)


def rl_work(
    cfg: ModelConfig,
    prompt_lengths_B: Sequence[int],
    completion_lengths_B: Sequence[int],
    group_size: int,
    positions: np.ndarray,
    passes: int,
    updates: int,
    adapters: bool = False,
) -> Work:
    """Counts the work of an RL step on B rollouts in groups, each of which shares its prompt.

    positions: of the update's rows, -1 in padding. passes: of log-probabilities alone, on the same
    rows; updates: on them.
    """
    pairs = list(zip(prompt_lengths_B, completion_lengths_B, strict=True))
    completed = sum(completion for _, completion in pairs)
    rollout = sum(forward_flops(cfg, prompt) for prompt, _ in pairs[::group_size])
    rollout += sum(
        forward_flops(cfg, prompt + completion, start=prompt) for prompt, completion in pairs
    )
    head = 2.0 * cfg.d_model * cfg.vocab_size * completed
    forward = token_flops(cfg, positions) + head
    trained = ADAPTED if adapters else TRAINED
    update = token_flops(cfg, positions, passes=trained) + trained.weights * head
    update *= updates
    needed = int((positions >= 0).sum())
    return Work(needed, positions.size, rollout + head + passes * forward + update, update)


def engine_metrics(counts: Sequence[Counts]) -> dict[str, float]:
    """Describes what engines drew: tokens, and which share of them was needed. {} without one.

    engine/{prefilled, decoded}_tokens: computed, with padding and rows that were done.
    engine/needed_tokens: of different prompts, and of completions.
    engine/occupancy: needed decode steps of a row over all of them.
    """
    if not counts:
        return {}
    prefilled, decoded, needed_prefill, needed_decode = (
        float(sum(getattr(one, name) for one in counts))
        for name in ("prefilled", "decoded", "needed_prefill", "needed_decode")
    )
    return {
        "engine/prefilled_tokens": prefilled,
        "engine/decoded_tokens": decoded,
        "engine/needed_tokens": needed_prefill + needed_decode,
        "engine/occupancy": needed_decode / max(decoded, 1.0),
    }
