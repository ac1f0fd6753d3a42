"""Judgments on file: every row that a reward model gives is kept, and only what is missing is asked
for.

A file holds the rows of one model, benchmark, seed and way of asking. Rows are appended block by
block as they come; a last line that a kill tore is cut off. Each row carries "record", a digest of
the record that was judged, and "seconds", its share of the wall time of its block. A judgment that
was asked again (see `missing`) has several rows, and the last one counts.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from grm_jax.judgment.records import Record, record_to_dict
from grm_jax.parallel.processes import is_main, written
from grm_jax.progress import progress
from grm_jax.reward_models.protocol import Judge

# texts stay on file
SLIM = (
    "id",
    "domain",
    "sample",
    "scores",
    "rewards",
    "tokens",
    "meta_logit",
    "failure",
    "seconds",
    "prompt_tokens",
    "cost",
)

# (record id, sample) -> the fields in SLIM, and "offset": where its line begins in the file, bytes
Rows = dict[tuple[str, int], dict]


def record_digest(record: Record) -> str:
    """12 hexadecimal digits of everything in the record: a judgment of another text under the same
    id is not this one's.
    """
    return hashlib.sha256(json.dumps(record_to_dict(record), sort_keys=True).encode()).hexdigest()[
        :12
    ]


def read_rows(path: pathlib.Path, records: Mapping[str, str], temperature: float) -> Rows:
    """The rows of `records`, {id: digest}; rows of other records are passed over, and a torn last
    line is cut from the file.

    Raises ValueError (file, line, field) for a broken line, and for rows of another text or
    temperature than asked now.
    """
    found: Rows = {}
    if not path.is_file():
        return found
    offset = 0
    with open(path, "r+b") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(offset)
                break
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not a JSON object: {error}") from None
            if row["id"] in records:
                for field, expected in (
                    ("record", records[row["id"]]),
                    ("temperature", temperature),
                ):
                    if row[field] != expected:
                        raise ValueError(
                            f'{path}:{number}: field "{field}": {row[field]!r}, but {expected!r} '
                            f"is asked for now, of {row['id']!r}. "
                            "Choose another --workdir, or remove this file to "
                            "judge again"
                        )
                found[row["id"], row["sample"]] = _slim(row, offset)
            offset += len(line)
    return found


def missing(
    rows: Rows, records: Sequence[Record], samples: Sequence[int], retry: Collection[str] = ()
) -> list[tuple[tuple[int, ...], list[Record]]]:
    """[(samples, records)] still to be asked for: what has no row, or one whose failure `retry`
    names.

    "request_failed" stands for "request_failed:timeout" and all others that begin like it.
    """
    groups: dict[tuple[int, ...], list[Record]] = collections.defaultdict(list)
    for record in records:
        absent = tuple(
            s
            for s in samples
            if (record.id, s) not in rows or _retried(rows[record.id, s]["failure"], retry)
        )
        if absent:
            groups[absent].append(record)
    return list(groups.items())


def _retried(failure: str | None, retry: Collection[str]) -> bool:
    return failure is not None and any(
        failure == name or failure.startswith(f"{name}:") for name in retry
    )


def judge_missing(
    path: pathlib.Path,
    judge: Judge,
    asked: list[tuple[tuple[int, ...], list[Record]]],
    temperature: float,
    swapped: bool,
    label: str,
    done: int,
) -> Rows:
    """Ask `judge` for what `missing` named, append its rows to the file, and return them. `label`
    and `done` are for the progress line. Of several processes all ask, and process 0 writes.

    Raises ValueError naming model and record for a row that was not asked for, twice given, or
    whose scores are no n finite numbers, and where a row that was asked for did not come.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found: Rows = {}
    total = sum(len(samples) * len(records) for samples, records in asked)
    with (
        open(written(path), "ab") as file,
        progress(label, total + done, "judgments", done) as advance,
    ):
        for samples, records in asked:
            wanted = {(record.id, sample): record for record in records for sample in samples}
            digests = {record.id: record_digest(record) for record in records}
            for block, seconds in _timed(judge(records, samples, temperature, swapped)):
                lines = []
                for row in block:
                    record = wanted.pop((row["id"], row["sample"]), None)
                    _check(row, record, label)
                    # on file a row says at which temperature it was asked for, whether or not that
                    # means anything to the model
                    row = row | {
                        "temperature": temperature,
                        "record": digests[row["id"]],
                        "seconds": seconds / len(block),
                    }
                    found[row["id"], row["sample"]] = _slim(row, file.tell() + sum(map(len, lines)))
                    lines.append(
                        json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
                    )
                file.write(b"".join(lines))
                file.flush()  # a killed process loses nothing that was flushed
                advance(len(block))
            if wanted:
                item, sample = next(iter(wanted))
                raise ValueError(
                    f"{label}: no row for {len(wanted)} judgments, first record {item!r}, sample "
                    f"{sample}"
                )
        if is_main():
            os.fsync(file.fileno())
    return found


def read_line(path: pathlib.Path, offset: int) -> dict:
    """The whole row whose line begins at `offset` bytes."""
    with open(path, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline())


def _timed(blocks: Iterator[list[dict]]) -> Iterator[tuple[list[dict], float]]:
    """Blocks that hold rows, with the seconds since the last such."""
    began = time.monotonic()
    for block in blocks:
        if block:
            yield block, time.monotonic() - began
            began = time.monotonic()


def _check(row: dict, record: Record | None, label: str) -> None:
    where = f"{label}: record {row['id']!r}, sample {row['sample']}"
    if record is None:
        raise ValueError(f"{where}: not asked for, or given twice")
    scores = row["scores"]
    if (scores is None) != (row["failure"] is not None):
        raise ValueError(
            f"{where}: expected either scores or a failure, got {scores} and {row['failure']!r}"
        )
    if scores is not None and (
        len(scores) != len(record.responses) or not all(math.isfinite(score) for score in scores)
    ):
        raise ValueError(f"{where}: expected {len(record.responses)} finite scores, got {scores}")


def _slim(row: dict, offset: int) -> dict:
    return {name: row.get(name) for name in SLIM} | {"offset": offset}
