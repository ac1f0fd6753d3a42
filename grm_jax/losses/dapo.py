"""DAPO's loss: clip-higher and a token-level mean (arXiv 2503.14476 Eq 8)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, clipped_surrogate, masked_log_ratio, objective


def dapo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips higher than lower, and averages over tokens (arXiv 2503.14476 Eq 8).

        L = -1/(sum_i |o_i|) sum_i sum_t [ min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)
                                           - beta KL_it ],  r_it = pi / pi_old

    with high > low, which lets unlikely tokens grow more before they are clipped. Goes with the
    advantage `group`. Published clip 0.2 / 0.28, beta 0. The paper's other parts are not in a loss:
    dynamic sampling (near to it: zero_variance "drop") and the overlong penalty, a reward.
    """
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    surrogate_BC, clip = clipped_surrogate(ratio_BC, inputs, cfg, low=0.2, high=0.28)
    loss, metrics = objective(-surrogate_BC, inputs, cfg, "token_mean")
    return loss, metrics | clip
