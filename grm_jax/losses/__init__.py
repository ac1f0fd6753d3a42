"""Holds losses, advantages, KL estimators and aggregations: pure functions of arrays.

docs/losses.md is the guide.

Shape letters: B sequences (rollouts), C completion positions, G group size (rollouts of one prompt,
in adjacent rows), P prompts (B = P G), M micro-batches. Log-probabilities, advantages, masks and
losses are fp32; a mask is 1 on completion tokens, else 0.

    loss(inputs: LossInputs, cfg: LossConfig, **own settings) -> (scalar, {metric name: scalar})

The scalar is a sum divided by a count of the whole batch that `cfg.normalizer` carries, so the
losses, gradients and metrics of micro-batches and devices add up to those of the batch; metrics
named *_min and *_max combine by minimum and maximum (`metrics.combine`). A config names each
function by its short name in the tables below, or as `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grm_jax.losses.advantages import ADVANTAGES, objective_mask, zero_variance
from grm_jax.losses.aggregation import AGGREGATIONS, Normalizer, count
from grm_jax.losses.cispo import cispo
from grm_jax.losses.config import LossConfig
from grm_jax.losses.dapo import dapo
from grm_jax.losses.dr_grpo import dr_grpo
from grm_jax.losses.grpo import grpo
from grm_jax.losses.gspo import gspo
from grm_jax.losses.kl import KL_ESTIMATORS, kl_penalty
from grm_jax.losses.metrics import combine
from grm_jax.losses.policy import LossInputs
from grm_jax.losses.preference import bradley_terry
from grm_jax.losses.reinforce_pp import reinforce_pp
from grm_jax.losses.rloo import rloo
from grm_jax.losses.supervised import bce, cross_entropy
from grm_jax.naming import resolve, with_settings
from grm_jax.settings import wrong_arguments

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
    "LossInputs",
    "Normalizer",
    "bce",
    "bradley_terry",
    "combine",
    "count",
    "cross_entropy",
    "kl_penalty",
    "objective_mask",
    "policy_loss",
    "resolve",
    "zero_variance",
]


def policy_loss(name: str, settings: Mapping[str, Any]) -> Callable[..., tuple]:
    """Finds a loss by name and binds its own settings: `loss(inputs, cfg) -> (scalar, metrics)`.

    Raises ValueError or TypeError as `naming.resolve` and `naming.with_settings`, and ValueError
    for a setting that is not of the type of its annotation or default.
    """
    function = resolve(name, LOSSES)
    bound = with_settings(function, 2, settings)
    if wrong := wrong_arguments(function, settings):
        raise ValueError("\n".join(f"{name}, setting {problem}" for problem in wrong))
    return bound
