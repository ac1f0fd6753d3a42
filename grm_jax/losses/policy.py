"""Says what a policy loss gets, and has the pieces that policy losses share.

These are the importance ratio, the clipped surrogate, and the sum of policy term, KL and metrics.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grm_jax.losses.aggregation import AGGREGATIONS, token_mean
from grm_jax.losses.config import LossConfig
from grm_jax.losses.kl import kl_per_token
from grm_jax.losses.metrics import clip_metrics, ratio_metrics, weight_metrics
from grm_jax.naming import resolve


class LossInputs(NamedTuple):
    """Holds the arrays that a policy loss gets; what they hold where `mask` is 0 does not matter.

    logp: fp32[B, C] log-probabilities of the sampled tokens under the policy that is trained; the
        gradient flows through this alone.
    old_logp: fp32[B, C], the same under the policy before the update.
    ref_logp: fp32[B, C], the same under the frozen reference; None where `LossConfig.beta` is 0.
    entropy: fp32[B, C], of the policy's distribution at each token, in nats; carries no gradient.
        None where the caller does not have it (the train step always has).
    advantages: fp32[B], one number for all tokens of a sequence (losses/advantages.py).
    mask: fp32[B, C], 1 on completion tokens, the stop token included, else 0.
    sampler_logp: fp32[B, C], as the sampler drew them, maybe under older weights; None where
        `LossConfig.importance_sampling_cap` is None.
    """

    logp: jax.Array
    old_logp: jax.Array
    ref_logp: jax.Array | None
    entropy: jax.Array | None
    advantages: jax.Array
    mask: jax.Array
    sampler_logp: jax.Array | None = None


def masked_log_ratio(inputs: LossInputs) -> jax.Array:
    """Returns log pi - log pi_old per token, [B, C].

    Exact zeros outside the mask, whatever the padding holds.
    """
    inside_BC = inputs.mask > 0
    return jnp.where(inside_BC, inputs.logp, 0.0) - jnp.where(inside_BC, inputs.old_logp, 0.0)


def clip_bounds(cfg: LossConfig, low: float, high: float) -> tuple[float, float]:
    """Returns (1 - clip_low, 1 + clip_high).

    low, high: the published values, where the config leaves them open.
    """
    return 1 - (low if cfg.clip_low is None else cfg.clip_low), 1 + (
        high if cfg.clip_high is None else cfg.clip_high
    )


def clipped_surrogate(
    ratio_BC: jax.Array, inputs: LossInputs, cfg: LossConfig, low: float, high: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips the ratio where it would gain (PPO, arXiv 1707.06347 Eq 7), and counts what it cuts.

        min(r A, clip(r, 1 - low, 1 + high) A) per token, [B, C], and the clip metrics

    The gradient is cut where r > 1 + high with A > 0, or r < 1 - low with A < 0; the metrics count
    exactly these tokens.
    """
    lower, upper = clip_bounds(cfg, low, high)
    adv_B1 = inputs.advantages[:, None]
    surrogate_BC = jnp.minimum(ratio_BC * adv_B1, jnp.clip(ratio_BC, lower, upper) * adv_B1)
    return surrogate_BC, clip_metrics(
        (ratio_BC < lower) & (adv_B1 < 0), (ratio_BC > upper) & (adv_B1 > 0), inputs.mask, cfg
    )


def importance_weights(
    inputs: LossInputs, cfg: LossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighs tokens that another policy drew (truncated importance sampling).

        w = min(pi_old / pi_sampler, importance_sampling_cap) per token, [B, C], and its metrics

    pi_sampler differs from pi_old where rollouts are older than the last update, and by what
    sampler and trainer round differently. The weight is a constant: no gradient flows through it.
    The cap bounds the variance at the price of a bias (Ionides 2008); as a correction of rollouts
    it is that of TRL, verl and NeMo-RL. 1 outside the mask.

    Raises ValueError where there is no `inputs.sampler_logp`.
    """
    cap, inside_BC = cfg.importance_sampling_cap, inputs.mask > 0
    if inputs.sampler_logp is None:
        raise ValueError(
            f"LossInputs.sampler_logp is None, but LossConfig.importance_sampling_cap is {cap}: "
            "the weights need the log-probabilities of the policy that sampled"
        )
    log_ratio_BC = jnp.where(inside_BC, inputs.old_logp, 0.0) - jnp.where(
        inside_BC, inputs.sampler_logp, 0.0
    )
    ratio_BC = jax.lax.stop_gradient(jnp.exp(log_ratio_BC))
    weight_BC = ratio_BC if cap is None else jnp.minimum(ratio_BC, cap)
    return weight_BC, weight_metrics(weight_BC, weight_BC < ratio_BC, inputs.mask, cfg)


def objective(
    policy_loss_BC: jax.Array, inputs: LossInputs, cfg: LossConfig, aggregation: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums up policy loss and KL, both by one aggregation.

        loss = aggregate(policy loss) + beta * aggregate(KL)

    The KL is there only where `cfg.kl_in` is "loss". `aggregation` is the loss's published one,
    used where `cfg.aggregation` is None. With `cfg.importance_sampling_cap` the policy loss of each
    token is multiplied by its `importance_weights` first. Metrics, besides those of `ratio_metrics`
    and of the weights:

    policy_loss: the aggregated policy loss.
    kl_loss: the term that was added.
    kl: token mean of k3, whatever the estimator in the loss; left out without `inputs.ref_logp`.

    Raises ValueError where beta asks for a KL and there is no `inputs.ref_logp`.
    """
    aggregate = resolve(cfg.aggregation or aggregation, AGGREGATIONS)
    logp_BC, ref_logp_BC, mask_BC = inputs.logp, inputs.ref_logp, inputs.mask
    metrics = ratio_metrics(masked_log_ratio(inputs), mask_BC, cfg)
    if cfg.importance_sampling_cap is not None:
        weight_BC, of_weights = importance_weights(inputs, cfg)
        policy_loss_BC = weight_BC * policy_loss_BC
        metrics |= of_weights
    policy_loss = aggregate(policy_loss_BC, mask_BC, cfg)
    kl_loss = jnp.zeros_like(policy_loss)
    if ref_logp_BC is not None:
        if cfg.beta and cfg.kl_in == "loss":
            kl_loss = cfg.beta * aggregate(
                kl_per_token(logp_BC, ref_logp_BC, mask_BC, cfg), mask_BC, cfg
            )
        fixed_logp_BC = jax.lax.stop_gradient(logp_BC)
        metrics["kl"] = token_mean(
            kl_per_token(fixed_logp_BC, ref_logp_BC, mask_BC, dataclasses.replace(cfg, kl="k3")),
            mask_BC,
            cfg,
        )
    elif cfg.beta:
        raise ValueError(
            f"LossInputs.ref_logp is None, but LossConfig.beta is {cfg.beta}: the KL needs the "
            "reference log-probabilities"
        )
    return policy_loss + kl_loss, metrics | {"policy_loss": policy_loss, "kl_loss": kl_loss}
