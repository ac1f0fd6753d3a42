"""Votes over k samples: sums scores (Eq 14 of arXiv 2504.02495), grades, and selects by a Meta RM.

A sample is a tuple of n scores (integers, but for the means of a rubric) in record order, or None
where the completion could not be parsed. Failed samples are left out of the sum and counted. Each
sample scores all responses of its record, so the sums stay comparable however many are left. When
all fail there is no verdict: `totals` is None and nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grm_jax.judgment.records import seeded_digest
from grm_jax.judgment.rules import best_index

# sums of scores that differ by less are equal but for their last bits: the exact mean of a rubric's
# scores need not be a float
TIE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Holds a vote: n summed scores in record order, and the indices of the largest.

    `totals` is None, and `winners` (), when no sample was valid.
    """

    totals: tuple[float, ...] | None
    winners: tuple[int, ...]
    valid: int
    failed: int


def vote(samples: Sequence[Sequence[float] | None]) -> Verdict:
    """Sums up scores as Eq 14 does: S*_i = sum over the valid samples of S_i.

    Raises ValueError when samples score different numbers of responses.
    """
    valid = [sample for sample in samples if sample is not None]
    failed = len(samples) - len(valid)
    if not valid:
        return Verdict(None, (), 0, failed)
    totals = tuple(sum(scores) for scores in zip(*valid, strict=True))
    top = max(totals)
    winners = tuple(i for i, total in enumerate(totals) if total >= top - TIE)
    return Verdict(totals, winners, len(valid), failed)


def is_tie(verdict: Verdict) -> bool:
    """Says whether the vote leaves more than one answer on top.

    False when every sample failed (that is a failure, not a tie). n = 1 (scores 0 or 1): True when
    exactly half of the valid samples say 1.
    """
    if verdict.totals is None:
        return False
    if len(verdict.totals) == 1:
        return 2 * _votes_for_one(verdict) == verdict.valid
    return len(verdict.winners) > 1


def expected_credit(verdict: Verdict, rewards: Sequence[float]) -> float:
    """Returns the expected accuracy of breaking ties at random.

    1/t when the best response is among t winners, else 0. All samples failed: 1/n, as if all
    responses were tied; `verdict.failed` tells the cases apart. n = 1 (scores 0 or 1): the verdict
    is 1 when more than half of the valid samples say 1, 0 when fewer do; a tie, or no valid sample,
    is worth 1/2, because there are two possible answers.
    """
    if verdict.totals is not None and len(verdict.totals) != len(rewards):
        raise ValueError(
            f"a vote over {len(verdict.totals)} responses against {len(rewards)} rewards"
        )
    if len(rewards) == 1:
        if verdict.totals is None or is_tie(verdict):
            return 0.5
        return float((2 * _votes_for_one(verdict) > verdict.valid) == (rewards[0] == 1))
    if verdict.totals is None:
        return 1.0 / len(rewards)
    return 1.0 / len(verdict.winners) if best_index(rewards) in verdict.winners else 0.0


def strict_credit(verdict: Verdict, rewards: Sequence[float]) -> float:
    """Applies the training rule to a vote: 1.0 when the verdict is right and untied, else 0.0.

    Also 0.0 when all samples failed.
    """
    return (
        expected_credit(verdict, rewards)
        if verdict.totals is not None and not is_tie(verdict)
        else 0.0
    )


def pick_winner(verdict: Verdict, seed: int, record_id: str) -> int | None:
    """Draws one winner, uniformly among tied ones as in the paper; None when all samples failed.

    A function of (seed, record id).
    """
    if not verdict.winners:
        return None
    draw = int.from_bytes(seeded_digest("tie_break", seed, record_id), "big")
    return verdict.winners[draw % len(verdict.winners)]


def default_k_meta(k: int) -> int:
    """Returns the paper's k_meta = k/2, rounded down where k is odd, and at least 1."""
    return max(1, k // 2)


def select_by_meta(
    samples: Sequence[Sequence[int] | None],
    meta_logits: Sequence[float | None],
    k_meta: int | None = None,
) -> tuple[int, ...]:
    """Ranks samples by a Meta RM's logits and returns the indices of the best k_meta, best first.

    `vote` over them is the guided vote. Equal logits: the lower sample index first. Failed samples
    rank below all valid ones, so they are kept only when valid ones run out, and then count as
    failed; their logit may be None. `k_meta` defaults to `default_k_meta(len(samples))`. Raises
    ValueError for a valid sample without a finite logit and for k_meta outside 1..k.
    """
    k = len(samples)
    k_meta = default_k_meta(k) if k_meta is None else k_meta
    if not 1 <= k_meta <= k:
        raise ValueError(f"k_meta: expected 1 to {k} (the number of samples), got {k_meta}")
    valid, failed = [], []
    for i, (sample, logit) in enumerate(zip(samples, meta_logits, strict=True)):
        if sample is None:
            failed.append(i)
        elif logit is None or not math.isfinite(logit):
            raise ValueError(
                f"meta_logits[{i}]: expected a finite number for a valid sample, got {logit}"
            )
        else:
            valid.append((-logit, i))
    return tuple(([i for _, i in sorted(valid)] + failed)[:k_meta])


def _votes_for_one(verdict: Verdict) -> float:
    total = sum(verdict.totals or ())  # of one response
    if not 0 <= total <= verdict.valid:
        raise ValueError(
            f"a vote on one response needs scores 0 or 1, got a total of {total} from "
            f"{verdict.valid} samples"
        )
    return total
