"""GRPO, original form (arXiv 2402.03300 Eq 3), the objective of SPCT's RL stage (arXiv 2504.02495
Eq 15).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import clipped_surrogate, masked_log_ratio, objective


def grpo(
    logp_BT, old_logp_BT, ref_logp_BT, advantages_B, mask_BT, cfg: LossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = -1/B sum_i 1/|o_i| sum_t [ min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i) - beta KL_it
    ],  r_it = pi / pi_old

    over the B sequences of the batch. Goes with the advantage `group`. Published clip: the paper
    gives none, 0.2 / 0.2 as in PPO. The 1/|o_i| favors short right and long wrong answers;
    `dr_grpo` and `dapo` differ in just that. logp, old_logp, ref_logp: fp32[B, T] log-probabilities
    of the sampled tokens under the policy, the policy that sampled, and the reference; advantages:
    fp32[B]; mask: fp32[B, T], 1 on completion tokens. Returns (scalar, metrics).
    """
    ratio_BT = jnp.exp(masked_log_ratio(logp_BT, old_logp_BT, mask_BT))
    surrogate_BT, clip = clipped_surrogate(ratio_BT, advantages_B, mask_BT, cfg, low=0.2, high=0.2)
    loss, metrics = objective(
        -surrogate_BT, logp_BT, old_logp_BT, ref_logp_BT, mask_BT, cfg, "sequence_mean"
    )
    return loss, metrics | clip
