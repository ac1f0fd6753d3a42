"""Bootstraps over items: tells how far a figure would move, had other items been drawn.

Items that share a prompt (several pairs of one question, candidates judged one by one) are no
independent draws, so prompts are resampled, each with all of its items (Efron and Tibshirani 1993,
chapters 13 and 16). All figures of a benchmark share their resamples, so the difference of any two
is paired. Confidence intervals are percentiles of the resampled figures. A figure that is no
weighted mean of its items (a ROC area) is computed on random halves of the prompts instead: a half
without replacement varies around the whole as much as a resample of full size does (McCarthy 1969),
and holds no item twice. Items of a single prompt tell nothing of other prompts: their figure has no
interval.

Letters: B resamples, I items.
"""

from collections.abc import Hashable, Sequence

import numpy as np

LEVEL = 0.95


def resamples(prompts: Sequence[Hashable], draws: int, seed: int) -> np.ndarray:
    """Counts how many times each item is in each of `draws` resamples with replacement.

    Returns count_BI, float32; items of one prompt come together.
    """
    rng, group_I = np.random.default_rng(seed), groups_of(prompts)
    groups = group_I.max() + 1
    count_BI = np.empty((draws, len(prompts)), np.float32)
    for b in range(draws):
        count_BI[b] = np.bincount(rng.integers(0, groups, groups), minlength=groups)[group_I]
    return count_BI


def halves(prompts: Sequence[Hashable], draws: int, seed: int) -> np.ndarray:
    """Draws random halves of the prompts, without replacement, with all items of each.

    Returns inside_BI, bool, of B = `draws` halves.
    """
    rng, group_I = np.random.default_rng(seed), groups_of(prompts)
    groups = group_I.max() + 1
    return np.stack(
        [(rng.permutation(groups) < max(1, groups // 2))[group_I] for _ in range(draws)]
    )


def groups_of(prompts: Sequence[Hashable]) -> np.ndarray:
    """Returns the index of each item's prompt among the different ones, int (I,)."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return np.array([index[prompt] for prompt in prompts])


def weighted_means(count_BI: np.ndarray, values_I: np.ndarray, weight_I: np.ndarray) -> np.ndarray:
    """Computes sum of weight * value / sum of weight in every resample, float64 (B,).

    NaN where no item of weight > 0 is in it. Items of weight 0 may have any value, NaN too.
    """
    used_I = weight_I > 0
    terms_I2 = np.stack(
        [
            np.where(used_I, weight_I * np.where(used_I, values_I, 0.0), 0.0),
            np.where(used_I, weight_I, 0.0),
        ],
        axis=1,
    )
    sums_B2 = (count_BI @ (terms_I2 / max(weight_I.max(), 1e-300)).astype(np.float32)).astype(
        np.float64
    )
    total_B, mass_B = sums_B2.T
    return np.divide(total_B, mass_B, out=np.full(len(count_BI), np.nan), where=mass_B > 0)


def interval(draws_B: np.ndarray) -> tuple[float | None, float | None]:
    """Returns (low, high) of the central 95 % of the draws; (None, None) where there are none."""
    draws_B = draws_B[np.isfinite(draws_B)]
    if not len(draws_B):
        return None, None
    low, high = np.quantile(draws_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def stderr(draws_B: np.ndarray) -> float | None:
    """Returns the standard deviation of the draws; None where there are none, 0 for one.

    It is the figure's standard error, with items of one prompt drawn together.
    """
    draws_B = draws_B[np.isfinite(draws_B)]
    return float(draws_B.std(ddof=1 if len(draws_B) > 1 else 0)) if len(draws_B) else None


def spread(draws_B: np.ndarray) -> dict[str, float | None]:
    """Returns {"stderr", "ci_low", "ci_high"} of the draws, as fields of results.json."""
    low, high = interval(draws_B)
    return {"stderr": stderr(draws_B), "ci_low": low, "ci_high": high}


def sign_share(draws_B: np.ndarray) -> float | None:
    """Returns twice the share of the draws on the smaller side of 0, at most 1.

    A draw of 0 is on both sides. The share is small where a difference keeps its sign.
    It reads like a two-sided p-value. The number of draws bounds it from below: no draw on the
    other side gives 2 / draws.
    """
    draws_B = draws_B[np.isfinite(draws_B)]
    if not len(draws_B):
        return None
    smaller = min((draws_B <= 0).sum(), (draws_B >= 0).sum())
    return float(min(1.0, 2 * max(smaller, 1) / len(draws_B)))
