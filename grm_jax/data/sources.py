"""Reads preference records and instruction pairs from files and data sets.

A source is a plain dict (or ml_collections ConfigDict) with one of

    path          a file (JSON or JSON Lines, CSV or TSV, also gzipped; Parquet, Arrow: `files`) or
                  a folder of such files, or what `datasets` wrote with save_to_disk
    hub           a data set name for `datasets.load_dataset`

and, where they are needed,

    format        a name in FORMATS, or `package.module:function` for a function Row -> dict of a
                  record (docs/extend.md); read off the first row's fields if absent
    columns       instead of a format: which column holds which field of a record (`from_columns`)
    config, split of a data set (split "train" if absent); split also of a folder whose files are
                  named after theirs, and of JSON that is {"train": [...], ...}
    shuffle_seed, limit  take the first `limit` records, in an order that is a function of
                  (shuffle_seed, id) if a seed is given

Every error names file, line or item, field, and what was expected.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grm_jax.data.files import SUFFIXES, Row, data_files, read_file
from grm_jax.data.formats import FORMATS, SCORED, from_columns, infer_format, lists_of
from grm_jax.data.rows import row_text, row_value, single_exchange
from grm_jax.json_files import check_plain, cut, shown
from grm_jax.judgment.records import Record, record_from_dict, seeded_digest
from grm_jax.naming import resolve

SOURCE_KEYS = ("path", "hub", "format", "columns", "config", "split", "shuffle_seed", "limit")
UNIQUE = (
    "expected ids of their own: those that no field gives are made of the file's name and the row, "
    "so rename one of the files, or name a column of ids (columns)"
)
RECORD_COLUMNS = ("id", "conversation", "responses", "rewards", "best", "domain", "reference")
INSTRUCTION_COLUMNS = ("id", "prompt", "completion", "messages")


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
        convert = functools.partial(from_columns, columns=columns)
    rows = itertools.chain([first], rows)
    of_one_response = convert is FORMATS["helpsteer"]
    if of_one_response:
        rows = lists_of(rows)
    for row in rows:
        d = convert(row)
        scored = columns is not None or convert in SCORED
        alone = of_one_response and len(d["responses"]) == 1
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
            prompt, completion = single_exchange(row, columns.get("messages", "messages"))
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
