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
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from grm_jax.json_files import LFS_POINTER, cut, decode, looks_like, shown

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
        raise ValueError(_no_splits(path, split))
    if suffix.endswith((".parquet", ".arrow")):
        rows: Iterator[Row] = _arrow_rows(path)
    elif suffix.endswith(TEXT_SUFFIXES):
        rows = _text_rows(path, "\t" if suffix.endswith(".tsv") else ",")
    else:
        rows = _json_rows(path, split)
    yield from rows


def opened(path: Path) -> IO[bytes]:
    """Opens a file for reading; gzip is known by its first bytes, whatever its name."""
    file = open(path, "rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return io.BufferedReader(gzip.GzipFile(fileobj=file), _HEAD)  # type: ignore[arg-type]


# ---- JSON


def _json_rows(path: Path, split: str | None) -> Iterator[Row]:
    stem = re.sub(r"\.(jsonl|ndjson|json)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    name = f"{path.absolute().parent.name}/{stem}"
    try:
        with opened(path) as file:
            for index, (where, value) in enumerate(_json_values(path, file, split)):
                if not isinstance(value, dict):
                    raise ValueError(
                        f"{where}: expected a JSON object, got a {type(value).__name__}"
                    )
                yield Row(where, name, index, value)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def _json_values(path: Path, file: IO[bytes], split: str | None) -> Iterator[tuple[str, Any]]:
    """(where, value) of every object of a file, whatever form it has."""
    lines = enumerate(file, 1)
    number, first = next(((n, line) for n, line in lines if not _blank(line)), (1, b""))
    strange = looks_like(first)
    if strange:
        raise ValueError(f"{path}: expected JSON: {strange}")
    by_line = not path.name.lower().removesuffix(".gz").endswith(".json")
    where = f"{path}:{number}"
    value, error = _decoded(first, where)
    second = next(((n, line) for n, line in lines if line.strip()), None)
    # one value over several lines
    if error is not None or (second and not by_line and not isinstance(value, dict)):
        rest = b"".join([second[1] if second else b"", *(line for _, line in lines)])
        value, problem = _decoded(first + rest, str(path))
        if problem is not None and by_line and error is not None and not _opens(first):
            raise error
        if problem is not None:
            below = "; several values one below the other, each over several lines?"
            raise ValueError(f"{problem}{below if 'Extra data' in str(problem) else ''}")
        second, where = None, str(path)
    if second is None and _splits(value):
        yield from _of_split(path, value, split)
        return
    if split is not None:
        raise ValueError(_no_splits(path, split))
    # a list of objects, in a file of lines too; there the list could also be a row of its own
    if (
        second is None
        and isinstance(value, list)
        and (not by_line or not value or all(map(_is_object, value)))
    ):
        yield from ((f"{path}[{i}]", element) for i, element in enumerate(value))
        return
    if not isinstance(value, dict) and not by_line:
        raise ValueError(f"{path}: expected a list of JSON objects, got {shown(value)}")
    # one object, or objects line by line
    yield where, value
    for number, line in itertools.chain([second] if second else [], lines):
        if line.strip():
            yield f"{path}:{number}", decode(line, f"{path}:{number}")


def _decoded(raw: bytes, where: str) -> tuple[Any, ValueError | None]:
    try:
        return decode(raw, where), None
    except ValueError as error:
        return None, error


def _blank(line: bytes) -> bool:
    return not line.removeprefix(b"\xef\xbb\xbf").strip()


def _opens(line: bytes) -> bool:
    """Whether a line is one that JSON over several lines begins with."""
    return line.removeprefix(b"\xef\xbb\xbf").strip() in (b"{", b"[", b"[{")


def _of_split(path: Path, splits: dict, split: str | None) -> Iterator[tuple[str, Any]]:
    """The objects of one of the splits of a file."""
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(
            f'{path}: field "split": expected one of {", ".join(splits)}, got {wanted!r}'
        )
    yield from ((f"{path}:{wanted}[{i}]", row) for i, row in enumerate(splits[wanted]))


def _is_json(name: str) -> bool:
    return not name.endswith((*TEXT_SUFFIXES, ".parquet", ".arrow"))


def _no_splits(path: Path, split: str) -> str:
    return f'{path}: field "split": {split!r} is asked for, but the file has no splits'


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _splits(value: Any) -> bool:
    """Whether an object holds splits: lists of objects, none of which are turns of a dialogue."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(rows, list) and all(map(_is_object, rows)) for rows in value.values())
        and not any({"role", "from"} & row.keys() for rows in value.values() for row in rows)
    )


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
