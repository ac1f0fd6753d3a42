"""Reads preference records and instruction pairs from files and data sets.

A source is a plain dict (or ml_collections ConfigDict) with one of

    path          a file (.jsonl, .json, also .gz; .parquet, .csv) or a folder of such files, or
                  what `datasets` wrote with save_to_disk
    hub           a data set name for `datasets.load_dataset`

and, where they are needed,

    format        a name in FORMATS, or `package.module:function` for a function Row -> dict of a
                  record (docs/extend.md); read off the first row's fields if absent
    columns       instead of a format: which column holds which field of a record (`_from_columns`)
    config, split of a data set (split "train" if absent)
    shuffle_seed, limit  take the first `limit` records, in an order that is a function of
                  (shuffle_seed, id) if a seed is given

Every error names file, line or item, field, and what was expected.
"""

from __future__ import annotations

import difflib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grm_jax.judgment.records import Record, record_from_dict, seeded_digest
from grm_jax.naming import resolve

SOURCE_KEYS = ("path", "hub", "format", "columns", "config", "split", "shuffle_seed", "limit")
RECORD_COLUMNS = ("id", "conversation", "responses", "rewards", "best", "domain", "reference")
INSTRUCTION_COLUMNS = ("id", "prompt", "completion", "messages")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")


@dataclass(frozen=True)
class Row:
    """Holds one row as it was read.

    where: opens error messages. name: "folder/file" or "data set/split". index: of the row in it.
    """

    where: str
    name: str
    index: int
    data: dict[str, Any]


def load_source(source: Mapping[str, Any]) -> list[Record]:
    """Reads and validates the records of one source.

    Ids are unique in it and the same on every reading: those of the file for "records";
    "rmb/bon/<uid>" and "rmb/pair/<uid>"; otherwise "<format>/<file>/<row>", which change when rows
    are inserted before. Raises ValueError or FileNotFoundError.
    """
    spec = checked_spec(source)
    columns = spec.get("columns")
    if columns is not None:
        _check_names(columns, RECORD_COLUMNS, "columns")
    convert: Callable[[Row], dict] | None = None
    records, first_seen = [], {}
    for row in _rows(spec):
        if columns is not None:
            d = _from_columns(row, columns)
        else:
            if convert is None:
                convert = resolve(spec.get("format") or infer_format(row), FORMATS)
            d = convert(row)
        record = record_from_dict(d, row.where)
        if record.id in first_seen:
            raise ValueError(
                f'{row.where}: field "id": {record.id!r} occurs twice, first at '
                f"{first_seen[record.id]}"
            )
        first_seen[record.id] = row.where
        records.append(record)
    return _take(records, lambda record: record.id, spec)


def load_instructions(source: Mapping[str, Any]) -> list[dict[str, str]]:
    """Reads general instruction data: rows {"id", "prompt", "completion"}, all strings.

    A row has "prompt" and "completion", or "messages": a user and an assistant turn, a system turn
    may stand before them (it is put in front of the user's text, as Gemma-2 has no system role).
    `columns` maps these names to others. "id" is optional in the file.
    """
    spec = checked_spec(source)
    columns = spec.get("columns") or {}
    _check_names(columns, INSTRUCTION_COLUMNS, "columns")
    if "format" in spec:
        raise ValueError(
            f'source {_place(spec)}: field "format": instruction data has none; rename fields '
            'with "columns"'
        )
    items, first_seen = [], {}
    for row in _rows(spec):
        if columns.get("messages", "messages") in row.data:
            prompt, completion = _single_exchange(row, columns.get("messages", "messages"))
        else:
            prompt, completion = (
                row_text(row, columns.get(name, name)) for name in ("prompt", "completion")
            )
        if not prompt.strip() or not completion.strip():
            raise ValueError(f"{row.where}: expected a prompt and a completion that are not empty")
        item_id = str(row.data.get(columns.get("id", "id"), f"{row.name}/{row.index}"))
        if item_id in first_seen:
            raise ValueError(
                f'{row.where}: field "id": {item_id!r} occurs twice, first at {first_seen[item_id]}'
            )
        first_seen[item_id] = row.where
        items.append({"id": item_id, "prompt": prompt, "completion": completion})
    return _take(items, lambda item: item["id"], spec)


