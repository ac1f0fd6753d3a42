"""Losses, advantages, KL estimators and aggregations: pure functions of arrays. docs/losses.md is
the guide.

Shape letters: B sequences (rollouts), T completion positions, G group size (rollouts of one prompt,
in adjacent rows), P prompts (B = P G), M micro-batches. Log-probabilities, advantages, masks and
losses are fp32; a mask is 1 on completion tokens, else 0.

    loss(logp_BT, old_logp_BT, ref_logp_BT, advantages_B, mask_BT, cfg) -> (scalar, {metric name:
    scalar})

The scalar is a sum divided by a count of the whole batch that `cfg.normalizer` carries, so the
losses, gradients and metrics of micro-batches and devices add up to those of the batch; metrics
named *_min and *_max combine by minimum and maximum (`metrics.combine`). A config names each
function by its short name in the tables below, or as `package.module:function`.
"""

from grm_jax.losses.advantages import ADVANTAGES, objective_mask, zero_variance
from grm_jax.losses.aggregation import AGGREGATIONS, count
from grm_jax.losses.cispo import cispo
from grm_jax.losses.config import LossConfig, Normalizer
from grm_jax.losses.dapo import dapo
from grm_jax.losses.dr_grpo import dr_grpo
from grm_jax.losses.grpo import grpo
from grm_jax.losses.gspo import gspo
from grm_jax.losses.kl import KL_ESTIMATORS, kl_penalty
from grm_jax.losses.metrics import combine
from grm_jax.losses.preference import bradley_terry
from grm_jax.losses.reinforce_pp import reinforce_pp
from grm_jax.losses.rloo import rloo
from grm_jax.losses.supervised import bce, cross_entropy
from grm_jax.naming import resolve

LOSSES = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "cispo": cispo,
}

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "KL_ESTIMATORS",
    "LOSSES",
    "LossConfig",
    "Normalizer",
    "bce",
    "bradley_terry",
    "combine",
    "count",
    "cross_entropy",
    "kl_penalty",
    "objective_mask",
    "resolve",
    "zero_variance",
]
