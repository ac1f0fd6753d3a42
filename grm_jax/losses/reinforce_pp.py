"""REINFORCE++: advantages normalized over the global batch (arXiv 2501.03262)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, clipped_surrogate, masked_log_ratio, objective


def reinforce_pp(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips token ratios, and averages over tokens (arXiv 2501.03262).

        L = -1/(sum_i |o_i|) sum_i sum_t min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i) + beta KL,
        r_it = pi / pi_old

    What sets it apart is not here: the advantage `reinforce_pp` and the KL in the reward (kl "k1",
    kl_in "reward"). The paper leaves the aggregation open; the token mean is that of its code. Clip
    0.2 / 0.2 as in PPO.
    """
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    surrogate_BC, clip = clipped_surrogate(ratio_BC, inputs, cfg, low=0.2, high=0.2)
    loss, metrics = objective(-surrogate_BC, inputs, cfg, "token_mean")
    return loss, metrics | clip
