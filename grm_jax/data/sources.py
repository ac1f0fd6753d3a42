"""Reads preference records and instruction pairs from files and data sets.

A source is a plain dict (or ml_collections ConfigDict) with one of

    path          a file (JSON or JSON Lines, CSV or TSV, also gzipped; Parquet, Arrow: `files`) or
                  a folder of such files, or what `datasets` wrote with save_to_disk
    hub           a data set name for `datasets.load_dataset`

and, where they are needed,

    format        a name in FORMATS, or `package.module:function` for a function Row -> dict of a
                  record (docs/extend.md); read off the first row's fields if absent
    columns       instead of a format: which column holds which field of a record (`_from_columns`)
    config, split of a data set (split "train" if absent); split also of a folder whose files are
                  named after theirs, and of JSON that is {"train": [...], ...}
    shuffle_seed, limit  take the first `limit` records, in an order that is a function of
                  (shuffle_seed, id) if a seed is given

Every error names file, line or item, field, and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax.data.files import SUFFIXES, Row, data_files, read_file
from grm_jax.json_files import check_plain, cut, decode, shown
from grm_jax.judgment.records import Record, record_from_dict, seeded_digest
from grm_jax.naming import resolve

SOURCE_KEYS = ("path", "hub", "format", "columns", "config", "split", "shuffle_seed", "limit")
UNIQUE = (
    "expected ids of their own: those that no field gives are made of the file's name and the row, "
    "so rename one of the files, or name a column of ids (columns)"
)
RECORD_COLUMNS = ("id", "conversation", "responses", "rewards", "best", "domain", "reference")
INSTRUCTION_COLUMNS = ("id", "prompt", "completion", "messages")
# what the fields of preference sets are called
PROMPTS = ("prompt", "messages", "question", "instruction", "conversations", "context")
DIALOGUES = ("messages", "conversations")  # that may repeat the prompt
UNREAD = ("history", "input")  # that hold a part of the prompt
RESPONSE_LISTS = ("responses", "completions", "answers")
RESPONSE_TEXTS = ("response", "completion", "answer", "text", "content")
SENDERS = {"human": "user", "gpt": "assistant"}
SCORES = ("overall_score", "score", "reward", "rating")


def load_source(source: Mapping[str, Any]) -> list[Record]:
    """Reads and validates the records of one source.

    Ids are unique in it and the same on every reading: those of the file for "records";
    "rmb/bon/<uid>" and "rmb/pair/<uid>"; otherwise "<format>/<file>/<row>", which change when rows
    are inserted before. Raises ValueError or FileNotFoundError. Rows without a single best response
    are left out and counted on the console (`read_source`).
    """
    records, tied = read_source(source)
    if tied:
        print(
            f"{_place(checked_spec(source))}: {len(tied)} of {len(tied) + len(records)} rows have "
            f"no single best response and are left out: {cut(', '.join(tied), 60)}",
            flush=True,
        )
    return records


def read_source(source: Mapping[str, Any]) -> tuple[list[Record], list[str]]:
    """Reads (records of a source, ids of the rows that are none as several responses are the best).

    Such rows belong to sets of scored responses, and are left out there, and with columns; in
    records of our own they are errors. Otherwise as `load_source`.
    """
    spec = checked_spec(source)
    columns = spec.get("columns")
    if columns is not None:
        _check_names(columns, RECORD_COLUMNS, "columns")
    convert: Callable[[Row], dict]
    records, tied, first_seen = [], [], {}
    rows = _rows(spec)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{_place(spec)}: no row in it")
    if columns is None:
        convert = resolve(spec.get("format") or infer_format(first), FORMATS)
    else:
        convert = functools.partial(_from_columns, columns=columns)
    rows = itertools.chain([first], rows)
    if convert is _from_helpsteer:
        rows = _lists_of(rows)
    for row in rows:
        d = convert(row)
        scored = columns is not None or convert in (_from_scored, _from_helpsteer, _from_strength)
        alone = convert is _from_helpsteer and len(d["responses"]) == 1
        if alone or scored and _is_tied(d.get("rewards")):
            tied.append(d["id"])
            continue
        record = record_from_dict(d, row.where)
        if record.id in first_seen:
            raise ValueError(
                f'{row.where}: field "id": {record.id!r} occurs twice, first at '
                f"{first_seen[record.id]}; {UNIQUE}"
            )
        first_seen[record.id] = row.where
        records.append(record)
    if not records:
        raise ValueError(
            f"{_place(spec)}: no record in it: none of its {len(tied)} rows has a single best "
            "response"
        )
    return _take(records, lambda record: record.id, spec), tied


def _is_tied(rewards: Any) -> bool:
    """Whether several of the responses have the largest reward."""
    if not isinstance(rewards, list) or len(rewards) < 2 or not all(map(_is_number, rewards)):
        return False  # what else it is, `record_from_dict` says
    return rewards.count(max(rewards)) > 1


def _is_number(value: Any) -> bool:
    finite = isinstance(value, (int, float)) and -1e300 < value < 1e300
    return finite and not isinstance(value, bool)


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
        id_field = columns.get("id", "id")
        item_id = f"{row.name}/{row.index}"
        if row.data.get(id_field) is not None:
            item_id = str(row_value(row, id_field, (str, int)))
        check_plain({"id": item_id, "prompt": prompt, "completion": completion}, row.where)
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
    prompt = fields & set(PROMPTS)
    if {"chosen", "rejected"} <= fields and (prompt or isinstance(row.data["chosen"], list)):
        return "preference"
    if prompt and fields & {"preference_strength", "overall_preference"}:
        return "preference_strength"
    if prompt and {"response", "helpfulness"} <= fields:
        return "helpsteer"
    if prompt and fields & set(RESPONSE_LISTS):
        return "scored"
    raise ValueError(
        f"{row.where}: cannot tell the format from the fields {sorted(map(str, fields))}; give the "
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
    label = row_value(row, "label", int)
    if label not in (1, 2):
        raise ValueError(f'{row.where}: field "label": expected 1 or 2, got {shown(label)}')
    subset = row.name.split("/")[0]
    return {
        "id": f"llmbar/{subset}/{row.index}",
        "conversation": [{"role": "user", "content": row_text(row, "input")}],
        "responses": [row_text(row, "output_1"), row_text(row, "output_2")],
        "best": label - 1,
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
    turns; a name in PROMPTS may stand for "prompt", "system" hold the text of a system turn, and
    the prompt be left out where chosen and rejected are whole dialogues (`_conversation`).
    """
    responses = [(name, row_value(row, name, (str, list, dict))) for name in ("chosen", "rejected")]
    return {"id": f"preference/{row.name}/{row.index}", **_answered(row, responses), "best": 0}


