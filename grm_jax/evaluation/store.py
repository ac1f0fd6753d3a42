"""Stores judgments: every one ever drawn is kept, and only what is missing is asked for.

A file holds the judgments of one system on one set of records, by one seed and one way of asking,
one JSON object a line (`reward_models.protocol.StoredJudgment`). Judgments are appended block by
block as they come; a last line that a kill tore is cut off. A folder of files belongs to one
system, whose identity lies in its identity.json (`claim`): everything that the text of a judgment
depends on, by content. Each judgment carries "record", a digest of the record that was judged,
"temperature", and "seconds", its share of the wall time of its block. A judgment that was asked
again (see `missing`) has several lines, and the last one counts.

Sampling for rejective fine-tuning and for the Meta RM, the rollouts of RL, critiques and benchmarks
all lie in such files. What a trainer reads goes through `in_drawn_order`: the order of lines in a
file depends on interruptions, the order of training must not.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO

from grm_jax.json_files import NULL, check_fields, decode, read_object, shown
from grm_jax.judgment.records import Record, record_to_dict
from grm_jax.parallel import processes
from grm_jax.progress import progress
from grm_jax.reward_models.protocol import Judge
from grm_jax.watch import watching
from grm_jax.whole_files import write_json

# what figures are made of; texts stay on file
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
    "strict",
)
_NUMBER = (int, float)
KINDS: dict[str, type | tuple[type, ...]] = {  # of the fields of a judgment
    "id": str,
    "sample": int,
    "scores": (list, NULL),
    "failure": (str, NULL),
    "domain": str,
    "rewards": (list, NULL),
    "order": list,
    "temperature": _NUMBER,
    "text": str,
    "tokens": _NUMBER,
    "prompt_tokens": (*_NUMBER, NULL),
    "meta_logit": (*_NUMBER, NULL),
    "hinted": bool,
    "correct": (bool, NULL),
    "record": str,
    "seconds": _NUMBER,
    "step": int,
    "reward": _NUMBER,
    "strict": (dict, NULL),
}
NEEDED = ("id", "sample", "scores", "failure", "rewards", "tokens", "prompt_tokens")
# (record id, sample) -> the fields in SLIM, and "offset": where its line begins in the file, bytes
Rows = dict[tuple[str, int], dict]
# a stored judgment as another system reads it: TokenProb's scores of what LLM-as-a-Judge wrote
View = Callable[[dict], dict]
IDENTITY = "identity.json"


def record_digest(record: Record) -> str:
    """Returns 12 hexadecimal digits of everything in the record.

    A judgment of another text under the same id is not this one's.
    """
    text = json.dumps(record_to_dict(record), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def claim(folder: pathlib.Path, identity: Mapping, write: bool = True) -> None:
    """Makes the folder that of the system with this identity, plain JSON.

    Raises ValueError, naming the fields that differ, if it holds judgments of another system, or of
    who knows which; one that was claimed and holds none is free. Of several processes process 0
    looks and writes.
    write: False only looks.
    """

    def look() -> list[str]:
        path, plain = folder / IDENTITY, json.loads(json.dumps(identity))
        holds = any(file.stat().st_size for file in folder.rglob("*.jsonl"))
        if holds and not path.is_file():
            raise ValueError(
                f"{folder} holds judgments and no {IDENTITY}, which says whose they are. Bring it "
                "back, or remove the folder to judge again"
            )
        if path.is_file():
            changed = differing(read_object(path), plain)
            if holds or not changed:
                return changed
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, plain)
        return []

    changed = processes.on_main(f"identity of {folder.name}", look)
    if changed:
        raise ValueError(
            f"{folder} holds judgments of another system of this name; it differs in "
            f"{', '.join(changed)}. Choose another name or --workdir"
        )


def holds(folder: pathlib.Path, identity: Mapping) -> bool:
    """Tells whether the folder is claimed by a system of this identity."""
    path = folder / IDENTITY
    return path.is_file() and read_object(path) == json.loads(json.dumps(identity))


def differing(a: Mapping, b: Mapping, prefix: str = "") -> list[str]:
    """Names the fields, dotted and sorted, in which two trees of plain JSON differ."""
    names = []
    for name in sorted({*a, *b}):
        x, y = a.get(name), b.get(name)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            names += differing(x, y, f"{prefix}{name}.")
        elif x != y:
            names.append(f"{prefix}{name}")
    return names


def read(path: pathlib.Path, needed: Collection[str] = ()) -> list[dict]:
    """Reads every judgment of a file, in the order of its lines; a torn last line is passed over.

    needed: fields that every judgment has, beside those that all have.

    Raises ValueError (file, line, field) for a line that is no judgment.
    """
    with open(path, "rb") as file:
        lines = enumerate(file, start=1)
        return [
            _decoded(path, number, line, needed) for number, line in lines if line.endswith(b"\n")
        ]


def read_all(
    path: pathlib.Path,
    records: Sequence[Record],
    samples: Collection[int],
    needed: Collection[str] = (),
) -> list[dict]:
    """Reads a file that is to hold every sample of every record, as `read` does.

    Raises ValueError where one is not there: less than was drawn is never trained on in silence.
    """
    judgments = read(path, needed) if path.is_file() else []
    there = {(judgment["id"], judgment["sample"]) for judgment in judgments}
    absent = [(r.id, sample) for r in records for sample in samples if (r.id, sample) not in there]
    if absent:
        raise ValueError(
            f"{path}: {len(absent)} of {len(records) * len(samples)} judgments that were drawn are "
            f"gone, first sample {absent[0][1]} of record {absent[0][0]!r}; bring them back, or "
            "remove the marker of their stage in stages/: what is missing is then drawn again"
        )
    return judgments


def read_line(path: pathlib.Path, offset: int) -> dict:
    """Reads the whole judgment whose line begins at `offset` bytes."""
    with open(path, "rb") as file:
        file.seek(offset)
        return decode(file.readline(), f"{path}, byte {offset}")


def read_rows(
    path: pathlib.Path, records: Mapping[str, str], temperature: float, view: View | None = None
) -> Rows:
    """Reads the slim rows of `records`, {id: digest}, as `view` shows them.

    Those of other records are passed over, and a torn last line is cut from the file.

    Raises ValueError (file, line, field) for a broken line, and for judgments of another text or
    temperature than asked now.
    """
    rows: Rows = {}
    if not path.is_file():
        return rows
    offset = 0
    with open(path, "r+b") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(offset)
                break
            judgment = _decoded(path, number, line)
            if judgment["id"] in records:
                expected = {"record": records[judgment["id"]], "temperature": temperature}
                for field, asked in expected.items():
                    if judgment.get(field) != asked:
                        raise ValueError(
                            f'{path}:{number}: field "{field}": {judgment.get(field)!r}, but '
                            f"{asked!r} is asked for now, of {judgment['id']!r}. Choose another "
                            "--workdir, or remove this file to judge again"
                        )
                rows[judgment["id"], judgment["sample"]] = _slim(judgment, offset, view)
            offset += len(line)
    return rows


def missing(
    rows: Rows, records: Sequence[Record], samples: Sequence[int], retry: Collection[str] = ()
) -> list[tuple[tuple[int, ...], list[Record]]]:
    """Lists the [(samples, records)] still to be asked for.

    What has no row, or one whose failure `retry` names. "request_failed" stands for
    "request_failed:timeout" and all others that begin like it.
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


