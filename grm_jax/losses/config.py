"""Settings of a reinforcement-learning loss, and the counts of the whole batch that it divides
by.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import struct


class Normalizer(NamedTuple):
    """Counts of one optimizer batch, over all micro-batches and all devices. Additive: sum (or
    psum) the parts.

    tokens: scalar fp32, completion tokens that the loss sees.
    sequences: scalar fp32, sequences with at least one such token.
    """

    tokens: jax.Array
    sequences: jax.Array


@struct.dataclass
class LossConfig:
    """Settings of a loss. All fields but `normalizer` are static: changing one recompiles.

    beta: weight of the KL divergence to the reference policy, >= 0 (0.08 in SPCT, arXiv 2504.02495
        App C.1).
    kl: estimator of that KL, a name in `kl.KL_ESTIMATORS` or `package.module:function`.
    kl_in: "loss" adds beta * KL to the loss and differentiates it; "reward" leaves it out of the
        loss, and the caller hands `kl.kl_penalty` to the advantage estimator.
    kl_clamp: log-ratio above which k3's exponential goes on as a straight line (see `kl.k3`).
    clip_low, clip_high: the importance ratio is clipped to [1 - clip_low, 1 + clip_high]; None
        means the loss's published value.
    aggregation: how tokens become one number, a name in `aggregation.AGGREGATIONS` or
        `package.module:function`; None means the published choice of the loss.
    max_length: tokens that the `constant` aggregation divides by; None means the width T of the
        mask it is given.
    zero_variance: what happens to groups whose rewards are all equal: "keep" (no policy gradient,
        the KL still acts) or "drop" (`advantages.objective_mask` takes them out of the loss and of
        the normalizer).
    normalizer: counts of the global batch, set per step with `cfg.replace(normalizer=...)`; None
        means that the arrays given are the whole batch.

    Raises ValueError for a negative beta or an unknown `kl_in` or `zero_variance`.
    """

    beta: float = struct.field(pytree_node=False, default=0.08)
    kl: str = struct.field(pytree_node=False, default="k3")
    kl_in: str = struct.field(pytree_node=False, default="loss")
    kl_clamp: float = struct.field(pytree_node=False, default=10.0)
    clip_low: float | None = struct.field(pytree_node=False, default=None)
    clip_high: float | None = struct.field(pytree_node=False, default=None)
    aggregation: str | None = struct.field(pytree_node=False, default=None)
    max_length: int | None = struct.field(pytree_node=False, default=None)
    zero_variance: str = struct.field(pytree_node=False, default="keep")
    normalizer: Normalizer | None = None

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"LossConfig.beta: expected a number >= 0, got {self.beta}")
        for field, allowed in (("kl_in", ("loss", "reward")), ("zero_variance", ("keep", "drop"))):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"LossConfig.{field}: expected one of {allowed}, got {getattr(self, field)!r}"
                )