def _from_scored(row: Row) -> dict:
    """Several responses with a number each, the larger the better: lists in two fields, such as
    "responses" and "scores", or one list of objects that hold both, as the "completions" of
    UltraFeedback and the "answers" of Nectar, whose rank 1 is the best.
    """
    field = _one_of(row, RESPONSE_LISTS)
    elements = row_value(row, field, list)
    if all(isinstance(element, dict) and _turn(element) is None for element in elements):
        responses, rewards = [], []
        for i, element in enumerate(elements):
            one = Row(f'{row.where}: field "{field}[{i}]"', row.name, row.index, element)
            text, score = _one_of(one, RESPONSE_TEXTS), _one_of(one, (*SCORES, "rank"))
            responses.append((f"{field}[{i}].{text}", row_value(one, text, (str, list))))
            value = row_value(one, score, (int, float))
            rewards.append(-value if score == "rank" else value)
    else:
        responses = [(f"{field}[{i}]", element) for i, element in enumerate(elements)]
        rewards = row_value(row, _one_of(row, (*(f"{name}s" for name in SCORES), "labels")), list)
    return {
        "id": f"scored/{row.name}/{row.index}",
        **_answered(row, responses),
        "rewards": list(rewards),
    }


def _from_helpsteer(row: Row) -> dict:
    """HelpSteer and HelpSteer2 (nvidia), one response a row; responses of one prompt stand together
    (`_lists_of`), and their helpfulness is the reward.
    """
    field = _one_of(row, PROMPTS)
    responses = [(f"response of row {i}", text) for i, text in row.data["response"]]
    return {
        "id": f"helpsteer/{row.name}/{row.index}",
        **_answered(row, responses, turns=_marked_turns(row, field)),
        "rewards": row.data["helpfulness"],
    }


