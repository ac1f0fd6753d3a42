"""Lays out random trees of sequences, packed in rows and one by one; numpy alone."""

import dataclasses

import numpy as np

Tree = tuple[int, tuple[int, ...]]  # tokens of the trunk, and of each branch


@dataclasses.dataclass(frozen=True)
class Layout:
    """pos_BT, segment_BT, branch_BT of packed rows; sequences: the (row, indices in it) of every
    trunk with one branch, in order of position; first: whether it holds its trunk's tokens first.
    """

    pos_BT: np.ndarray
    segment_BT: np.ndarray
    branch_BT: np.ndarray
    sequences: list[tuple[int, np.ndarray]]
    first: list[np.ndarray]


def lay_out(rows: list[list[Tree]], T: int) -> Layout:
    """Packs the trees of each row, one behind the other."""
    pos_BT, segment_BT = np.full((2, len(rows), T), -1, np.int32)
    branch_BT = np.zeros((len(rows), T), np.int32)
    sequences, first = [], []
    for row, trees in enumerate(rows):
        end = 0
        for number, (trunk, branches) in enumerate(trees):
            trunk_indices = np.arange(end, end + trunk)
            end += trunk
            pos_BT[row, trunk_indices], segment_BT[row, trunk_indices] = np.arange(trunk), number
            for branch, size in enumerate(branches, 1):
                indices = np.arange(end, end + size)
                end += size
                pos_BT[row, indices] = trunk + np.arange(size)
                segment_BT[row, indices], branch_BT[row, indices] = number, branch
                sequences.append((row, np.concatenate([trunk_indices, indices])))
                first.append(np.arange(trunk + size) >= (trunk if branch > 1 else 0))
            if not branches:
                sequences.append((row, trunk_indices))
                first.append(np.ones(trunk, bool))
        assert end <= T, f"{end} tokens in a row of {T}"
    return Layout(pos_BT, segment_BT, branch_BT, sequences, first)


def random_rows(seed: int, B: int, T: int, longest: int) -> list[list[Tree]]:
    """Draws trees until a row is nearly full: no, one or several branches, trunks of any length."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(B):
        trees, free = [], T - int(rng.integers(0, T // 8 + 1))
        while free > 1:
            trunk = int(rng.integers(0, min(free, longest) + 1))
            room, branches = free - trunk, []
            for _ in range(int(rng.choice([0, 1, 2, 4])) if trunk else 1):
                size = int(rng.integers(1, max(2, longest // 2)))
                if size <= room:
                    branches.append(size)
                    room -= size
            free = room
            trees.append((trunk, tuple(branches)))
        rows.append(trees)
    return rows
