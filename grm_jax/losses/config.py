"""Settings of a reinforcement-learning loss."""

from __future__ import annotations

import math

from flax import struct

from grm_jax.losses.aggregation import AGGREGATIONS, Normalizer
from grm_jax.losses.kl import KL_ESTIMATORS
from grm_jax.naming import resolve


@struct.dataclass
class LossConfig:
    """Holds what losses share. All fields but `normalizer` are static: changing one recompiles.

    beta: weight of the KL divergence to the reference policy, >= 0 (0.08 in SPCT, arXiv 2504.02495
        App C.1).
    kl: estimator of that KL, a name in `kl.KL_ESTIMATORS` or `package.module:function`.
    kl_in: "loss" adds beta * KL to the loss and differentiates it; "reward" leaves it out of the
        loss, and the caller hands `kl.kl_penalty` to the advantage estimator.
    kl_clamp: log-ratio above which k3's exponential goes on as a straight line (see `kl.k3`); at
        most 80, whose exponential float32 still holds.
    clip_low, clip_high: the importance ratio is clipped to [1 - clip_low, 1 + clip_high]; None
        means the loss's published value.
    aggregation: how tokens become one number, a name in `aggregation.AGGREGATIONS` or
        `package.module:function`; None means the published choice of the loss.
    max_length: tokens that the `constant` aggregation divides by; None means the width C of the
        mask it is given.
    importance_sampling_cap: the policy loss of each token is weighed by how much likelier it was
        under the policy before the update than under the one that drew it, at most by this
        (`policy.importance_weights`); None: by nothing.
    zero_variance: what happens to groups whose rewards are all equal: "keep" (no policy gradient,
        the KL still acts) or "drop" (`advantages.objective_mask` takes them out of the loss and of
        the normalizer).
    normalizer: counts of the global batch, set per step with `cfg.replace(normalizer=...)`; None
        means that the arrays given are the whole batch.

    Raises ValueError with a line for each field that is wrong: its name, what was expected, and
    what it is.
    """

    beta: float = struct.field(pytree_node=False, default=0.08)
    kl: str = struct.field(pytree_node=False, default="k3")
    kl_in: str = struct.field(pytree_node=False, default="loss")
    kl_clamp: float = struct.field(pytree_node=False, default=10.0)
    clip_low: float | None = struct.field(pytree_node=False, default=None)
    clip_high: float | None = struct.field(pytree_node=False, default=None)
    aggregation: str | None = struct.field(pytree_node=False, default=None)
    max_length: int | None = struct.field(pytree_node=False, default=None)
    importance_sampling_cap: float | None = struct.field(pytree_node=False, default=None)
    zero_variance: str = struct.field(pytree_node=False, default="keep")
    normalizer: Normalizer | None = None

    def __post_init__(self):
        problems = [
            f"{name}: expected {expected}, got {getattr(self, name)!r}"
            for name, expected, ok in _RULES
            if not ok(getattr(self, name))
        ]
        for name, table in (("kl", KL_ESTIMATORS), ("aggregation", AGGREGATIONS)):
            try:
                if name != "aggregation" or self.aggregation is not None:
                    resolve(getattr(self, name), table)
            except (ValueError, TypeError) as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("\n".join(problems))


_RULES = (
    ("beta", "a number >= 0", lambda x: 0 <= x < math.inf),
    ("kl_in", "one of loss, reward", lambda x: x in ("loss", "reward")),
    (
        "kl_clamp",
        "a number > 0, at most 80 (float32 holds no exponential above 88)",
        lambda x: 0 < x <= 80,
    ),
    (
        "clip_low",
        "a number in (0, 1], or None for the loss's own",
        lambda x: x is None or 0 < x <= 1,
    ),
    ("clip_high", "a number > 0, or None for the loss's own", lambda x: x is None or x > 0),
    ("importance_sampling_cap", "a number > 0, or None", lambda x: x is None or 0 < x < math.inf),
    ("max_length", "a positive integer, or None for the width", lambda x: x is None or x >= 1),
    ("zero_variance", "one of keep, drop", lambda x: x in ("keep", "drop")),
)
