"""Credits verdicts by several conventions, and sums up scores of single responses.

The paper breaks ties at random; `expected_credit` is the expectation of that. Official runners
differ; each benchmark names its own in `Benchmark.official`, so that both figures can stand side by
side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from grm_jax.judgment.records import Record
from grm_jax.judgment.rules import best_index
from grm_jax.judgment.voting import Verdict, expected_credit, strict_credit


def parsed_credit(verdict: Verdict, rewards: Sequence[float]) -> float:
    """Returns `expected_credit` where a judgment parsed, else 0.

    A tie is half a point, a reply without a verdict none. The credit of generative judges on RMB's
    pairs (RM-R1-UIUC/RM-R1, run_generative.py).
    """
    return 0.0 if verdict.totals is None else expected_credit(verdict, rewards)


def parsed_or_strict_credit(verdict: Verdict, rewards: Sequence[float]) -> float:
    """Returns `parsed_credit` on a pair, `strict_credit` on a list.

    On RMB's lists one tie fails the item (run_generative_bestofn.py there).
    """
    return parsed_credit(verdict, rewards) if len(rewards) == 2 else strict_credit(verdict, rewards)


def all_pairs_won(verdict: Verdict, rewards: Sequence[float]) -> float:
    """Returns 1.0 when the best response won each of its n - 1 pairs in every judgment.

    For a pairwise model, whose scores are pairs won. With five or more responses a response may
    lead without having won all its pairs, so this can be less than `strict_credit`.
    """
    best = best_index(rewards)
    return float(
        verdict.totals is not None and verdict.totals[best] == verdict.valid * (len(rewards) - 1)
    )


CREDIT: dict[str, Callable[[Verdict, Sequence[float]], float]] = {
    "expected": expected_credit,
    "strict": strict_credit,
    "parsed": parsed_credit,
    "parsed_or_strict": parsed_or_strict_credit,
}


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns the area under the ROC curve, in 0..1; None where only one class is present.

    A tie counts 0.5.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    return float(
        (midranks[inverse][labels].sum() - positives * (positives + 1) / 2)
        / (positives * negatives)
    )


def roc_auc(scores: Sequence[float | None], labels: Sequence[bool]) -> float | None:
    """Returns the area under the ROC curve; None where only one class is present.

    A tie, and a comparison with a missing score, count 0.5.
    """
    labels_I = np.asarray(labels, bool)
    scores_I = np.array([math.nan if score is None else score for score in scores], float)
    pairs = int(labels_I.sum()) * int((~labels_I).sum())
    if not pairs:
        return None
    there_I = ~np.isnan(scores_I)
    area = auc(scores_I[there_I], labels_I[there_I])
    compared = int(labels_I[there_I].sum()) * int((~labels_I[there_I]).sum())
    return ((area or 0.0) * compared + 0.5 * (pairs - compared)) / pairs


def best_of_k(scores: Sequence[float | None], values: Sequence[float], k: int) -> float:
    """Returns the mean value of the highest-scored of k of the n candidates.

    Where values are whether a candidate is right, this is the probability that the chosen one is.
    Exact, over all subsets of size k, ties broken at random. A candidate without a score is chosen
    only where none has one. Raises ValueError for k outside 1..n.
    """
    n = len(scores)
    if not 1 <= k <= n or len(values) != n:
        raise ValueError(f"best of {k} of {n} candidates with {len(values)} values")
    by_score: dict[float, list[float]] = {}
    for score, value in zip(scores, values):
        by_score.setdefault(-math.inf if score is None else score, []).append(float(value))
    expected, below = 0.0, n
    for score in sorted(by_score, reverse=True):
        equal = by_score[score]
        # subsets whose highest score is this one
        chosen = math.comb(below, k) - math.comb(below - len(equal), k)
        expected += chosen * sum(equal) / len(equal)
        below -= len(equal)
    return expected / math.comb(n, k)


def best_of_k_figures(
    lists: Sequence[tuple[Sequence[float | None], Sequence[bool]]],
) -> dict[str, float]:
    """Returns best-of-k figures over (scores, right) lists.

    "best_of_<k>" for k = 1, 2, 4, ... and the whole list, and "ceiling", the share with a right
    candidate. Lists of different lengths are compared up to the shortest.
    """
    shortest = min(len(scores) for scores, _ in lists)
    ks = sorted({shortest, *(2**i for i in range(shortest.bit_length()) if 2**i <= shortest)})
    curve = {
        f"best_of_{k}": sum(best_of_k(scores, right, k) for scores, right in lists) / len(lists)
        for k in ks
    }
    return {**curve, "ceiling": sum(any(right) for _, right in lists) / len(lists)}


def within_list_auc(lists: Sequence[tuple[Sequence[float | None], Sequence[bool]]]) -> float | None:
    """Averages the ROC area inside each list over those with right and wrong candidates.

    None where there is no such list.
    """
    areas = [area for scores, right in lists if (area := roc_auc(scores, right)) is not None]
    return sum(areas) / len(areas) if areas else None


def grouped(
    values: Mapping[str, float | None], records: Iterable[Record], key: Callable
) -> dict[str, tuple[list[float | None], list[bool]]]:
    """Groups records of one response: {key: (scores, right)}."""
    found: dict[str, tuple[list, list]] = {}
    for record in records:
        scores, right = found.setdefault(key(record), ([], []))
        scores.append(values[record.id])
        right.append(record.rewards[0] == 1)
    return found
