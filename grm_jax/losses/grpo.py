"""GRPO in its original form, the objective of SPCT's RL stage (arXiv 2504.02495 Eq 15)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, clipped_surrogate, masked_log_ratio, objective


def grpo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips token ratios, and averages each sequence (arXiv 2402.03300 Eq 3).

        L = -1/B sum_i 1/|o_i| sum_t [ min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)
                                       - beta KL_it ],  r_it = pi / pi_old

    over the B sequences of the batch. Goes with the advantage `group`. Published clip: the paper
    gives none, 0.2 / 0.2 as in PPO. The 1/|o_i| favors short right and long wrong answers;
    `dr_grpo` and `dapo` differ in just that.
    """
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    surrogate_BC, clip = clipped_surrogate(ratio_BC, inputs, cfg, low=0.2, high=0.2)
    loss, metrics = objective(-surrogate_BC, inputs, cfg, "sequence_mean")
    return loss, metrics | clip
