"""Reads a trace that --profile wrote on CPU, and prints which named part of a step took how long.

    python -m speed.trace runs/tiny/profile/rl

Two tables: what the host was at, by the names of the phases; and what the cores computed, by
program and the scope of each operation, summed over threads (so that it may exceed the wall time).
Traces of TPUs and GPUs have the same names: open them as docs/profile.md says.
"""

from __future__ import annotations

import collections
import pathlib
import sys
from collections.abc import Iterator

from jax.profiler import ProfileData

# how the scope of an operation is read, the first that fits: (part of its name, what it is)
PARTS = (
    ("optimizer", "optimizer"),
    ("vocabulary", "vocabulary"),
    ("draw", "draw"),
    ("_attn/attention", "attention"),
    ("_attn", "projections of attention"),
    ("_mlp", "MLP"),
    ("norm", "norms"),
    ("Decoder", "embedding, residual"),
)
PHASES = ("host", "rollout", "logprobs", "update", "checkpoint")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of the fields of a protobuf message: integers, and bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            yield key >> 3, message[at : at + size]
            at += size


def inner(message: bytes, *path: int) -> Iterator[bytes]:
    """Yields the messages that lie at a path of field numbers."""
    for number, value in fields(message):
        if number == path[0] and isinstance(value, bytes):
            if len(path) == 1:
                yield value
            else:
                yield from inner(value, *path[1:])


def text(message: bytes, number: int) -> str:
    """Returns a field as text, "" where it is not there."""
    return next(inner(message, number), b"").decode()


def scopes(xspace: bytes) -> dict[tuple[str, str], str]:
    """Reads {(program, operation): its name with scopes} from the programs that a trace carries.

    XSpace.planes[].event_metadata{}.stats[].bytes_value is an HloProto; in it
    hlo_module.computations[].instructions[] have a name and metadata.op_name.
    """
    found = {}
    for plane in inner(xspace, 1):
        if text(plane, 2) != "/host:metadata":
            continue
        for module in inner(plane, 4, 2, 5, 6, 1):
            for instruction in inner(module, 3, 2):
                metadata = next(inner(instruction, 7), b"")
                found[text(module, 1), text(instruction, 1)] = text(metadata, 2)
    return found


def part_of(scope: str) -> str:
    """Names the part of a model or step that an operation with this scope belongs to."""
    part = next((name for part, name in PARTS if part in scope), "other")
    words = [word for word in ("prefill", "decode") if f"{word}/" in scope]
    backward = ["backward"] if "transpose(" in scope else []
    return " ".join([*words, part, *backward])


def tables(path: pathlib.Path) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Returns ms of the host by phase, and ms of cores by (program, part)."""
    raw = path.read_bytes()
    names = scopes(raw)
    host, cores = collections.Counter[str](), collections.Counter[tuple[str, str]]()
    for plane in ProfileData.from_serialized_xspace(raw).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in PHASES:
                    host[event.name] += event.duration_ns / 1e6
                    continue
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    program, op = str(stats["hlo_module"]), str(stats["hlo_op"])
                    scope = names.get((program, op), "")
                    if not op.startswith(("while", "call", "conditional", "cond")):
                        cores[program, part_of(scope)] += event.duration_ns / 1e6
    return dict(host), dict(cores)


def main(folder: str) -> None:
    for path in sorted(pathlib.Path(folder).rglob("*.xplane.pb")):
        host, cores = tables(path)
        print(f"{path}\n\n| the host is at | ms |\n|---|---|")
        for name, took in sorted(host.items(), key=lambda item: -item[1]):
            print(f"| {name} | {took:,.0f} |")
        programs = collections.Counter[str]()
        for (program, _), took in cores.items():
            programs[program] += took
        print("\n| program | part | ms of cores | of the program |\n|---|---|---|---|")
        for (program, part), took in sorted(
            cores.items(), key=lambda item: (-programs[item[0][0]], -item[1])
        ):
            if took >= 0.01 * programs[program] and programs[program] >= 1.0:
                print(
                    f"| {program} | {part} | {took:,.0f} | {100 * took / programs[program]:.0f} % |"
                )
        print()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m speed.trace FOLDER")
    main(sys.argv[1])
