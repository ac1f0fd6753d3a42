"""Hugging Face Gemma-2 folders in and out: `config.json`, one `model.safetensors` or several with an index, tokenizer files. No torch.

Reading is lazy: each device's shard is filled from the slices of the files that it covers, so no host array is ever larger than one
shard of one parameter. Names and layouts come from `grm_jax/models/table.py`.

Vocabulary rows. Folders of transformers have 256000 rows, DeepMind's checkpoints 256128 (padded). A file must hold exactly the rows its
config.json states; if `cfg.vocab_size` is another number (`load_config(folder, vocab_size=256128)`), the table is cropped, or padded
with zero rows. Padded rows take part in the softmax like any other (DeepMind's do too), with logit 0.
"""

import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grm_jax.distributed import is_main, to_host
from grm_jax.models.config import Gemma2Config, load_config, to_hf_dict
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params, find_row, from_hf, hf_names, hf_shape, hf_slice, is_stacked, to_hf
from grm_jax.tokenizer import load_tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_FLOATS = ("F32", "BF16", "F16")  # safetensors' own names


def load_params(
    folder: str | os.PathLike, cfg: Gemma2Config, shardings: Any = None, dtype: str = "float32", architecture: str = CAUSAL_LM
) -> dict:
    """Parameters of a Hugging Face folder as a nested dict of jax arrays.

    Args:
      folder: holds config.json and model.safetensors, or model.safetensors.index.json and the files it names.
      cfg: architecture; from `load_config(folder)`, with overrides if wanted.
      shardings: tree of the same structure with a Sharding per parameter (`sharding.param_shardings`), or None: one device.
      dtype: of the result, whatever the files hold (float32, bfloat16 or float16).
      architecture: CAUSAL_LM, or SCALAR for {"backbone", "score"}.

    Raises FileNotFoundError for a missing file and ValueError for a truncated file, or a missing, unexpected or mis-shaped tensor.
    """
    folder = pathlib.Path(folder)
    expected = flatten_dict(abstract_params(cfg, architecture), sep="/")
    shardings = {} if shardings is None else flatten_dict(shardings, sep="/")
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with contextlib.ExitStack() as stack:
        tensors = _open(folder, stack)
        _check(tensors, expected, cfg, load_config(folder).vocab_size, folder)
        params = {
            path: jax.make_array_from_callback(
                leaf.shape, shardings.get(path, one_device), _reader(path, leaf.shape, cfg, tensors, _DTYPES[dtype]), dtype=_DTYPES[dtype]
            )
            for path, leaf in expected.items()
        }
        return jax.block_until_ready(unflatten_dict(params, sep="/"))


def _open(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, tuple[pathlib.Path, Any]]:
    """{tensor name: (its file, lazy slice)} of every tensor of the folder. The files stay open until `stack` closes."""
    index = folder / INDEX
    if index.is_file():
        try:
            named = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: expected JSON with a weight_map from tensor names to files: {error!r}") from error
        files = sorted(set(named.values()))
    elif (folder / SINGLE).is_file():
        named, files = None, [SINGLE]
    else:
        raise FileNotFoundError(f"{folder}: expected {SINGLE} or {INDEX}")
    tensors = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, but {INDEX} names it")
        try:
            opened = stack.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated, or not a safetensors file: {error}") from error
        tensors |= {name: (path, opened.get_slice(name)) for name in opened.keys()}
    if named is not None:
        for name, file in named.items():
            if name not in tensors or tensors[name][0].name != file:
                raise ValueError(f"{folder / file}: holds no tensor {name}, but {INDEX} says so")
    return tensors


def _check(tensors: dict, expected: dict, cfg: Gemma2Config, file_vocab: int, folder: pathlib.Path) -> None:
    """Every tensor that the model needs is there with its shape, and no other (a copy of the tied embedding is let pass)."""
    wanted = {}
    for path, leaf in expected.items():
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
        if path.endswith("embedding"):
            shape = (file_vocab, *shape[1:])
        wanted |= dict.fromkeys(hf_names(path, cfg), hf_shape(shape, find_row(path).inputs))
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(f"{folder}: missing {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}")
    if unexpected := sorted(set(tensors) - set(wanted) - {"lm_head.weight"}):
        file = tensors[unexpected[0]][0]
        raise ValueError(f"{file}: {len(unexpected)} tensors that this model has no place for, the first is {unexpected[0]}")
    for name, shape in wanted.items():
        file, lazy = tensors[name]
        if tuple(lazy.get_shape()) != shape:
            raise ValueError(f"{file}: {name} has shape {tuple(lazy.get_shape())}; config.json asks for {shape}")
        if lazy.get_dtype() not in _FLOATS:
            raise ValueError(f"{file}: {name} has dtype {lazy.get_dtype()}; expected one of {', '.join(_FLOATS)}")


