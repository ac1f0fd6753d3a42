"""Reads RMB (arXiv 2410.09893, Zhou-Zoey/RMB-Reward-Model-Benchmark).

Pairs and best-of-N lists, helpfulness and harmlessness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Official,
    Place,
    Reading,
    finish,
    make_record,
    mean_of,
    means,
    named,
    with_overall,
)
from grm_jax.data.formats import FORMATS
from grm_jax.data.rows import row_text
from grm_jax.judgment.records import Record

GOALS = ("Helpfulness", "Harmlessness")
KINDS = ("Pairwise", "BoN")

PROTOCOL = """Pairs, and lists of 3 to 7 responses of which the best is to be found. overall is the
plain mean of four accuracies: Helpfulness and Harmlessness, Pairwise and BoN, each over its items.
A model that scores a list sees it at once and its highest score counts (arXiv 2504.02495, D.2); a
pairwise model meets all pairs of a list, and its scores are the pairs won. The benchmark's own rule
for lists is that the best must win its n - 1 pairs: for scores that is a strict maximum. A tie of t
counts 1/t in expectation; officially a scalar model's tie is 0, and a generative judge has 1/2 for
a tied pair, 0 for a reply without a verdict, 0 for a list with any tie (RM-R1's script, the only
public one for lists). A few items repeat a response or have an empty one; they stay in, as in the
published figures, and are counted."""


def load(name: str, place: Place) -> Benchmark:
    """Reads pairs and lists of both goals, helpfulness and harmlessness."""
    reading = Reading(place)
    records = []
    for _, row in reading.rows():
        if not row.data.keys() & {"bon_uid", "pair_uid"}:
            raise ValueError(
                f'{row.where}: expected an RMB row with "pair_uid" or "bon_uid", the row has '
                f"{', '.join(row.data)}"
            )
        kind, goal = ("BoN" if "bon_uid" in row.data else "Pairwise"), _goal(row)
        fields = FORMATS["rmb"](row)
        fields["metadata"] = fields["metadata"] | {"cell": f"{goal} {kind}"}
        records.append(make_record(row, **fields))
    return finish(
        name,
        reading,
        PROTOCOL,
        records,
        "accuracy",
        summarize,
        official=Official("strict", "parsed_or_strict"),
    )


def _goal(row) -> str:
    parts = row_text(row, "category_path").split("/")
    found = [goal for goal in GOALS if goal in parts]
    if len(found) != 1:
        raise ValueError(
            f'{row.where}: field "category_path": expected one of {", ".join(GOALS)} in it, got '
            f"{row.data['category_path']!r}"
        )
    return found[0]


def summarize(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages the four cells of goal and kind, the subsets of each kind, and the four cells."""
    cells = means(records, credit, lambda record: record.metadata["cell"])
    subsets = means(
        records, credit, lambda record: f"{record.metadata['cell'].split()[1]}/{record.domain}"
    )
    figures = {**named("section", cells), **named("subset", subsets)}
    return with_overall(
        figures, mean_of(cells, [f"{goal} {kind}" for goal in GOALS for kind in KINDS])
    )
