"""Losses that TRL has and the library has not, as a user would add them: a function each, named as
package.module:function. test_trl.py compares them with TRL.
"""

import jax
import jax.numpy as jnp

from grm_jax.losses import LossConfig, LossInputs
from grm_jax.losses.policy import clip_bounds, masked_log_ratio, objective


def two_sided(inputs: LossInputs, cfg: LossConfig, *, delta: float = 1.5):
    """GRPO whose ratio is bounded by delta where A < 0 as well (INTELLECT-2, arXiv 2505.07291)."""
    ratio_BC, adv_B1 = jnp.exp(masked_log_ratio(inputs)), inputs.advantages[:, None]
    clipped_BC = jnp.clip(ratio_BC, *clip_bounds(cfg, low=0.2, high=0.2))
    surrogate_BC = jnp.minimum(jnp.minimum(ratio_BC, delta) * adv_B1, clipped_BC * adv_B1)
    return objective(-surrogate_BC, inputs, cfg, "sequence_mean")


def sapo(inputs: LossInputs, cfg: LossConfig, *, tau_pos: float = 1.0, tau_neg: float = 1.05):
    """A sigmoid gate in the place of the clip (SAPO, arXiv 2511.20347)."""
    ratio_BC, adv_B1 = jnp.exp(masked_log_ratio(inputs)), inputs.advantages[:, None]
    tau_B1 = jnp.where(adv_B1 > 0, tau_pos, tau_neg)
    gate_BC = jax.nn.sigmoid(tau_B1 * (ratio_BC - 1)) * 4 / tau_B1
    return objective(-gate_BC * adv_B1, inputs, cfg, "sequence_mean")


def vespo(inputs: LossInputs, cfg: LossConfig):
    """log pi weighed by e^lambda w^k e^(-lambda w), w the ratio of the sequence, as a constant
    (VESPO, arXiv 2602.10693). k and lambda are 2 and 3 where A >= 0, else 3 and 2.
    """
    adv_B1 = inputs.advantages[:, None]
    log_ratio_BC = jnp.clip(masked_log_ratio(inputs), -20.0, 20.0)
    log_w_B1 = jnp.clip(log_ratio_BC.sum(axis=1, keepdims=True), jnp.log(1e-8), 20.0)
    k_B1, lam_B1 = jnp.where(adv_B1 >= 0, 2.0, 3.0), jnp.where(adv_B1 >= 0, 3.0, 2.0)
    phi_B1 = jnp.exp(lam_B1 + k_B1 * log_w_B1 - lam_B1 * jnp.exp(log_w_B1))
    logp_BC = jnp.where(inputs.mask > 0, inputs.logp, 0.0)
    weighed_BC = -jax.lax.stop_gradient(phi_B1) * adv_B1 * logp_BC
    return objective(weighed_BC, inputs, cfg, "token_mean")
