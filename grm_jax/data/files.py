"""Reads the rows of data files: JSON in whatever clothes, CSV and TSV as text, Parquet and Arrow.

What a JSON file holds is read off its text, not off its name: objects line by line, one list of
objects, one object, or splits ({"train": [objects]}); gzip is known by its first bytes. The cells
of CSV and TSV are text as they stand (`Row.text`); a number is read out of one only where a field
is a number. What cannot be read is a ValueError that names file and line, and says what the file
looks like.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grm_jax.json_files import LFS_POINTER, cut, looks_like, no_splits, opened, read_values

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (
    *(suffix + gz for suffix in JSON_SUFFIXES + TEXT_SUFFIXES for gz in ("", ".gz")),
    ".parquet",
    ".arrow",
)
# what `datasets` and its cousins lay beside the data
ABOUT_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_HEAD = 1 << 16  # bytes that a file is known by


@dataclass(frozen=True)
class Row:
    """Holds one row as it was read.

    where: opens error messages. name: "folder/file" or "data set/split". index: of the row in it.
    text: all values are text, as in CSV.
    """

    where: str
    name: str
    index: int
    data: dict[str, Any]
    text: bool = False


def is_data(path: Path) -> bool:
    """Tells whether a file of a folder is read: by its suffix, in capitals or not.

    Hidden files, and those that describe a data set, are not.
    """
    name = path.name.lower()
    return name.endswith(SUFFIXES) and name[0] not in "._" and name not in ABOUT_DATA


def data_files(folder: Path, split: str | None = None) -> list[Path]:
    """Lists the data files of a folder and those below it, sorted; hidden folders are passed over.

    split: where some are named after it ("<split>.jsonl", "<split>-00000-of-00001.parquet"), these
    alone.
    """
    files = sorted(
        file
        for file in folder.rglob("*")
        if is_data(file)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    named = [file for file in files if split and file.name.startswith((f"{split}-", f"{split}."))]
    return named or files


def read_file(path: Path, split: str | None = None) -> Iterator[Row]:
    """Reads the rows of a data file, or of a pipe with JSON or JSON Lines.

    split: of a file that holds several; "train" where there is one of this name, else the only one.
    Raises ValueError that names file and line or item.
    """
    suffix = path.name.lower().removesuffix(".gz")
    if path.is_file() and "." in path.name and not suffix.endswith(SUFFIXES):
        raise ValueError(
            f'source: field "path": expected a file {", ".join(SUFFIXES)}, or a folder, got {path}'
        )
    if split is not None and not _is_json(suffix):
        raise ValueError(no_splits(path, split))
    if suffix.endswith((".parquet", ".arrow")):
        rows: Iterator[Row] = _arrow_rows(path)
    elif suffix.endswith(TEXT_SUFFIXES):
        rows = _text_rows(path, "\t" if suffix.endswith(".tsv") else ",")
    else:
        rows = _json_rows(path, split)
    yield from rows


# ---- JSON


def _json_rows(path: Path, split: str | None) -> Iterator[Row]:
    stem = re.sub(r"\.(jsonl|ndjson|json)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    name = f"{path.absolute().parent.name}/{stem}"
    for index, (where, value) in enumerate(read_values(path, split)):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a JSON object, got a {type(value).__name__}")
        yield Row(where, name, index, value)


def _is_json(name: str) -> bool:
    return not name.endswith((*TEXT_SUFFIXES, ".parquet", ".arrow"))


# ---- tables


def _text_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows of a table of text; quoting as spreadsheets write it, the first line has the names."""
    name = f"{Path(path.name.removesuffix('.gz')).stem}/train"
    try:
        with opened(path) as file:
            head = file.peek(_HEAD)[:_HEAD]  # type: ignore[attr-defined]
            strange = looks_like(head)
            if strange:
                raise ValueError(f"{path}: expected a table of text: {strange}")
            lines = (_line(path, number, raw) for number, raw in enumerate(file, 1))
            yield from _table(path, name, lines, delimiter)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def _line(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number}: not UTF-8 text: byte 0x{raw[error.start]:02x}; if it is of an older "
            "encoding such as Latin-1, save it as UTF-8"
        ) from None


def _table(path: Path, name: str, lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit((1 << 31) - 1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    began = 1
    try:
        header = next(reader, [])
        if len(header) == 1 and ";" in header[0]:
            raise ValueError(f'{path}:1: expected columns apart by {delimiter!r}, got ";"')
        twice = next((column for column in header if header.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"{path}:1: two columns are called {twice!r}")
        index, began = 0, reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}:{began}: expected {len(header)} cells, as the first line has, got "
                        f"{len(cells)}"
                    )
                yield Row(f"{path}:{began}", name, index, dict(zip(header, cells)), text=True)
                index += 1
            began = reader.line_num + 1
    except csv.Error as error:
        what = "a quote is never closed: cut off?" if "end of data" in str(error) else error
        raise ValueError(f"{path}:{began}: not a row of a table: {what}") from None


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, or of an Arrow file or stream, with the types that it states."""
    import pyarrow as pa  # takes seconds, and most runs read plain files
    import pyarrow.parquet as pq

    index, name = 0, f"{path.stem}/train"
    with open(path, "rb") as file:
        head = file.read(len(LFS_POINTER))
    try:
        if path.name.lower().endswith(".parquet"):
            batches: Any = pq.ParquetFile(path).iter_batches(1024)
        elif head.startswith(b"ARROW1"):
            table = pa.ipc.open_file(str(path))
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            batches = pa.ipc.open_stream(str(path))
        for batch in batches:
            for data in batch.to_pylist():
                yield Row(f"{path}[{index}]", name, index, data)
                index += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.suffix.lower()[1:]
        own = kind == "parquet" and head.startswith(b"PAR1") or head.startswith(b"ARROW1")
        what = None if own else looks_like(head)
        what = what or f"cut off or damaged? {cut(str(error), 120)}"
        raise ValueError(f"{path}: not a {kind} file: {what}") from error
