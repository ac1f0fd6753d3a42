"""Reads and writes preference records (JSONL), and orders the responses that a judge sees, by seed.

One JSON object a line:

    {"id": str,                   unique in its file
     "conversation": [{"role": "system" | "user" | "assistant", "content": str}, ...],
                                  ends with a user turn
     "responses": [str, ...],     n >= 1 candidate next turns
     "rewards": [number] * n,     or "best": int, the index of the best response (one-hot
                                  rewards); neither for inference
     "rubric": [{"name": str, "weight": number, "description": str}, ...],
                                  criteria to judge by (`Criterion`)
     "principles": str,           what every judgment begins with, written before
     "domain": str, "reference": str, "metadata": object}     all from the rubric on is optional

With n >= 2 exactly one reward is the largest (Eq 10 of arXiv 2504.02495 needs a single best
response); with n = 1 the reward is 0 or 1 (wrong or right). A field that is missing, misspelt or of
the wrong type is an error that names file, line and field.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grm_jax.json_files import check_plain, opened, read_values, shown
from grm_jax.whole_files import write_whole

ROLES = ("system", "user", "assistant")
FIELDS = (
    "id",
    "conversation",
    "responses",
    "rewards",
    "best",
    "rubric",
    "principles",
    "domain",
    "reference",
    "metadata",
)
CRITERION_FIELDS = ("name", "weight", "description")
LONGEST_NAME = 80  # characters of a criterion's name
SCORES_HEADINGS = ("final scores", "scores")  # of a judgment, so no criterion's name


@dataclass(frozen=True)
class Turn:
    """Holds one turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True)
class Criterion:
    """Holds one criterion of a rubric.

    name: one line of text, which a judgment repeats before its scores. weight: a finite number > 0;
    only what the weights of a rubric are to one another counts. description: what it means; "" for
    none.
    """

    name: str
    weight: float
    description: str = ""


@dataclass(frozen=True)
class Record:
    """Holds one item to judge: a conversation, n responses, and gold rewards where known.

    rubric: the criteria to judge by, and by nothing else; () leaves them to the judge.
    principles: text with which every judgment begins, as a judge wrote it before; "" for none.
    """

    id: str
    conversation: tuple[Turn, ...]
    responses: tuple[str, ...]
    rewards: tuple[float, ...] | None = None
    domain: str = ""
    reference: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    rubric: tuple[Criterion, ...] = ()
    principles: str = ""


def record_from_dict(d: Any, where: str) -> Record:
    """Validates one decoded JSON object. Raises ValueError.

    `where` ("file:line") opens every error message.
    """
    if not isinstance(d, dict):
        raise ValueError(
            f"{where}: expected a JSON object with fields {', '.join(FIELDS)}, got {shown(d)}"
        )
    _reject_unknown(d, FIELDS, where)
    record_id = _text(d, "id", where)
    if not record_id:
        raise ValueError(f'{where}: field "id": expected a non-empty string')
    where = f"{where} (id {record_id!r})"
    responses = d.get("responses")
    if not isinstance(responses, list) or not responses:
        raise ValueError(
            f'{where}: field "responses": expected a non-empty list of strings, got '
            f"{shown(responses)}"
        )
    metadata = d.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f'{where}: field "metadata": expected an object, got {shown(metadata)}')
    check_plain(metadata, where, "metadata")
    return Record(
        id=record_id,
        conversation=_conversation(d.get("conversation"), where),
        responses=tuple(
            _checked_text(r, f"responses[{i}]", where) for i, r in enumerate(responses)
        ),
        rewards=_rewards(d, len(responses), where),
        domain=_text(d, "domain", where) if "domain" in d else "",
        reference=_text(d, "reference", where) if d.get("reference") is not None else None,
        metadata=metadata,
        rubric=rubric_of(d["rubric"], where) if d.get("rubric") is not None else (),
        principles=_principles(d, where) if d.get("principles") is not None else "",
    )


