"""Rewards for google-tunix' GRPO: a group is judged in one call.

    from grm_jax.adapters.tunix import grm_reward
    GRPOLearner(..., reward_fns=[grm_reward(k=8)])

Tunix sums rewards over its functions and leaves out those that are NaN: a failure is NaN here,
which is no number; its name is counted in the server's metrics.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.adapters import trl


def grm_reward(base_url: str | None = None, **asked: Any) -> Callable[..., list[float]]:
    """Makes a reward function. asked: k, seed, scalar, deadline_s, ... of the server."""
    ask = trl.grm_reward(base_url, **asked)

    def grm(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return [math.nan if r is None else r for r in ask(prompts, completions)]

    return grm