def judge_missing(
    path: pathlib.Path,
    judge: Judge,
    asked: Sequence[tuple[tuple[int, ...], list[Record]]],
    temperature: float,
    swapped: bool,
    label: str,
    done: int,
    view: View | None = None,
) -> Rows:
    """Asks `judge` for what `missing` named, and appends its judgments to the file.

    Returns their slim rows.

    label, done: for the progress line.

    Of several processes all ask, and process 0 writes. SIGTERM and Ctrl-C end the process behind
    the block under way. Raises ValueError naming model and record for a judgment that was not asked
    for, twice given, or whose scores are no n finite numbers, and where one that was asked for did
    not come.
    """
    rows: Rows = {}
    total = done + sum(len(samples) * len(records) for samples, records in asked)
    with (
        appending(path) as file,
        progress(label, total, "judgments", done) as advance,
        processes.stop_signal(label) as stopped,
        watching(label) as beat,
    ):
        for samples, records in asked:
            wanted = {(record.id, sample): record for record in records for sample in samples}
            digests = {record.id: record_digest(record) for record in records}
            for block, seconds in _timed(judge(records, samples, temperature, swapped)):
                for judgment in block:
                    key = (judgment["id"], judgment["sample"])
                    _check(judgment, wanted.pop(key, None), label)
                    # on file it says at which temperature it was asked for, whether or not that
                    # means anything to the model
                    judgment |= {
                        "temperature": temperature,
                        "record": digests[judgment["id"]],
                        "seconds": seconds / len(block),
                    }
                offsets = append(file, block) if block else []
                for judgment, offset in zip(block, offsets, strict=True):
                    rows[judgment["id"], judgment["sample"]] = _slim(judgment, offset, view)
                beat(done + len(rows))
                if block:
                    advance(len(block))
                if stopped():
                    processes.leave(f"{label}, {done + len(rows)} of {total} judgments are on file")
            if wanted:
                item, sample = next(iter(wanted))
                raise ValueError(
                    f"{label}: no judgment of {len(wanted)} that were asked for, first record "
                    f"{item!r}, sample {sample}"
                )
    processes.barrier(f"{path.stem}: all judged")
    return rows