def infer_format(row: Row) -> str:
    """Returns the name in FORMATS whose fields a row has. Raises ValueError if there is none."""
    fields = row.data.keys()
    if {"conversation", "responses"} <= fields:
        return "records"
    if fields & {"bon_uid", "pair_uid"}:
        return "rmb"
    if {"input", "output_1", "output_2", "label"} <= fields:
        return "llmbar"
    if {"chosen", "rejected"} <= fields and str(row.data["chosen"]).startswith("\n\nHuman:"):
        return "hh_rlhf"
    if {"chosen", "rejected"} <= fields and (
        fields & {"prompt", "messages"} or isinstance(row.data["chosen"], list)
    ):
        return "preference"
    raise ValueError(
        f"{row.where}: cannot tell the format from the fields {sorted(fields)}; give the "
        f"source a format ({', '.join(FORMATS)}) or columns"
    )


# ---- one converter a format: Row -> the JSON object of a record


def _from_records(row: Row) -> dict:
    # tables fill absent fields with null
    return {field: value for field, value in row.data.items() if value is not None}


def _from_rmb(row: Row) -> dict:
    """RMB (Zhou-Zoey/RMB-Reward-Model-Benchmark), pairwise and best-of-N. The domain is the
    category path without the set's name.
    """
    kind = "bon" if "bon_uid" in row.data else "pair"
    best, others = (
        ("bon_best", row_value(row, "loser_list", list))
        if kind == "bon"
        else ("chosen", [row_value(row, "reject", dict)])
    )
    answers = [row_value(row, best, dict), *others]
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
            raise ValueError(
                f'{row.where}: field "{"loser_list" if kind == "bon" else "chosen/reject"}": '
                'expected objects with a text "answer"'
            )
    path = row_text(row, "category_path")
    return {
        "id": f"rmb/{kind}/{row_value(row, f'{kind}_uid', (str, int))}",
        "conversation": row_turns(row, "conversation_input"),
        "responses": [answer["answer"] for answer in answers],
        "best": 0,
        "domain": path.removeprefix("BoN_set/").removeprefix("Pairwise_set/"),
        "metadata": {
            "category_path": path,
            "llm_names": [answer.get("llm_name", "") for answer in answers],
        },
    }


def _from_llmbar(row: Row) -> dict:
    """LLMBar (princeton-nlp/LLMBar). The domain is the name of the subset's folder."""
    if row.data.get("label") not in (1, 2):
        raise ValueError(
            f'{row.where}: field "label": expected 1 or 2, got {row.data.get("label")!r}'
        )
    subset = row.name.split("/")[0]
    return {
        "id": f"llmbar/{subset}/{row.index}",
        "conversation": [{"role": "user", "content": row_text(row, "input")}],
        "responses": [row_text(row, "output_1"), row_text(row, "output_2")],
        "best": row.data["label"] - 1,
        "domain": subset,
    }


def _from_hh_rlhf(row: Row) -> dict:
    """Dialogues of anthropics/hh-rlhf. The conversation is the shared turns, the responses are all
    that follows them.

    Now and then one of the two goes on with turns of its own (assistant and human in turn); that
    text stays part of the response.
    """
    chosen, rejected = (_dialogue(row, field) for field in ("chosen", "rejected"))
    shared = 0
    for k, (a, b) in enumerate(zip(chosen, rejected)):
        if k and chosen[k - 1][0] == "Human" and a[0] == b[0] == "Assistant":
            shared = k
        if a != b:
            break
    if not shared:
        raise ValueError(
            f'{row.where}: fields "chosen" and "rejected": expected dialogues that share a human '
            "turn and then answer it"
        )
    return {
        "id": f"hh_rlhf/{row.name}/{row.index}",
        "conversation": [
            {"role": "user" if role == "Human" else "assistant", "content": text}
            for role, text in chosen[:shared]
        ],
        "responses": [
            "\n\n".join(
                [turns[shared][1], *(f"{role}: {text}" for role, text in turns[shared + 1 :])]
            )
            for turns in (chosen, rejected)
        ],
        "best": 0,
        "domain": row.name.split("/")[0],
    }


