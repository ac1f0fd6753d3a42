"""Estimates KL(policy || reference) from the log-probabilities of sampled tokens.

With d = log ref(a) - log pi(a) and a ~ pi, taking expectations over a (pi being the current
policy):

| estimator | value of E | gradient in the loss | as a reward penalty |
|---|---|---|---|
| k1 = -d | KL(pi, ref) | **zero**: E[grad log pi] = 0; only noise | **grad KL(pi, ref)**: right |
| k2 = d^2 / 2 | biased | **grad KL(pi, ref)**: right | not a KL gradient |
| k3 = e^d - 1 - d | KL(pi, ref) | grad KL(ref, pi) | grad KL(pi, ref) - grad KL(ref, pi) |

The gradient in the loss is that of E[estimator] when only log pi(a) is differentiated. That of k3
is of the KL in the other direction, equal to second order near ref. So use k1 in the reward, k2 in
the loss for the exact gradient, or k3 in the loss as GRPO does. tests/losses/test_kl.py proves
every cell by summing over a small categorical policy. All of this holds on-policy; none of the
estimators is corrected for old data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from grm_jax.naming import resolve

if TYPE_CHECKING:
    from grm_jax.losses.config import LossConfig


def k1(logp_BC: jax.Array, ref_logp_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Returns log pi - log ref, per token. Unbiased, of either sign."""
    return logp_BC - ref_logp_BC


def k2(logp_BC: jax.Array, ref_logp_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Returns (log pi - log ref)^2 / 2, per token. Biased, never negative."""
    return 0.5 * jnp.square(logp_BC - ref_logp_BC)


def k3(logp_BC: jax.Array, ref_logp_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Returns e^d - 1 - d with d = log ref - log pi, per token (GRPO, arXiv 2402.03300 Eq 4).

    Unbiased, never negative.

    Above d = cfg.kl_clamp the exponential goes on as its tangent. Cutting it off there instead
    would leave the gradient of -d alone, which pushes a token that has already fallen far below the
    reference still further down.
    """
    d_BC = ref_logp_BC - logp_BC
    m_BC = jnp.minimum(d_BC, cfg.kl_clamp)
    # expm1: exp(d) - 1 - d in fp32 is all rounding near d = 0
    return jnp.expm1(m_BC) + jnp.exp(m_BC) * (d_BC - m_BC) - d_BC


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_per_token(
    logp_BC: jax.Array, ref_logp_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig
) -> jax.Array:
    """Applies the estimator that `cfg.kl` names, [B, C].

    Exact zeros outside the mask, whatever the padding holds.
    """
    inside_BC = mask_BC > 0
    estimator = resolve(cfg.kl, KL_ESTIMATORS)
    kl_BC = estimator(
        jnp.where(inside_BC, logp_BC, 0.0), jnp.where(inside_BC, ref_logp_BC, 0.0), cfg
    )
    return jnp.where(inside_BC, kl_BC, 0.0)


def kl_penalty(
    old_logp_BC: jax.Array, ref_logp_BC: jax.Array | None, mask_BC: jax.Array, cfg: LossConfig
) -> jax.Array:
    """Returns what a sequence loses from its reward where `cfg.kl_in` is "reward", [B].

        beta * sum_t KL estimate of the sampling policy

    Nothing is differentiated through it. Zero where `cfg.kl_in` is "loss" or `cfg.beta` is 0, where
    `ref_logp_BC` may be None. Hand the result to the advantage estimator as `penalty_B`.
    """
    if cfg.kl_in == "loss" or not cfg.beta:
        return jnp.zeros(mask_BC.shape[0], mask_BC.dtype)
    if ref_logp_BC is None:
        raise ValueError(f"ref_logp_BC is None, but LossConfig.beta is {cfg.beta}")
    return jax.lax.stop_gradient(
        cfg.beta * kl_per_token(old_logp_BC, ref_logp_BC, mask_BC, cfg).sum(axis=1)
    )
