"""GSPO: one importance ratio per sequence (arXiv 2507.18071 Eq 5-7)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, clipped_surrogate, masked_log_ratio, objective


def gspo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips one ratio per sequence (arXiv 2507.18071 Eq 5-7).

        L = -1/B sum_i min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i) + beta KL,
        s_i = exp(1/|o_i| sum_t log(pi / pi_old)_it)

    s_i is the geometric mean of the token ratios: a sequence is clipped as a whole, and all of its
    tokens get the same weight. Goes with the advantage `group`. Published clip 3e-4 / 4e-4 (s_i is
    far closer to 1 than a token's ratio; GRPO's 0.2 would never clip), beta 0. The metrics
    clip_ratio/* count the tokens of clipped sequences; ratio_* stay per token.
    """
    log_ratio_BC = masked_log_ratio(inputs)
    log_s_B = log_ratio_BC.sum(axis=1) / jnp.maximum(inputs.mask.sum(axis=1), 1)
    s_BC = jnp.broadcast_to(jnp.exp(log_s_B)[:, None], inputs.mask.shape)
    surrogate_BC, clip = clipped_surrogate(s_BC, inputs, cfg, low=3e-4, high=4e-4)
    loss, metrics = objective(-surrogate_BC, inputs, cfg, "sequence_mean")
    return loss, metrics | clip
