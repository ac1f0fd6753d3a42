"""Dr. GRPO: GRPO without its length weight (arXiv 2503.20783)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig
from grm_jax.losses.policy import LossInputs, clipped_surrogate, masked_log_ratio, objective


def dr_grpo(inputs: LossInputs, cfg: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clips token ratios, and divides by a constant (arXiv 2503.20783).

        L = -1/(B max_length) sum_i sum_t [ min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)
                                            - beta KL_it ],  r_it = pi / pi_old

    A token weighs the same in a short and in a long answer, and the divisor does not depend on the
    lengths that were sampled. Goes with the advantage `group_no_std`. Published clip 0.2 / 0.2,
    beta 0. Set `cfg.max_length`.
    """
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    surrogate_BC, clip = clipped_surrogate(ratio_BC, inputs, cfg, low=0.2, high=0.2)
    loss, metrics = objective(-surrogate_BC, inputs, cfg, "constant")
    return loss, metrics | clip
