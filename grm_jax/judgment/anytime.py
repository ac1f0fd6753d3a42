"""Decides when a vote needs no further samples: anytime voting.

An item is to get k samples, one after another. It may be left earlier where its winner stands:

certain: no completion of the samples to come can change it. A sample moves two responses by at most
    `span` against each other, and may fail. So the winner of a plain vote stands when it leads each
    rival by more than span times the samples to come. Under a Meta RM, j of them may take places
    among the k_meta that are kept: it stands when, for every possible j, it leads among the best
    k_meta - j judgments so far by more than span times j. Both are exact: where they do not hold,
    some completion ends otherwise.

test: the error rate is bounded by alpha for EVERY item, whatever its judgments are like, if the
    order of its k samples carries no information (samples that are drawn alike and apart, as where
    each has its own order of the responses, are such). Let d_1, ..., d_k be by how much the k
    samples put response w above response i, 0 where they failed. If w does not win over i in the
    end, sum d <= 0, and what is still to come has at most the mean m_t = -(d_1 + ... + d_{t-1}) /
    (k - t + 1). A gambler who bets the share BET of what can be lost on d_t being more has the
    wealth

        W_t = W_{t-1} (1 + BET (d_t - m_t) / (span + m_t)),        W_0 = 1,

    which is never negative and not expected to grow: P(W ever reaches 1/a) <= a (Ville). This is
    the betting supermartingale of Waudby-Smith and Ramdas (arXiv 2010.09686) for sampling without
    replacement. The vote stops with w when the wealth against each of its n - 1 rivals has reached
    (n - 1) / alpha: whoever wins all k samples is a rival of any other response, so all wrong stops
    together have at most n - 1 times alpha / (n - 1). It may be looked at after any sample.

    Under a Meta RM the same holds of the k_meta samples that are kept in the end, in their order.
    Which these are is not known, only that all lie above some logit: the test holds for all places
    where that may lie. How many of the seen judgments lie above it is evidence of its own. That N
    of t do has the hypergeometric probability p; q is that of a binomial of half the share k_meta /
    k, for what stands in the way are places with few above them. So W (1 + q / p) / 2 is not
    expected to grow either. Judgments of equal logits count as kept in the order of their samples.

The bound is on "the winner is not among the winners of all k". A tie of all k may be left as one of
the responses that tie. A single response, scored 0 or 1, is a vote between two answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grm_jax.judgment.voting import select_by_meta, vote

AUTO = 32  # samples at most, of k="auto"
ERROR = 0.05
ROUND = 4  # samples between two looks
BET = 0.95
CERTAIN, TEST = "certain", "test"


@dataclass(frozen=True)
class Anytime:
    """Says how long samples are drawn: until the vote stands, and `most` at the most.

    error: the largest probability that its winner is none of those of `most` samples; 0 goes on
        until that is certain.
    """

    most: int = AUTO
    error: float = ERROR

    def __post_init__(self):
        if not isinstance(self.most, int) or isinstance(self.most, bool) or self.most < 1:
            raise ValueError(f"most: expected a positive integer, got {self.most!r}")
        number = isinstance(self.error, (int, float)) and not isinstance(self.error, bool)
        if not number or not 0 <= self.error < 1:
            raise ValueError(f"error: expected a probability below 1, got {self.error!r}")

    def __str__(self) -> str:
        return f"auto, at most {self.most}, error {self.error:g}"


def kept_so_far(drawn: int, k: int, k_meta: int) -> int:
    """Returns how many of `drawn` samples the Meta RM keeps: the share that it keeps of all k."""
    return -(-drawn * k_meta // k)


def decided(
    samples: Sequence[Sequence[float] | None],
    k: int,
    span: float | None,
    error: float = 0.0,
    meta_logits: Sequence[float | None] | None = None,
    k_meta: int | None = None,
) -> str | None:
    """Says why the winner of these first samples of k stands: CERTAIN, TEST, or None if it may not.

    samples: as in `vote`. None too where all k are drawn, where there is no winner, or a tie.
    span: the largest difference of two scores of one judgment; of a single response, which scores 0
        or 1, that is 1. None where it is not known: nothing is decided.
    error: the largest probability that the winner is none of those of all k; 0 stops only where it
        is certain.
    meta_logits, k_meta: of a guided vote, of which k_meta of all k samples count; the winner is
        that of the `kept_so_far` best.
    """
    drawn = len(samples)
    if span is None or drawn >= k:
        return None
    # right and wrong are two answers
    answers: list[Any] = [(1 - s[0], s[0]) if s is not None and len(s) == 1 else s for s in samples]
    best_first, kept = range(drawn), drawn
    if k_meta is not None:
        best_first = select_by_meta(answers, meta_logits or (), drawn)
        kept = kept_so_far(drawn, k, k_meta)
    winners = vote([answers[i] for i in best_first[:kept]]).winners
    if len(winners) != 1:
        return None
    (winner,) = winners
    n = next(len(scores) for scores in answers if scores is not None)
    leads = [  # over each rival, by sample
        [0.0 if scores is None else scores[winner] - scores[rival] for scores in answers]
        for rival in range(n)
        if rival != winner
    ]
    if k_meta is None:
        if all(sum(lead) > span * (k - drawn) for lead in leads):
            return CERTAIN
        if error > 0 and all(_wealth(lead, k, span) >= len(leads) / error for lead in leads):
            return TEST
        return None
    if all(_stands_guided([lead[i] for i in best_first], k, k_meta, span) for lead in leads):
        return CERTAIN
    if error > 0 and all(
        _wealth_guided(lead, best_first, k, k_meta, span) >= len(leads) / error for lead in leads
    ):
        return TEST
    return None


def _wealth(lead: Sequence[float], k: int, span: float) -> float:
    """Returns the most that the gambler had against "the sum over all k is not above 0"."""
    wealth = most = 1.0
    total = 0.0
    for seen, value in enumerate(lead):
        mean = -total / (k - seen)
        if span + mean <= 0:
            return math.inf
        wealth *= 1 + BET * (value - mean) / (span + mean)
        most, total = max(most, wealth), total + value
    return most


def _stands_guided(lead_best_first: Sequence[float], k: int, k_meta: int, span: float) -> bool:
    """Tells whether the winner stands, however many of the samples to come are kept."""
    to_come = k - len(lead_best_first)
    return all(
        sum(lead_best_first[: k_meta - j]) > span * j for j in range(min(to_come, k_meta) + 1)
    )


def _wealth_guided(
    lead: Sequence[float], best_first: Sequence[int], k: int, k_meta: int, span: float
) -> float:
    """Returns the least of the gamblers' most, one for each number of seen samples kept at last."""
    drawn, half = len(lead), k_meta / k / 2
    least = math.inf
    for kept in range(max(0, drawn - (k - k_meta)), min(drawn, k_meta) + 1):
        above = set(best_first[:kept])
        wealth = most = 1.0
        total, count = 0.0, 0
        for i, value in enumerate(lead):
            if i in above:
                mean = -total / (k_meta - count)
                if span + mean <= 0:
                    most = math.inf
                    break
                wealth *= 1 + BET * (value - mean) / (span + mean)
                total, count = total + value, count + 1
            seen = i + 1
            ways = math.comb(k_meta, count) * math.comb(k - k_meta, seen - count)
            likely = ways / math.comb(k, seen)
            fewer = math.comb(seen, count) * half**count * (1 - half) ** (seen - count)
            most = max(most, wealth * (1 + fewer / likely) / 2)
        least = min(least, most)
    return least
