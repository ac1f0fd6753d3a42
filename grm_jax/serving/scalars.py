"""Says how the verdict on a list becomes one number for each response: by name.

Only judgments that the vote counts are read. n is the number of responses, s the scores of a
judgment, totals their sums over judgments.

    mean    the mean score: 1 to 10 in a list, 0 to 1 for a single response. Ties are equal.
    share   the response's total by the total of all: the numbers of a list sum to 1. Equal totals
            have equal shares; where all are 0, each has 1/n.
    wins    the share of its comparisons with the others, over judgments, that it wins; a tie is
            half a win. 0 to 1, and 1/2 on average over the list.
    rank    1 for the best by totals, 0 for the last, evenly between; those that tie share the mean
            of their ranks.

Where no judgment could be scored every one is None: a failure is never a number. A single response
has no rivals, so that share, wins and rank of it are None too (ALONE).
"""

from collections.abc import Callable, Sequence

from grm_jax.verdict import Verdict

ALONE = "alone"
Scores = Sequence[Sequence[float]]  # of the judgments that count, in the record's order


def kept_scores(verdict: Verdict) -> list[tuple[float, ...]]:
    """Returns the scores of the judgments that the vote counts."""
    return [j.scores for j in verdict.judgments if j.kept and j.scores is not None]


def scalars(verdict: Verdict, name: str, n: int) -> tuple[list[float] | None, str | None]:
    """Returns (a number for each of n responses, None), or (None, why there are none)."""
    scores = kept_scores(verdict)
    if not scores:
        return None, verdict.failure or "no_judgment"
    if n == 1 and name != "mean":
        return None, ALONE
    return RULES[name](scores), None


def mean(scores: Scores) -> list[float]:
    """Returns the mean score of each response."""
    return [sum(of) / len(scores) for of in zip(*scores, strict=True)]


def share(scores: Scores) -> list[float]:
    """Returns each response's share of all points."""
    totals = [sum(of) for of in zip(*scores, strict=True)]
    whole = sum(totals)
    return [total / whole if whole else 1 / len(totals) for total in totals]


def wins(scores: Scores) -> list[float]:
    """Returns the share of comparisons that each response wins, a tie being half a win."""
    n = len(scores[0])

    def won(i: int) -> float:
        return sum((s[i] > x) + (s[i] == x) / 2 for s in scores for j, x in enumerate(s) if j != i)

    return [won(i) / ((n - 1) * len(scores)) for i in range(n)]


def rank(scores: Scores) -> list[float]:
    """Returns 1 for the highest total down to 0 for the lowest, ties at the mean of their ranks."""
    totals = [sum(of) for of in zip(*scores, strict=True)]
    return wins([totals])


RULES: dict[str, Callable[[Scores], list[float]]] = {
    "mean": mean,
    "share": share,
    "wins": wins,
    "rank": rank,
}
