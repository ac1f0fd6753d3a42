"""Reads and writes Hugging Face folders: config, safetensors, tokenizer files. No torch.

`config.json`, one `model.safetensors` or several with an index, tokenizer files.

Reading is lazy: each device's shard is filled from the slices of the files that it covers, and a
slice that several devices of this process hold is read once. The layers of a stacked parameter are
put together on the device, so the host holds STAGED_BYTES, or one device's slice of one tensor
where that is more. Names and layouts come from `grm_jax/models/table.py`.

Vocabulary rows. Folders of transformers have 256000 rows, DeepMind's checkpoints 256128 (padded). A
file must hold exactly the rows its config.json states; if `cfg.vocab_size` is another number
(`load_config(folder, vocab_size=256128)`), the table is cropped, or padded with zero rows. Padded
rows take part in the softmax like any other (DeepMind's do too), with logit 0.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grm_jax.checkpoint.tokenizer_files import write_tokenizer
from grm_jax.json_files import file_looks_like, read_object, shown
from grm_jax.models.config import ModelConfig
from grm_jax.models.hf_config import load_config, to_hf_dict
from grm_jax.models.table import (
    CAUSAL_LM,
    SCALAR,
    abstract_params,
    find_row,
    flatten,
    hf_names,
    hf_shape,
    hf_slice,
    is_stacked,
    to_hf,
    unflatten,
)
from grm_jax.parallel.mesh import Device
from grm_jax.parallel.processes import is_main, to_host
from grm_jax.progress import byte_progress
from grm_jax.tokenizer import Tokenizer, load_tokenizer
from grm_jax.whole_files import replacing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# buffers that folders of Llama 2's time hold, and transformers leaves out as we do
_COMPUTED = "rotary_emb.inv_freq"
_FLOATS = ("F32", "BF16", "F16")  # safetensors' own names
# exponent bits, which are all set in NaN and infinities and in nothing else
_EXPONENTS = {
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
    np.dtype(np.float16): np.uint16(0x7C00),
}
STAGED_BYTES = 64 * 2**20  # of a shard, put together on the host and copied to the device at once
# asked of a file at once: small enough to be turned round within a processor's cache
READ_BYTES = 2**18


def load_params(
    folder: str | os.PathLike,
    cfg: ModelConfig,
    shardings: Any = None,
    dtype: str = "float32",
    architecture: str = CAUSAL_LM,
) -> dict:
    """Reads the parameters of a Hugging Face folder as a nested dict of jax arrays.

    Each process reads what its own devices hold.

    Args:
      folder: holds config.json and model.safetensors, or where that is not,
        model.safetensors.index.json and the files it names.
      cfg: architecture; from `load_config(folder)`, with overrides if wanted.
      shardings: tree of the same structure with a Sharding per parameter (`mesh.param_shardings`),
        or None: one device.
      dtype: of the result, whatever the files hold (float32, bfloat16 or float16).
      architecture: CAUSAL_LM, or SCALAR for {"backbone", "score"}.

    Raises FileNotFoundError for a missing file and ValueError for a truncated file, a missing,
    unexpected or mis-shaped tensor, or a number that is not finite.
    """
    folder = pathlib.Path(folder)
    if (folder / GENERATION).is_file():
        read_object(folder / GENERATION)  # which goes on into what is made of this model
    expected = flatten(abstract_params(cfg, architecture))
    shardings = {} if shardings is None else flatten(shardings)
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shards = {
        path: _local_shards(leaf.shape, shardings.get(path, one_device))
        for path, leaf in expected.items()
    }
    n_bytes = _DTYPES[dtype].itemsize * sum(
        math.prod(stop - start for start, stop in part)
        for parts in shards.values()
        for part in parts
    )
    with contextlib.ExitStack() as stack:
        tensors = _open(folder, stack)
        _check(tensors, expected, cfg, load_config(folder).vocab_size, folder)
        advance = stack.enter_context(byte_progress(f"load {folder.name}", n_bytes))
        params = {}
        for path, leaf in expected.items():
            read = _reader(path, leaf.shape, cfg, tensors, _DTYPES[dtype])
            arrays = _fill(shards[path], read, _DTYPES[dtype].itemsize, advance)
            params[path] = jax.make_array_from_single_device_arrays(
                leaf.shape, shardings.get(path, one_device), arrays
            )
        return jax.block_until_ready(unflatten(params))


Part = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def _local_shards(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> dict[Part, list[Device]]:
    """The different parts of an array that this process holds, each with the devices that hold
    it.
    """
    shards = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        part = tuple(piece.indices(size)[:2] for piece, size in zip(index or (), shape))
        shards.setdefault(part, []).append(device)
    return shards


def _fill(
    shards: dict[Part, list[Device]],
    read: Callable[[Part], np.ndarray],
    itemsize: int,
    advance: Callable[[int], None],
) -> list[jax.Array]:
    """One array for each device, in pieces of STAGED_BYTES or one row (a layer of a stacked
    parameter), one piece at a time on the host.
    """
    n_rows, *rest = [stop - start for start, stop in next(iter(shards))]
    step = min(n_rows, max(1, STAGED_BYTES // (itemsize * math.prod(rest))))

    def pieces(first: int, last: int) -> list[jax.Array]:
        arrays = []
        for ((start, _), *others), devices in shards.items():
            host = read(((start + first, start + last), *others))
            arrays += [
                jax.block_until_ready(jax.device_put(host, device, may_alias=False))
                for device in devices
            ]
            advance(host.nbytes)
            del host  # before the next is made
        return arrays

    if step == n_rows:
        return pieces(0, n_rows)
    sharding, write = _row_writer(
        tuple(device for devices in shards.values() for device in devices)
    )
    n_devices, whole = sharding.num_devices, None
    for first in range(0, n_rows, step):
        last = min(first + step, n_rows)
        piece = jax.make_array_from_single_device_arrays(
            (n_devices * (last - first), *rest), sharding, pieces(first, last)
        )
        if whole is None:
            whole = jnp.zeros((n_devices * n_rows, *rest), piece.dtype, device=sharding)
        whole = jax.block_until_ready(write(whole, piece, first))
        del piece
    return [shard.data for shard in whole.addressable_shards]


@functools.cache
def _row_writer(devices: tuple[Device, ...]) -> tuple[NamedSharding, Callable]:
    """(leading axis over these devices, function that writes a piece of rows into each device's
    part of an array, in place).
    """
    mesh = Mesh(np.array(devices), "device")
    rows = P("device")

    def write(whole, piece, first):
        return jax.lax.dynamic_update_slice_in_dim(whole, piece, first, axis=0)

    return NamedSharding(mesh, rows), jax.jit(
        jax.shard_map(write, mesh=mesh, in_specs=(rows, rows, P()), out_specs=rows),
        donate_argnums=0,
    )


def open_safetensors(path: pathlib.Path) -> Any:
    """Opens a file as `safe_open` does, with errors that name it.

    Raises FileNotFoundError, or ValueError where it is cut off or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: truncated, or not a safetensors file: {error}{file_looks_like(path)}"
        ) from error


