"""Chooses single items for the browser of a report, with every system's judgments to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation.figures import Judged
from grm_jax.evaluation.store import read_line
from grm_jax.judgment.anytime import kept_so_far
from grm_jax.judgment.records import Record, record_to_dict
from grm_jax.judgment.voting import default_k_meta, expected_credit, select_by_meta, vote

SAMPLES_SHOWN = 8  # of one system on one item, greedy ones included
CHARACTERS = 12_000_000  # of JSON in the page
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
    "order",
    "preference",
    "error",
)
PAIR_SHOWN = ("pair", "chosen", "probability", "text", "failure")


def examples(
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    most: int,
    items: int,
) -> dict:
    """Draws {"items": [...], "total": items of all benchmarks} for the browser.

    Up to `items` of each benchmark, as far as CHARACTERS go. Chosen by a hash of the id; half of
    them, as far as there are any, are items on which the systems' verdicts are not all right or all
    wrong.

    most: the largest k.
    """
    queues = [
        [(benchmark, record) for record in _chosen(benchmark, judged, most)[:items]]
        for benchmark in benchmarks
    ]
    shown, used = [], 0
    for benchmark, record in (
        place for turn in zip_longest(*queues) for place in turn if place is not None
    ):
        example = _example(benchmark, record, judged, most)
        used += len(json.dumps(example))
        if used > CHARACTERS:
            break
        shown.append(example)
    order = {benchmark.name: i for i, benchmark in enumerate(benchmarks)}
    shown.sort(key=lambda example: (order[example["benchmark"]], example["id"]))
    return {"items": shown, "total": sum(len(benchmark.records) for benchmark in benchmarks)}


def _chosen(
    benchmark: Benchmark, judged: Mapping[str, Mapping[str, Judged]], most: int
) -> list[Record]:
    hashed = sorted(
        benchmark.records, key=lambda record: hashlib.sha256(record.id.encode()).digest()
    )
    split, agreed = [], []
    for record in hashed:
        credits = {
            verdict["credit"]
            for of in judged.values()
            if (verdict := _verdict(record, of[benchmark.name], most)[0]) is not None
        }
        (split if len(credits) > 1 else agreed).append(record)
    return [record for pair in zip_longest(split, agreed) for record in pair if record is not None]


def _verdict(
    record: Record, judged: Judged, most: int
) -> tuple[dict | None, dict | None, set[int]]:
    """Returns (the vote of the first seed, its guided vote, the samples that this keeps).

    The votes are None where the system has no judgments of the record; the guided one also where no
    sample is kept.
    """
    kind, k = ("sampled", most) if judged.sampled else ("greedy", 1)
    rows = judged.rows.get(kind, [{}])[0]
    judgments = [rows[record.id, s] for s in range(k) if (record.id, s) in rows]
    drawn = len(judgments)
    if drawn < (judged.even(k) if judged.sampled else k):
        return None, None, set()
    scores, logits = [j["scores"] for j in judgments], [j["meta_logit"] for j in judgments]
    kept = ()
    if any(logit is not None for logit in logits):
        kept = select_by_meta(scores, logits, kept_so_far(drawn, k, default_k_meta(k)))
    guided = (
        _shown_vote(record, [scores[i] for i in kept]) | {"k": drawn, "k_meta": len(kept)}
        if kept
        else None
    )
    return _shown_vote(record, scores), guided, {judgments[i]["sample"] for i in kept}


def _shown_vote(record: Record, scores: Sequence) -> dict:
    """Returns the vote as the page shows it.

    "credit" is that of `expected_credit`, None without gold and for a single response with scores
    other than 0 and 1.
    """
    verdict = vote(scores)
    answers = len(record.responses) > 1 or all(s is None or s[0] in (0, 1) for s in scores)
    gold = record.rewards if answers else None
    credit = None if gold is None else expected_credit(verdict, gold)
    return {
        "totals": verdict.totals,
        "winners": verdict.winners,
        "valid": verdict.valid,
        "k": len(scores),
        "credit": credit,
    }


def _example(
    benchmark: Benchmark, record: Record, judged: Mapping[str, Mapping[str, Judged]], most: int
) -> dict:
    systems = {}
    for name, of in judged.items():
        of_system = of[benchmark.name]
        if record.id not in of_system.accepted:
            systems[name] = {"not_applicable": len(record.responses)}
            continue
        plain, guided, kept = _verdict(record, of_system, most)
        samples = []
        for kind in ("greedy", "swapped", "sampled"):
            for judgment in _whole(record.id, of_system, kind, SAMPLES_SHOWN - len(samples)):
                shown = {n: judgment[n] for n in SHOWN if judgment.get(n) is not None}
                shown |= {"scores": judgment["scores"], "kind": kind}
                if judgment.get("pairs") and len(record.responses) > 2:
                    shown["pairs"] = [
                        {name: pair.get(name) for name in PAIR_SHOWN} for pair in judgment["pairs"]
                    ]
                if guided is not None and kind == "sampled":
                    shown["kept"] = judgment["sample"] in kept
                samples.append(shown)
        systems[name] = {"vote": plain, "meta": guided, "samples": samples}
    texts = {
        name: value
        for name, value in record_to_dict(record).items()
        if name in ("conversation", "responses", "reference")
    }
    return {
        "id": record.id,
        "benchmark": benchmark.name,
        "domain": record.domain,
        "rewards": None if record.rewards is None else list(record.rewards),
        "systems": systems,
        **texts,
    }


def _whole(item: str, judged: Judged, kind: str, count: int) -> list[dict]:
    """Returns the first `count` whole judgments of the item, of the first seed."""
    if kind not in judged.rows:
        return []
    judgments = (judged.rows[kind][0].get((item, sample)) for sample in range(count))
    path = judged.paths[kind][0]
    return [  # scores as this system reads them, which may be another than wrote them
        read_line(path, j["offset"]) | {"scores": j["scores"], "failure": j["failure"]}
        for j in judgments
        if j is not None
    ]