def _reader(path: str, shape: tuple[int, ...], cfg: Gemma2Config, tensors: dict, dtype: np.dtype):
    """Callback for `make_array_from_callback`: index of a shard -> its contents."""
    inputs, names, stacked = find_row(path).inputs, hf_names(path, cfg), is_stacked(path)

    def read_one(name: str, index: tuple[slice, ...], whole: tuple[int, ...], out: np.ndarray) -> None:
        lazy = tensors[name][1]
        there = [slice(min(s.start, n), min(s.stop, n)) for s, n in zip(hf_slice(index, whole, inputs), lazy.get_shape())]
        part = lazy[tuple(there)]
        if inputs == 0:  # only here may the file end early: a smaller vocabulary
            out[: len(part)], out[len(part) :] = part, 0
        else:
            out[...] = from_hf(part, out.shape, inputs)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([len(range(*piece.indices(size))) for piece, size in zip(index, shape)], dtype)
        if stacked:
            for row, block in enumerate(range(*index[0].indices(shape[0]))):
                read_one(names[block], index[1:], shape[1:], out[row])
        else:
            read_one(names[0], index, shape, out)
        return out

    return read


def save_folder(
    folder: str | os.PathLike,
    params: dict,
    cfg: Gemma2Config,
    tokenizer_files_from: str | os.PathLike | None = None,
    architecture: str = CAUSAL_LM,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes a folder that `transformers` and `load_params` read: all of it or nothing (written aside, then renamed).

    Args:
      folder: absent, empty, or a model folder (has config.json), which is replaced.
      params: as `abstract_params(cfg, architecture)`; any dtype, any sharding. If it goes over several processes, all of them call this:
        tensor after tensor is gathered, and process 0 writes. The others come back earlier: `distributed.barrier` before they read.
      tokenizer_files_from: folder or file that `load_tokenizer` reads; copied, and its special ids are stated in config.json.
      dtype: of the tensors written, "float32" or "bfloat16".
      max_shard_bytes: a larger model goes into several files with an index; one tensor is never split.
    """
    flat, wanted = flatten_dict(params, sep="/"), flatten_dict(abstract_params(cfg, architecture), sep="/")
    if {path: leaf.shape for path, leaf in flat.items()} != {path: leaf.shape for path, leaf in wanted.items()}:
        differing = sorted(p for p in flat.keys() | wanted.keys() if p not in flat or p not in wanted or flat[p].shape != wanted[p].shape)
        raise ValueError(f"params do not fit {architecture} of this config, first at {differing[0]!r}")
    files = _files(flat, cfg, _DTYPES[dtype], max_shard_bytes)
    if not is_main():
        for _, path, block, _ in (piece for file in files for piece in file):
            to_host(_tensor(flat, path, block))  # process 0 gathers them in this order
        return

    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: holds files but no config.json; refusing to replace a folder that is no model")
    config = to_hf_dict(cfg, architecture) | {"dtype": dtype}
    if architecture == SCALAR:
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}  # how transformers knows that there is one label
    partial, replaced = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.replaced")
    for leftover in (partial, replaced):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    if tokenizer_files_from is not None:
        config |= _copy_tokenizer(pathlib.Path(tokenizer_files_from), partial)
    _write_tensors(partial, flat, files, _DTYPES[dtype])
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """Copies tokenizer files and returns the token ids that config.json states."""
    tokenizer = load_tokenizer(source)
    if source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    else:
        shutil.copyfile(source, target / ("tokenizer.json" if source.suffix == ".json" else "tokenizer.model"))
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}


def _files(flat: dict, cfg: Gemma2Config, dtype: np.dtype, max_shard_bytes: int) -> list[list[tuple[str, str, int | None, int]]]:
    """What goes into each file: (tensor name, parameter path, block or None, bytes)."""
    pieces = []
    for path, leaf in flat.items():
        for block, name in enumerate(hf_names(path, cfg)):
            n_tensors = leaf.shape[0] if is_stacked(path) else 1
            pieces.append((name, path, block if is_stacked(path) else None, leaf.size // n_tensors * dtype.itemsize))
    shards, room = [], 0
    for piece in pieces:
        if not shards or piece[-1] > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(piece)
        room -= piece[-1]
    return shards


def _tensor(flat: dict, path: str, block: int | None) -> jax.Array:
    return flat[path] if block is None else flat[path][block]


def _write_tensors(folder: pathlib.Path, flat: dict, shards: list, dtype: np.dtype) -> None:
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, path, block, _ in shard:
            array = to_host(_tensor(flat, path, block))
            tensors[name] = np.ascontiguousarray(to_hf(array, find_row(path).inputs).astype(dtype, copy=False))
            weight_map[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(piece[-1] for shard in shards for piece in shard)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