def _from_preference(row: Row) -> dict:
    """Pairs as most preference sets have them: {"prompt", "chosen", "rejected"}, each a text or
    turns; "messages" may stand for "prompt", and both may be left out where chosen and rejected are
    whole dialogues (`_conversation`).
    """
    prompt = next((name for name in ("prompt", "messages") if row.data.get(name) is not None), None)
    responses = [(name, row_value(row, name, (str, list))) for name in ("chosen", "rejected")]
    conversation, texts = _conversation(row, prompt, responses)
    return {
        "id": f"preference/{row.name}/{row.index}",
        "conversation": conversation,
        "responses": texts,
        "best": 0,
    }


FORMATS: dict[str, Callable[[Row], dict]] = {
    "records": _from_records,
    "rmb": _from_rmb,
    "llmbar": _from_llmbar,
    "hh_rlhf": _from_hh_rlhf,
    "preference": _from_preference,
}


def _from_columns(row: Row, columns: Mapping[str, Any]) -> dict:
    """A row of any table. `columns` names, for each field of a record, the column(s) it is in:

    conversation: a column of text (one user turn) or of [{"role", "content"}, ...]; may be left out
        if the responses are whole dialogues
    responses: a column of lists, or a list of columns; a response is a text or a dialogue
        [{"role", "content"}, ...] that it ends (`_conversation`)
    rewards: a column of lists, or a list of columns; best: an int (always that response) or a
        column
    id, domain, reference: a column
    """
    if "responses" not in columns:
        raise ValueError(f'{row.where}: columns: expected an entry "responses"')
    d: dict[str, Any] = {"id": f"{row.name}/{row.index}"}
    for name in ("id", "domain", "reference"):
        if name in columns:
            d[name] = str(row_value(row, columns[name], (str, int)))
    cells = {
        name: _cells(row, columns[name]) for name in ("responses", "rewards") if name in columns
    }
    if "rewards" in cells:
        d["rewards"] = [reward for _, reward in cells["rewards"]]
    if "best" in columns:
        d["best"] = (
            columns["best"]
            if isinstance(columns["best"], int)
            else row_value(row, columns["best"], int)
        )
    d["conversation"], d["responses"] = _conversation(
        row, columns.get("conversation"), cells["responses"]
    )
    return d


def _cells(row: Row, columns: str | Sequence[str]) -> list[tuple[str, Any]]:
    """(what errors call it, value) of the elements of a column of lists, or of several columns."""
    if isinstance(columns, str):
        elements = row_value(row, columns, list)
        return [(f"{columns}[{i}]", element) for i, element in enumerate(elements)]
    return [(column, row_value(row, column, object)) for column in columns]


def _conversation(
    row: Row, prompt: str | None, responses: Sequence[tuple[str, Any]]
) -> tuple[list[dict[str, str]], list[Any]]:
    """The turns that all of the responses answer, and their texts.

    prompt: field of a text or of turns. responses: (field, a text, or turns of which the last, an
    assistant's, is the response) of each. The turns before it are the conversation; they begin with
    the prompt, before which a system turn may stand. ValueError, naming row and turn, where a
    dialogue does not begin with the prompt, or two dialogues differ before their last turn.
    """
    asked = None if prompt is None else row_turns(row, prompt)
    conversation, source, texts = asked, prompt, []
    for field, response in responses:
        turns = asked
        if isinstance(response, list):
            *before, answer = _checked_turns(row, field, response)
            if answer["role"] != "assistant":
                raise ValueError(
                    f'{row.where}: field "{field}[{len(before)}]": expected the last turn to be '
                    f"the assistant's, which is the response, got {answer['role']!r}"
                )
            if before and asked:
                start = int(before[0]["role"] == "system" != asked[0]["role"])
                begins = before[start : start + len(asked)]
                _check_same(row, field, begins, prompt, asked, start)
            turns, response = before or asked, answer["content"]
        if not turns:
            raise ValueError(
                f'{row.where}: field "{field}": expected a dialogue, as no field of a prompt is '
                "given that it answers"
            )
        if texts:
            _check_same(row, field, turns, source, conversation)
        conversation, source = turns, field
        texts.append(response)
    return conversation or [], texts


