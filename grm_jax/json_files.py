"""Reads JSON that can be written again, says what a broken file looks like, shows wrong values."""

import gzip
import io
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

_HEAD = 1 << 16  # bytes that are read at once
DEPTH = 100  # levels of lists and objects in one another
DIGITS = 1000  # of an integer; Python writes none of more than 4,300

NULL = type(None)
NAMES = {  # of JSON's types
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NULL: "null",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# what a file begins with, and what it then is
_SIGNS = (
    (LFS_POINTER, "a Git LFS pointer, not the file itself: `git lfs pull` brings that"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises ValueError, which the path opens, for what is no JSON (`decode`) or another JSON value.
    """
    value = decode(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {shown(value)}")
    return value


def decode(raw: bytes, where: str) -> Any:
    """Returns the JSON value of a file or line; a byte order mark in front is passed over.

    Raises ValueError, which `where` ("file:line") opens and which says what it looks like, for what
    is not UTF-8 or not JSON; and for what could not be written again or is read in two ways: NaN
    and numbers beyond the range of floats, half of a surrogate pair, more than DIGITS digits, more
    than DEPTH levels, and an object with one name twice.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = looks_like(raw) or f"byte 0x{raw[error.start]:02x} at {error.start} is not UTF-8"
        raise ValueError(f"{where}: not UTF-8 JSON: {what}") from None
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError(f"{where}: not UTF-8 JSON: more than {DEPTH} levels deep") from None
    except ValueError as error:
        what = looks_like(raw) or (f"cut off? {error}" if _cut_off(error, text) else error)
        raise ValueError(f"{where}: not UTF-8 JSON: {what}") from None
    # no other text holds half a pair or too many levels
    if "\\u" in text or raw.count(b"[") + raw.count(b"{") > DEPTH:
        check_plain(value, where)
    return value


def read_values(path: pathlib.Path, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (where, value) of every object of a JSON file, whatever form it has.

    Objects line by line, a list of them, one object, or splits, as {"train": [objects]}; also
    gzipped. What else a value is, such as a number on a line, is left to the caller. `where` is
    "file:line" or "file[item]". split: of a file that holds several; "train" where there is one of
    this name, else the only one. Raises ValueError that names file and line.
    """
    try:
        with opened(path) as file:
            yield from _values(path, file, split)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def opened(path: pathlib.Path) -> IO[bytes]:
    """Opens a file for reading; gzip is known by its first bytes, whatever its name."""
    file = open(path, "rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return io.BufferedReader(gzip.GzipFile(fileobj=file), _HEAD)  # type: ignore[arg-type]


def _values(path: pathlib.Path, file: IO[bytes], split: str | None) -> Iterator[tuple[str, Any]]:
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
        raise ValueError(no_splits(path, split))
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


def _of_split(path: pathlib.Path, splits: dict, split: str | None) -> Iterator[tuple[str, Any]]:
    """The objects of one of the splits of a file."""
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(
            f'{path}: field "split": expected one of {", ".join(splits)}, got {wanted!r}'
        )
    yield from ((f"{path}:{wanted}[{i}]", row) for i, row in enumerate(splits[wanted]))


def no_splits(path: pathlib.Path, split: str) -> str:
    """Says that a split was asked for of a file that has none."""
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


def check_plain(value: object, where: str, field: str = "") -> None:
    """Checks that a value is JSON that can be written and read again.

    Raises ValueError, which `where` opens and which names the place in `field`, for other types,
    numbers that are not finite or have more than DIGITS digits, half of a surrogate pair in a text
    or a name, and more than DEPTH levels.
    """
    problem = _problem(value, field, DEPTH)
    if problem is not None:
        raise ValueError(f"{where}: {problem}")


def check_fields(
    value: object, kinds: Mapping[str, type | tuple[type, ...]], where: str, needed: Collection[str]
) -> dict[str, Any]:
    """Returns a JSON object once its fields are of their kinds; fields without a kind may be there.

    kinds: {field: type or types}; a bool is no int and no float, and None stands for null.
    needed: the fields that must be there. Raises ValueError, which `where` opens, naming the field.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {shown(value)}")
    for field, kind in kinds.items():
        if field not in value:
            if field in needed:
                raise ValueError(f'{where}: field "{field}": missing')
            continue
        found, given = value[field], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(found, given) or (isinstance(found, bool) and bool not in given):
            names = " or ".join(NAMES[one] for one in given)
            raise ValueError(f'{where}: field "{field}": expected {names}, got {shown(found)}')
    return value


def looks_like(raw: bytes) -> str | None:
    """Says what a file that begins with these bytes is; None for what may be JSON or a table."""
    head = raw.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "the file is empty" if not raw else "nothing but white space"
    if not raw.strip(b"\0"):
        return "zeros alone, as of a write that was cut off"
    if head[:1] == b"<":
        return f"an HTML or XML page, perhaps an error or a login page: {shown_bytes(head)}"
    return next((f"{what}" for sign, what in _SIGNS if raw.startswith(sign)), None)


def file_looks_like(path: pathlib.Path) -> str:
    """Returns "; it looks like this: ...", "" for a file of which `looks_like` says None."""
    with open(path, "rb") as file:
        words = looks_like(file.read(512))
    return "" if words is None else f"; it looks like this: {words}"


def wrong_fields(where: object, problems: Mapping[str, str]) -> ValueError:
    """Makes the error of wrong fields of a file: a line for each, with the file and the field.

    problems: {field: what was expected and what was found}.
    """
    return ValueError(
        "\n".join(
            f"{where}: field {cut(json.dumps(field), 80)}: {words}"
            for field, words in problems.items()
        )
    )


def shown_bytes(raw: bytes) -> str:
    """Returns the repr of the first bytes as text, cut to 60 characters."""
    return cut(repr(raw[:60].decode("utf-8", "replace")), 60)


def shown(value: object) -> str:
    """Returns the repr of a value, cut to 80 characters."""
    try:
        return cut(repr(value), 80)
    except (RecursionError, ValueError):  # too deep, or an integer of too many digits
        return f"a {type(value).__name__} that cannot be shown"


def cut(text: str, limit: int) -> str:
    """Returns a text of at most `limit` characters, ending in dots if it was longer."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _problem(value: object, field: str, levels: int) -> str | None:
    name = f'field "{field}": ' if field else ""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            at = error.start
            return f"{name}character {at} is half of a surrogate pair, not text"
    elif isinstance(value, bool) or value is None:
        return None
    elif isinstance(value, int):
        if abs(value) >= 10**DIGITS:
            return f"{name}expected a number of at most {DIGITS} digits"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"{name}expected a finite number, got {value}"
    elif not isinstance(value, (list, dict)):
        return f"{name}expected JSON, got a {type(value).__name__}"
    elif not levels:
        place = f'field "{cut(field, 60)}": ' if field else ""
        return f"{place}more than {DEPTH} levels of lists and objects"
    elif isinstance(value, list):
        parts = (_problem(part, f"{field}[{i}]", levels - 1) for i, part in enumerate(value))
        return next((problem for problem in parts if problem), None)
    else:
        for key, part in value.items():
            if not isinstance(key, str):
                return f"{name}expected names that are text, got {shown(key)}"
            own = f"{field}.{key}" if field else key
            if _problem(key, "", 0):
                return f'field "{ascii(own)[1:-1]}": its name holds half of a surrogate pair'
            if problem := _problem(part, own, levels - 1):
                return problem
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"field {ascii(twice)} stands twice in one object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cut(text, 40)} is beyond the range of a number")
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _cut_off(error: ValueError, text: str) -> bool:
    """Whether the text ends where JSON would go on."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
