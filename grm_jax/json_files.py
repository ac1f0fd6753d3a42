"""Reads a JSON object of a file, and shows wrong values in messages of errors."""

import json
import pathlib
from typing import Any


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises ValueError with the path for what is no UTF-8 JSON or another JSON value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: not a UTF-8 JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """Returns the repr of a value, cut to 80 characters."""
    return cut(repr(value), 80)


def cut(text: str, limit: int) -> str:
    """Returns a text of at most `limit` characters, ending in dots if it was longer."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
