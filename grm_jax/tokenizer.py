"""Turns text into ids and back (tokenizer.json, SentencePiece), and writes chats in ids.

A chat is written by the folder's own template (`grm_jax.chat`); in Gemma's turns where there is
none and the tokenizer has them, or where the template is Gemma's; else as plain lines.

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

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from grm_jax.chat import (
    END_OF_TURN,
    GEMMA,
    PLAIN,
    START_OF_TURN,
    ChatTemplate,
    Turns,
    end_of_turn,
    piece_encoder,
    read_chat_template,
    render,
    render_pieces,
    special_tokens,
)
from grm_jax.json_files import file_looks_like, read_object, shown
from grm_jax.judgment.reasoning import is_mark, template_marks

ADDED_TOKENS = "added_tokens.json"  # of a folder with a SentencePiece model

# A serialized ModelProto that is appended to another is merged into it. This one: normalizer_spec
# (field 3) { add_dummy_prefix (3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


@dataclasses.dataclass(frozen=True)
class Thinking:
    """Says how a chat template marks what a model thinks before it answers.

    opens, closes: its marks. opened: whether the prompt ends in the one that opens. end_ids: what
    closes thinking, with the template's own line breaks, and the answer follows.
    """

    opens: str
    closes: str
    opened: bool
    end_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes text, and holds the ids of the control tokens.

    `encode`: text -> ids, never a control id. `decode`: ids -> text, control ids left out, but for
    the template's marks of reasoning.
    `start_of_turn_id` is that of Gemma's turns, else None. `end_of_turn_id` is what the chat format
    writes behind the model's turn; None where that is no control token.
    `bos_id` is `eos_id` where there is no such token, and a template of the folder's writes chats.
    `text_prefix` is " " for models that were trained with a space before every text, else "".
    `template` is the folder's own, None where the chat is one of the two built in; `write_chat`
    writes (role, text) turns by it, with True up to where the model begins to write.
    `stated_stops` are further ids that end a text, by generation_config.json. `thinking` says how
    the template marks reasoning, None where it has no marks of it. `control` is what no text may
    become, by its string.
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
    template: ChatTemplate | None = None
    write_chat: Callable[[Turns, bool], list[int]] | None = None
    stated_stops: tuple[int, ...] = ()
    thinking: Thinking | None = None
    control: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Returns the ids that end a completion: eos, what ends the model's turn, those stated.

        Instruction-tuned Gemma stops at <end_of_turn>.
        """
        ids = (self.eos_id, self.end_of_turn_id, *self.stated_stops)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @property
    def further_stop_ids(self) -> tuple[int, ...]:
        """Lists, in order, the stop ids that generation_config.json alone makes such."""
        return tuple(sorted(set(self.stop_ids) - {self.eos_id, self.end_of_turn_id}))

    @property
    def rows_needed(self) -> int:
        """Counts the rows of an embedding that its ids need.

        They are `vocab_size`, without the control tokens at the end that nothing writes: Google's
        folders of Gemma 3 for text have one of images, <image_soft_token>, beyond the table.
        """
        needed, of_id = self.vocab_size, {i: text for text, i in self.control.items()}
        written = {self.bos_id, self.pad_id, self.start_of_turn_id, *self.stop_ids}
        template = "" if self.template is None else self.template.text
        if self.write_chat is not None and needed - 1 in of_id:
            written |= set(self.write_chat([("user", "Hello.")], True))
            written |= set(self.write_chat([("user", "Hello."), ("assistant", "Yes?")], False))
        while needed - 1 in of_id.keys() - written and of_id[needed - 1] not in template:
            needed -= 1
        return needed

    @property
    def chat_template(self) -> str:
        """Returns the Jinja template by which transformers writes `chat` and `chat_prompt`."""
        if self.template is not None:
            return self.template.text
        has_turns = self.start_of_turn_id is not None and self.end_of_turn_id is not None
        return GEMMA if has_turns else PLAIN

    def chat_prompt(self, user_text: str) -> list[int]:
        r"""Writes one user turn up to where the model begins to write.

        By the folder's own template, or with one BOS at the front; outer white space is cut then,
        as in Gemma's template.

        Gemma: <bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n. There is no
        system role: instructions go into the user's turn. Tokenizers without turn tokens:
        <bos>{text}\n.
        """
        if self.write_chat is not None:
            return self.write_chat([("user", user_text)], True)
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

    def chat_to_answer(self, turns: Turns) -> list[int]:
        """Writes (role, text) turns up to where the model begins to write.

        Of one user's turn it is `chat_prompt`. Raises ValueError where the folder's template does.
        """
        if self.write_chat is not None:
            return self.write_chat(turns, True)
        if self.start_of_turn_id is None or self.end_of_turn_id is None:
            return self.chat_prompt("\n".join(text for _, text in turns))
        return [*self.chat(turns), self.start_of_turn_id, *self.encode("model\n")]

    def chat_completion(self, text: str) -> list[int]:
        """Writes the model's turn as trained and sampled: the text as given, then what ends it.

        That is the id of <end_of_turn>, say; eos where no control token ends a turn.
        """
        return [
            *self.encode(text),
            self.eos_id if self.end_of_turn_id is None else self.end_of_turn_id,
        ]

    def chat_prompt_with_answer(self, user_text: str, answer: str) -> list[int]:
        """Writes a finished exchange, `chat_prompt` + `chat_completion`: what a Meta RM reads."""
        return self.chat_prompt(user_text) + self.chat_completion(answer)

    def chat(self, turns: Turns) -> list[int]:
        r"""Writes a whole conversation of (role, text) turns.

        The input of a scalar reward model. By the folder's own template, or Gemma's: <bos>, then
        <start_of_turn>{user or model}\n{text}<end_of_turn>\n for each turn. There is no system
        role: a system turn is put in front of the turn after it, a blank line between. Tokenizers
        without turn tokens: <bos>, a line for each turn, eos.
        """
        if self.write_chat is not None:
            return self.write_chat(turns, False)
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


