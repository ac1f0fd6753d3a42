"""Reads compiled HLO text: computations, their instructions, and how often each of them runs."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "bf16": 16,
    "s4": 4,
    "u4": 4,
    "s2": 2,
    "u2": 2,
    "s1": 1,
    "u1": 1,
    "c64": 64,
    "c128": 128,
}
_NAME = r"%?([\w.\-]+)"
_CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=" + _NAME)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Shape(NamedTuple):
    """Describes one array: element type, sizes, memory space (0: HBM; others are on the chip)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        """Counts the bytes of the array; a token has none."""
        bits = (
            _BITS.get(self.dtype) or int(re.search(r"\d+", self.dtype)[0])
            if self.dtype not in ("token", "opaque")
            else 0
        )
        return np.prod(self.dims, dtype=float) * bits / 8


class Instruction(NamedTuple):
    """Holds one instruction.

    shape: a Shape, or a tuple of shapes.
    operands: names.
    attributes: the text behind the operands, metadata left out.
    """

    name: str
    opcode: str
    shape: Shape | tuple
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool


# computation -> instruction name -> instruction, in order
Module = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Module, str]:
    """Reads `compiled.as_text()`: (module, name of the entry computation).

    A computation ends at a line that is just "}": backend configurations of Mosaic kernels span
    lines, some of which begin with "}}".
    """
    module, entry, current = {}, None, None
    for line in text.splitlines():
        if current is None:
            header = re.match(rf"(ENTRY )?{_NAME} \(.*\{{$", line) or re.match(
                rf"(ENTRY )?{_NAME} \{{$", line
            )
            if header:
                current = module.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError(
            "no ENTRY computation in this HLO text; expected what compiled.as_text() gives"
        )
    return module, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(rf"\s+(ROOT )?{_NAME} = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape_text, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"([a-z][\w\-]*)\(", rest)
    if not opcode:
        return None
    rest = rest[opcode.end() - 1 :]
    end = _closing(rest)
    arguments, attributes = rest[1:end], rest[end + 1 :].split(", metadata=")[0]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments)) or tuple(
        re.findall(
            r"(?:^|, "
            r")([a-z][\w.\-]*)(?=,|$)",
            arguments,
        )
    )
    return Instruction(
        head[2], opcode[1], _shape(shape_text), operands, arguments, attributes, bool(head[1])
    )


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return i
    return len(text)


def _shape(text: str) -> Shape | tuple:
    text = re.sub(r"^/\*.*?\*/\s*", "", text)  # every fifth part of a tuple is numbered
    if text.startswith("("):
        return tuple(_shape(part) for part in _split(text[1:-1]))
    array = re.match(r"\s*(\w+)(?:\[([\d,<=]*)\])?", text)
    dims = tuple(int(size.lstrip("<=")) for size in (array[2] or "").split(",") if size)
    space = re.search(r"S\((\d+)\)", text)
    return Shape(array[1], dims, int(space[1]) if space else 0)


def _split(text: str) -> list[str]:
    """Parts of a tuple, cut at commas outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def arrays(shape: Shape | tuple) -> Iterator[Shape]:
    """Returns all arrays of a shape."""
    if isinstance(shape, Shape):
        yield shape
    else:
        for part in shape:
            yield from arrays(part)


def called(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction runs, a loop's condition left out."""
    names = [name for kind, name in _CALLED.findall(instruction.attributes) if kind != "condition"]
    for group in _BRANCHES.findall(instruction.attributes):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def trips(module: Module, loop: Instruction) -> int | None:
    """Returns how often a while loop's body runs; None if the text does not say.

    From `known_trip_count`, else the one integer constant of the condition (counters start at 0)
    and what the body adds to its counter: XLA:TPU unrolls loops over a collective and counts in
    twos then.
    """
    known = re.search(r'known_trip_count[^}]*?"?n"?[=:]\s*"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"condition=" + _NAME, loop.attributes)[1]
    names, constants = [condition], set()
    while names:
        for instruction in module[names.pop()].values():
            names += called(instruction)
            if (
                instruction.opcode == "constant"
                and isinstance(instruction.shape, Shape)
                and instruction.shape.dtype[0] in "su"
            ):
                if not instruction.shape.dims:
                    constants.add(int(instruction.arguments))
    constants.discard(0)
    return -(-constants.pop() // _step(module, loop)) if len(constants) == 1 else None


def _step(module: Module, loop: Instruction) -> int:
    """What a body adds to the element of its tuple that the condition compares; 1 where that is not
    written as a sum with a constant.
    """
    condition, body = (
        module[re.search(rf"{name}=" + _NAME, loop.attributes)[1]] for name in ("condition", "body")
    )
    root, result = (
        next((i for i in computation.values() if i.is_root), None)
        for computation in (condition, body)
    )
    compared = (
        [condition[name] for name in root.operands if name in condition]
        if root is not None and root.opcode == "compare"
        else []
    )
    counter = next((_element(i) for i in compared if i.opcode == "get-tuple-element"), None)
    if counter is None or result is None or result.opcode != "tuple":
        return 1
    total, left = 0, body.get(result.operands[counter])
    while left is not None and left.opcode == "add":
        parts = [body[name] for name in left.operands if name in body]
        total += sum(int(part.arguments) for part in parts if part.opcode == "constant")
        left = next((part for part in parts if part.opcode != "constant"), None)
    return (
        total
        if left is not None
        and left.opcode == "get-tuple-element"
        and _element(left) == counter
        and total > 0
        else 1
    )


def _element(instruction: Instruction) -> int:
    return int(re.search(r"index=(\d+)", instruction.attributes)[1])


def times_run(
    module: Module, entry: str, unknown_trips: int | None = None
) -> tuple[dict[str, float], tuple[str, ...], dict[str, str]]:
    """Counts how often each computation runs in one call of the program.

    Returns that, the loops of unknown length, and the caller's opcode of each. A loop of unknown
    length counts `unknown_trips` times, or, where that is None, or inside another such loop, once
    and is named. Of a conditional the branch counts that has most instructions.
    """
    runs, unknown, caller = {entry: 1.0}, [], {entry: "entry"}

    @functools.cache
    def size(name):
        inside = module[name].values()
        return len(inside) + sum(size(n) for i in inside for n in called(i) if n in module)

    def visit(name, times, unknown_trips):
        for instruction in module[name].values():
            again, rest = times, unknown_trips
            targets = [target for target in called(instruction) if target in module]
            if instruction.opcode == "while":
                found = trips(module, instruction)
                if found is None and unknown_trips is None:
                    unknown.append(instruction.name)
                elif found is None:
                    found, rest = unknown_trips, None
                again = times * (1 if found is None else found)
            elif instruction.opcode == "conditional":
                targets = [max(targets, key=size)]
            for target in targets:
                runs[target] = runs.get(target, 0.0) + again
                caller[target] = instruction.opcode
                visit(target, again, rest)

    visit(entry, 1.0, unknown_trips)
    return runs, tuple(unknown), caller


def goes_on(body: dict[str, Instruction], instruction: Instruction) -> bool:
    """Says whether an instruction is a later part of a collective that began elsewhere.

    XLA:TPU writes an asynchronous collective into several fusions, one that starts it, others that
    go on beside other work, one that waits for it, and each holds the whole instruction, with the
    same chain_id.
    """
    if "AsyncCollectiveDone" in instruction.attributes:
        return True
    return "chain_id=" in instruction.attributes and not any(
        "AsyncCollectiveStart" in other.attributes for other in body.values()
    )
