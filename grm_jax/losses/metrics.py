"""Computes what every policy loss reports, and adds up what micro-batches and devices report.

Names that end in `_min` or `_max` are reduced by minimum or maximum. Every other metric is a sum
divided by a count of the whole batch (`cfg.normalizer`), so the parts add up. A part without any
unmasked token reports inf and -inf as its minimum and maximum, which leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from grm_jax.losses.aggregation import token_mean
from grm_jax.losses.config import LossConfig


def combine(parts: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Turns {name: [M]} of M micro-batches or devices into {name: scalar} of the whole batch."""
    reductions = {"_min": jnp.min, "_max": jnp.max}
    return {name: reductions.get(name[-4:], jnp.sum)(values_M) for name, values_M in parts.items()}


def ratio_metrics(
    log_ratio_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig
) -> dict[str, jax.Array]:
    """Measures the drift from the policy that sampled, r = pi / pi_old per token, before clipping.

    ratio_mean, ratio_min, ratio_max: of r over the tokens; 1, 1, 1 on-policy.
    abs_log_ratio: mean |log r|; 0 on-policy.
    ppo_kl: mean of -log r, an estimate of KL(pi_old, pi); 0 on-policy.
    """
    log_ratio_BC = jax.lax.stop_gradient(log_ratio_BC)
    ratio_BC = jnp.exp(log_ratio_BC)
    inside_BC = mask_BC > 0
    return {
        "ratio_mean": token_mean(ratio_BC, mask_BC, cfg),
        "ratio_min": jnp.min(ratio_BC, where=inside_BC, initial=jnp.inf),
        "ratio_max": jnp.max(ratio_BC, where=inside_BC, initial=-jnp.inf),
        "abs_log_ratio": token_mean(jnp.abs(log_ratio_BC), mask_BC, cfg),
        "ppo_kl": token_mean(-log_ratio_BC, mask_BC, cfg),
    }


def weight_metrics(
    weight_BC: jax.Array, truncated_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig
) -> dict[str, jax.Array]:
    """Describes the weights of tokens that another policy drew (`policy.importance_weights`).

    importance_weight_mean, importance_weight_max: of the weights, capped as they are.
    importance_weight_truncated: share of tokens whose weight the cap cuts.
    """
    return {
        "importance_weight_mean": token_mean(weight_BC, mask_BC, cfg),
        "importance_weight_max": jnp.max(weight_BC, where=mask_BC > 0, initial=-jnp.inf),
        "importance_weight_truncated": token_mean(truncated_BC, mask_BC, cfg),
    }


def clip_metrics(
    low_BC: jax.Array, high_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig
) -> dict[str, jax.Array]:
    """Returns the shares of tokens that are cut: clip_ratio/{low, high, region}.

    low_BC, high_BC: bool[B, C], cut at the lower and at the upper bound; the region is either.
    """
    return {
        "clip_ratio/low": token_mean(low_BC, mask_BC, cfg),
        "clip_ratio/high": token_mean(high_BC, mask_BC, cfg),
        "clip_ratio/region": token_mean(low_BC | high_BC, mask_BC, cfg),
    }