def sentencepiece_class(tokenizer: Tokenizer) -> str:
    """Names transformers' class that reads a SentencePiece model as this tokenizer cuts text."""
    return "GemmaTokenizer" if tokenizer.text_prefix == "" else "LlamaTokenizer"


def load_tokenizer(
    path: str | os.PathLike,
    switches: Mapping[str, Any] | None = None,
    layers: Sequence[str | os.PathLike] = (),
) -> Tokenizer:
    """Reads a tokenizer: a folder or file, of Hugging Face (tokenizer.json) or SentencePiece.

    switches: names and values for the folder's own chat template, {"enable_thinking": False}, say.
    layers: all folders of a model with adapters, from the base up; of the ids in config.json and in
    generation_config.json, those of the last that states any count. None: the tokenizer's own.

    No network is used. Raises FileNotFoundError or ValueError, naming the file and what was
    expected in it.
    """
    path = find_tokenizer(path)
    load = _load_hugging_face if path.suffix == ".json" else _load_sentencepiece
    return load(path, switches, [Path(layer) for layer in reversed(layers)] or [path.parent])


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


def _load_sentencepiece(
    path: Path, switches: Mapping[str, Any] | None, folders: Sequence[Path]
) -> Tokenizer:
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
    pieces, added = model.vocab_size(), _added_tokens(path.parent)

    def id_of(piece: str) -> int | None:
        index = model.piece_to_id(piece)
        # an unknown piece is answered with the id of <unk>
        return index if model.id_to_piece(index) == piece else added.get(piece)

    named = special_tokens(path.parent)
    special: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "unk"):
        of_model = getattr(model, f"{name}_id")()
        stated = id_of(named[f"{name}_token"]) if f"{name}_token" in named else None
        special[name] = stated if stated is not None else of_model if of_model >= 0 else None
    texts = {
        f"{name}_token": model.id_to_piece(i)
        for name, i in special.items()
        if i is not None and i < pieces
    }
    return _tokenizer(
        path=path,
        folders=folders,
        vocab_size=max(pieces, *(i + 1 for i in added.values())) if added else pieces,
        id_of=id_of,
        special=special,
        unk_id=special["unk"],
        control={
            **{model.id_to_piece(i): i for i in range(pieces) if model.is_control(i)},
            **{text: i for text, i in added.items() if i >= pieces},
        },
        plain={},
        text_prefix=" " if has_prefix else "",
        encode=model.encode,
        # added ids may leave a gap, whose rows stand for no text
        decode=lambda ids: model.decode([i for i in ids if i < pieces]),
        parse=None,
        template=read_chat_template(path.parent, {**texts, **named, **(switches or {})}),
        behind=" " if has_prefix and is_legacy(path.parent) else "",
    )


def is_legacy(folder: Path) -> bool:
    """Says whether a space comes before what follows a control token, as before a text.

    So Llama-2's folders mean it, llama.cpp has it, and transformers where "legacy" is true.
    """
    file = folder / "tokenizer_config.json"
    return not file.is_file() or read_object(file).get("legacy") is not False