def _check_same(row, field, turns, other, expected, start=0):
    """`turns`, those of a field from `start` on, are the turns of another field."""
    for i, (turn, wanted) in enumerate(itertools.zip_longest(turns, expected)):
        if turn != wanted:
            raise ValueError(
                f'{row.where}: field "{field}[{start + i}]": expected turn {i} of "{other}", '
                f"{str(wanted)[:60]}, got {str(turn)[:60]}"
            )


# ---- rows


def read_rows(source: Mapping[str, Any]) -> Iterator[Row]:
    """Reads the rows of a source as they are, whatever their fields.

    Raises ValueError or FileNotFoundError, naming file and line or item.
    """
    return _rows(checked_spec(source))


def _rows(spec: Mapping[str, Any]) -> Iterator[Row]:
    if "hub" in spec:
        yield from _dataset_rows(spec["hub"], spec)
        return
    path = Path(spec["path"])
    if not path.exists():
        raise FileNotFoundError(f'source: field "path": {path} does not exist')
    if not path.is_dir():
        yield from _file_rows(path, spec)
        return
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _dataset_rows(path, spec)
        return
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and file.name.endswith(_SUFFIXES)
    )
    if not files:
        raise FileNotFoundError(f'source: field "path": no file {", ".join(_SUFFIXES)} in {path}')
    for file in files:
        yield from _file_rows(file, spec)


def _file_rows(path: Path, spec: Mapping[str, Any]) -> Iterator[Row]:
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(
            f'source: field "path": expected a file {", ".join(_SUFFIXES)}, or a folder, got {path}'
        )
    if path.suffix in (".parquet", ".csv"):
        yield from _dataset_rows(path, spec)
        return
    name = f"{path.absolute().parent.name}/{path.name.split('.json')[0]}"
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            if ".jsonl" in path.suffixes:
                values = (
                    (f"{path}:{number}", _decode(raw, f"{path}:{number}"))
                    for number, raw in enumerate(file, 1)
                    if raw.strip()
                )
            else:
                whole = _decode(file.read(), str(path))
                if not isinstance(whole, list):
                    raise ValueError(
                        f"{path}: expected a JSON list of objects, got a {type(whole).__name__}"
                    )
                values = ((f"{path}[{i}]", value) for i, value in enumerate(whole))
            for index, (where, value) in enumerate(values):
                if not isinstance(value, dict):
                    raise ValueError(
                        f"{where}: expected a JSON object, got a {type(value).__name__}"
                    )
                yield Row(where, name, index, value)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def _dataset_rows(place: str | Path, spec: Mapping[str, Any]) -> Iterator[Row]:
    import datasets  # takes seconds, and most runs read plain files

    split = spec.get("split", "train")
    table: Any
    if isinstance(place, str):
        table = datasets.load_dataset(place, spec.get("config"), split=split)
    elif place.is_dir():
        table = datasets.load_from_disk(str(place))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(
                    f'{place}: field "split": expected one of {", ".join(map(str, table))}, got '
                    f"{split!r}"
                )
            table = table[split]
    else:
        table = datasets.load_dataset(place.suffix[1:], data_files=str(place), split="train")
    name = f"{Path(place).stem}/{split}"
    for index, data in enumerate(table):
        yield Row(f"{place}:{split}[{index}]", name, index, dict(data))


def _decode(raw: bytes, where: str) -> Any:
    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not UTF-8 JSON: {error}") from error


# ---- checked access


