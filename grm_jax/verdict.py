"""Says what the judgments of one record come to: a verdict, with every judgment as evidence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.judgment.records import Record
from grm_jax.judgment.voting import pick_winner, select_by_meta, vote


@dataclasses.dataclass(frozen=True)
class Judgment:
    """One sample of a judge.

    order: the responses as they were shown, as indices of the record. principles: (name, weight or
        None). critique, text: what it wrote; "" for a scalar model. tokens: generated.
    scores: one for each response, in the record's order; None where `failure` says why not. Of a
        record with a rubric they are the means of `criteria` by its weights.
    criteria: of a record with a rubric, for each criterion by name a score from 1 to 10 for each
        response; None without one, and where it failed.
    meta_logit: of the Meta RM, that this judgment is correct; None without one, for greedy
        judgments and for failed ones.
    kept: whether the vote counted it.
    """

    sample: int
    order: tuple[int, ...]
    scores: tuple[float, ...] | None
    failure: str | None
    kept: bool
    meta_logit: float | None
    principles: tuple[tuple[str, float | None], ...]
    critique: str
    text: str
    tokens: int
    criteria: Mapping[str, tuple[int, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What k judgments of one record come to.

    id: of the record. scores: for each response the total over the judgments that count.
    best: index of the highest total; ties are broken at random, the same way for the same seed and
        record. margin: the highest total less the second, per judgment that counts; None for one
        response, which has no second.
    k: judgments drawn; 1 for a model whose samples are all the same. valid, failed: those with
        scores, and those without.
    criteria: of a record with a rubric, for each criterion by name and each response the total over
        the judgments that count, as in `scores`.
    stopped: why no more were drawn of k="auto": "certain", as none could change `best`, or "test",
        as by all odds none would; None where all were drawn.

    Where all failed, scores, best and margin are None: nothing is guessed.
    """

    id: str
    scores: tuple[float, ...] | None
    best: int | None
    margin: float | None
    k: int
    valid: int
    failed: int
    judgments: tuple[Judgment, ...]
    stopped: str | None = None
    criteria: Mapping[str, tuple[int, ...]] | None = None

    @property
    def failure(self) -> str | None:
        """Says why there is no verdict: the most common failure of the judgments.

        None where there is one.
        """
        if self.valid:
            return None
        failures = [judgment.failure for judgment in self.judgments]
        return max(failures, key=failures.count)


def depends_on(model: str, how: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a verdict depends on beside its record, as plain JSON.

    model: digest of the model. how: of `Judge.how`.
    """
    until = how["until"]
    return {
        "model": model,
        "k": len(how["samples"]) if until is None else str(until),
        "seed": how["seed"],
        "temperature": how["temperature"],
        "k_meta": how["k_meta"],
    }


def verdict_of(record: Record, rows: Sequence[dict], k_meta: int | None, seed: int) -> Verdict:
    """Returns the vote over judgments of a record, or over the k_meta that the Meta RM keeps."""
    samples = [row["scores"] for row in rows]
    kept = set(range(len(rows)))
    if k_meta is not None:
        kept = set(select_by_meta(samples, [row.get("meta_logit") for row in rows], k_meta))
    tally = vote([samples[i] for i in sorted(kept)])
    margin = None
    if tally.totals is not None and len(tally.totals) > 1:
        top, second, *_ = sorted(tally.totals, reverse=True)
        margin = (top - second) / tally.valid
    failed = sum(scores is None for scores in samples)
    by_name = [_by_name(record, row) for row in rows]
    counted = [one for i, one in enumerate(by_name) if i in kept and one is not None]
    criteria = None
    if counted:
        criteria = {
            name: tuple(map(sum, zip(*(one[name] for one in counted), strict=True)))
            for name in counted[0]
        }
    return Verdict(
        id=record.id,
        scores=tally.totals,
        best=pick_winner(tally, seed, record.id),
        margin=margin,
        k=len(rows),
        valid=len(rows) - failed,
        failed=failed,
        judgments=tuple(
            Judgment(
                sample=row["sample"],
                order=tuple(row["order"]),
                scores=None if row["scores"] is None else tuple(row["scores"]),
                failure=row["failure"],
                kept=i in kept and row["scores"] is not None,
                meta_logit=row.get("meta_logit"),
                principles=tuple(map(tuple, row.get("principles", ()))),
                critique=row.get("critique", ""),
                text=row["text"],
                tokens=row["tokens"],
                criteria=by_name[i],
            )
            for i, row in enumerate(rows)
        ),
        criteria=criteria,
    )


def _by_name(record: Record, row: Mapping) -> dict[str, tuple[int, ...]] | None:
    """The scores of a judgment by criterion; None where it has none."""
    scores_CN = row.get("criteria")
    if not record.rubric or scores_CN is None:
        return None
    names = [criterion.name for criterion in record.rubric]
    return dict(zip(names, map(tuple, scores_CN), strict=True))