def add_listed_tokens(library: tokenizers.Tokenizer, path: Path) -> bool:
    """Adds, in place, what other files of its folder put behind a tokenizer.json's own tokens.

    Returns whether there is any. Raises ValueError, naming the file, where ids do not follow.
    """
    changed = False
    for text, i in sorted(_added_tokens(path.parent).items(), key=lambda item: item[1]):
        if library.token_to_id(text) is None:
            library.add_special_tokens([text])
            changed = True
            if library.token_to_id(text) != i:
                raise ValueError(
                    f"{path}: no token {text!r}, which other files of its folder add as id {i}, "
                    f"where {library.token_to_id(text)} is free; save the tokenizer again"
                )
    return changed


def _load_hugging_face(
    path: Path, switches: Mapping[str, Any] | None, folders: Sequence[Path]
) -> Tokenizer:
    spec = read_object(path)
    try:
        original = tokenizers.Tokenizer.from_file(str(path))
    # the library raises bare Exception for a JSON file that is no tokenizer
    except Exception as error:
        raise ValueError(f"{path}: not a tokenizer.json: {error}") from error
    if add_listed_tokens(original, path):
        spec = json.loads(original.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        spec[part] = _without_dummy_prefix(spec.get(part), part)
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    has_prefix = (
        original.encode("a", add_special_tokens=False).ids
        != model.encode("a", add_special_tokens=False).ids
    )
    model = model if has_prefix else original
    for library in (model, original):
        library.no_truncation()
        library.no_padding()
    vocab_size = max(model.get_vocab().values(), default=-1) + 1
    added = model.get_added_tokens_decoder().items()
    # what a text may become that the vocabulary does not cover
    unknown = spec["model"].get("unk_token") or spec["model"].get("unk_id")
    special = _special_ids(path.parent, folders, model.token_to_id, vocab_size)
    return _tokenizer(
        path=path,
        folders=folders,
        vocab_size=vocab_size,
        id_of=model.token_to_id,
        special=special,
        unk_id=model.token_to_id(unknown) if isinstance(unknown, str) else unknown,
        control={token.content: i for i, token in added if token.special},
        plain={token.content: i for i, token in added if not token.special},
        text_prefix=" " if has_prefix else "",
        encode=lambda text: model.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: model.decode(ids, skip_special_tokens=False),
        parse=lambda text: original.encode(text, add_special_tokens=False).ids,
        template=read_chat_template(
            path.parent, {**special_tokens(path.parent), **(switches or {})}
        ),
    )


def _tokenizer(
    path: Path,
    folders: Sequence[Path],
    vocab_size: int,
    id_of: Callable[[str], int | None],
    special: dict[str, int | None],
    unk_id: int | None,
    control: dict[str, int],
    plain: dict[str, int],
    text_prefix: str,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    parse: Callable[[str], list[int]] | None,
    template: ChatTemplate | None,
    behind: str = "",
) -> Tokenizer:
    """Wraps a library's encode and decode.

    folders: that state ids, the nearest first.
    special: bos, eos, pad, unk. unk_id: what text may become that the vocabulary does not cover.
    control: further strings that text must not become, with ids; plain: added tokens that it may.
    parse: text whose control strings become their ids, as transformers encodes a chat; None where
    the library has no such call. behind: the space before what follows a control token, then.
    """
    bos_id, eos_id = special["bos"], special["eos"]
    if bos_id is None and template is not None:
        bos_id = eos_id  # Qwen's families have none, and their templates write none
    if bos_id is None or eos_id is None:
        name = "bos" if bos_id is None and template is None else "eos"
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
    pad_id = next(i for i in (special["pad"], special["unk"], eos_id) if i is not None)
    encode_text = _guarded(encode, control, control_ids)
    marks = None if template is None else template_marks(template.text)
    # SentencePiece has no text for its control ids
    kept = {control[mark] for mark in marks or () if mark in control and parse is not None}
    left_out = control_ids - kept

    def decode_ids(ids: Iterable[int]) -> str:
        # A model may have more rows than the tokenizer has ids (padding of the embedding table);
        # those stand for no text.
        return decode([int(i) for i in ids if int(i) not in left_out and int(i) < vocab_size])

    tokenizer = Tokenizer(
        vocab_size=vocab_size,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
        start_of_turn_id=turns.get(START_OF_TURN),
        end_of_turn_id=turns.get(END_OF_TURN),
        text_prefix=text_prefix,
        encode=encode_text,
        decode=decode_ids,
        stated_stops=_stated_stops(folders, vocab_size),
        control=control,
    )
    if template is None:
        return tokenizer
    # what the template writes is control in a content, though a completion may hold it (<think>)
    of_chat = control | {
        text: i
        for text, i in plain.items()
        if len(text) > 1 and text.strip() and (text in template.text or is_mark(text))
    }
    ends = end_of_turn(template, tuple(of_chat))
    encode_content = _guarded(encode, of_chat, control_ids | set(of_chat.values()))
    encode_pieces = piece_encoder(of_chat, encode_content, parse, text_prefix, behind)

    def write_chat(turns: Turns, prompt: bool) -> list[int]:
        return encode_pieces(render_pieces(template, turns, prompt, tuple(of_chat)))

    return dataclasses.replace(
        tokenizer,
        start_of_turn_id=None,
        end_of_turn_id=None if ends is None else of_chat[ends],
        template=template,
        write_chat=write_chat,
        thinking=None if marks is None else _thinking(template, marks, of_chat, encode_text),
    )


def _thinking(
    template: ChatTemplate,
    marks: tuple[str, str],
    of_chat: Mapping[str, int],
    encode: Callable[[str], list[int]],
) -> Thinking:
    """Reads off a template how it opens and closes thinking."""
    opens, closes = marks
    opened = render(template, [("user", "Hello.")], True).rstrip().endswith(opens)
    whole = f"{opens}\nThought\n{closes}\n\nAnswer"
    try:
        written = render(template, [("user", "Hello."), ("assistant", whole)], False)
    except ValueError:  # it refuses such a turn
        written = whole
    _, _, written = written.partition("Thought")
    end, answers, _ = written.partition("Answer")
    if closes not in end or not answers:  # it leaves thinking out of turns that are over
        end = f"\n{closes}\n\n"
    before, after = end.split(closes, 1)
    mark = [of_chat[closes]] if closes in of_chat else encode(closes)
    return Thinking(opens, closes, opened, (*encode(before), *mark, *encode(after)))


def _guarded(
    encode: Callable[[str], list[int]], control: Mapping[str, int], control_ids: set[int]
) -> Callable[[str], list[int]]:
    """A library's encode, in which no text becomes a control id."""
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

    return encode_text


def _stated_stops(folders: Sequence[Path], vocab_size: int) -> tuple[int, ...]:
    """The ids that end a text by the first generation_config.json that states any."""
    for path, stated in _files(folders, "generation_config.json"):
        if stated.get("eos_token_id") is not None:
            _stated_id(path, "eos_token_id", stated, vocab_size)
            ids = stated["eos_token_id"]
            ids = ids if isinstance(ids, list) else [ids]
            return tuple(i for i in ids if i is not None and i >= 0)
    return ()


def _files(folders: Sequence[Path], name: str) -> list[tuple[Path, dict[str, Any]]]:
    """The files of that name in the folders, and what they hold."""
    paths = [folder / name for folder in folders if (folder / name).is_file()]
    return [(path, read_object(path)) for path in paths]


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that a folder adds to a SentencePiece model: {text: id}.

    They are in added_tokens.json and in the "added_tokens_decoder" of tokenizer_config.json. Raises
    ValueError, naming the file, for what are no such.
    """
    added: dict[str, int] = {}
    if (folder / ADDED_TOKENS).is_file():
        stated = read_object(folder / ADDED_TOKENS)
        for text, i in stated.items():
            if isinstance(i, bool) or not isinstance(i, int) or i < 0:
                path = folder / ADDED_TOKENS
                raise ValueError(f"{path}: field {text!r}: expected an id, got {shown(i)}")
            added[text] = i
    file = folder / "tokenizer_config.json"
    stated = read_object(file).get("added_tokens_decoder") if file.is_file() else None
    for i, token in (stated if isinstance(stated, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or not i.isdecimal():
            raise ValueError(
                f'{file}: field "added_tokens_decoder": expected ids and objects with a text '
                f'"content", got {i}: {shown(token)}'
            )
        added[text] = int(i)
    return added


def _special_ids(
    folder: Path, folders: Sequence[Path], id_of: Callable[[str], int | None], vocab_size: int
) -> dict[str, int | None]:
    """Ids of bos, eos, pad, unk from tokenizer_config.json or special_tokens_map.json (as text),
    else from the first config.json of `folders` that states one (as ids).
    """
    texts, configs = special_tokens(folder), _files(folders, "config.json")
    result: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "unk"):
        text = texts.get(f"{name}_token")
        if text is not None:
            result[name] = id_of(text)
            if result[name] is None:
                raise ValueError(f"{folder}: {name}_token {text!r} is not in tokenizer.json")
        else:
            field = f"{name}_token_id"
            stating = (one for one in configs if one[1].get(field) is not None)
            path, config = next(stating, (folder / "config.json", {}))
            result[name] = _stated_id(path, field, config, vocab_size)
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
