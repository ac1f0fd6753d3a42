"""Estimators of KL(policy || reference) from the log-probabilities of sampled tokens, and what
their gradients are.

With d = log ref(a) - log pi(a) and a ~ pi, taking expectations over a (pi being the current
policy):

| estimator | value of E | gradient of E[estimator] when only log pi(a) is differentiated (KL in the loss) | as a reward penalty |
|---|---|---|---|
| k1 = -d | KL(pi, ref) | **zero**: E[grad log pi] = 0; adds noise, pulls nowhere | **grad KL(pi, ref)**: right |
| k2 = d^2 / 2 | biased | **grad KL(pi, ref)**: right | not a KL gradient |
| k3 = e^d - 1 - d | KL(pi, ref) | grad KL(ref, pi): the other direction, equal to second order near ref | grad KL(pi, ref) - grad KL(ref, pi) |

So use k1 in the reward, k2 in the loss for the exact gradient, or k3 in the loss as GRPO does.
tests/losses/test_kl.py proves every cell by summing over a small categorical policy. All of this
holds on-policy; none of the estimators is corrected for old data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.naming import resolve


def k1(logp_BT: jax.Array, ref_logp_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """log pi - log ref, per token. Unbiased, of either sign."""
    return logp_BT - ref_logp_BT


def k2(logp_BT: jax.Array, ref_logp_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """(log pi - log ref)^2 / 2, per token. Biased, never negative."""
    return 0.5 * jnp.square(logp_BT - ref_logp_BT)


def k3(logp_BT: jax.Array, ref_logp_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """e^d - 1 - d with d = log ref - log pi, per token (GRPO, arXiv 2402.03300 Eq 4). Unbiased,
    never negative.

    Above d = cfg.kl_clamp the exponential goes on as its tangent. Cutting it off there instead
    would leave the gradient of -d alone, which pushes a token that has already fallen far below the
    reference still further down.
    """
    d_BT = ref_logp_BT - logp_BT
    m_BT = jnp.minimum(d_BT, cfg.kl_clamp)
    # expm1: exp(d) - 1 - d in fp32 is all rounding near d = 0
    return jnp.expm1(m_BT) + jnp.exp(m_BT) * (d_BT - m_BT) - d_BT


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_per_token(
    logp_BT: jax.Array, ref_logp_BT: jax.Array, mask_BT: jax.Array, cfg: LossConfig
) -> jax.Array:
    """The estimator that `cfg.kl` names, [B, T], with exact zeros outside the mask whatever the
    padding holds.
    """
    inside_BT = mask_BT > 0
    estimator = resolve(cfg.kl, KL_ESTIMATORS)
    kl_BT = estimator(
        jnp.where(inside_BT, logp_BT, 0.0), jnp.where(inside_BT, ref_logp_BT, 0.0), cfg
    )
    return jnp.where(inside_BT, kl_BT, 0.0)


def kl_penalty(
    old_logp_BT: jax.Array, ref_logp_BT: jax.Array, mask_BT: jax.Array, cfg: LossConfig
) -> jax.Array:
    """beta * sum_t KL estimate of the sampling policy, [B]: what a sequence loses from its reward
    where `cfg.kl_in` is "reward".

    Nothing is differentiated through it. Zero where `cfg.kl_in` is "loss". Hand the result to the
    advantage estimator as `penalty_B`.
    """
    if cfg.kl_in == "loss":
        return jnp.zeros(mask_BT.shape[0], mask_BT.dtype)
    return jax.lax.stop_gradient(
        cfg.beta * kl_per_token(old_logp_BT, ref_logp_BT, mask_BT, cfg).sum(axis=1)
    )