def _from_strength(row: Row) -> dict:
    """Two responses and how much better the second is: HelpSteer2's preferences and HelpSteer3
    (nvidia), from -3 (the first is much better) to 3; 0 is a tie.
    """
    field = _one_of(row, ("preference_strength", "overall_preference"))
    strength = row_value(row, field, (int, float))
    names = [_one_of(row, (f"response_{i}", f"response{i}")) for i in (1, 2)]
    responses = [(name, row_value(row, name, (str, list))) for name in names]
    prompt = _one_of(row, PROMPTS)
    turns = _marked_turns(row, prompt) if isinstance(row.data[prompt], str) else None
    return {
        "id": f"preference_strength/{row.name}/{row.index}",
        **_answered(row, responses, turns),
        "rewards": [-strength, strength],
    }


def _answered(row: Row, responses: Sequence[tuple[str, Any]], turns: list | None = None) -> dict:
    """{"conversation", "responses"} of a row whose prompt has a name in PROMPTS; turns: of it,
    where they are known.

    Nothing that belongs to the prompt is passed over: ValueError where several fields may be it,
    and where "messages" beside a prompt say something else than the dialogues.
    """
    given = [name for name in PROMPTS if row.data.get(name) is not None]
    prompt = given[0] if given else None
    several = [name for name in given if name not in DIALOGUES and row.data[name]]
    unread = [field for field in UNREAD if row.data.get(field)]
    if unread or len(several) > 1:
        raise ValueError(
            f"{row.where}: cannot tell what the prompt is, as it has the fields "
            f"{', '.join([*several, *unread])}; give the source columns, or a format of your own "
            "(docs/extend.md)"
        )
    text = "" if prompt is None else row.data[prompt]
    if isinstance(text, str) and text.startswith("\n\nHuman:"):
        turns = [
            {"role": "user" if role == "Human" else "assistant", "content": said.strip()}
            for role, said in _dialogue(row, str(prompt))
        ]
        if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
    conversation, texts = _conversation(row, prompt, responses, turns)
    for name in given[1:]:
        if name in DIALOGUES:
            _check_agrees(row, name, conversation)
    if row.data.get("system"):
        if conversation[0]["role"] == "system":
            raise ValueError(f'{row.where}: field "system": the dialogue has a system turn as well')
        conversation = [{"role": "system", "content": row_text(row, "system")}, *conversation]
    return {"conversation": conversation, "responses": texts}


def _check_agrees(row: Row, field: str, conversation: list[dict[str, str]]) -> None:
    """Turns beside the prompt are the conversation, with or without an answer to it."""
    turns = row_turns(row, field)
    start = int(turns[0]["role"] == "system" != conversation[0]["role"])
    end = len(turns) - (len(turns) > 1 and turns[-1]["role"] == "assistant")
    skip = int(conversation[0]["role"] == "system" != turns[0]["role"])
    _check_same(row, field, turns[start:end], "the conversation", conversation[skip:], start)


