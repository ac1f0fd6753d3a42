"""Packs sequences into rows of a few lengths, a front that several share laid down once.

    units --those that begin alike grow together--> trees --largest first, then swaps--> rows

A tree is a front and the sequences that go on from it, its branches; a sequence that shares nothing
is a tree by itself. Attention sees a tree alone, and of its branches its own
(`models.attention.Packed`), so what is computed is what every sequence by itself would give.

Rows are run R at a time, one for each share of a mesh: a part, a micro-batch. All rows of a part
have one of the lengths that are allowed, and the parts of a batch may have different ones. How many
parts are real is a number in the batch, not a shape: what is compiled does not depend on how full a
batch is.

Pure NumPy, and a function of the units and their order alone: every process makes the same rows,
and so does a run that goes on from a checkpoint.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SLOT_TOKENS = 8  # a row of T tokens has room for T / 8 units
WORTH = 16  # a front is shared where it saves a unit this part of its tokens


class Text(NamedTuple):
    """Holds a sequence of tokens.

    ids: int[T].
    first: index of the first token whose probability is asked for, given those before it; T where
        none is. The front that it shares ends before token first - 1.
    """

    ids: np.ndarray
    first: int


Unit = Sequence[Text]  # texts that stay in one row, such as the two of a pair


@dataclasses.dataclass(frozen=True)
class Rows:
    """Holds rows [M, R, T] of a batch, of which `parts` of M are real, and where its units are.

    tokens, positions, segment, branch: int32[M, R, T]. segment: number of the tree in its row, -1
        in padding; branch: 0 on a front, 1, 2, ... on what goes on from it; positions go on from
        the front, -1 in padding.
    sizes: int32[M], the length of a part's rows, as an index of `lengths`.
    slots: S, units that a row has room for.
    slot_U: int[U], of each unit: m R S + r S + s, its place in an array [M, R, S].
    offset_UN: int[U, N], token t of text n of unit u is at index offset + t of its row, for the
        tokens behind the front: from token first - 1 on.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    sizes: np.ndarray
    lengths: tuple[int, ...]
    parts: int
    slots: int
    slot_U: np.ndarray
    offset_UN: np.ndarray

    @property
    def computed(self) -> int:
        """Counts the tokens of all rows that are run, padding included."""
        return self.tokens.shape[1] * sum(self.lengths[i] for i in self.sizes[: self.parts])

    @property
    def laid(self) -> int:
        """Counts the tokens that are not padding."""
        return int((self.positions >= 0).sum())

    def arrays(self) -> dict[str, Any]:
        """Returns what attention and the loop over parts read."""
        names = ("tokens", "positions", "segment", "branch", "sizes")
        return {name: getattr(self, name) for name in names} | {"parts": np.int32(self.parts)}

    def in_slots(self, values_U: np.ndarray) -> np.ndarray:
        """Puts a value of each unit [U, ...] into its slot [M, R, S, ...]; 0 in empty slots."""
        values_U = np.asarray(values_U)
        M, R = self.tokens.shape[:2]
        flat = np.zeros((M * R * self.slots, *values_U.shape[1:]), values_U.dtype)
        flat[self.slot_U] = values_U
        return flat.reshape(M, R, self.slots, *values_U.shape[1:])

    def of_units(self, values_MRS: np.ndarray) -> np.ndarray:
        """Reads the value of each unit [U, ...] from its slot."""
        return values_MRS.reshape(-1, *list(values_MRS.shape)[3:])[self.slot_U]

    def at_tokens(self, first_U: Sequence[int], values_U: Sequence[np.ndarray]) -> np.ndarray:
        """Lays values of tokens of each unit's first text, from token `first` on.

        fp32[M, R, T], 0 elsewhere. `first` is that of the text, or behind it.
        """
        laid = np.zeros(self.tokens.shape, np.float32)
        rows = laid.reshape(-1, self.lengths[-1])
        for u, (first, values) in enumerate(zip(first_U, values_U, strict=True)):
            start = self.offset_UN[u, 0] + first
            rows[self.slot_U[u] // self.slots, start : start + len(values)] = values
        return laid


def pack(
    units: Sequence[Unit], keys: Sequence[Hashable], lengths: Sequence[int], rows: int
) -> Rows:
    """Packs units into rows, with as few tokens to compute as a search of few steps finds.

    Args:
      units: of N texts each.
      keys: of each unit; those of one key share the front that they have in common, where it saves
        at least a sixteenth of a unit's tokens (the texts of one unit always do).
      lengths: that rows may have, growing.
      rows: R of a part.

    A tree that the longest row does not hold is grown as several, each with the front.

    Raises ValueError for a unit that is longer than the longest row.
    """
    lengths = tuple(lengths)
    slots = min(len(units), max(1, lengths[-1] // SLOT_TOKENS))
    trees = _grow(units, keys, lengths[-1], slots)
    trees.sort(key=lambda tree: -tree.tokens)  # stable: ties stay in the order of the data
    most = -(-len(units) // rows)
    # what holds the largest tree, and so holds any
    holds = next(i for i, length in enumerate(lengths) if length >= trees[0].tokens)
    for sizes in _plans(sum(tree.tokens for tree in trees), lengths, rows, most, holds):
        if bins := _place(trees, [lengths[i] for i in sizes], rows, slots):
            return _lay(units, bins, sizes, lengths, rows, most, slots)
    raise AssertionError("a unit in each row always fits")


def pack_examples(
    examples: Sequence[Mapping[str, Any]], lengths: Sequence[int], rows: int
) -> dict[str, Any]:
    """Packs examples of supervised training into rows; those of one "id" share a front.

    Their fields: "id"; sequences of tokens, names in "tokens", beside positions, names in
    "positions", -1 in padding; perhaps "mask", which tokens are learned; and numbers.

    Returns "id", "computed" and "laid" (tokens, with and without padding), and "batch":
      tokens, positions, segment, branch: int32[M, R, T], see `Rows`; so are sizes, int32[M], and
        parts.
      mask: fp32[M, R, S], 1 in the slots of examples.
      length: int32[M, R, S], tokens learned; 1 where examples have no mask.
      wanted: fp32[M, R, T], the mask of examples that have one.
      last: int32[M, R, S, N], index of the last token of each sequence, where they have none.

    Numbers of the examples are in slots, fp32[M, R, S].
    """
    units = [_unit(example) for example in examples]
    laid = pack(units, [example["id"] for example in examples], lengths, rows)
    batch = laid.arrays() | {"mask": laid.in_slots(np.ones(len(units), np.float32))}
    if "mask" in examples[0]:
        masks = [np.asarray(example["mask"], np.float32) for example in examples]
        firsts = [unit[0].first for unit in units]
        learned = [mask[first:] for mask, first in zip(masks, firsts)]
        # nothing is before the first token of a sequence
        batch["wanted"] = laid.at_tokens(firsts, learned) * (laid.positions > 0)
        lengths_U = np.array([int(mask.sum()) for mask in masks], np.int32)
    else:
        ends = np.array([[len(text.ids) for text in unit] for unit in units])
        batch["last"] = laid.in_slots((laid.offset_UN + ends - 1).astype(np.int32))
        lengths_U = np.ones(len(units), np.int32)
    batch["length"] = laid.in_slots(lengths_U)
    for name, value in examples[0].items():
        if name != "id" and np.ndim(value) == 0:
            numbers = np.array([example[name] for example in examples], np.float32)
            batch[name] = laid.in_slots(numbers)
    ids = [str(example["id"]) for example in examples]
    return {"id": ids, "computed": laid.computed, "laid": laid.laid, "batch": batch}


def longest_unit(examples: Sequence[Mapping[str, Any]]) -> int:
    """Counts the tokens that the longest example takes of a row."""
    return max(_measure(_unit(example))[1] for example in examples)


def _unit(example: Mapping[str, Any]) -> Unit:
    """The sequences of an example, without their padding."""
    texts = []
    for name in example:
        if name.endswith("tokens"):
            real = np.asarray(example[name.removesuffix("tokens") + "positions"]) >= 0
            ids = np.asarray(example[name])[real]
            learned = np.flatnonzero(example.get("mask", ())).tolist()
            texts.append(Text(ids, learned[0] if learned else len(ids)))
    return texts


class _Tree:
    """A front of `front` tokens, and the units whose texts begin with it."""

    def __init__(self, u: int, unit: Unit):
        self.units, self.texts = [u], list(unit)
        self.front, self.tokens = _measure(self.texts)


def _measure(texts: Sequence[Text]) -> tuple[int, int]:
    """(tokens of the front that texts can share, tokens of their tree)."""
    front = max(0, min(text.first for text in texts) - 1)
    for text in texts[1:]:
        front = min(front, _common(texts[0].ids, text.ids, front))
    total = sum(len(text.ids) for text in texts)
    return front, total - (len(texts) - 1) * front


def _common(a: np.ndarray, b: np.ndarray, most: int) -> int:
    """How many of the first `most` tokens of both are equal."""
    differ = np.flatnonzero(a[:most] != b[:most])
    return int(differ[0]) if len(differ) else most


def _grow(units, keys, longest, slots) -> list[_Tree]:
    trees: list[_Tree] = []
    by_key: dict[Hashable, list[_Tree]] = {}
    for u, (unit, key) in enumerate(zip(units, keys, strict=True)):
        alone, best = _Tree(u, unit), None
        if alone.tokens > longest:
            raise ValueError(
                f"unit {u} of the batch takes {alone.tokens} tokens of a row; the longest row has "
                f"{longest}"
            )
        for tree in by_key.setdefault(key, []):
            front = min(tree.front, alone.front)
            front = _common(tree.texts[0].ids, unit[0].ids, front)
            texts = len(tree.texts) + len(unit)
            total = sum(len(text.ids) for text in [*tree.texts, *unit])
            tokens = total - (texts - 1) * front
            saved = tree.tokens + alone.tokens - tokens
            fits = tokens <= longest and len(tree.units) < slots
            if fits and WORTH * saved >= alone.tokens and (best is None or saved > best[0]):
                best = saved, tree, front, tokens
        if best is None:
            trees.append(alone)
            by_key[key].append(alone)
        else:
            _, tree, tree.front, tree.tokens = best
            tree.units.append(u)
            tree.texts += unit
    return trees


def _plans(total: int, lengths: tuple[int, ...], rows: int, most: int, holds: int):
    """Lengths of parts, as indices, from the fewest tokens on: all of the longest, or of the
    shortest that holds each tree (`holds`), and up to three others. The last plans have parts of
    the longest alone, up to `most`, which hold anything.
    """
    last, least = len(lengths) - 1, total / rows
    plans = set()
    for usual in {holds, last}:
        full = math.ceil(least / lengths[usual])
        others = [i for i in range(last + 1) if i != usual]
        for count in range(4):
            for some in itertools.combinations_with_replacement(others, count):
                for usual_ones in range(max(0, full - 6), full + 2):
                    plan = tuple(sorted((usual,) * usual_ones + some, reverse=True))
                    if 0 < len(plan) <= most and sum(lengths[i] for i in plan) >= least:
                        plans.add(plan)
    yield from sorted(plans, key=lambda plan: (sum(lengths[i] for i in plan), len(plan), plan))
    full = math.ceil(least / lengths[last])
    yield from ((last,) * parts for parts in range(full + 2, most + 1))


def _place(trees, lengths, rows, slots) -> list[list[_Tree]] | None:
    """Trees of each row, all of part 0 first; None if no way to hold them all was found.

    Each goes into the row that has most room left; then, as long as it helps, the row that is
    overfull by most swaps a tree for a smaller one of another row, or gives it away.
    """
    tokens = np.array([tree.tokens for tree in trees])
    units = np.array([len(tree.units) for tree in trees])
    room, free = np.repeat(lengths, rows), np.full(len(lengths) * rows, slots)
    row_of = np.zeros(len(trees), np.int64)
    for i in range(len(trees)):  # the largest come first
        at = int(np.argmax(np.where(free >= units[i], room, np.iinfo(room.dtype).min)))
        row_of[i], room[at], free[at] = at, room[at] - tokens[i], free[at] - units[i]
        if free[at] < 0:
            return None
    # what may come back for a tree: nothing, into any row, or a tree of another row
    there = np.concatenate([np.arange(len(room)), row_of])
    back_tokens = np.concatenate([np.zeros_like(room), tokens])
    back_units = np.concatenate([np.zeros_like(room), units])
    while room.min() < 0:
        worst = int(np.argmin(room))
        mine = np.flatnonzero(row_of == worst)
        gain = tokens[mine, None] - back_tokens
        left = np.minimum(room[worst] + gain, room[there] - gain)
        extra = units[mine, None] - back_units
        wrong = (there == worst) | (free[there] < extra) | (free[worst] < -extra)
        left = np.where(wrong, np.iinfo(room.dtype).min, left)
        i, j = np.unravel_index(int(np.argmax(left)), left.shape)
        if left[i, j] <= room[worst]:
            return None
        tree, other = mine[i], int(there[j])
        for row, sign in ((worst, 1), (other, -1)):
            room[row] += sign * gain[i, j]
            free[row] += sign * extra[i, j]
        row_of[tree] = there[len(room) + tree] = other
        if j >= len(room):
            row_of[j - len(room)] = there[j] = worst
    bins: list[list[_Tree]] = [[] for _ in room]
    for tree, row in zip(trees, row_of):
        bins[row].append(tree)
    return bins


def _lay(units, bins, sizes, lengths, rows, most, slots) -> Rows:
    shape = (most * rows, lengths[-1])
    tokens, branch = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions, segment = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    slot_U = np.zeros(len(units), np.int64)
    offset_UN = np.zeros((len(units), len(units[0])), np.int64)
    for row, trees in enumerate(bins):
        at, slot = 0, 0
        for number, tree in enumerate(sorted(trees, key=lambda tree: tree.units[0])):
            alone = len(tree.texts) == 1
            front = len(tree.texts[0].ids) if alone else tree.front
            begin, name = at, 0

            def write(ids, position, name, row=row, number=number):
                nonlocal at
                span = slice(at, at + len(ids))
                tokens[row, span], segment[row, span], branch[row, span] = ids, number, name
                positions[row, span] = np.arange(position, position + len(ids))
                at += len(ids)

            write(tree.texts[0].ids[:front], 0, 0)
            for u in tree.units:
                slot_U[u] = row * slots + slot
                slot += 1
                for n, text in enumerate(units[u]):
                    offset_UN[u, n] = begin if alone else at - front
                    if not alone:
                        name += 1
                        write(text.ids[front:], front, name)
    padded = np.zeros(most, np.int32)
    padded[: len(sizes)] = sizes
    tokens, positions, segment, branch = (
        x.reshape(most, rows, -1) for x in (tokens, positions, segment, branch)
    )
    return Rows(
        tokens,
        positions,
        segment,
        branch,
        sizes=padded,
        lengths=lengths,
        parts=len(sizes),
        slots=slots,
        slot_U=slot_U,
        offset_UN=offset_UN,
    )
