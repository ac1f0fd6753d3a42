"""The lines that `grm judge` and `grm rank` write, and what a file of them says is done."""

from __future__ import annotations

import pathlib
from typing import Any

from grm_jax.json_files import decode
from grm_jax.judgment.records import Record, record_from_dict, record_to_dict
from grm_jax.verdict import Verdict


def verdict_line(
    record: Record, verdict: Verdict, asked: dict, with_judgments: bool
) -> dict[str, Any]:
    """Makes the line of `grm judge`: the verdict, and what it depends on."""
    line: dict[str, Any] = {"id": record.id} | _facts(verdict, asked)
    if with_judgments:
        line["judgments"] = [
            {name: value for name, value in vars(j).items() if name != "criteria" or record.rubric}
            for j in verdict.judgments
        ]
    return line | asked


def ranked_line(record: Record, verdict: Verdict, asked: dict, top: int | None) -> dict[str, Any]:
    """Makes the line of `grm rank`: the record with its best `top` responses, best first.

    "metadata" gets "grm": their order, the verdict, and what it depends on.
    """
    order, facts = list(range(len(record.responses))), _facts(verdict, asked)
    if verdict.scores is not None:
        scores = verdict.scores
        order.sort(key=lambda i: (-scores[i], i != verdict.best, i))
        order = order[:top]
        facts["scores"] = [scores[i] for i in order]
        if verdict.criteria is not None:
            facts["criteria"] = {
                name: [totals[i] for i in order] for name, totals in verdict.criteria.items()
            }
    del facts["best"]
    line = record_to_dict(record)
    line["responses"] = [record.responses[i] for i in order]
    about = {"order": order, **facts, **asked}
    if record.rewards is not None:
        line["rewards"] = [record.rewards[i] for i in order]
        try:
            record_from_dict(line, "ranked")
        except ValueError:  # gold that says nothing of the responses that are left
            about["rewards"] = line.pop("rewards")
    line["metadata"] = record.metadata | {"grm": about}
    return line


def _facts(verdict: Verdict, asked: dict) -> dict[str, Any]:
    facts = {
        name: getattr(verdict, name)
        for name in ("scores", "best", "margin", "k", "valid", "failed")
    }
    if isinstance(asked["k"], str):  # which tells the rule
        facts |= {"drawn": verdict.k, "stopped": verdict.stopped}
    if verdict.criteria is not None:
        facts["criteria"] = verdict.criteria
    return facts | ({} if verdict.failure is None else {"failure": verdict.failure})


def done_lines(
    path: pathlib.Path, command: str, asked: dict, with_judgments: bool
) -> dict[str, bool]:
    """Returns {digest of a record with a line in a file of results: whether it has a verdict}.

    A torn last line is cut off. Raises ValueError for a file of something else, and for lines of
    another model or question.
    """
    done: dict[str, bool] = {}
    if not path.is_file():
        return done
    offset = 0
    with open(path, "r+b") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not raw.endswith(b"\n"):
                # torn, if it is ours: a file whose only line has no end may be anything
                if not offset and not raw.startswith(b'{"id": '):
                    raise ValueError(
                        f"{where}: not a result of grm {command}; choose another --out"
                    )
                file.truncate(offset)
                break
            line = decode(raw, where)
            try:
                about = line if command == "judge" else line["metadata"]["grm"]
                digest, there = about["record"], {name: about[name] for name in asked}
            except (TypeError, KeyError):
                digest, there = None, {}
            if not isinstance(digest, str):
                raise ValueError(f"{where}: not a result of grm {command}; choose another --out")
            if command == "judge" and ("judgments" in line) != with_judgments:
                raise ValueError(
                    f"{where}: made {'with' if 'judgments' in line else 'without'} --judgments; "
                    "choose another --out, or remove this file"
                )
            for name, value in asked.items():
                if there[name] != value:
                    raise ValueError(
                        f'{where}: field "{name}": {there[name]!r}, but {value!r} is asked for '
                        "now; choose another --out, or remove this file"
                    )
            done[digest] = "failure" not in about
            offset += len(raw)
    return done
