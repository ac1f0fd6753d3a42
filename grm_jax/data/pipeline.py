"""Turns examples into batches: shuffled, mixed, padded to a few lengths, at a resumable position.

    sources --shuffle (own seed, new order each epoch)--> --repeat--> --mix by weight-->
            --batch, pad to a bucket--> --rows of this host-->

Every step (grain) is a function of an index, so batch b depends on (sources, weights, seed,
batch_size) and b only: not on the host, on the number of hosts, on threads, or on where a run was
interrupted. The state of the iterator is that index, {"next_index": b}.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from grm_jax.judgment.records import seeded_digest

Example = Mapping[str, Any]


def make_batches(
    sources: Mapping[str, Sequence[Example]],
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[int] = (),
    weights: Mapping[str, float] | None = None,
    epochs: int | None = None,
    drop_remainder: bool = True,
    pad_values: Mapping[str, float] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    collate: Callable[[Sequence[Example]], dict[str, Any]] | None = None,
) -> grain.DatasetIterator:
    """Iterates over batches; set_state continues exactly from the JSON-able dict of get_state().

    Args:
      sources: name -> examples. An example is a flat dict of 1-D int or float arrays (or lists),
        all of one length T_i, of numbers, and of strings. All examples have the same fields.
      batch_size: rows B of a batch over all hosts.
      seed: with the source's name it decides the order of each source, a new one each epoch.
      buckets: lengths T that batches are padded to: the smallest that holds the longest row. Needed
        if there are arrays.
      weights: name -> share of the rows of each batch, in any unit; equal shares if None.
      epochs: None goes on for ever. Otherwise each example is used at most `epochs` times: exactly
        that for one source; a mix ends where the first of its sources is used up.
      drop_remainder: False fills the last batch with empty rows.
      pad_values: name -> value behind the end of an array (and in empty rows); 0 if not given.
      process_index, process_count: this host gets rows [process_index * B / process_count,
        (process_index + 1) * B / process_count). The length T is chosen from all B rows, so that
        all hosts have the same shapes.
      collate: makes the batch of its examples instead, on every host the whole one; no field is
        padded then.

    A batch is a dict of the examples' fields: [B, T] of arrays, [B] of numbers, int32 or float32 as
    in the examples, a list of B str of strings; and "valid" float32 [B], 0.0 for empty rows.

    Raises ValueError for examples that do not fit together or exceed the largest bucket, naming
    source and example.
    """
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of process_count "
            f"{process_count}, and process_index {process_index} below it"
        )
    weights = dict(weights) if weights else {name: 1.0 for name in sources}
    if not sources or set(sources) != set(weights) or min(weights.values()) <= 0:
        raise ValueError(
            f"expected a positive weight for each of the sources {sorted(sources)}, got {weights}"
        )
    kinds = _check_examples(sources, buckets)
    parts = []
    names = sorted(sources)
    for name in names:
        # A hash: grain gives epoch e the seed s + e, so plain neighboring seeds would share
        # orders.
        source_seed = int.from_bytes(seeded_digest("make_batches", seed, name)[:4], "big")
        parts.append(
            grain.MapDataset.source(sources[name]).shuffle(seed=source_seed).repeat(epochs)
        )
    rows = (
        parts[0]
        if len(parts) == 1
        else grain.MapDataset.mix(parts, weights=[weights[name] for name in names])
    )
    if drop_remainder and len(rows) < batch_size:
        raise ValueError(
            f"{len(rows)} examples give no batch of {batch_size}; expected more examples or "
            "drop_remainder=False"
        )
    pad = collate or functools.partial(
        _pad_batch,
        kinds=kinds,
        buckets=tuple(buckets),
        pad_values=dict(pad_values or {}),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    batches = rows.batch(batch_size, drop_remainder=drop_remainder, batch_fn=pad)
    in_memory = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(batches.to_iter_dataset(in_memory))


def bucket_length(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that is at least `length`. Raises ValueError if there is none."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(f"length {length} exceeds the largest of the buckets {list(buckets)}")
    return min(fitting)


def _check_examples(
    sources: Mapping[str, Sequence[Example]], buckets: Sequence[int]
) -> dict[str, tuple[int, type]]:
    """Field -> (rank 0 or 1, np.int32, np.float32 or str), the same for every example."""
    kinds: dict[str, tuple[int, type]] | None = None
    for name, examples in sources.items():
        if not len(examples):
            raise ValueError(f"source {name!r} has no examples")
        for i in range(len(examples)):
            where = f"source {name!r}, example {i}"
            values = {field: np.asarray(value) for field, value in examples[i].items()}
            own = {
                field: (value.ndim, _dtype(value, f"{where}, field {field!r}"))
                for field, value in values.items()
            }
            kinds = kinds or own
            if own != kinds or "valid" in own:
                raise ValueError(
                    f"{where}: expected the fields {_describe(kinds)} as in the first "
                    f"example ('valid' is taken), got {_describe(own)}"
                )
            lengths = {field: len(value) for field, value in values.items() if value.ndim}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"{where}: expected arrays of one length, got {lengths}")
            if lengths:
                try:
                    bucket_length(max(lengths.values()), buckets)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
    return kinds or {}


def _dtype(value: np.ndarray, where: str) -> type:
    if value.ndim <= 1 and np.issubdtype(value.dtype, np.integer):
        return np.int32
    if value.ndim <= 1 and (np.issubdtype(value.dtype, np.floating) or value.dtype == bool):
        return np.float32
    if value.ndim == 0 and value.dtype.kind == "U":
        return str
    raise ValueError(
        f"{where}: expected a number, a string or a 1-D array of numbers, got shape "
        f"{value.shape} of {value.dtype}"
    )


def _describe(kinds: Mapping[str, tuple[int, type]]) -> str:
    return ", ".join(
        f"{field}: {'1-D ' if rank else ''}{dtype.__name__}"
        for field, (rank, dtype) in kinds.items()
    )


def _pad_batch(
    examples: Sequence[Example],
    *,
    kinds: Mapping[str, tuple[int, type]],
    buckets: tuple[int, ...],
    pad_values: Mapping[str, float],
    batch_size: int,
    process_index: int,
    process_count: int,
) -> dict[str, Any]:
    """This host's rows of the batch of `examples` (at most batch_size); T is common to all
    hosts.
    """
    longest = max(
        (len(example[field]) for example in examples for field, (rank, _) in kinds.items() if rank),
        default=0,
    )
    length = bucket_length(longest, buckets) if buckets else 0
    local = batch_size // process_count
    mine = examples[process_index * local : (process_index + 1) * local]
    batch: dict[str, Any] = {
        "valid": np.array([1.0] * len(mine) + [0.0] * (local - len(mine)), np.float32)
    }
    for field, (rank, dtype) in kinds.items():
        if dtype is str:
            empty = [""] * (local - len(mine))
            batch[field] = [str(example[field]) for example in mine] + empty
            continue
        padded = np.full((local, length) if rank else (local,), pad_values.get(field, 0), dtype)
        for row, example in zip(padded if rank else (), mine):
            row[: len(example[field])] = example[field]
        if not rank:
            padded[: len(mine)] = [example[field] for example in mine]
        batch[field] = padded
    return batch
