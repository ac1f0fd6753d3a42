"""Reads Reward Bench 2 (arXiv 2506.01937, allenai/reward-bench-2).

Best of four in five subsets, and the Ties subset, scored apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Official,
    Part,
    Place,
    Reading,
    choice,
    finish,
    make_record,
    mean_of,
    means,
    named,
    row_id,
    texts,
    with_overall,
)
from grm_jax.benchmarks.credit import grouped, roc_auc
from grm_jax.data.files import Row
from grm_jax.data.rows import row_turns, row_value
from grm_jax.judgment.records import Record

HUB = {"test": ("allenai/reward-bench-2", None, "test")}
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
TIES = "Ties"
WHOLE = "rewardbench2 official"  # (5 x overall + Ties) / 6

PROTOCOL = """Lists of four responses, one of them right. Accuracy of each subset; overall is the
plain mean of Factuality, Precise IF, Math, Safety and Focus. The leaderboard's score is the mean of
six subsets: the sixth, Ties, needs scores of single responses and is the benchmark
rewardbench2_ties, so it is (5 x overall + Ties) / 6: the
figure "rewardbench2 official", where both are judged. A tie of t counts 1/t in expectation, and so
it does in the official runner, for scalar models and ratings; a judge's reply without a verdict
counts 1/4 in both."""

TIES_PROTOCOL = """The Ties subset: questions with many right answers, each answer judged alone (up
to some 20 do not fit one prompt; the official runner rates them singly too). overall is the
official score: 0.3 x accuracy on tied questions + 0.3 x accuracy on their reference questions (one
right answer) + 0.2 x preferred + 0.2 x preferred_hard + 0.01 x margin. A question is accurate when
its worst right answer scores above its best wrong one. preferred: on a tied question that gap
exceeds the spread among right answers; preferred_hard: so does the smaller of the gaps of the tied
and the reference question; margin: mean tanh of (that smaller gap / spread - 1), 0 where this is
0/0. A question with an answer that has no score counts as wrong throughout. roc_auc pools all
answers."""


def load(name: str, place: Place) -> Benchmark:
    """Reads the five subsets of lists of four responses, one of them right."""
    reading = Reading(place)
    records, ties = [], 0
    for _, row in reading.rows("test"):
        if choice(row, "subset", (*SUBSETS, TIES)) == TIES:
            ties += 1
            continue
        records.append(
            make_record(
                row,
                id=f"rewardbench2/{row.data['subset']}/{row_id(row, 'id')}",
                conversation=row_turns(row, "prompt"),
                responses=texts(row, "chosen", 1) + texts(row, "rejected"),
                best=0,
                domain=row.data["subset"],
            )
        )
    return finish(
        name,
        reading,
        PROTOCOL,
        records,
        "accuracy",
        summarize,
        official=Official("expected", "expected"),
        part=Part(WHOLE, 5 / 6),
        counted={"rows of Ties (see rewardbench2_ties)": ties},
    )


def summarize(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages each subset, and the five subsets."""
    subsets = means(records, credit, lambda record: record.domain)
    return with_overall(named("subset", subsets), mean_of(subsets, SUBSETS))


def load_ties(name: str, place: Place) -> Benchmark:
    """Reads the subset Ties: every answer to a question as a record of its own."""
    reading = Reading(place)
    records, others = [], 0
    for _, row in reading.rows("test"):
        if choice(row, "subset", (*SUBSETS, TIES)) != TIES:
            others += 1
            continue
        kind, question = _ties_id(row)
        right = texts(row, "chosen", row_value(row, "num_correct", int))
        records += [
            make_record(
                row,
                id=f"rewardbench2/Ties/{kind}:{question}/{i}",
                conversation=row_turns(row, "prompt"),
                responses=[text],
                rewards=[float(i < len(right))],
                domain=kind,
                metadata={"question": question},
            )
            for i, text in enumerate(right + texts(row, "rejected"))
        ]
    return finish(
        name,
        reading,
        TIES_PROTOCOL,
        records,
        "roc_auc",
        summarize_ties,
        counted={"rows of other subsets (see rewardbench2)": others},
        part=Part(WHOLE, 1 / 6),
        prompt_key="question",  # asked in two wordings
    )


def _ties_id(row: Row) -> tuple[str, str]:
    kind, colon, question = row_value(row, "id", str).partition(":")
    if kind not in ("ref", "tied") or not colon:
        raise ValueError(
            f'{row.where}: field "id": expected "ref:<number>" or "tied:<number>" in the subset '
            f"Ties, got {row.data['id']!r}"
        )
    return kind, question


def summarize_ties(records: Sequence[Record], scores: Mapping[str, float | None]) -> Figures:
    """Computes the five terms of the Ties score, from each question's gap and spread.

    Gap: worst right minus best wrong. Spread: best right minus worst right.
    """
    gaps: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spreads: dict[str, float] = {}
    for (kind, question), (values, right) in grouped(
        scores, records, lambda r: (r.domain, r.metadata["question"])
    ).items():
        scored = [(value, label) for value, label in zip(values, right) if value is not None]
        if len(scored) < len(values):
            gaps[kind][question], spread = -math.inf, math.inf
        else:
            good = [value for value, label in scored if label]
            bad = [value for value, label in scored if not label]
            if not good or not bad:
                continue  # a part of a question's answers
            gaps[kind][question], spread = min(good) - max(bad), max(good) - min(good)
        if kind == "tied":
            spreads[question] = spread
    area = roc_auc(
        [scores[record.id] for record in records], [record.rewards[0] == 1 for record in records]
    )
    figures = {} if area is None else {"roc_auc": area}
    both = [question for question in spreads if question in gaps["ref"]]
    if not both:
        return figures
    smaller = {question: min(gaps["ref"][question], gaps["tied"][question]) for question in both}
    terms = {
        "tied_accuracy": _share([gap > 0 for gap in gaps["tied"].values()]),
        "ref_accuracy": _share([gap > 0 for gap in gaps["ref"].values()]),
        "preferred": _share([gaps["tied"][question] > spreads[question] for question in both]),
        "preferred_hard": _share([smaller[question] > spreads[question] for question in both]),
        "margin": _share([_margin(smaller[question], spreads[question]) for question in both]),
    }
    weights = {
        "tied_accuracy": 0.3,
        "ref_accuracy": 0.3,
        "preferred": 0.2,
        "preferred_hard": 0.2,
        "margin": 0.01,
    }
    return {
        "overall": sum(weights[term] * value for term, value in terms.items()),
        **terms,
        **figures,
    }


def _margin(gap: float, spread: float) -> float:
    if math.isinf(spread) or gap == spread == 0:
        return 0.0
    return math.tanh(gap / spread - 1) if spread else math.copysign(1.0, gap)


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)
