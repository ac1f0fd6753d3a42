"""Chooses how many rows an engine decodes in, in groups of how many, and how many prompts it holds.

From how many samples there are of how many prompts, and what the device is good at; `Engine` says
what a group, a row and an entry are.
"""

from typing import NamedTuple

import jax

from grm_jax.models.config import ModelConfig
from grm_jax.sampling.chunks import Drawing, empty_pool

PREFILL = 512  # tokens, about, that a call of a device's prefill computes
FEWEST = 8  # rows that the last ones alive go on in, at least


class Shape(NamedTuple):
    """Says how many rows an engine has: see `Engine`."""

    groups: int
    fold: int
    entries: int
    shared: int


def shape_of(
    drawing: Drawing,
    parts: int,
    prompts: int,
    samples: int,
    divisor: int,
    rows: int,
    width: int,
    platform: str | None = None,
) -> Shape:
    """Chooses the shape that suits `samples` of `prompts` of up to `width` tokens, of all parts.

    divisor: divides the number of samples of every prompt.
    """
    even = divisor & -divisor if samples <= rows else 1
    platform = platform or jax.default_backend()
    fold, shared = fold_of(samples / prompts, -(-rows // parts), platform, even)
    # as many rows as samples, to a power of two: calls that ask for as many share their programs
    asked = -(-samples // parts)
    groups = max(1, min(-(-rows // parts), 1 << (asked - 1).bit_length()) // fold)
    entries = min(groups, prompts)
    if drawing.cache_bytes:
        one = entry_bytes(drawing.cfg, width, drawing.scfg.kv_cache_dtype)
        entries = max(1, drawing.cache_bytes // one)
        groups = min(groups, entries) if shared == 1 else groups
        entries = min(entries, max(groups, prompts))
    return Shape(groups, fold, entries, min(shared, groups))


def prefill_rows(width: int, groups: int) -> int:
    """Counts the prompts of `width` tokens that one call prefills on each share."""
    return max(1, min(PREFILL // width, groups))


def places(rows: int, shared: int) -> int:
    """Counts the groups of `shared` places in which rows read prompts: twice as many as rows fill.

    So prompts of which few rows are left have room beside others.
    """
    return max(1, min(rows, 2 * rows // shared))


def shapes_of(groups: int, fold: int, platform: str | None = None) -> list[tuple[int, int]]:
    """Lists the groups, and rows of a group, that an engine decodes in: all rows, and ever fewer.

    On the CPU half of the last, elsewhere, where more rows cost little and a program minutes, a
    quarter of all: rows of each group as long as it has several, that prompts lie in the cache no
    more often than at first; then groups.
    """
    platform, shapes = platform or jax.default_backend(), [(groups, fold)]
    halvings = 1 if platform == "cpu" else 2
    while groups * fold >= FEWEST << halvings and (halvings == 1 or len(shapes) == 1):
        for _ in range(halvings):
            groups, fold = (groups, fold // 2) if fold > 1 else (groups // 2, 1)
        shapes.append((groups, fold))
    return shapes


def entry_bytes(cfg: ModelConfig, width: int, kv_cache_dtype: str = "auto") -> int:
    """Counts the bytes of one prompt of `width` tokens in the pool."""
    pool = jax.eval_shape(lambda: empty_pool(cfg, kv_cache_dtype, 1, 1, width))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool))


def fold_of(samples_per_prompt: float, rows: int, platform: str, even: int = 1) -> tuple[int, int]:
    """Chooses the rows of a group, and how many share a prompt where these are one.

    From the mean number of samples that a prompt has. Rows of a group read their prompt in one
    product, and wait for each other once no sample of it is left. On the CPU memory is cheap, and
    rows read a prompt in any order (`Engine`, shared), unless all samples have a row from the
    start: groups are then `even`, as many rows as divide the samples of every prompt. Elsewhere
    memory is dear, and a prompt lies in the cache as few times as groups allow.
    """
    fold = _power_to(min(even if platform == "cpu" else min(samples_per_prompt, 8), rows))
    shared = _power_to(min(samples_per_prompt, 8, rows))
    return fold, shared if platform == "cpu" and fold == 1 and shared > 2 else 1


def _power_to(most: float) -> int:
    return 1 << max(0, int(most).bit_length() - 1)
