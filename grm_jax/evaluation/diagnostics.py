"""Measures what stands beside a system's accuracy on a benchmark.

Position bias, costs, failures by name, the scores that it gives, and how far its margins can be
trusted.

Letters: I items, N responses.
"""

import collections
from collections.abc import Sequence

import numpy as np

from grm_jax.evaluation import votes
from grm_jax.evaluation.figures import Field, Judged, make_pools
from grm_jax.evaluation.votes import Pool
from grm_jax.judgment.voting import vote

# at most so many bins of a calibration curve, of at least about so many items
BINS, BIN_ITEMS = 8, 20
SCORES = 20  # the highest score of a histogram


def position_swap(field: Field, judged: Judged) -> dict | None:
    """Compares greedy with the responses in their order and in the reverse of it.

    None where there is nothing to compare.

    "consistent": share of the items, among those where both parsed, with the same winner or tied
        winners.
    "both_right": share of the same items with the best response alone on top both times, None
        without gold.
    "unparsed": items where one of the two failed.
    """
    same, right, unparsed = [], [], 0
    for one, other in zip(
        make_pools(field, judged, "greedy", 1), make_pools(field, judged, "swapped", 1)
    ):
        at = {item: i for i, item in enumerate(one.ids)}
        for j, item in enumerate(other.ids):
            i, n = at[item], other.n_I[j]
            if not (one.valid_IK[i, 0] and other.valid_IK[j, 0]):
                unparsed += 1
                continue
            tops = [
                scores_N[:n] == scores_N[:n].max()
                for scores_N in (one.scores_IKN[i, 0], other.scores_IKN[j, 0])
            ]
            same.append(bool((tops[0] == tops[1]).all()))
            if other.gold_I[j] >= 0:
                right.append(all(top[other.gold_I[j]] and top.sum() == 1 for top in tops))
    if not same and not unparsed:
        return None
    consistent, both_right = (
        float(np.mean(values)) if values else None for values in (same, right)
    )
    return {
        "items": len(same),
        "unparsed": unparsed,
        "consistent": consistent,
        "both_right": both_right,
    }


def costs(judged: Judged) -> dict:
    """Counts failures by name over all judgments of the system here, and averages what they cost.

    Means per judgment: seconds of wall time, prompt tokens and cost where judgments tell.
    """
    judgments = [j for kinds in judged.rows.values() for rows in kinds for j in rows.values()]

    def mean(name: str) -> float | None:
        values = [j[name] for j in judgments if j[name] is not None]
        return sum(values) / len(values) if values else None

    failures = collections.Counter(j["failure"] for j in judgments if j["failure"] is not None)
    return {
        "judgments": len(judgments),
        "failures": dict(failures.most_common()),
        "seconds_per_judgment": mean("seconds"),
        "prompt_tokens_per_judgment": mean("prompt_tokens"),
        "cost_per_judgment": mean("cost"),
    }


def readings(judged: Judged) -> dict | None:
    """Counts where the strict reading and that of the released code differ, over all judgments.

    None where no judgment was read both ways.

    "judgments", "judgments_differ": those read both ways; those of other scores, or with scores in
        one reading alone.
    "strict_failures", "released_failures": of them, {reason: count}.
    "verdicts", "verdicts_differ": greedy ones in each order, and plain votes over all samples of an
        item; those of another winner, or with a winner in one reading alone.
    """
    both = {"strict": [], "released": []}
    verdicts = differ = 0
    for of_seeds in judged.rows.values():
        for rows in of_seeds:
            by_item: dict[str, list[dict]] = {}
            for (item, _), row in rows.items():
                if row.get("strict") is not None:
                    by_item.setdefault(item, []).append(row)
            for of_item in by_item.values():
                strict = [row["strict"] for row in of_item]
                both["strict"] += strict
                both["released"] += of_item
                verdicts += 1
                one, other = (
                    _winners([reading["scores"] for reading in side]) for side in (strict, of_item)
                )
                differ += one != other
    if not verdicts:
        return None
    counts = {
        side: collections.Counter(r["failure"] for r in of if r["failure"] is not None)
        for side, of in both.items()
    }
    return {
        "judgments": len(both["strict"]),
        "judgments_differ": sum(a["scores"] != b["scores"] for a, b in zip(*both.values())),
        **{f"{side}_failures": dict(of.most_common()) for side, of in counts.items()},
        "verdicts": verdicts,
        "verdicts_differ": differ,
    }


