"""Best of n at decoding: what the gold of the chosen response is, exactly, from N samples of each
prompt.
"""

from collections.abc import Sequence
from math import comb

import numpy as np


def chosen_means(
    scores_PN: Sequence[Sequence[float]], values_PN: Sequence[Sequence[float]], n: int
) -> np.ndarray:
    """Mean value of the response that has the highest score among n of a prompt's N, over all
    subsets of n of them; ties count their mean. NaN scores are never chosen before a number.

    Returns [P]. With N responses of which c have a score up to s, a subset's highest is at most s
    with probability C(c, n) / C(N, n).
    """
    means = []
    for scores_N, values_N in zip(scores_PN, values_PN, strict=True):
        scores_N = np.nan_to_num(np.asarray(scores_N, float), nan=-np.inf)
        values_N, N = np.asarray(values_N, float), len(scores_N)
        if not 1 <= n <= N:
            raise ValueError(f"n: expected 1 to the {N} responses of a prompt, got {n}")
        total, below = 0.0, 0
        for score in np.unique(scores_N):
            equal_N = scores_N == score
            up_to = below + int(equal_N.sum())
            chance = (comb(up_to, n) - comb(below, n)) / comb(N, n)
            total, below = total + chance * values_N[equal_N].mean(), up_to
        means.append(total)
    return np.array(means)
