"""Makes AdamW with a clipped gradient and a learning-rate schedule."""

from __future__ import annotations

import dataclasses

import jax
import optax

from grm_jax.settings import ABOVE_ZERO, FRACTION, NOT_NEGATIVE, Rule, check, one_of

SCHEDULES = ("constant", "cosine", "linear")
_DECAY: Rule = ("a number in [0, 1)", lambda x: 0 <= x < 1)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Sets AdamW (arXiv 1711.05101), its gradient clipping and its schedule.

    schedule: what follows the warm-up: "constant", or "cosine" or "linear" down to `final_fraction`
        of the peak, which the step behind the last would have: the last one's rate lies above.
    warmup_steps: updates over which the rate rises linearly from learning_rate / warmup_steps; 0
        for none.
    final_fraction: of the peak rate; "constant" ignores it.
    clip_norm: global gradient norm above which the gradient is scaled down to it.
    b1, b2, eps, weight_decay: of AdamW. RMSNorm scales are not decayed.
    mu_dtype: type in which the first moment is kept; "bfloat16" saves 2 bytes a parameter.
    """

    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    mu_dtype: str = "float32"

    def __post_init__(self):
        check(
            self,
            {
                "schedule": one_of(SCHEDULES),
                "warmup_steps weight_decay": NOT_NEGATIVE,
                "final_fraction": FRACTION,
                "clip_norm eps": ABOVE_ZERO,
                "b1 b2": _DECAY,
                "mu_dtype": one_of(("float32", "bfloat16")),
            },
        )

    def check_steps(self, steps: int, stage: str = "this stage") -> None:
        """Raises ValueError where the warm-up is longer than a stage of so many updates, if any."""
        if self.warmup_steps > steps > 0:
            raise ValueError(
                f"optimizer.warmup_steps: expected at most {steps}, the updates of {stage}, "
                f"got {self.warmup_steps}"
            )


def make_optimizer(
    config: OptimizerConfig, learning_rate: float, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns (optimizer, schedule) of a stage of `steps` updates with a peak `learning_rate`.

    `schedule(step)` is the learning rate of the update made at that 0-based step, for logging.
    Raises ValueError where the warm-up is longer than the stage.
    """
    config.check_steps(steps)
    warmup, final = config.warmup_steps, learning_rate * config.final_fraction
    after = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(
            learning_rate, max(1, steps - warmup), alpha=config.final_fraction
        ),
        "linear": lambda: optax.linear_schedule(learning_rate, final, max(1, steps - warmup)),
    }[config.schedule]()
    if warmup:
        rise = optax.linear_schedule(learning_rate / warmup, learning_rate, max(1, warmup - 1))
        after = optax.join_schedules([rise, after], [warmup])
    adamw = optax.adamw(
        after,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_decayed,
        mu_dtype=config.mu_dtype,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), after


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1] != jax.tree_util.DictKey("scale"), params
    )