def appending(path: pathlib.Path) -> IO[bytes]:
    """Opens the file for `append`; it is made where it is missing.

    Of several processes process 0 has the file, and the others nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(processes.written(path), "ab")


def append(file: IO[bytes], judgments: Sequence[Mapping]) -> list[int]:
    """Writes a block of judgments, and returns the offsets of their lines, in bytes.

    What has been written is not lost with the process. Raises ValueError, naming record and sample,
    for a judgment that is no JSON, before any of the block is written.
    """
    lines = [_line(judgment) for judgment in judgments]
    ends = [file.tell()]
    for line in lines:
        ends.append(ends[-1] + len(line))
    file.write(b"".join(lines))
    file.flush()
    if processes.is_main():
        os.fsync(file.fileno())
    return ends[:-1]


def cut(path: pathlib.Path, keep: Callable[[dict], bool]) -> None:
    """Cuts a file of rollouts before the first one that is not to be kept, or that is torn.

    A missing file stays missing. Raises ValueError (file, line, field) for what is no rollout.
    """
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.endswith(b"\n") or not keep(
                check_fields(decode(line, where), KINDS, where, ("step",))
            ):
                file.seek(-len(line), os.SEEK_CUR)
                file.truncate()
                return


def in_drawn_order(judgments: Sequence[dict], records: Sequence[Record]) -> list[dict]:
    """Sorts the judgments of `records`: short prompts first, then by hint, record and sample.

    This is the order in which an uninterrupted run draws them, whatever the order of their lines.
    """
    index = {record.id: i for i, record in enumerate(records)}
    last = {(j["id"], j.get("hinted", False), j["sample"]): j for j in judgments}
    return sorted(
        (judgment for judgment in last.values() if judgment["id"] in index),
        key=lambda j: (
            j["prompt_tokens"] or 0,
            j.get("hinted", False),
            index[j["id"]],
            j["sample"],
        ),
    )


def _line(judgment: Mapping) -> bytes:
    try:
        return json.dumps(judgment, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        of = f"record {judgment.get('id')!r}, sample {judgment.get('sample')!r}"
        raise ValueError(f"judgment of {of} cannot be written: {shown(error)}") from None


def _decoded(path: pathlib.Path, number: int, line: bytes, needed: Collection[str] = ()) -> dict:
    where = f"{path}:{number}"
    judgment = check_fields(decode(line, where), KINDS, where, (*NEEDED, *needed))
    scores, rewards = judgment["scores"], judgment["rewards"]
    if (scores is None) == (judgment["failure"] is None) and judgment.get("critiques") is None:
        raise ValueError(
            f'{where}: fields "scores" and "failure": expected one of them, got {shown(scores)} '
            f"and {shown(judgment['failure'])}"
        )
    if scores is not None and rewards is not None and len(scores) != len(rewards):
        raise ValueError(
            f'{where}: field "scores": expected {len(rewards)}, as many as rewards, got '
            f"{len(scores)}"
        )
    for field in ("scores", "rewards"):
        for i, value in enumerate(judgment.get(field) or ()):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(
                    f'{where}: field "{field}[{i}]": expected a number, got {shown(value)}'
                )
    return judgment


def _retried(failure: str | None, retry: Collection[str]) -> bool:
    return failure is not None and any(
        failure == name or failure.startswith(f"{name}:") for name in retry
    )


def _timed(blocks: Iterator[list[dict]]) -> Iterator[tuple[list[dict], float]]:
    """Blocks, with the seconds since the last one that held judgments; one may hold none."""
    began = time.monotonic()
    for block in blocks:
        yield block, time.monotonic() - began
        began = time.monotonic() if block else began


def _check(judgment: dict, record: Record | None, label: str) -> None:
    where = f"{label}: record {judgment['id']!r}, sample {judgment['sample']}"
    if record is None:
        raise ValueError(f"{where}: not asked for, or given twice")
    scores = judgment["scores"]
    unread = scores is None and judgment.get("critiques") is not None
    if (scores is None) != (judgment["failure"] is not None) and not unread:
        raise ValueError(
            f"{where}: expected either scores or a failure, got {scores} and "
            f"{judgment['failure']!r}"
        )
    if scores is not None and (
        len(scores) != len(record.responses) or not all(math.isfinite(score) for score in scores)
    ):
        raise ValueError(f"{where}: expected {len(record.responses)} finite scores, got {scores}")


def _slim(judgment: dict, offset: int, view: View | None) -> dict:
    judgment = judgment if view is None else view(judgment)
    return {name: judgment.get(name) for name in SLIM} | {"offset": offset}
