"""Reads a record as callers give it: in Python or over HTTP, with or without an id."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from grm_jax.json_files import shown
from grm_jax.judgment.records import Criterion, Record, Turn, record_from_dict, record_to_dict


def as_record(value: Any, where: str = "record") -> Record:
    """Reads and checks a record that is given as a `Record` or as a dict of its JSONL schema.

    A dict needs no "id": a digest of its texts takes its place. Its conversation may be a text,
    which is the user's turn, or `Turn`s. Raises ValueError, which `where` opens, with the field and
    what was expected.
    """
    if isinstance(value, Record):
        return record_from_dict(_fields_of(value, where), where)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"{where}: expected a Record, or a dict with conversation and responses, got "
            f"{shown(value)}"
        )
    fields, named = dict(value), "id" in value
    if "conversation" in fields:
        fields["conversation"] = _turns(fields["conversation"])
    if isinstance(fields.get("responses"), str):
        raise ValueError(
            f'{where}: field "responses": expected a list of texts, got the text '
            f'{shown(fields["responses"])}; a single response is ["..."]'
        )
    if isinstance(fields.get("rubric"), (list, tuple)):
        fields["rubric"] = [
            dataclasses.asdict(one) if isinstance(one, Criterion) else one
            for one in fields["rubric"]
        ]
    if isinstance(fields.get("responses"), tuple):
        fields["responses"] = list(fields["responses"])
    if named:
        return record_from_dict(fields, where)
    # an id is not what is wrong with a record that has none
    unnamed = "-"
    try:
        record = record_from_dict(fields | {"id": unnamed}, where)
    except ValueError as error:
        raise ValueError(str(error).replace(f" (id {unnamed!r})", "", 1)) from None
    return dataclasses.replace(record, id=_content_id(record))


def judged_part(record: Record) -> Record:
    """Returns the record without what changes no verdict: gold, domain and metadata."""
    return dataclasses.replace(record, rewards=None, domain="", metadata={})


def _turns(conversation: Any) -> Any:
    """A conversation as the JSONL schema has it; what is none stays as it is."""
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    if isinstance(conversation, (list, tuple)):
        return [
            {"role": turn.role, "content": turn.content}
            if isinstance(turn, Turn)
            else {str(name): value for name, value in turn.items()}
            if isinstance(turn, Mapping)
            else turn
            for turn in conversation
        ]
    return conversation


def _fields_of(record: Record, where: str) -> dict[str, Any]:
    try:
        return record_to_dict(record)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a Record as it should be: {error}") from error


def _content_id(record: Record) -> str:
    texts = record_to_dict(judged_part(record))
    del texts["id"]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
