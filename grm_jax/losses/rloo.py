"""RLOO: plain REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, objective


def rloo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighs log pi of a whole sequence by its advantage (arXiv 2402.14740).

        L = -1/(B max_length) sum_i A_i log pi(o_i | q_i) + beta KL,
        log pi(o_i | q_i) = sum_t log pi_it

    The sequence is one action, so the paper has no ratio and no clipping: make one update per
    rollout, and watch ratio_min and ratio_max. The paper's sum over tokens is divided by a
    constant, which only rescales the gradient. Goes with the advantage `rloo` and the KL in the
    reward (kl "k1"). Set `cfg.max_length`.
    """
    policy_loss_BC = -inputs.advantages[:, None] * jnp.where(inputs.mask > 0, inputs.logp, 0.0)
    return objective(policy_loss_BC, inputs, cfg, "constant")
