"""Imports a model in llama.cpp's GGUF form as a Hugging Face folder. Needs the package `gguf`.

The weights are dequantized, so that they are what llama.cpp computes with, and lie in safetensors
under transformers' names. The tokenizer is rebuilt from the file: a SentencePiece model of its
pieces and scores, or byte-level BPE of its merges; the chat template comes along.

Which architectures there are, and how they lie in a file: `grm_jax.models.gguf`.
"""

from __future__ import annotations

import json
import math
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from grm_jax.checkpoint.huggingface import (
    GENERATION,
    into_shards,
    shard_name,
    write_index,
    write_safetensors,
)
from grm_jax.checkpoint.tokenizer_files import CHAT, write_tokenizer
from grm_jax.json_files import file_looks_like, shown
from grm_jax.models.gguf import ARCHITECTURES, ROPE_DIVISORS, as_transformers_has_it, config_of
from grm_jax.models.gguf import tensors as weights
from grm_jax.models.hf_config import to_hf_dict
from grm_jax.progress import byte_progress
from grm_jax.whole_files import replacing

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5 * 2**30
# lists beside the tokens, by the name of the tokenizer
OF_TOKENIZER = {"llama": ("scores", "token_type"), "gpt2": ("token_type", "merges")}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of tokens, here as in SentencePiece


def import_gguf(
    file: str | pathlib.Path, folder: str | pathlib.Path, dtype: str = "float32"
) -> pathlib.Path:
    """Writes the model of a GGUF file as a Hugging Face folder: all of it or nothing.

    folder: absent or empty. dtype: of the weights, "float32" (as dequantized) or "bfloat16".

    Returns the folder. Raises FileNotFoundError, FileExistsError, and ValueError, naming the file
    and what was expected, for what is no GGUF file, an architecture or tokenizer that is not known,
    and tensors that are missing, unexpected, mis-shaped or not finite.
    """
    file, folder = pathlib.Path(file), pathlib.Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty; expected a new folder")
    reader = _open(file)
    metadata = _metadata(reader)
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{file}: architecture {shown(name)}; expected one of {', '.join(ARCHITECTURES)}"
        )
    for key in ("tokens", *OF_TOKENIZER.get(metadata.get("tokenizer.ggml.model", ""), ())):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise ValueError(f"{file}: field 'tokenizer.ggml.{key}': missing")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    divisors = tensors.pop(ROPE_DIVISORS, None)
    try:
        cfg = config_of(
            metadata,
            tied="output.weight" not in tensors,
            divisors=None if divisors is None else _dequantized(divisors),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    wanted = weights(cfg)
    _check(file, tensors, wanted)

    def read(source: str) -> np.ndarray:
        array = as_transformers_has_it(_dequantized(tensors[source]), source, cfg, name)
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: {source} holds NaN or infinity; expected finite numbers")
        return array

    with replacing(folder) as partial:
        config = to_hf_dict(cfg) | _write_tokenizer(file, metadata, partial, cfg.max_positions)
        (partial / "config.json").write_text(
            json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8"
        )
        _write_weights(file.name, read, wanted, partial, DTYPES[dtype])
        if folder.exists():
            folder.rmdir()  # which fails where it was filled meanwhile
    return folder


def _open(file: pathlib.Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{file}: reading it needs the package gguf: pip install 'grm_jax[gguf]'"
        ) from error
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        return gguf.GGUFReader(file)
    # whatever a file does to the library that is cut off or something else
    except Exception as error:
        raise ValueError(
            f"{file}: truncated, or not a GGUF file: {error}{file_looks_like(file)}"
        ) from error


def _metadata(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _check(file: pathlib.Path, tensors: Mapping[str, Any], wanted: Mapping[str, tuple]) -> None:
    missing, unexpected = [*(wanted.keys() - tensors)], [*(tensors.keys() - wanted)]
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise ValueError(f"{file}: {len(names)} {what} tensors, the first {min(names)}")
    for name, (_, shape) in wanted.items():
        found = tuple(int(n) for n in reversed(tensors[name].shape))
        if found != shape:
            raise ValueError(f"{file}: {name} has shape {found}; its metadata ask for {shape}")


def _dequantized(tensor: Any) -> np.ndarray:
    """A tensor as it lies in the file, float32."""
    import gguf

    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)


def _write_weights(
    label: str,
    read: Callable[[str], np.ndarray],
    wanted: Mapping[str, tuple[str, tuple]],
    folder: pathlib.Path,
    dtype: np.dtype,
) -> None:
    """Writes safetensors, one file of SHARD_BYTES after the other, and an index of several."""
    pieces = [(name, dtype.itemsize * math.prod(shape)) for name, (_, shape) in wanted.items()]
    shards = into_shards(pieces, SHARD_BYTES)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = shard_name(number, len(shards))
        arrays = {}
        with byte_progress(f"read {label}", sum(n_bytes for _, n_bytes in shard)) as advance:
            for source, n_bytes in shard:
                arrays[wanted[source][0]] = np.ascontiguousarray(read(source).astype(dtype))
                weight_map[wanted[source][0]] = name
                advance(n_bytes)
        write_safetensors(arrays, folder / name)
    if len(shards) > 1:
        write_index(folder, weight_map, sum(n_bytes for _, n_bytes in pieces))


# Where words begin and end, by llama.cpp's name of it: normalizer, patterns that isolate pieces,
# and whether whole words of the vocabulary go before merges.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: dict[str, tuple[Any, tuple[str, ...], bool]] = {
    "gpt-2": (None, (_GPT2,), False),
    "smollm": (None, (r"\p{N}", _GPT2), False),
    "llama-bpe": (None, (_CASELESS + r"|\p{N}{1,3}" + _LINES,), True),
    "qwen2": (normalizers.NFC(), (_CASELESS + r"|\p{N}" + _LINES,), False),
}