def _open(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, tuple[pathlib.Path, Any]]:
    """{tensor name: (its file, lazy slice)} of every tensor of the folder but those that are
    computed. The files stay open until `stack` closes.

    Of one file and an index, transformers reads the file, and so do we: it was saved into a folder
    that had held shards.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        named, files = None, [SINGLE]
    elif index.is_file():
        named = read_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(map(_is_file_name, named.values())):
            raise ValueError(
                f'{index}: field "weight_map": expected an object of tensor names and names of '
                f"files in this folder, got {shown(named)}"
            )
        files = sorted(set(named.values()))
    else:
        raise FileNotFoundError(f"{folder}: expected {SINGLE} or {INDEX}")
    tensors = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, but {INDEX} names it")
        opened = stack.enter_context(open_safetensors(path))
        tensors |= {
            name: (path, opened.get_slice(name))
            for name in opened.keys()
            if named is None or named.get(name, file) == file
        }
    if named is not None:
        for name, file in named.items():
            if name not in tensors or tensors[name][0].name != file:
                raise ValueError(f"{folder / file}: holds no tensor {name}, but {INDEX} says so")
    return {name: found for name, found in tensors.items() if not name.endswith(_COMPUTED)}


def stored_dtypes(folder: str | os.PathLike) -> list[str]:
    """Names the dtypes of a folder's tensors, in order, as config.json does: float32, bfloat16.

    Raises FileNotFoundError and ValueError as `load_params`.
    """
    with contextlib.ExitStack() as stack:
        stored = {lazy.get_dtype() for _, lazy in _open(pathlib.Path(folder), stack).values()}
    names: dict[str, str] = dict(zip(_FLOATS, ("float32", "bfloat16", "float16"), strict=True))
    return sorted(names.get(str(dtype), str(dtype)) for dtype in stored)


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name != "" and name == pathlib.Path(name).name


def _check(
    tensors: dict, expected: dict, cfg: ModelConfig, file_vocab: int, folder: pathlib.Path
) -> None:
    """Every tensor that the model needs is there with its shape, and no other (a true copy of the
    tied embedding is let pass, and so is any lm_head where a scalar takes its place).
    """
    wanted = {}
    for path, leaf in expected.items():
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
        if path.endswith(("embedding", "lm_head")):
            shape = (file_vocab, *shape[1:])
        wanted |= dict.fromkeys(hf_names(path, cfg), hf_shape(shape, find_row(path).inputs))
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(
            f"{folder}: missing {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}"
        )
    if unexpected := sorted(set(tensors) - set(wanted) - {"lm_head.weight"}):
        file = tensors[unexpected[0]][0]
        raise ValueError(
            f"{file}: {len(unexpected)} tensors that this model has no place for, the first is "
            f"{unexpected[0]}"
        )
    for name, shape in wanted.items():
        file, lazy = tensors[name]
        if tuple(lazy.get_shape()) != shape:
            raise ValueError(
                f"{file}: {name} has shape {tuple(lazy.get_shape())}; config.json asks for {shape}"
            )
        if lazy.get_dtype() not in _FLOATS:
            raise ValueError(
                f"{file}: {name} has dtype {lazy.get_dtype()}; expected one of {', '.join(_FLOATS)}"
            )
    if "embedding" in expected and "lm_head" not in expected and "lm_head.weight" in tensors:
        file, head = tensors["lm_head.weight"]
        if not _are_same(head, tensors[hf_names("embedding", cfg)[0]][1]):
            raise ValueError(
                f"{file}: lm_head.weight differs from the embedding that config.json ties it to; "
                "expected a copy of it, or tie_word_embeddings = false"
            )


def _are_same(one: Any, other: Any) -> bool:
    """Whether two lazy slices hold the same numbers, of whatever dtypes; read in small pieces."""
    rows, *rest = shape = one.get_shape()
    if shape != other.get_shape():
        return False
    step = max(1, READ_BYTES // (4 * math.prod(rest)))
    pieces = (slice(first, min(first + step, rows)) for first in range(0, rows, step))
    return all(
        np.array_equal(*(lazy[piece].astype(np.float32) for lazy in (one, other)), equal_nan=True)
        for piece in pieces
    )


def _reader(
    path: str, shape: tuple[int, ...], cfg: ModelConfig, tensors: dict, dtype: np.dtype
) -> Callable[[Part], np.ndarray]:
    """Function that gives one part of a parameter, from the slices of files that it covers."""
    inputs, names, stacked = find_row(path).inputs, hf_names(path, cfg), is_stacked(path)

    def read_one(
        name: str, index: tuple[slice, ...], whole: tuple[int, ...], out: np.ndarray
    ) -> None:
        file, lazy = tensors[name]
        rows, *columns = [
            slice(min(s.start, n), min(s.stop, n))
            for s, n in zip(hf_slice(index, whole, inputs), lazy.get_shape())
        ]
        target = to_hf(out, inputs)  # a view, as `out` is contiguous
        n_rows = rows.stop - rows.start
        target[n_rows:] = 0  # only a vocabulary may end early in the file
        step = max(1, READ_BYTES // (4 * math.prod(target.shape[1:])))
        for first in range(0, n_rows, step):
            some = slice(first, min(first + step, n_rows))
            part = lazy[(slice(rows.start + some.start, rows.start + some.stop), *columns)]
            with np.errstate(over="ignore"):  # which is an error below
                converted = part.astype(dtype, copy=False)
            if not all_finite(converted):
                corner = (rows.start + first, *(column.start for column in columns))
                refuse_not_finite(file, name, part, corner, dtype)
            target[some] = converted

    def read(part: Part) -> np.ndarray:
        index = tuple(slice(start, stop) for start, stop in part)
        out = np.empty([stop - start for start, stop in part], dtype)
        if stacked:
            for row, block in enumerate(range(*part[0])):
                read_one(names[block], index[1:], shape[1:], out[row])
        else:
            read_one(names[0], index, shape, out)
        return out

    return read


def all_finite(array: np.ndarray) -> bool:
    """Says whether every number of an array is finite.

    Floats of up to 32 bits by their exponents, piece by piece within a processor's cache: as fast
    as memory, where NumPy has no fast way for bfloat16.
    """
    exponent = _EXPONENTS.get(array.dtype)
    if exponent is None:
        return bool(np.isfinite(array).all())
    bits = array.reshape(-1).view(exponent.dtype)
    step = READ_BYTES // array.itemsize
    pieces = (bits[first : first + step] for first in range(0, bits.size, step))
    return all((piece & exponent).max() != exponent for piece in pieces)


def refuse_not_finite(
    file: os.PathLike,
    name: str,
    part: np.ndarray,
    corner: Sequence[int] = (),
    dtype: np.dtype | None = None,
) -> None:
    """Raises ValueError, naming the first number of a tensor's part that is NaN or infinite.

    corner: where the part begins in the tensor. dtype: that it is converted to, and may be beyond.
    """
    with np.errstate(over="ignore"):
        converted = part.astype(dtype or part.dtype, copy=False)
    if all_finite(converted):
        return
    place = tuple(np.argwhere(~np.isfinite(converted.astype(np.float32)))[0])
    index = ", ".join(str(i + start) for i, start in zip(place, corner or (0,) * part.ndim))
    value = float(part[place])
    raise ValueError(
        f"{file}: tensor {name} holds {value:g} at [{index}]; expected finite numbers"
        + (f" that {converted.dtype.name} can hold" if np.isfinite(value) else "")
    )


def load_own_tokenizer(
    folder: str | os.PathLike,
    cfg: ModelConfig,
    switches: Mapping[str, Any] | None = None,
    layers: Sequence[str | os.PathLike] = (),
) -> Tokenizer:
    """Reads the tokenizer of a model folder; switches, layers: as of `load_tokenizer`.

    Raises as `load_tokenizer`, and ValueError where it has more ids than the model has rows: the
    rows of those ids would be another token's.
    """
    tokenizer = load_tokenizer(folder, switches, layers)
    if tokenizer.vocab_size > cfg.vocab_size and tokenizer.rows_needed > cfg.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.rows_needed:,} ids, but config.json says "
            f"vocab_size = {cfg.vocab_size:,}; expected a row of the embedding for each id"
        )
    return tokenizer


def write_safetensors(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a file that transformers reads, with an ordinary mode; save_file gives 0600."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def save_folder(
    folder: str | os.PathLike,
    params: dict,
    cfg: ModelConfig,
    tokenizer_files_from: str | os.PathLike | None = None,
    architecture: str = CAUSAL_LM,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes a folder that `transformers` and `load_params` read: all of it or nothing.

    It is written aside, then renamed (`whole_files.replacing`).

    Args:
      folder: absent, empty, or a model folder (has config.json), which is replaced.
      params: as `abstract_params(cfg, architecture)`; any dtype, any sharding. If it goes over
        several processes, all of them call this: tensor after tensor is gathered, and process 0
        writes. The others come back earlier: `processes.barrier` before they read.
      tokenizer_files_from: folder or file that `load_tokenizer` reads. Its files are written so
        that transformers' own calls give our ids (`checkpoint.tokenizer_files`), and its special
        ids are stated in config.json and, for a model that writes, generation_config.json.
      dtype: of the tensors written, "float32" or "bfloat16".
      max_shard_bytes: a larger model goes into several files with an index; one tensor is never
        split. The host holds one such file and one tensor.

    Raises ValueError, and writes nothing, for parameters that do not fit or are not finite.
    """
    flat, wanted = flatten(params), flatten(abstract_params(cfg, architecture))
    if {path: leaf.shape for path, leaf in flat.items()} != {
        path: leaf.shape for path, leaf in wanted.items()
    }:
        differing = sorted(
            p
            for p in flat.keys() | wanted.keys()
            if p not in flat or p not in wanted or flat[p].shape != wanted[p].shape
        )
        raise ValueError(
            f"params do not fit {architecture} of this config, first at {differing[0]!r}"
        )
    files = _files(flat, cfg, _DTYPES[dtype], max_shard_bytes)
    if not is_main():
        for _, path, block, _ in (piece for file in files for piece in file):
            to_host(_tensor(flat, path, block))  # process 0 gathers them in this order
        return

    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder}: holds files but no config.json; refusing to replace a folder that is no "
            "model"
        )
    config = to_hf_dict(cfg, architecture) | {"dtype": dtype}
    if architecture == SCALAR:
        # how transformers knows that there is one label
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    with replacing(folder) as partial:
        if tokenizer_files_from is not None:
            source = pathlib.Path(tokenizer_files_from)
            tokenizer = write_tokenizer(source, partial, cfg.max_positions)
            ids = {
                "bos_token_id": tokenizer.bos_id,
                "eos_token_id": list(tokenizer.stop_ids),
                "pad_token_id": tokenizer.pad_id,
            }
            config |= ids
            if architecture == CAUSAL_LM:
                # transformers ends a text where this file says, not where config.json does
                stated = source / GENERATION
                settings = read_object(stated) if stated.is_file() else {}
                (partial / GENERATION).write_text(
                    json.dumps(settings | ids, indent=2) + "\n", encoding="utf-8"
                )
        _write_tensors(partial, folder.name, flat, files, _DTYPES[dtype])
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _files(
    flat: dict, cfg: ModelConfig, dtype: np.dtype, max_shard_bytes: int
) -> list[list[tuple[str, str, int | None, int]]]:
    """What goes into each file: (tensor name, parameter path, block or None, bytes)."""
    pieces = []
    for path, leaf in flat.items():
        for block, name in enumerate(hf_names(path, cfg)):
            n_tensors = leaf.shape[0] if is_stacked(path) else 1
            pieces.append(
                (
                    name,
                    path,
                    block if is_stacked(path) else None,
                    leaf.size // n_tensors * dtype.itemsize,
                )
            )
    return into_shards(pieces, max_shard_bytes)


