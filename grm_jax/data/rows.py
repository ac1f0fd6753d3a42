"""Checked fields of the rows of files: errors name row, field and what was expected."""

from __future__ import annotations

import re
from typing import Any

from grm_jax.data.files import Row
from grm_jax.json_files import decode, shown

SENDERS = {"human": "user", "gpt": "assistant"}


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
        else checked_turns(row, field, value)
    )


def checked_turns(row: Row, field: str, value: list) -> list[dict[str, str]]:
    """Takes role and content of each turn; other keys, such as RMB's "language", are left out.

    `record_from_dict` checks what they are. Turns may also be {"from", "value"}, as of ShareGPT.
    Raises ValueError for no turn, or one of another form.
    """
    if not value:
        raise ValueError(f'{row.where}: field "{field}": expected at least one turn')
    turns = []
    for i, element in enumerate(value):
        turn = as_turn(element)
        if turn is None:
            raise ValueError(
                f'{row.where}: field "{field}[{i}]": expected an object with "role" and '
                f'"content", got {shown(element)}'
            )
        turns.append(turn)
    return turns


def as_turn(element: Any) -> dict[str, Any] | None:
    """Takes a turn as {"role", "content"}; None for what is none."""
    if not isinstance(element, dict):
        return None
    if {"role", "content"} <= element.keys():
        return {"role": element["role"], "content": element["content"]}
    if {"from", "value"} <= element.keys():
        sender = element["from"]
        role = SENDERS.get(sender, sender) if isinstance(sender, str) else sender
        return {"role": role, "content": element["value"]}
    return None


def single_exchange(row: Row, field: str) -> tuple[str, str]:
    """Reads (prompt, answer) of a field that is one user and one assistant turn.

    A system turn may stand before them, whose text goes in front of the user's. Raises ValueError,
    naming row, field and turn.
    """
    turns = checked_turns(row, field, row_value(row, field, list))
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


def dialogue(row: Row, field: str) -> list[tuple[str, str]]:
    """Reads [("Human" or "Assistant", text)] of a text with the marks of hh-rlhf between turns."""
    head, *parts = re.split(r"\n\n(Human|Assistant): ?", row_text(row, field))
    if head or not parts:
        raise ValueError(
            f'{row.where}: field "{field}": expected a dialogue that begins with "\\n\\nHuman: "'
        )
    return list(zip(parts[::2], parts[1::2]))