def record_to_dict(record: Record) -> dict[str, Any]:
    """Returns the JSON object of a record; `record_from_dict` gives the record back.

    A "best" index has become one-hot "rewards".
    """
    d: dict[str, Any] = {
        "id": record.id,
        "conversation": [
            {"role": turn.role, "content": turn.content} for turn in record.conversation
        ],
        "responses": list(record.responses),
    }
    if record.rewards is not None:
        d["rewards"] = list(record.rewards)
    if record.rubric:
        d["rubric"] = [
            {"name": criterion.name, "weight": criterion.weight}
            | ({"description": criterion.description} if criterion.description else {})
            for criterion in record.rubric
        ]
    if record.principles:
        d["principles"] = record.principles
    if record.domain:
        d["domain"] = record.domain
    if record.reference is not None:
        d["reference"] = record.reference
    if record.metadata:
        d["metadata"] = record.metadata
    return d


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads the records of a JSON file: line by line, or in any of the forms of `read_values`.

    An empty file has none. Raises ValueError at the first invalid record or repeated id.
    """
    path = Path(path)
    records: list[Record] = []
    first: dict[str, str] = {}
    if path.is_file():
        with opened(path) as file:
            if not file.read(1):
                return records
    for where, value in read_values(path):
        record = record_from_dict(value, where)
        if record.id in first:
            raise ValueError(
                f'{where}: field "id": {record.id!r} was used {first[record.id]} already'
            )
        place = where.removeprefix(str(path))
        first[record.id] = f"on line {place[1:]}" if place[:1] == ":" else f"at {place}"
        records.append(record)
    return records


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Writes .jsonl or .jsonl.gz that `read_records` accepts, whole or not at all.

    Every record is validated. The bytes depend on the records only (no time stamp in the gzip
    header). Raises ValueError as `read_records` would.
    """
    path = Path(path)
    lines = []
    seen: set[str] = set()
    for number, record in enumerate(records, start=1):
        d = record_to_dict(record)
        record_from_dict(d, f"{path}:{number}")
        if record.id in seen:
            raise ValueError(f'{path}:{number}: field "id": {record.id!r} occurs twice')
        seen.add(record.id)
        lines.append(json.dumps(d, ensure_ascii=False, allow_nan=False) + "\n")
    data = "".join(lines).encode("utf-8")
    write_whole(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def seeded_digest(purpose: str, seed: int, record_id: str, *numbers: int) -> bytes:
    """Returns 32 pseudo-random bytes, a function of the arguments only.

    The same on every machine and Python version. `purpose` (no NUL) keeps uses apart, so that for
    example tie breaks do not depend on the order of responses.
    """
    # the id comes last, so no id can imitate a number
    text = "\0".join([purpose, str(seed), *map(str, numbers), record_id])
    return hashlib.sha256(text.encode("utf-8")).digest()


def response_order(seed: int, record_id: str, sample: int, n: int) -> tuple[int, ...]:
    """Draws the order in which responses are shown, uniform over the n! permutations.

    order[p] is the index in the record of the response at prompt position p. Every sample of a vote
    sees another order (paper, section 4). The order depends on the arguments only, never on batch
    or history.
    """
    return tuple(
        sorted(range(n), key=lambda i: seeded_digest("response_order", seed, record_id, sample, i))
    )


def criterion_key(name: str) -> str:
    """Returns what of a criterion's name tells it from others.

    That is without the marks of Markdown and the colon around it, capitals, and the width of
    blanks.
    """
    bare = unicodedata.normalize("NFKC", name).casefold().strip(" \t\r\n#*_>`-:.,;")
    return " ".join(bare.split())


def gold(record: Record) -> tuple[float, ...]:
    """Returns the gold rewards of a record. Raises ValueError where it has none."""
    if record.rewards is None:
        raise ValueError(f'record {record.id!r}: no gold; expected "rewards" or "best"')
    return record.rewards


def to_record_order(scores: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Puts n scores in prompt order into record order. Raises ValueError when lengths differ."""
    in_record_order = dict(zip(order, scores, strict=True))
    return tuple(in_record_order[i] for i in range(len(order)))


def _conversation(turns: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f'{where}: field "conversation": expected a non-empty list of turns, got {shown(turns)}'
        )
    result = []
    for i, turn in enumerate(turns):
        name = f"conversation[{i}]"
        if not isinstance(turn, dict):
            raise ValueError(
                f'{where}: field "{name}": expected an object with "role" and "content", got '
                f"{shown(turn)}"
            )
        _reject_unknown(turn, ("role", "content"), where, name + ".")
        if turn.get("role") not in ROLES:
            raise ValueError(
                f'{where}: field "{name}.role": expected one of {", ".join(ROLES)}, got '
                f"{shown(turn.get('role'))}"
            )
        result.append(
            Turn(turn["role"], _checked_text(turn.get("content"), f"{name}.content", where))
        )
    if result[-1].role != "user":
        raise ValueError(
            f'{where}: field "conversation": expected the last turn to be the user\'s, got '
            f"{result[-1].role!r}"
        )
    return tuple(result)


def _rewards(d: dict, n: int, where: str) -> tuple[float, ...] | None:
    if "rewards" in d and "best" in d:
        raise ValueError(f'{where}: fields "rewards" and "best": expected one of them, got both')
    if "best" in d:
        best = d["best"]
        if n == 1:
            raise ValueError(
                f'{where}: field "best": says nothing about one response; expected "rewards": '
                "[0] or [1]"
            )
        if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best < n:
            raise ValueError(
                f'{where}: field "best": expected an integer from 0 to {n - 1}, got {shown(best)}'
            )
        return tuple(float(i == best) for i in range(n))
    if "rewards" not in d:
        return None
    rewards = d["rewards"]
    if not isinstance(rewards, list) or len(rewards) != n:
        raise ValueError(
            f'{where}: field "rewards": expected a list of {n} numbers, one for each response, '
            f"got {shown(rewards)}"
        )
    for i, value in enumerate(rewards):
        # NaN fails both
        if (
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not -1e300 < value < 1e300
        ):
            raise ValueError(
                f'{where}: field "rewards[{i}]": expected a finite number, got {shown(value)}'
            )
    floats = tuple(float(value) for value in rewards)
    if n == 1 and floats[0] not in (0.0, 1.0):
        raise ValueError(
            f'{where}: field "rewards": expected [0] or [1] for a single response, got '
            f"{shown(rewards)}"
        )
    if n > 1 and floats.count(max(floats)) > 1:
        raise ValueError(
            f'{where}: field "rewards": expected exactly one largest value, got {shown(rewards)}'
        )
    return floats


def _principles(d: dict, where: str) -> str:
    """Text with which judgments begin, without the blanks at its end, which a judge writes itself:
    neither blank, nor one with scores, nor beside a rubric.
    """
    principles = _text(d, "principles", where)
    if not principles.strip() or "\\boxed" in principles:
        raise ValueError(
            f'{where}: field "principles": expected the beginning of a judgment, without scores, '
            f"got {shown(principles)}"
        )
    if d.get("rubric") is not None:
        raise ValueError(
            f'{where}: field "principles": expected none beside a rubric, which says what to judge '
            "by"
        )
    return principles.rstrip()


def rubric_of(rubric: Any, where: str) -> tuple[Criterion, ...]:
    """Returns the criteria of a list of objects, as a record has it.

    Raises ValueError, which `where` opens, with the field.
    """
    if not isinstance(rubric, list) or not rubric:
        raise ValueError(
            f'{where}: field "rubric": expected a non-empty list of criteria, got {shown(rubric)}'
        )
    criteria: list[Criterion] = []
    first: dict[str, int] = {}
    for i, one in enumerate(rubric):
        name = f"rubric[{i}]"
        if not isinstance(one, dict):
            raise ValueError(
                f'{where}: field "{name}": expected an object with "name" and "weight", got '
                f"{shown(one)}"
            )
        _reject_unknown(one, CRITERION_FIELDS, where, name + ".")
        called = _checked_text(one.get("name"), f"{name}.name", where)
        key = criterion_key(called)
        if not key or not called.isprintable() or len(called) > LONGEST_NAME or "\\boxed" in key:
            raise ValueError(
                f'{where}: field "{name}.name": expected one line of at most {LONGEST_NAME} '
                f"characters, without \\boxed, got {shown(called)}"
            )
        # as a judgment writes it, numbered perhaps, with a colon behind it
        if criterion_key(key.lstrip("0123456789.)( ").partition(":")[0]) in SCORES_HEADINGS:
            raise ValueError(
                f'{where}: field "{name}.name": expected no heading of a judgment '
                f"({', '.join(SCORES_HEADINGS)}), got {shown(called)}"
            )
        if key in first:
            raise ValueError(
                f'{where}: field "{name}.name": {shown(called)} is the name of '
                f"rubric[{first[key]}] already"
            )
        first[key] = i
        weight = one.get("weight")
        if (
            not isinstance(weight, (int, float))
            or isinstance(weight, bool)
            or not 1e-12 <= weight <= 1e12
        ):
            raise ValueError(
                f'{where}: field "{name}.weight": expected a number > 0 (1e-12 to 1e12), got '
                f"{shown(weight)}"
            )
        text = one.get("description")
        text = "" if text is None else _checked_text(text, f"{name}.description", where)
        # plain numbers, which `repr` writes as digits alone
        weight = int(weight) if isinstance(weight, int) else float(weight)
        criteria.append(Criterion(called, weight, text))
    return tuple(criteria)


def _text(d: dict, name: str, where: str) -> str:
    if name not in d:
        raise ValueError(f'{where}: field "{name}": missing')
    return _checked_text(d[name], name, where)


def _checked_text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: field "{name}": expected a string, got {shown(value)}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f'{where}: field "{name}": character {error.start} is half of a surrogate pair, not '
            "text"
        ) from error
    return value


def _reject_unknown(d: dict, known: Sequence[str], where: str, prefix: str = "") -> None:
    for name in d:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"
            raise ValueError(
                f'{where}: field "{prefix}{name}": unknown; {hint} (other data belongs under '
                '"metadata")'
            )