def into_shards(pieces: Sequence[tuple], max_shard_bytes: int) -> list[list[tuple]]:
    """Cuts pieces, the last field of each its bytes, into files of at most max_shard_bytes.

    A larger piece has a file of its own.
    """
    shards, room = [], 0
    for piece in pieces:
        if not shards or piece[-1] > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(piece)
        room -= piece[-1]
    return shards


def shard_name(number: int, shards: int) -> str:
    """Names file `number`, from 1, of so many."""
    return SINGLE if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"


def write_index(folder: pathlib.Path, weight_map: Mapping[str, str], n_bytes: int) -> None:
    """Writes which of several files holds each tensor, {tensor name: file}."""
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensor(flat: dict, path: str, block: int | None) -> jax.Array:
    return flat[path] if block is None else flat[path][block]


def _write_tensors(
    folder: pathlib.Path, label: str, flat: dict, shards: list, dtype: np.dtype
) -> None:
    weight_map = {}
    with byte_progress(
        f"write {label}", sum(piece[-1] for shard in shards for piece in shard)
    ) as advance:
        for number, shard in enumerate(shards, 1):
            file = shard_name(number, len(shards))
            tensors = {}
            for name, path, block, n_bytes in shard:
                array = to_host(_tensor(flat, path, block))
                tensors[name] = np.ascontiguousarray(
                    to_hf(array, find_row(path).inputs).astype(dtype, copy=False)
                )
                refuse_not_finite(folder.with_name(label) / file, name, tensors[name])
                weight_map[name] = file
                advance(n_bytes)
                del array
            write_safetensors(tensors, folder / file)
            del tensors
    if len(shards) > 1:
        write_index(folder, weight_map, sum(piece[-1] for shard in shards for piece in shard))
