"""Bradley-Terry, the loss of scalar reward models that are trained on pairs.

PairRM, whose scalar is a preference already, uses `supervised.bce`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.aggregation import Normalizer, count


def bradley_terry(
    better_B: jax.Array,
    worse_B: jax.Array,
    mask_B: jax.Array,
    center: float = 0.0,
    normalizer: Normalizer | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Asks the better response's reward to be the larger one, and both to stay near zero.

        L = sum_b m [ -log sigmoid(r+ - r-) + c (r+ + r-)^2 ] / (pairs of the batch)

    Bradley and Terry 1952, as for reward models in Ouyang et al. 2022 (arXiv 2203.02155, Eq 1). The
    second term holds the rewards near zero, which the first leaves free up to a constant
    (Eisenstein et al. 2023, arXiv 2312.09244); off at c = 0.

    better, worse: fp32[B] rewards r+ and r- of the two responses of a pair, r+ that of the one the
        gold prefers.
    mask: fp32[B], 1 on real pairs, 0 on padding.
    center: c >= 0.
    normalizer: `count(mask_B[:, None])` of the global batch, None if these arrays are all of it.

    Returns (scalar, metrics): accuracy (of r+ > r-, ties half), margin (mean of r+ - r-) and
    reward_mean; micro-batches add up.
    """
    pairs = jnp.maximum((count(mask_B[:, None]) if normalizer is None else normalizer).sequences, 1)
    inside_B = mask_B > 0
    better_B, worse_B = jnp.where(inside_B, better_B, 0.0), jnp.where(inside_B, worse_B, 0.0)
    margin_B = better_B - worse_B
    each_B = -jax.nn.log_sigmoid(margin_B) + center * (better_B + worse_B) ** 2
    loss = jnp.where(inside_B, each_B, 0.0).sum() / pairs
    right_B = jnp.where(margin_B == 0, 0.5, margin_B > 0)
    return loss, {
        "accuracy": jnp.where(inside_B, right_B, 0.0).sum() / pairs,
        "margin": margin_B.sum() / pairs,
        "reward_mean": (better_B + worse_B).sum() / 2 / pairs,
    }
