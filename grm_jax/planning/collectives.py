"""Counts the bytes that one call of a program moves between devices, by kind and mesh axis."""

import math
import re
from typing import NamedTuple

import numpy as np

from grm_jax.planning.hlo import Instruction, Module, arrays, goes_on, parse, times_run

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


class Collective(NamedTuple):
    """Holds all collectives of one kind over the same mesh axes.

    `bytes` leave (and reach) each device in one call of the program.
    """

    kind: str
    axes: tuple[str, ...]
    count: float  # pyright: ignore[reportIncompatibleMethodOverride]
    bytes: float


def collectives(
    text: str, mesh_shape: dict[str, int], unknown_trips: int | None = None
) -> tuple[list[Collective], tuple[str, ...]]:
    """Reads `compiled.as_text()`: (collectives, what could not be counted, in words).

    mesh_shape: axis -> size, in the order of the mesh that the program was compiled for.
    unknown_trips: see `hlo.times_run`.

    Instructions in loops count as often as they run. Bytes are those of the bandwidth-optimal
    algorithm over n devices: (n - 1)/n of the result for an all-gather, of the operand for a
    reduce-scatter and an all-to-all, twice that for an all-reduce, all of it for a permute.
    """
    module, entry = parse(text)
    runs, loops, _ = times_run(module, entry, unknown_trips)
    strange = [f"loop {name} of unknown length, counted once" for name in loops]
    found: dict[tuple, list[float]] = {}
    for name, times in runs.items():
        for instruction in module[name].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or goes_on(module[name], instruction):
                continue
            if kind == "all-reduce" and name.lstrip("%").startswith("all-reduce-scatter"):
                # XLA:TPU writes it as a fusion of an all-reduce and a slice
                kind = "reduce-scatter"
            groups = _groups(instruction, math.prod(mesh_shape.values()))
            if groups is None:
                strange.append(
                    f"{instruction.opcode} {instruction.name} over groups in a form that is not "
                    "known, taken for all devices"
                )
                groups = np.arange(math.prod(mesh_shape.values()))[None]
            axes, n = _axes(groups, mesh_shape), groups.shape[1]
            if kind == "collective-permute":
                share = 1.0
            else:
                share = (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n
            total = found.setdefault((kind, axes), [0.0, 0.0])
            total[0] += times
            total[1] += times * share * _bytes(module, name, instruction)
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return [Collective(kind, axes, *total) for (kind, axes), total in ordered], tuple(strange)


def device_axes(instruction: Instruction, mesh_shape: dict[str, int]) -> tuple[str, ...] | None:
    """Returns the mesh axes that a collective runs along.

    None if its groups are written in a form that is not known.
    """
    groups = _groups(instruction, math.prod(mesh_shape.values()))
    return None if groups is None else _axes(groups, mesh_shape)


def _bytes(module: Module, computation: str, instruction: Instruction) -> float:
    """The larger of operands and results of one device, each without the other (a start's result
    holds both).
    """
    shape = instruction.shape
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        shape = shape[1]
    result = sum(array.bytes for array in arrays(shape))
    if not instruction.opcode.startswith(("reduce-scatter", "all-to-all")):
        return result
    operands = [
        module[computation][name].shape
        for name in instruction.operands
        if name in module[computation]
    ]
    return max(result, sum(array.bytes for operand in operands for array in arrays(operand)))


def _groups(instruction: Instruction, devices: int) -> np.ndarray | None:
    """Device numbers [groups, devices of a group]; for a permute [pairs, 2]. None if they are
    written in a form that is not known.
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    if pairs:
        return np.array(
            [[int(i) for i in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)\}", pairs[1])]
        )
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, dims, order = (
            tuple(int(i) for i in part.split(",")) if part else () for part in iota.groups()
        )
        placed = np.arange(np.prod(dims)).reshape(dims).transpose(order or None)
        return placed.reshape(*shape[:1], -1)
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? "
        r"\{([^}]*)\}",
        text,
    )
    # mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}: sizes, order of the devices,
    # axes that a group runs over
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        numbers = np.arange(np.prod(list(sizes.values())))
        if named[2]:
            dims, transposed = (
                tuple(int(i) for i in part.split(",")) for part in named.group(2, 3)
            )
            numbers = numbers.reshape(dims).transpose(transposed)
        inside = re.findall(r"'([^']+)'(?!:)", named[4])
        if len(inside) == named[4].count("'") // 2:  # no part of an axis
            order = [i for i, axis in enumerate(sizes) if axis not in inside] + [
                list(sizes).index(axis) for axis in inside
            ]
            group = int(np.prod([sizes[axis] for axis in inside]))
            return numbers.reshape(tuple(sizes.values())).transpose(order).reshape(-1, group)
    listed = re.search(r"replica_groups=\{((?:\{[\d,]+\},?)*)\}", text)
    if listed and listed[1]:
        return np.array(
            [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    if listed or "replica_groups" not in text:
        return np.arange(devices)[None]
    return None


def _axes(groups: np.ndarray, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    # [axis, group, device]
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
    differ = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, differs in zip(mesh_shape, differ) if differs)
