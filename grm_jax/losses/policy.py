"""Pieces that the policy losses share: the importance ratio, the clipped surrogate, and the sum of
policy term, KL and metrics.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.aggregation import AGGREGATIONS, token_mean
from grm_jax.losses.config import LossConfig
from grm_jax.losses.kl import kl_per_token
from grm_jax.losses.metrics import clip_metrics, ratio_metrics
from grm_jax.naming import resolve


def masked_log_ratio(logp_BT: jax.Array, old_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """log pi - log pi_old per token, [B, T], with exact zeros outside the mask whatever the padding
    holds.
    """
    inside_BT = mask_BT > 0
    return jnp.where(inside_BT, logp_BT, 0.0) - jnp.where(inside_BT, old_logp_BT, 0.0)


def clip_bounds(cfg: LossConfig, low: float, high: float) -> tuple[float, float]:
    """(1 - clip_low, 1 + clip_high), with the published values `low` and `high` where the config
    leaves them open.
    """
    return 1 - (low if cfg.clip_low is None else cfg.clip_low), 1 + (
        high if cfg.clip_high is None else cfg.clip_high
    )


def clipped_surrogate(
    ratio_BT, advantages_B, mask_BT, cfg: LossConfig, low: float, high: float
) -> tuple[jax.Array, dict]:
    """min(r A, clip(r, 1 - low, 1 + high) A) per token, [B, T] (PPO, arXiv 1707.06347 Eq 7), and
    the clip metrics.

    The gradient is cut where r > 1 + high with A > 0, or r < 1 - low with A < 0; the metrics count
    exactly these tokens.
    """
    lower, upper = clip_bounds(cfg, low, high)
    adv_B1 = advantages_B[:, None]
    surrogate_BT = jnp.minimum(ratio_BT * adv_B1, jnp.clip(ratio_BT, lower, upper) * adv_B1)
    return surrogate_BT, clip_metrics(
        (ratio_BT < lower) & (adv_B1 < 0), (ratio_BT > upper) & (adv_B1 > 0), mask_BT, cfg
    )


def objective(
    policy_loss_BT: jax.Array,
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    ref_logp_BT: jax.Array | None,
    mask_BT: jax.Array,
    cfg: LossConfig,
    aggregation: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """loss = aggregate(policy loss) + beta * aggregate(KL), the KL only where `cfg.kl_in` is
    "loss"; both by one aggregation.

    `aggregation` is the loss's published one, used where `cfg.aggregation` is None. `ref_logp_BT`
    may be None where cfg.beta is 0, which saves the reference model; the metric `kl` is then left
    out. Metrics: loss, policy_loss, kl_loss (the term that was added), kl (token mean of k3,
    whatever the estimator in the loss) and those of `ratio_metrics`.
    """
    aggregate = resolve(cfg.aggregation or aggregation, AGGREGATIONS)
    policy_loss = aggregate(policy_loss_BT, mask_BT, cfg)
    kl_loss = jnp.zeros_like(policy_loss)
    metrics = ratio_metrics(masked_log_ratio(logp_BT, old_logp_BT, mask_BT), mask_BT, cfg)
    if ref_logp_BT is not None:
        if cfg.beta and cfg.kl_in == "loss":
            kl_loss = cfg.beta * aggregate(
                kl_per_token(logp_BT, ref_logp_BT, mask_BT, cfg), mask_BT, cfg
            )
        fixed_logp_BT = jax.lax.stop_gradient(logp_BT)
        metrics["kl"] = token_mean(
            kl_per_token(fixed_logp_BT, ref_logp_BT, mask_BT, cfg.replace(kl="k3")), mask_BT, cfg
        )
    elif cfg.beta:
        raise ValueError(
            f"ref_logp_BT is None, but LossConfig.beta is {cfg.beta}: the KL needs the reference "
            "log-probabilities"
        )
    loss = policy_loss + kl_loss
    return loss, metrics | {"loss": loss, "policy_loss": policy_loss, "kl_loss": kl_loss}
