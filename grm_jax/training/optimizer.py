"""AdamW with a clipped gradient and a learning-rate schedule, from the `optimizer` section of a
config.
"""

from __future__ import annotations

import jax
import optax

SCHEDULES = ("constant", "cosine", "linear")


def make_optimizer(
    config, learning_rate: float, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, schedule). `schedule(step)` is the learning rate of the update made at that
    0-based step, for logging.

    Args:
      config: has the attributes
        schedule: what follows the warm-up: "constant", or "cosine" or "linear" down to
            `final_fraction` of the peak at the last step.
        warmup_steps: updates over which the rate rises linearly from learning_rate / warmup_steps;
            0 for none.
        final_fraction: of the peak rate, 0 to 1; "constant" ignores it.
        clip_norm: global gradient norm above which the gradient is scaled down to it.
        b1, b2, eps, weight_decay: AdamW (arXiv 1711.05101). RMSNorm scales are not decayed.
        mu_dtype: type in which the first moment is kept; "bfloat16" saves 2 bytes a parameter. May
            be missing: "float32".
      learning_rate: peak.
      steps: updates of the whole stage.

    Raises ValueError for an unknown schedule, or where the warm-up is longer than the stage.
    """
    warmup, final = config.warmup_steps, learning_rate * config.final_fraction
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {SCHEDULES}")
    if not 0 <= warmup <= steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}; expected 0 to {steps}, the steps of this stage"
        )
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
        mu_dtype=getattr(config, "mu_dtype", "float32"),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), after


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1] != jax.tree_util.DictKey("scale"), params
    )
