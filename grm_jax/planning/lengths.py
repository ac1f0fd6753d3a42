"""Counts what the stages of a job have to do at given lengths: tokens that are computed and needed.

A file of lengths is a JSON list of {"prompt", "responses", "completion"}: tokens of a prompt, how
many responses it shows, and tokens of one judgment of it. An entry with 0 responses is of general
instruction data (prompt and answer), of which RFT takes its share; without such entries each has
GENERAL tokens, the mean of a turn of hh-rlhf under Gemma's tokenizer.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.data.packing import Text, pack
from grm_jax.data.pipeline import bucket_length
from grm_jax.json_files import check_fields, decode

GENERAL = 53
BATCHES = 4  # drawn of each stage; figures are means over them
_KINDS = {"prompt": int, "responses": int, "completion": int}


class TextLengths(NamedTuple):
    """Holds lengths in tokens, those of a prompt and its completion side by side."""

    name: str
    prompts: np.ndarray
    completions: np.ndarray
    responses: np.ndarray
    general: np.ndarray  # of whole examples
    left_out: int = 0


class Load(NamedTuple):
    """Holds the tokens of one batch.

    computed: of all rows, padding included. needed: of the sequences, a shared prompt once.
    """

    computed: float
    needed: float


def read_lengths(path: str | os.PathLike, prompt: int, completion: int) -> TextLengths:
    """Reads a file of lengths; prompts above `prompt` are left out, completions cut, as in a run.

    Raises ValueError, naming the file and the entry, for what is not such a list.
    """
    where = str(path)
    entries = decode(pathlib.Path(path).read_bytes(), where)
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected a list of lengths, got {type(entries).__name__}")
    rows = [check_fields(entry, _KINDS, f"{where}[{i}]", _KINDS) for i, entry in enumerate(entries)]
    for i, row in enumerate(rows):
        if min(row["prompt"], row["completion"]) < 1 or row["responses"] < 0:
            raise ValueError(f"{where}[{i}]: expected lengths of at least 1, got {json.dumps(row)}")
    judged = [row for row in rows if row["responses"]]
    kept = [row for row in judged if row["prompt"] <= prompt]
    if not kept:
        raise ValueError(f"{where}: no prompt of at most lengths.prompt = {prompt} tokens")
    general = [row["prompt"] + row["completion"] for row in rows if not row["responses"]]
    return TextLengths(
        where,
        np.array([row["prompt"] for row in kept]),
        np.array([min(row["completion"], completion) for row in kept]),
        np.array([row["responses"] for row in kept]),
        np.minimum(general or [GENERAL], prompt + completion),
        len(judged) - len(kept),
    )


def widest(prompt: int, completion: int) -> TextLengths:
    """Makes the lengths of a job at its widest shapes: every sequence as long as it may be."""
    longest = np.array([prompt + completion])
    one = np.array([prompt]), np.array([completion]), np.array([2])
    return TextLengths("widest", *one, longest)


class Layout(NamedTuple):
    """Says how sequences become rows.

    row_lengths, rows: as `data.packing.pack` takes them. Without row_lengths each sequence is a
    row, and all of a batch are padded to the smallest of `buckets` that holds them.
    """

    row_lengths: Sequence[int]
    rows: int
    buckets: Sequence[int]


def rl_load(lengths: TextLengths, batch: int, group: int, layout: Layout) -> Load:
    """Counts a batch of rollouts: `group` completions of each prompt, each of a length drawn."""

    def units(rng):
        prompts = rng.choice(lengths.prompts, batch // group)
        completions = rng.choice(lengths.completions, (batch // group, group))
        for p, (prompt, several) in enumerate(zip(prompts, completions)):
            for completion in several:
                yield p, int(prompt), int(completion)

    return _mean(units, layout, 1 if len(lengths.prompts) == 1 else BATCHES)


def fit_load(lengths: TextLengths, batch: int, general: float, layout: Layout) -> Load:
    """Counts a batch of judgments with their prompts, and of general data a share `general`."""

    def units(rng):
        for u in range(batch):
            if rng.random() < general:
                yield u, 1, int(rng.choice(lengths.general)) - 1
            else:
                i = rng.integers(len(lengths.prompts))
                yield u, int(lengths.prompts[i]), int(lengths.completions[i])

    return _mean(units, layout, 1 if len(lengths.prompts) == 1 else BATCHES)


def _mean(units, layout, batches) -> Load:
    """Of batches of (front, prompt tokens, completion tokens), those of one front share it."""
    loads = []
    for seed in range(batches):
        texts, keys, fronts = [], [], {}
        for key, prompt, completion in units(np.random.default_rng(seed)):
            ids = np.full(prompt + completion, -1 - len(texts))  # of no other text
            ids[:prompt] = key
            texts.append([Text(ids, prompt)])
            keys.append(key)
            fronts[key] = prompt
        needed = sum(len(unit[0].ids) - fronts[key] for unit, key in zip(texts, keys))
        needed += sum(fronts.values())
        if layout.row_lengths:
            computed = pack(texts, keys, layout.row_lengths, layout.rows).computed
        else:
            longest = max(len(unit[0].ids) for unit in texts)
            computed = len(texts) * bucket_length(longest, layout.buckets)
        loads.append(Load(computed, needed))
    return Load(*np.mean(loads, axis=0).tolist())


def decode_steps(completions: Sequence[int], rows: int, chunk: int = 1) -> int:
    """Counts the steps in which `rows` at once draw completions of these lengths.

    In the order in which they come, each in the first row that is free; a row is given away between
    chunks of so many steps.
    """
    free = [0] * rows
    for completion in completions:
        ended = heapq.heappop(free) + math.ceil(completion / chunk) * chunk
        heapq.heappush(free, ended)
    return max(free)


def distinct_orders(responses: int, samples: int) -> float:
    """Expects how many orders of the responses `samples` shuffles show."""
    orders = math.factorial(min(responses, 20))
    return orders * -math.expm1(samples * math.log1p(-1 / orders)) if orders > 1 else 1.0


def prefilled(lengths: TextLengths, buckets: Sequence[int], samples: int) -> Load:
    """Counts prefilled tokens of a mean prompt, in each order that `samples` of it show.

    Each is padded to its bucket.
    """
    widths = np.sort(np.asarray(buckets))
    padded = widths[np.searchsorted(widths, lengths.prompts)]
    orders = np.array([distinct_orders(int(n), samples) for n in lengths.responses])
    return Load(float((padded * orders).mean()), float((lengths.prompts * orders).mean()))


def summary(lengths: TextLengths) -> Mapping[str, float | str]:
    """Describes the lengths for a plan."""
    return {
        "name": lengths.name,
        "records": len(lengths.prompts),
        "left_out": lengths.left_out,
        "mean_prompt": float(lengths.prompts.mean()),
        "mean_completion": float(lengths.completions.mean()),
        "longest_completion": int(lengths.completions.max()),
    }