def _winners(samples: Sequence[Sequence[float] | None]) -> object:
    """Whom a vote chooses: the indices on top; of one response right, wrong or neither."""
    tally = vote(samples)
    if tally.totals is None or len(tally.totals) > 1:
        return tally.winners
    return np.sign(2 * sum(tally.totals) - tally.valid)


def score_counts(field: Field, judged: Judged, ks: Sequence[int]) -> dict | None:
    """Counts the scores that the sampled judgments give, {"best" | "others": {score: count}}.

    The greedy ones of a system that does not sample. None without gold, and for scores that are no
    whole numbers of 0..SCORES. A single response counts as best where its reward is 1.
    """
    kind, samples = ("sampled", max(ks)) if judged.sampled else ("greedy", 1)
    counts: dict[str, collections.Counter] = {}
    for pool in make_pools(field, judged, kind, judged.even(samples)):
        of_pool = _pool_score_counts(pool)
        if of_pool is None:
            return None
        for side, counter in of_pool.items():
            counts.setdefault(side, collections.Counter()).update(counter)
    if not any(counts.values()):
        return None
    return {side: {str(s): counter[s] for s in sorted(counter)} for side, counter in counts.items()}


def _pool_score_counts(pool: Pool) -> dict[str, dict[int, int]] | None:
    real_IN = np.arange(pool.scores_IKN.shape[-1]) < pool.n_I[:, None]
    used_IKN = pool.valid_IK[:, :, None] & real_IN[:, None]
    scores = pool.scores_IKN[used_IKN]
    if (pool.gold_I < 0).any() or not np.isin(scores, np.arange(SCORES + 1)).all():
        return None
    best_IN = np.where(
        (pool.n_I == 1)[:, None],
        pool.gold_I[:, None] == 1,
        np.arange(pool.scores_IKN.shape[-1]) == pool.gold_I[:, None],
    )
    best = np.broadcast_to(best_IN[:, None], used_IKN.shape)[used_IKN]
    sides = {"best": scores[best], "others": scores[~best]}
    return {
        side: {int(s): int(n) for s, n in zip(*np.unique(values, return_counts=True))}
        for side, values in sides.items()
    }


def calibration(field: Field, judged: Judged, ks: Sequence[int]) -> list[dict]:
    """Tells how accurate a verdict is by its margin: the best total less the second.

    Per judgment that parsed. Bins hold about equally many items; [] without gold.
    """
    kind, k = ("sampled", max(ks)) if judged.sampled else ("greedy", 1)
    margins, credits = [], []
    for pool in make_pools(field, judged, kind, k):
        credit_I = votes.estimate(pool, k).credit_I
        total_IN = np.where(
            np.arange(pool.scores_IKN.shape[-1]) < pool.n_I[:, None],
            pool.scores_IKN.sum(axis=1),
            -np.inf,
        )
        valid_I = pool.valid_IK.sum(axis=1)
        used_I = (pool.n_I > 1) & (valid_I > 0) & (pool.gold_I >= 0)
        if used_I.any():
            top_I2 = np.sort(total_IN[used_I], axis=1)[:, :-3:-1]
            margins.append((top_I2[:, 0] - top_I2[:, 1]) / valid_I[used_I])
            credits.append(credit_I[used_I])
    if not margins:
        return []
    margin_I, credit_I = np.concatenate(margins), np.concatenate(credits)
    bins = max(1, min(BINS, len(margin_I) // BIN_ITEMS))
    edges = np.unique(np.quantile(margin_I, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_I = np.searchsorted(edges, margin_I, side="left")
    rows = []
    for b in np.unique(bin_I):
        credit_J, margin_J = credit_I[bin_I == b], margin_I[bin_I == b]
        rows.append(
            {
                "low": float(margin_J.min()),
                "high": float(margin_J.max()),
                "margin": float(margin_J.mean()),
                "items": len(credit_J),
                "accuracy": float(credit_J.mean()),
                "stderr": votes.item_stderr(credit_J),
            }
        )
    return rows
