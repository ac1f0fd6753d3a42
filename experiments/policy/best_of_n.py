"""Best of n at decoding: what the gold of the chosen response is, exactly, from N samples of each
prompt.
"""

from collections.abc import Sequence

import numpy as np

from grm_jax.benchmarks.credit import best_of_k


def chosen_means(
    scores_PN: Sequence[Sequence[float]], values_PN: Sequence[Sequence[float]], n: int
) -> np.ndarray:
    """Mean value of the response that has the highest score among n of a prompt's N, over all
    subsets of n of them; ties count their mean. NaN scores are never chosen before a number.

    Returns [P].
    """
    known_PN = ([None if np.isnan(x) else float(x) for x in scores_N] for scores_N in scores_PN)
    pairs = zip(known_PN, values_PN, strict=True)
    return np.array([best_of_k(scores_N, values_N, n) for scores_N, values_N in pairs])


def chosen_scores(
    scores_PN: Sequence[Sequence[float]], values_PN: Sequence[Sequence[float]], n: int
) -> tuple[float, float]:
    """Mean value of what is chosen among n, as `chosen_means`, over the choices that have a score,
    and the share of choices that have none: of n responses that could not be judged.

    values_PN: NaN where the score is. The mean is NaN where no choice has a score.
    """
    missing = float(chosen_means(scores_PN, np.isnan(scores_PN), n).mean())
    total = chosen_means(scores_PN, np.nan_to_num(values_PN), n).mean()
    return float(total / (1 - missing)) if missing < 1 else float("nan"), missing