def row_value(row: Row, field: str, kind: Any) -> Any:
    """Reads a field that is an instance of `kind`. Raises ValueError, naming row and field.

    kind: a type or a tuple of types; a bool is an instance of object alone.
    """
    if field not in row.data:
        raise ValueError(
            f'{row.where}: field "{field}": missing; the row has {", ".join(row.data)}'
        )
    value = row.data[field]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(
            f'{row.where}: field "{field}": expected {names}, got {str(value)[:60]!r} '
            f"({type(value).__name__})"
        )
    return value


def row_text(row: Row, field: str) -> str:
    """Reads a field that is a text. Raises ValueError, naming row and field."""
    return row_value(row, field, str)


def row_turns(row: Row, field: str) -> list[dict[str, str]]:
    """Reads the conversation in a field. Raises ValueError, naming row and field.

    The field is a text (one user turn) or a list of {"role", "content"}.
    """
    value = row_value(row, field, (str, list))
    return (
        [{"role": "user", "content": value}]
        if isinstance(value, str)
        else _checked_turns(row, field, value)
    )


def _checked_turns(row: Row, field: str, value: list) -> list[dict[str, str]]:
    """Role and content of each turn (other keys, such as RMB's "language", are left out);
    `record_from_dict` checks what they are.
    """
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(
                f'{row.where}: field "{field}[{i}]": expected an object with "role" and "content"'
            )
    if not value:
        raise ValueError(f'{row.where}: field "{field}": expected at least one turn')
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _single_exchange(row: Row, field: str) -> tuple[str, str]:
    turns = _checked_turns(row, field, row_value(row, field, list))
    roles = [turn["role"] for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ValueError(
            f'{row.where}: field "{field}": expected the turns (system,) user, assistant, got '
            f"{', '.join(map(str, roles))}"
        )
    for i, turn in enumerate(turns):
        if not isinstance(turn["content"], str):
            raise ValueError(f'{row.where}: field "{field}[{i}].content": expected a string')
    return "\n\n".join(turn["content"] for turn in turns[:-1]), turns[-1]["content"]


def _dialogue(row: Row, field: str) -> list[tuple[str, str]]:
    head, *parts = re.split(r"\n\n(Human|Assistant): ?", row_text(row, field))
    if head or not parts:
        raise ValueError(
            f'{row.where}: field "{field}": expected a dialogue that begins with "\\n\\nHuman: "'
        )
    return list(zip(parts[::2], parts[1::2]))


def set_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the fields of a dict or ConfigDict that are not None, as plain values."""
    to_dict = getattr(spec, "to_dict", lambda: dict(spec))
    return {name: value for name, value in to_dict().items() if value is not None}


def checked_spec(source: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the fields of a source that are set. Raises ValueError, naming one that is wrong."""
    spec = set_fields(source)
    _check_names(spec, SOURCE_KEYS, "source")
    if ("path" in spec) == ("hub" in spec):
        raise ValueError(
            f'source: expected one of the fields "path" and "hub", got {", ".join(spec) or "none"}'
        )
    if "format" in spec:
        if "columns" in spec:
            raise ValueError(
                f'source {_place(spec)}: field "format": expected no "columns" beside it'
            )
        try:
            resolve(spec["format"], FORMATS)
        except (ValueError, TypeError) as error:
            raise ValueError(f'source {_place(spec)}: field "format": {error}') from error
    for name, least in (("limit", 1), ("shuffle_seed", 0)):
        if name in spec and (not isinstance(spec[name], int) or spec[name] < least):
            raise ValueError(
                f'source {_place(spec)}: field "{name}": expected an integer >= {least}, got '
                f"{spec[name]!r}"
            )
    return spec


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f'{what}: field "{name}": '
                "unknown; "
                + (f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}")
            )


def _place(spec: Mapping[str, Any]) -> str:
    return str(spec.get("path", spec.get("hub")))


def _take(items: list, id_of: Callable[[Any], str], spec: Mapping[str, Any]) -> list:
    if "shuffle_seed" in spec:
        items = sorted(
            items, key=lambda item: seeded_digest("load_source", spec["shuffle_seed"], id_of(item))
        )
    return items[: spec.get("limit")]