def _write_tokenizer(
    file: pathlib.Path, metadata: Mapping[str, Any], folder: pathlib.Path, positions: int
) -> dict[str, Any]:
    """Writes the tokenizer files and generation_config.json; returns the ids for config.json."""
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind, tokens = fields.get("model"), fields["tokens"]
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {name: fields.get(f"{theirs}_token_id") for name, theirs in names.items()}
    ids = {name: int(i) for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    with tempfile.TemporaryDirectory() as temporary:
        source = pathlib.Path(temporary)
        if kind == "gpt2":
            _bpe(file, fields, ids).save(str(source / "tokenizer.json"))
        elif kind == "llama":
            (source / "tokenizer.model").write_bytes(_sentencepiece(fields, ids))
        else:
            raise ValueError(
                f"{file}: tokenizer.ggml.model is {shown(kind)}; expected llama or gpt2"
            )
        stated: dict[str, Any] = {f"{name}_token": tokens[i] for name, i in ids.items()}
        stated["add_bos_token"] = _adds_bos(fields)
        (source / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
        if template := metadata.get("tokenizer.chat_template"):
            (source / CHAT).write_text(template, encoding="utf-8")
        tokenizer = write_tokenizer(source, folder, positions)
    named: dict[str, Any] = {f"{name}_token_id": i for name, i in ids.items() if name != "unk"}
    stops = [*tokenizer.stop_ids, *_further_stops(fields)]
    named["eos_token_id"] = [*dict.fromkeys(stops)]
    (folder / GENERATION).write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    return named


def _adds_bos(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("add_bos_token", fields.get("model") == "llama"))


def _further_stops(fields: Mapping[str, Any]) -> list[int]:
    """Ids of the ends of a turn and of a message that the metadata name beside eos."""
    stated = (fields.get("eot_token_id"), fields.get("eom_token_id"))
    return [int(i) for i in stated if i is not None]


def _bpe(
    file: pathlib.Path, fields: Mapping[str, Any], ids: Mapping[str, int]
) -> tokenizers.Tokenizer:
    """Byte-level BPE of a file's merges."""
    before = fields.get("pre")
    if before not in PRE_TOKENIZERS:
        raise ValueError(
            f"{file}: tokenizer.ggml.pre is {shown(before)}; expected one of "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    normalizer, patterns, whole_words = PRE_TOKENIZERS[before]
    tokens, types = fields["tokens"], fields["token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        texts = [token for token, of in zip(tokens, types, strict=True) if of == kind]
        added = [AddedToken(text, normalized=False, special=special) for text in texts]
        (library.add_special_tokens if special else library.add_tokens)(added)
    if _adds_bos(fields) and "bos" in ids:
        bos = tokens[ids["bos"]]
        library.post_processor = TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, ids["bos"])]
        )
    return library


def _sentencepiece(fields: Mapping[str, Any], ids: Mapping[str, int]) -> bytes:
    """A SentencePiece model of a file's pieces, scores and types, serialized."""
    from sentencepiece import sentencepiece_model_pb2

    made: Any = sentencepiece_model_pb2  # at run time: no checker knows its names
    model = made.ModelProto()
    rows = zip(fields["tokens"], fields["scores"], fields["token_type"], strict=True)
    for i, (piece, score, kind) in enumerate(rows):
        # SentencePiece has exactly one unknown piece
        kind = UNKNOWN if i == ids.get("unk", 0) else CONTROL if kind == UNKNOWN else int(kind)
        if kind == USER_DEFINED:  # llama.cpp has them as they stand in a text
            piece = piece.replace(" ", "▁")
        model.pieces.add(piece=piece, score=float(score), type=kind)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = True
    for name in ("unk", "bos", "eos", "pad"):
        setattr(trainer, f"{name}_id", ids.get(name, 0 if name == "unk" else -1))
        if name in ids:
            setattr(trainer, f"{name}_piece", fields["tokens"][ids[name]])
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(fields.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()
