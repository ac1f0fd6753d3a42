"""CISPO: clip the importance weight, never the token (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.metrics import clip_metrics
from grm_jax.losses.policy import clip_bounds, masked_log_ratio, objective


def cispo(
    logp_BT, old_logp_BT, ref_logp_BT, advantages_B, mask_BT, cfg: LossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = -1/(sum_i |o_i|) sum_i sum_t sg(clip(r_it, 1 - low, 1 + high)) A_i log pi_it + beta KL,
    r_it = pi / pi_old

    sg stops the gradient, so this is REINFORCE with a bounded weight: a token beyond the bounds
    still has a gradient, which PPO's clipping would cut. Goes with the advantage `group`. The paper
    sets no lower bound (low = 1) and does not print its upper one; high = 4, a weight of at most 5,
    is what TRL's recipe for ScaleRL (arXiv 2510.13786) takes. Arguments as in `grpo`.
    """
    ratio_BT = jnp.exp(masked_log_ratio(logp_BT, old_logp_BT, mask_BT))
    lower, upper = clip_bounds(cfg, low=1.0, high=4.0)
    weight_BT = jax.lax.stop_gradient(jnp.clip(ratio_BT, lower, upper))
    policy_loss_BT = -weight_BT * advantages_B[:, None] * jnp.where(mask_BT > 0, logp_BT, 0.0)
    loss, metrics = objective(
        policy_loss_BT, logp_BT, old_logp_BT, ref_logp_BT, mask_BT, cfg, "token_mean"
    )
    return loss, metrics | clip_metrics(ratio_BT < lower, ratio_BT > upper, mask_BT, cfg)