def _lists_of(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of one response each, as one row for each run of the same prompt: "response" holds the
    [(index of its row, text)], "helpfulness" the numbers.
    """
    for _, together in itertools.groupby(rows, lambda row: row.data.get(_one_of(row, PROMPTS))):
        group = list(together)
        data = group[0].data | {
            "response": [(row.index, row_text(row, "response")) for row in group],
            "helpfulness": [row_value(row, "helpfulness", (int, float)) for row in group],
        }
        yield dataclasses.replace(group[0], data=data)


def _marked_turns(row: Row, field: str) -> list[dict[str, str]]:
    """Turns of a text in which HelpSteer's marks stand between them."""
    first, *parts = re.split(r"\n<extra_id_1>(User|Assistant)\n", row_text(row, field))
    texts, roles = [first, *parts[1::2]], ["User", *parts[::2]]
    return [
        {"role": "user" if role == "User" else "assistant", "content": text}
        for role, text in zip(roles, texts)
    ]


def _one_of(row: Row, names: Sequence[str]) -> str:
    """The first of the fields that a row has. ValueError for none."""
    for name in names:
        if row.data.get(name) is not None:
            return name
    raise ValueError(
        f"{row.where}: expected one of the fields {', '.join(names)}; the row has "
        f"{', '.join(map(str, row.data))}"
    )


FORMATS: dict[str, Callable[[Row], dict]] = {
    "records": _from_records,
    "rmb": _from_rmb,
    "llmbar": _from_llmbar,
    "hh_rlhf": _from_hh_rlhf,
    "preference": _from_preference,
    "scored": _from_scored,
    "helpsteer": _from_helpsteer,
    "preference_strength": _from_strength,
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
        name: _cells(row, columns[name], kind)
        for name, kind in (("responses", str), ("rewards", (int, float)))
        if name in columns
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


def _cells(row: Row, columns: str | Sequence[str], kind: Any) -> list[tuple[str, Any]]:
    """(what errors call it, value) of the elements of a column of lists, or of several columns.

    kind: of the values, where all that a row has is text.
    """
    if isinstance(columns, str):
        elements = row_value(row, columns, list)
        return [(f"{columns}[{i}]", element) for i, element in enumerate(elements)]
    return [(column, row_value(row, column, kind if row.text else object)) for column in columns]


def _conversation(
    row: Row,
    prompt: str | None,
    responses: Sequence[tuple[str, Any]],
    asked: list[dict[str, str]] | None = None,
) -> tuple[list[dict[str, str]], list[Any]]:
    """The turns that all of the responses answer, and their texts.

    prompt: field of a text or of turns; asked: these turns, where they are known. responses:
    (field, a text, or turns of which the last, an assistant's, is the response) of each. The turns
    before it are the conversation; they begin with the prompt, before which a system turn may
    stand. ValueError, naming row and turn, where a dialogue does not begin with the prompt, or two
    dialogues differ before their last turn.
    """
    if asked is None and prompt is not None:
        asked = row_turns(row, prompt)
    conversation, source, texts = asked, prompt, []
    for field, response in responses:
        turns = asked
        if isinstance(response, (list, dict)):
            response = [response] if isinstance(response, dict) else response
            *before, answer = _checked_turns(row, field, response)
            if answer["role"] != "assistant":
                raise ValueError(
                    f'{row.where}: field "{field}[{len(before)}]": expected the last turn to be '
                    f"the assistant's, which is the response, got {shown(answer['role'])}"
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
                f"{cut(shown(wanted), 60)}, got {cut(shown(turn), 60)}"
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
    path, split = Path(spec["path"]), spec.get("split")
    if not path.exists():
        raise FileNotFoundError(f'source: field "path": {path} does not exist')
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        yield from _dataset_rows(path, spec)
        return
    files = data_files(path, split) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f'source: field "path": no file {", ".join(SUFFIXES)} in {path}')
    for file in files:
        of_split = path.is_dir() and file.name.startswith((f"{split}-", f"{split}."))
        yield from read_file(file, None if of_split else split)


def _dataset_rows(place: str | Path, spec: Mapping[str, Any]) -> Iterator[Row]:
    import datasets  # takes seconds, and most runs read plain files

    split = spec.get("split", "train")
    table: Any
    try:
        if isinstance(place, str):
            table = datasets.load_dataset(place, spec.get("config"), split=split)
        else:
            table = datasets.load_from_disk(str(place))
    except Exception as error:  # whatever the library and those below it raise
        what = f"hub: data set {place!r}, split {split!r}" if isinstance(place, str) else place
        raise ValueError(
            f"{what}: cannot be read: {type(error).__name__}: {cut(str(error), 300)}"
        ) from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise ValueError(
                f'{place}: field "split": expected one of {", ".join(map(str, table))}, got '
                f"{split!r}"
            )
        table = table[split]
    name = f"{Path(place).stem}/{split}"
    for index, data in enumerate(table):
        yield Row(f"{place}:{split}[{index}]", name, index, dict(data))


# ---- checked access


def row_value(row: Row, field: str, kind: Any) -> Any:
    """Reads a field that is an instance of `kind`. Raises ValueError, naming row and field.

    kind: a type or a tuple of types; a bool is an instance of object alone. Where all values are
        text (CSV), a number or a list (as JSON) is read out of one where `kind` is no text.
    """
    if field not in row.data:
        raise ValueError(
            f'{row.where}: field "{field}": missing; the row has {", ".join(map(str, row.data))}'
        )
    value = row.data[field]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if row.text and isinstance(value, str) and not {str, object} & set(kinds):
        value = _value_of_text(value, kinds)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        names = " or ".join(k.__name__ for k in kinds)
        raise ValueError(
            f'{row.where}: field "{field}": expected {names}, got {shown(value)} '
            f"({type(value).__name__})"
        )
    return value


def _value_of_text(text: str, kinds: tuple) -> Any:
    """The number or JSON that a cell of text holds; the text where it holds none of these kinds."""
    cell = text.strip()
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}", cell):
        return int(cell)
    if float in kinds and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", cell):
        return float(cell)
    if (list in kinds and cell[:1] == "[") or (dict in kinds and cell[:1] == "{"):
        try:
            return decode(cell.encode("utf-8", "replace"), "")
        except ValueError:
            pass
    return text


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
    `record_from_dict` checks what they are. Turns may also be {"from", "value"}, as of ShareGPT.
    """
    if not value:
        raise ValueError(f'{row.where}: field "{field}": expected at least one turn')
    turns = []
    for i, element in enumerate(value):
        turn = _turn(element)
        if turn is None:
            raise ValueError(
                f'{row.where}: field "{field}[{i}]": expected an object with "role" and '
                f'"content", got {shown(element)}'
            )
        turns.append(turn)
    return turns


def _turn(element: Any) -> dict[str, Any] | None:
    """A turn as {"role", "content"}; None for what is none."""
    if not isinstance(element, dict):
        return None
    if {"role", "content"} <= element.keys():
        return {"role": element["role"], "content": element["content"]}
    if {"from", "value"} <= element.keys():
        sender = element["from"]
        role = SENDERS.get(sender, sender) if isinstance(sender, str) else sender
        return {"role": role, "content": element["value"]}
    return None


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
    for name, kind in (("path", (str, os.PathLike)), ("hub", str), ("split", str), ("config", str)):
        if name in spec and (not isinstance(spec[name], kind) or not os.fspath(spec[name])):
            raise ValueError(f'source: field "{name}": expected a text, got {shown(spec[name])}')
    if "config" in spec and "path" in spec:
        raise ValueError(
            f'source {_place(spec)}: field "config": goes with "hub", a file has no configs'
        )
    if "columns" in spec:
        _check_columns(spec["columns"], _place(spec))
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
        if name in spec and (type(spec[name]) is not int or spec[name] < least):
            raise ValueError(
                f'source {_place(spec)}: field "{name}": expected an integer >= {least}, got '
                f"{spec[name]!r}"
            )
    return spec


def _check_columns(columns: Any, place: str) -> None:
    """ValueError unless columns name a column, or several, for each field."""
    if not isinstance(columns, Mapping):
        raise ValueError(
            f'source {place}: field "columns": expected {{field: column}}, got {shown(columns)}'
        )
    for name, column in columns.items():
        several = name in ("responses", "rewards") and isinstance(column, (list, tuple))
        named = all(isinstance(one, str) for one in (column if several else [column]))
        if not (named and column) and not (name == "best" and type(column) is int):
            kinds = {"best": "a column or the number of a response"}
            expected = kinds.get(name, "a column")
            expected += " or a list of columns" if name in ("responses", "rewards") else ""
            raise ValueError(
                f'source {place}: columns: field "{name}": expected {expected}, got {shown(column)}'
            )


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
