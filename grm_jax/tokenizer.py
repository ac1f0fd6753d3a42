"""Turns text into ids and back (tokenizer.json, SentencePiece), and writes Gemma-2's chat in ids.

Three rules hold for every tokenizer:
- text never becomes a control id: a response that contains "<end_of_turn>" or "<bos>" is encoded as
  ordinary pieces;
- prompt and completion are encoded apart, here as in the sampler, so that training sees the ids
  that were sampled;
- `decode(encode(text)) == text` as far as the tokenizer's own normalizer allows: the "dummy prefix"
  (a space that SentencePiece models of the Llama family put before every text) is switched off, and
  `chat_prompt` writes that space once, behind the BOS.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from grm_jax.json_files import file_looks_like, read_object, shown

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
# `Tokenizer.chat` and `Tokenizer.chat_prompt` as transformers writes them, with turn tokens and
# without
CHAT_TEMPLATE = """\
{{ bos_token }}{% set ns = namespace(instructions='') %}{% for message in messages %}\
{% if message['role'] == 'system' %}\
{% set ns.instructions = ns.instructions + (message['content'] | trim) + '\\n\\n' %}\
{% else %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}\
{{ ns.instructions + (message['content'] | trim) + '<end_of_turn>\\n' }}\
{% set ns.instructions = '' %}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
PLAIN_TEMPLATE = """\
{{ bos_token }}{% set ns = namespace(instructions='', first=true) %}{% for message in messages %}\
{% if message['role'] == 'system' %}\
{% set ns.instructions = ns.instructions + (message['content'] | trim) + '\\n\\n' %}\
{% else %}\
{{ ('' if ns.first else '\\n') + ns.instructions + (message['content'] | trim) }}\
{% set ns.instructions = '' %}{% set ns.first = false %}\
{% endif %}{% endfor %}\
{{ '\\n' if add_generation_prompt else eos_token }}
"""
# A serialized ModelProto that is appended to another is merged into it. This one: normalizer_spec
# (field 3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


@dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes text, and holds the ids of the control tokens.

    `encode`: text -> ids, never a control id. `decode`: ids -> text, control ids left out.
    `start_of_turn_id` and `end_of_turn_id` are None for a tokenizer without turn tokens.
    `text_prefix` is " " for models that were trained with a space before every text, else "".
    """

    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    start_of_turn_id: int | None
    end_of_turn_id: int | None
    text_prefix: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Returns the ids that end a completion: <end_of_turn> where it exists, and eos.

        Instruction-tuned Gemma stops at <end_of_turn>.
        """
        return (self.eos_id,) if self.end_of_turn_id is None else (self.eos_id, self.end_of_turn_id)

    @property
    def chat_template(self) -> str:
        """Returns the Jinja template by which transformers writes `chat` and `chat_prompt`."""
        has_turns = self.start_of_turn_id is not None and self.end_of_turn_id is not None
        return CHAT_TEMPLATE if has_turns else PLAIN_TEMPLATE

    def chat_prompt(self, user_text: str) -> list[int]:
        r"""Writes one user turn up to where the model begins to write; one BOS, at the front.

        Outer white space is cut, as in Gemma's template.

        Gemma: <bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n. There is no
        system role: instructions go into the user's turn. Tokenizers without turn tokens:
        <bos>{text}\n.
        """
        text = user_text.strip()
        if self.start_of_turn_id is None or self.end_of_turn_id is None:
            return [self.bos_id, *self.encode(f"{self.text_prefix}{text}\n")]
        return [
            self.bos_id,
            self.start_of_turn_id,
            *self.encode(f"user\n{text}"),
            self.end_of_turn_id,
            *self.encode("\n"),
            self.start_of_turn_id,
            *self.encode("model\n"),
        ]

    def chat_completion(self, text: str) -> list[int]:
        """Writes the model's turn as trained and sampled: the text as given, then <end_of_turn>.

        eos in its place without turn tokens.
        """
        return [
            *self.encode(text),
            self.eos_id if self.end_of_turn_id is None else self.end_of_turn_id,
        ]

    def chat_prompt_with_answer(self, user_text: str, answer: str) -> list[int]:
        """Writes a finished exchange, `chat_prompt` + `chat_completion`: what a Meta RM reads."""
        return self.chat_prompt(user_text) + self.chat_completion(answer)

    def chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        r"""Writes a whole conversation of (role, text) turns as Gemma's own template does.

        The input of a scalar reward model. Gemma: <bos>, then
        <start_of_turn>{user or model}\n{text}<end_of_turn>\n for each turn. There is no system
        role: a system turn is put in front of the turn after it, a blank line between. Tokenizers
        without turn tokens: <bos>, a line for each turn, eos.
        """
        joined, instructions = [], ""
        for role, text in turns:
            if role == "system":
                instructions += f"{text.strip()}\n\n"
            else:
                joined.append(
                    ("model" if role == "assistant" else "user", instructions + text.strip())
                )
                instructions = ""
        if self.start_of_turn_id is None or self.end_of_turn_id is None:
            return [
                self.bos_id,
                *self.encode(self.text_prefix + "\n".join(text for _, text in joined)),
                self.eos_id,
            ]
        ids = [self.bos_id]
        for role, text in joined:
            ids += [
                self.start_of_turn_id,
                *self.encode(f"{role}\n{text}"),
                self.end_of_turn_id,
                *self.encode("\n"),
            ]
        return ids


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a tokenizer: a folder or file, of Hugging Face (tokenizer.json) or SentencePiece.

    No network is used. Raises FileNotFoundError or ValueError, naming the file and what was
    expected in it.
    """
    path = find_tokenizer(path)
    return _load_hugging_face(path) if path.suffix == ".json" else _load_sentencepiece(path)


def find_tokenizer(path: str | os.PathLike) -> Path:
    """Finds the file that `load_tokenizer` reads.

    Raises FileNotFoundError, naming what was expected.
    """
    path = Path(path)
    if path.is_dir():
        found = [
            path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()
        ]
        if not found:
            raise FileNotFoundError(
                f"{path}: expected a tokenizer.json or a tokenizer.model in this folder"
            )
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such tokenizer; expected a folder, a tokenizer.json or a SentencePiece "
            "model"
        )
    return path


def _load_sentencepiece(path: Path) -> Tokenizer:
    data = path.read_bytes()
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a SentencePiece model: {error}{file_looks_like(path)}"
        ) from error
    has_prefix = model.normalize("a").startswith("▁")
    if has_prefix:
        model = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX)
    vocab_size = model.vocab_size()

    def id_of(piece: str) -> int | None:
        index = model.piece_to_id(piece)
        # an unknown piece is answered with the id of <unk>
        return index if model.id_to_piece(index) == piece else None

    return _tokenizer(
        path=path,
        vocab_size=vocab_size,
        id_of=id_of,
        special={
            name: i if i >= 0 else None
            for name, i in (
                ("bos", model.bos_id()),
                ("eos", model.eos_id()),
                ("pad", model.pad_id()),
                ("unk", model.unk_id()),
            )
        },
        control={model.id_to_piece(i): i for i in range(vocab_size) if model.is_control(i)},
        text_prefix=" " if has_prefix else "",
        encode=model.encode,
        decode=model.decode,
    )


def _load_hugging_face(path: Path) -> Tokenizer:
    spec = read_object(path)
    try:
        original = tokenizers.Tokenizer.from_file(str(path))
    # the library raises bare Exception for a JSON file that is no tokenizer
    except Exception as error:
        raise ValueError(f"{path}: not a tokenizer.json: {error}") from error
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        spec[part] = _without_dummy_prefix(spec.get(part), part)
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    has_prefix = (
        original.encode("a", add_special_tokens=False).ids
        != model.encode("a", add_special_tokens=False).ids
    )
    model = model if has_prefix else original
    model.no_truncation()
    model.no_padding()
    vocab_size = max(model.get_vocab().values(), default=-1) + 1
    return _tokenizer(
        path=path,
        vocab_size=vocab_size,
        id_of=model.token_to_id,
        special=_special_ids(path.parent, model.token_to_id, vocab_size),
        control={
            token.content: i
            for i, token in model.get_added_tokens_decoder().items()
            if token.special
        },
        text_prefix=" " if has_prefix else "",
        encode=lambda text: model.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: model.decode(ids, skip_special_tokens=False),
    )


def _tokenizer(
    path: Path,
    vocab_size: int,
    id_of: Callable[[str], int | None],
    special: dict[str, int | None],
    control: dict[str, int],
    text_prefix: str,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> Tokenizer:
    """Wraps a library's encode and decode. `special`: bos, eos, pad, unk; `control`: further
    strings that text must not become, with ids.
    """
    bos_id, eos_id, unk_id = special["bos"], special["eos"], special["unk"]
    if bos_id is None or eos_id is None:
        name = "bos" if bos_id is None else "eos"
        raise ValueError(
            f"{path}: no {name} token; expected {name}_token in tokenizer_config.json or a "
            f"SentencePiece {name}_id"
        )
    turns = {text: id_of(text) for text in (START_OF_TURN, END_OF_TURN) if id_of(text) is not None}
    # without byte fallback, text may be <unk>
    control = {text: i for text, i in {**control, **turns}.items() if i != unk_id}
    control_ids = {
        *control.values(),
        *(special[name] for name in ("bos", "eos", "pad") if special[name] is not None),
    } - {unk_id}
    single = [text for text in control if len(text) < 2]
    if single:
        raise ValueError(
            f"{path}: control token {single[0]!r} has fewer than two characters, so text cannot "
            "be kept apart from it"
        )
    pad_id = next(i for i in (special["pad"], unk_id, eos_id) if i is not None)
    inside = re.compile("(?=" + "|".join(map(re.escape, control)) + ")") if control else None

    def encode_text(text: str) -> list[int]:
        # Every control string is cut behind its first character; the look-ahead finds overlapping
        # ones too.
        cuts = [match.start() + 1 for match in inside.finditer(text)] if inside else []
        ids: list[int] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)]):
            part = encode(text[start:end])
            # a normalizer made the string, such as NFKC from full-width letters
            if not control_ids.isdisjoint(part):
                part = [i for character in text[start:end] for i in encode(character)]
            ids += part
        return ids

    def decode_ids(ids: Iterable[int]) -> str:
        # A model may have more rows than the tokenizer has ids (padding of the embedding table);
        # those stand for no text.
        return decode([int(i) for i in ids if int(i) not in control_ids and int(i) < vocab_size])

    return Tokenizer(
        vocab_size=vocab_size,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
        start_of_turn_id=turns.get(START_OF_TURN),
        end_of_turn_id=turns.get(END_OF_TURN),
        text_prefix=text_prefix,
        encode=encode_text,
        decode=decode_ids,
    )


def _special_ids(
    folder: Path, id_of: Callable[[str], int | None], vocab_size: int
) -> dict[str, int | None]:
    """Ids of bos, eos, pad, unk from tokenizer_config.json or special_tokens_map.json (as text),
    else config.json (as ids).
    """
    texts: dict[str, tuple[str, Any]] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            stated = read_object(folder / file).items()
            texts.update({key: (file, text) for key, text in stated if text is not None})
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    result: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "unk"):
        file, text = texts.get(f"{name}_token", ("", None))
        if isinstance(text, dict):  # a serialized AddedToken
            text = text.get("content")
        if file and not isinstance(text, str):
            raise ValueError(
                f'{folder / file}: field "{name}_token": expected a text, or an object with a text '
                f'"content", got {shown(texts[f"{name}_token"][1])}'
            )
        if text is not None:
            result[name] = id_of(text)
            if result[name] is None:
                raise ValueError(f"{folder}: {name}_token {text!r} is not in tokenizer.json")
        else:
            result[name] = _stated_id(
                folder / "config.json", f"{name}_token_id", config, vocab_size
            )
    return result


def _stated_id(path: Path, field: str, config: dict[str, Any], vocab_size: int) -> int | None:
    """A token id of config.json, the first of several; None where it is null or -1."""
    value = config.get(field)
    ids: list[Any] = value if isinstance(value, list) and value else [value]
    for i in ids:
        is_id = isinstance(i, int) and not isinstance(i, bool) and -1 <= i < vocab_size
        if i is not None and not is_id:
            raise ValueError(
                f'{path}: field "{field}": expected an id below {vocab_size:,} (the tokenizer\'s), '
                f"or null, got {shown(value)}"
            )
    return None if ids[0] == -1 else ids[0]


def _without_dummy_prefix(node: dict | None, part: str) -> dict | None:
    """A component of tokenizer.json without the steps that put a space before a text, or (in the
    decoder) take one away.
    """
    if (
        node is None
        or node["type"] == "Prepend"
        or (part == "decoder" and node["type"] == "Strip" and node.get("start"))
    ):
        return None
    children = {
        "normalizer": "normalizers",
        "pre_tokenizer": "pretokenizers",
        "decoder": "decoders",
    }[part]
    if node["type"] == "Sequence":
        kept = [
            child
            for child in (_without_dummy_prefix(child, part) for child in node[children])
            if child is not None
        ]
        return {**node, children: kept} if kept else None
    if node["type"] == "Metaspace":
        return {
            "type": "Metaspace",
            "replacement": node["replacement"],
            "prepend_scheme": "never",
            "split": node.get("split", True),
        }
    if node["type"] == "ByteLevel" and part == "pre_tokenizer":
        return {**node, "add_prefix_space": False}
    return node
