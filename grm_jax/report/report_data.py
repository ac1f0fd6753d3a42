"""What a report shows, read from a work folder and reduced to plain data.

    results.json         rows, paired differences, Meta RM AUC, timings, config
    (evaluation/results.py) metrics.jsonl        {"stage": str, "step": int, "time_s": float, name:
    number, ...} a line judgments/*.jsonl    one judgment a line, of every stage and system
    records/<split>.jsonl  the judged records, for the texts of the example browser

Each may be absent: the part that needs it is then None or empty. Judgment files are streamed, and
texts are read only for the examples that are shown, so a full evaluation (hundreds of thousands of
judgments) fits in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np

from grm_jax.evaluation import scaling
from grm_jax.evaluation.results import eval_pools
from grm_jax.evaluation.scaling import Estimate, Pool
from grm_jax.judgment.records import Record, read_records, record_to_dict
from grm_jax.judgment.voting import Verdict, expected_credit, select_by_meta, vote

EXAMPLES_PER_SPLIT = 60
SAMPLES_SHOWN = 8  # of one system on one item, the greedy one included
EXAMPLE_CHARACTERS = 8_000_000  # of JSON in the page, all splits together
SHOWN = (
    "sample",
    "temperature",
    "scores",
    "failure",
    "principles",
    "critique",
    "text",
    "meta_logit",
    "tokens",
    "correct",
    "order",
)


@dataclass
class Judgments:
    """One pass over judgments/*.jsonl.

    pools: see `eval_pools`. failures: {(system, split): Counter of reasons, "" where it parsed}
        over every evaluation judgment.
    funnel: {hinted: Counter of accept or reject reasons} of rejective sampling. counts: judgments
        by stage.
    places: {(split, item id): [(file, byte offset)]} of the evaluation's rows.
    """

    pools: dict[tuple[str, str], dict[str, Pool]] = field(default_factory=dict)
    failures: dict[tuple[str, str], Counter] = field(default_factory=dict)
    funnel: dict[bool, Counter] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    places: dict[tuple[str, str], list[tuple[Path, int]]] = field(default_factory=dict)


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(byte offset, object) of each line. Raises ValueError naming file and line."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield offset, json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not a JSON object: {error}") from None
            offset += len(line)


def read_metrics(path: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """{stage: {metric: (steps, values)}} of every finite number; a step written again after a
    resume counts once, the later row.
    """
    if not path.is_file():
        return {}
    steps: dict[str, dict[int, dict]] = {}
    for _, row in _json_lines(path):
        steps.setdefault(row["stage"], {}).setdefault(row["step"], {}).update(row)
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for stage, rows in steps.items():
        points: dict[str, list[tuple[int, float]]] = {}
        for step in sorted(rows):
            for name, value in rows[step].items():
                if (
                    name not in ("stage", "step", "time_s")
                    and isinstance(value, (int, float))
                    and np.isfinite(value)
                ):
                    points.setdefault(name, []).append((step, float(value)))
        curves[stage] = {
            name: tuple(np.array(column) for column in zip(*pairs))
            for name, pairs in points.items()
        }
    return curves


def read_judgments(folder: Path) -> Judgments:
    """Streams every judgment file once."""
    found = Judgments()

    def stream() -> Iterator[dict]:
        for path in sorted(folder.glob("*.jsonl")):
            for offset, row in _json_lines(path):
                found.counts[row["stage"]] += 1
                if row["stage"] == "rft_sample":
                    found.funnel.setdefault(row["hinted"], Counter())[row["reason"]] += 1
                elif row["stage"] == "eval":
                    found.failures.setdefault((row["system"], row["split"]), Counter())[
                        row["failure"] or ""
                    ] += 1
                    found.places.setdefault((row["split"], row["id"]), []).append((path, offset))
                yield row

    found.pools = eval_pools(stream())
    return found


def by_domain(
    pools: dict[tuple[str, str], dict[str, Pool]],
) -> dict[tuple[str, str], dict[str, dict]]:
    """{(system, split): {domain: {"items", "greedy", "vote", "stderr"}}}: shares; the vote takes
    the whole pool, its error is over items.
    """
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for (system, split), kinds in pools.items():
        for kind, pool in kinds.items():
            judged = scaling.estimate(pool, system, split, pool.samples)
            names = np.array(pool.domains)
            for domain in sorted(set(pool.domains)):
                credit = judged.credit_I[names == domain]
                cell = found.setdefault((system, split), {}).setdefault(
                    domain, {"items": len(credit), "greedy": None, "vote": None, "stderr": None}
                )
                if kind == "greedy":
                    cell["greedy"] = float(credit.mean())
                else:
                    cell |= {"vote": float(credit.mean()), "stderr": scaling.item_stderr(credit)}
    return found


def score_histogram(pool: Pool) -> dict[str, np.ndarray]:
    """{"best": counts, "others": counts} indexed by integer score: what the judge gave to the best
    response and to the rest.

    A single response counts as best where its reward is 1.
    """
    responses_N = np.arange(pool.scores_IKN.shape[-1])
    best_IN = np.where(
        (pool.n_I == 1)[:, None], pool.gold_I[:, None] == 1, responses_N == pool.gold_I[:, None]
    )
    real_IN = responses_N < pool.n_I[:, None]
    scores_IKN = pool.scores_IKN.astype(int)
    bins = scores_IKN.max() + 1
    used_IKN = pool.valid_IK[:, :, None] & real_IN[:, None]
    return {
        name: np.bincount(scores_IKN[used_IKN & chosen_IN[:, None]], minlength=bins)
        for name, chosen_IN in (("best", best_IN), ("others", ~best_IN))
    }


def read_split(folder: Path, split: str) -> dict[str, Record]:
    """{id: Record} from <folder>/<split>.jsonl; empty where there is no such file."""
    path = folder / f"{split}.jsonl"
    return {record.id: record for record in read_records(path)} if path.is_file() else {}


def examples(judgments: Judgments, records: Path) -> dict:
    """{"items": [...], "total": int} for the browser: up to EXAMPLES_PER_SPLIT judged items of each
    split, with the texts of <records>/<split>.jsonl.

    Chosen by a hash of the id, half of them (as far as there are any) items that the most trained
    system's vote gets wrong. Splits take turns until EXAMPLE_CHARACTERS are used up.
    """
    last: dict[str, Estimate] = {}
    systems = list(dict.fromkeys(system for system, _ in judgments.pools))
    for (system, split), kinds in judgments.pools.items():
        pool = kinds.get("sampled", kinds.get("greedy"))
        last[split] = scaling.estimate(pool, system, split, pool.samples)
    texts = {split: read_split(records, split) for split in last}
    queues = [[(split, item) for item in _chosen(judged)] for split, judged in last.items()]
    items, used = [], 0
    for split, item in (
        place for turn in zip_longest(*queues) for place in turn if place is not None
    ):
        example = _example(
            split, item, systems, judgments.places[split, item], texts[split].get(item)
        )
        used += len(json.dumps(example))
        if used > EXAMPLE_CHARACTERS:
            break
        items.append(example)
    order = {split: i for i, split in enumerate(last)}
    items.sort(key=lambda example: (order[example["split"]], example["id"]))
    return {"items": items, "total": len(judgments.places)}


def _chosen(judged: Estimate) -> list[str]:
    hashed = sorted(
        range(len(judged.ids)), key=lambda i: hashlib.sha256(judged.ids[i].encode()).digest()
    )
    wrong = [judged.ids[i] for i in hashed if judged.credit_I[i] < 1]
    right = [judged.ids[i] for i in hashed if judged.credit_I[i] == 1]
    mixed = [item for pair in zip_longest(wrong, right) for item in pair if item is not None]
    return mixed[:EXAMPLES_PER_SPLIT]


def _example(
    split: str, item: str, order: list[str], places: list[tuple[Path, int]], record: Record | None
) -> dict:
    rows_of: dict[str, list[dict]] = {}
    for path, group in groupby(places, key=itemgetter(0)):
        with open(path, "rb") as file:
            for _, offset in group:
                file.seek(offset)
                row = json.loads(file.readline())
                rows_of.setdefault(row["system"], []).append(row)
    systems, first = {}, row
    for system in sorted(rows_of, key=order.index):
        rows = rows_of[system]
        rows.sort(key=lambda row: (row["temperature"] > 0, row["sample"]))
        sampled = [row for row in rows if row["temperature"] > 0] or rows
        scores = [row["scores"] for row in sampled]
        plain, guided, kept = vote(scores), None, ()
        if any(row.get("meta_logit") is not None for row in sampled):
            kept = select_by_meta(scores, [row.get("meta_logit") for row in sampled])
            guided = _verdict(vote([scores[i] for i in kept]), sampled) | {"k_meta": len(kept)}
        kept_rows = [sampled[i] for i in kept]
        shown = [
            {name: row.get(name) for name in SHOWN} | {"kept": row in kept_rows}
            for row in rows[:SAMPLES_SHOWN]
        ]
        systems[system] = {"vote": _verdict(plain, sampled), "meta": guided, "samples": shown}
    texts = (
        {
            name: record_to_dict(record).get(name)
            for name in ("conversation", "responses", "reference")
        }
        if record
        else {}
    )
    return {
        "id": item,
        "split": split,
        "domain": first.get("domain") or "",
        "rewards": first["rewards"],
        "systems": systems,
        **texts,
    }


def _verdict(verdict: Verdict, rows: list[dict]) -> dict:
    """The vote as the page shows it; "credit" is that of `expected_credit`."""
    return {
        "totals": verdict.totals,
        "winners": verdict.winners,
        "valid": verdict.valid,
        "k": len(rows),
        "credit": expected_credit(verdict, rows[0]["rewards"]),
    }
