"""CISPO: clip the importance weight, never the token (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.metrics import clip_metrics
from grm_jax.losses.policy import LossInputs, clip_bounds, masked_log_ratio, objective


def cispo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighs log pi by the clipped ratio, as a constant (MiniMax-M1, arXiv 2506.13585).

        L = -1/(sum_i |o_i|) sum_i sum_t sg(clip(r_it, 1 - low, 1 + high)) A_i log pi_it + beta KL,
        r_it = pi / pi_old

    sg stops the gradient, so this is REINFORCE with a bounded weight: a token beyond the bounds
    still has a gradient, which PPO's clipping would cut. Goes with the advantage `group`. The paper
    sets no lower bound (low = 1) and does not print its upper one; high = 4, a weight of at most 5,
    is what TRL's recipe for ScaleRL (arXiv 2510.13786) takes.
    """
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    lower, upper = clip_bounds(cfg, low=1.0, high=4.0)
    weight_BC = jax.lax.stop_gradient(jnp.clip(ratio_BC, lower, upper))
    logp_BC = jnp.where(inputs.mask > 0, inputs.logp, 0.0)
    policy_loss_BC = -weight_BC * inputs.advantages[:, None] * logp_BC
    loss, metrics = objective(policy_loss_BC, inputs, cfg, "token_mean")
    return loss, metrics | clip_metrics(ratio_BC < lower, ratio_BC > upper, inputs.mask, cfg)
