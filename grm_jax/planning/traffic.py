"""Estimates from a program's HLO text the bytes that one call reads from and writes to HBM."""

from grm_jax.planning.hlo import Module, Shape, arrays, goes_on, parse, times_run

# These move nothing themselves: names for memory, or control flow whose bodies are counted.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "opt-barrier partition-id replica-id iota"
    " async-start async-update async-done".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(text: str, unknown_trips: int | None = None) -> float:
    """Estimates bytes of one device: every operand and result once, in loops as often as they run.

    A fusion counts once, whatever is inside it. Of an operand that is only sliced the slices count,
    of an update in place the update, of a gather the rows. Arrays in other memory than HBM (VMEM)
    are free; of loops of unknown length and conditionals see `hlo.times_run`. A kernel that reads
    an operand more than once, or a cache that saves a read, is not seen: an estimate of the
    traffic, not a bound.
    """
    module, entry = parse(text)
    runs, _, caller = times_run(module, entry, unknown_trips)
    total = 0.0
    for name, times in runs.items():
        if caller[name] in ("entry", "while", "conditional", "call", "async-start"):
            total += times * sum(_instruction_bytes(module, name, i) for i in module[name].values())
    return total


def _instruction_bytes(module: Module, computation: str, instruction) -> float:
    opcode, shape = instruction.opcode, instruction.shape
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0.0
    operands = [module[computation].get(name) for name in instruction.operands]
    sizes = [0.0 if operand is None else _hbm(operand.shape) for operand in operands]
    # the result holds the operand too
    if opcode.endswith("-start") and not isinstance(shape, Shape):
        moved = shape[0] if opcode in ("copy-start", "slice-start") else shape[1]
        return min(sum(sizes), sum(array.bytes for array in arrays(moved))) + _hbm(moved)
    if opcode in _SLICES:
        return min(sizes[0], sum(array.bytes for array in arrays(shape))) + _hbm(shape)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = sizes[1] if opcode == "dynamic-update-slice" else sizes[-1]
        return 2 * update
    if opcode == "fusion":
        return _fusion_bytes(module, instruction, sizes)
    return sum(sizes) + _hbm(shape)


def _fusion_bytes(module, instruction, sizes) -> float:
    body = module.get(_callee(instruction))
    if body is None:
        return sum(sizes) + _hbm(instruction.shape)
    read = 0.0
    for inside in body.values():
        if inside.opcode == "parameter":
            index = int(inside.arguments)
            if index < len(sizes) and sizes[index]:
                read += min(sizes[index], _read_of(module, body, inside.name))
    root = next((inside for inside in body.values() if inside.is_root), None)
    written = _hbm(instruction.shape)
    if root is not None:
        roots = [body.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
        outputs = (
            list(instruction.shape)
            if root.opcode == "tuple" and not isinstance(instruction.shape, Shape)
            else [instruction.shape]
        )
        if len(roots) == len(outputs):
            written = sum(_written_by(body, one, output) for one, output in zip(roots, outputs))
    return read + written


def _callee(instruction) -> str:
    return instruction.attributes.split("calls=")[-1].split(",")[0].strip().lstrip("%")


def _read_of(module, body, name) -> float:
    """Bytes of the array `name` that the users inside a fusion read; infinite where one of them
    reads all of it.
    """
    total = 0.0
    for user in body.values():
        # passed on, not read
        if name not in user.operands or user.opcode == "tuple" or goes_on(body, user):
            continue
        if user.opcode in _SLICES and user.operands[0] == name and name not in user.operands[1:]:
            total += sum(array.bytes for array in arrays(user.shape))
        elif (
            user.opcode in ("dynamic-update-slice", "scatter")
            and user.operands[0] == name
            and name not in user.operands[1:]
        ):
            continue  # in place
        elif user.opcode in ("bitcast", "reshape"):
            total += _read_of(module, body, user.name)
        elif user.opcode == "fusion" and (inner := module.get(_callee(user))) is not None:
            places = {str(i) for i, operand in enumerate(user.operands) if operand == name}
            total += sum(
                _read_of(module, inner, p.name)
                for p in inner.values()
                if p.opcode == "parameter" and p.arguments in places
            )
        else:
            return float("inf")
    return total


def _written_by(body, root, output) -> float:
    if root is not None and (root.opcode == "parameter" or goes_on(body, root)):
        return 0.0  # passed on
    if root is not None and "AsyncCollectiveStart" in root.attributes:
        return _hbm(output[1])  # operand, result, flags
    while (
        root is not None
        and root.opcode in ("bitcast", "reshape", "copy", "convert")
        and root.operands
    ):
        root = body.get(root.operands[0])
    place = {"dynamic-update-slice": 1, "scatter": -1}.get("" if root is None else root.opcode)
    if place is not None and (update := body.get(root.operands[place])) is not None:
        return min(_hbm(output), sum(array.bytes for array in arrays(update.shape)))
    return _hbm(output)


def _hbm(shape: Shape | tuple) -> float:
    return sum(array.bytes for array in arrays(shape) if array.space == 0)
