"""Rewards for google-tunix' GRPO: the groups of a batch are judged in one call.

    from grm_jax.adapters.tunix import grm_reward
    GRPOLearner(..., reward_fns=[grm_reward(k=8, scalar="wins")])

Tunix' prompts are chats in one text, as its data writes them; the server reads their turns.

A failure is NaN here, which is no number. Tunix makes 0 of it, in the sum over its functions; a
group fails as a whole, so that its advantages are 0. Its own name for the failure is `rewards/grm`,
which is NaN then.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.adapters.client import ask, check_asked


def grm_reward(base_url: str | None = None, **asked: Any) -> Callable[..., list[float]]:
    """Makes a reward function. asked: of `grm_jax.adapters.client.HOW`."""
    check_asked(asked)

    def grm(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        queries = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
        body = {"query": queries, "prompts": list(prompts)} | asked
        rewards = ask("/get_reward", body, base_url)["rewards"]
        return [math.nan if reward is None else float(reward) for reward in rewards]

    return grm
