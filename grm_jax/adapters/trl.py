"""Rewards for TRL's GRPOTrainer: a group is judged in one call, a failure is None.

    from grm_jax.adapters.trl import grm_reward
    trainer = GRPOTrainer(..., reward_funcs=[grm_reward(k=8, scalar="wins")])

TRL leaves a sample that has no reward out of its group's baseline.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grm_jax.adapters.client import ask, ask_async, group_body, grouped

Rewards = list[float | None]


def grm_reward(base_url: str | None = None, **asked: Any) -> Callable[..., Rewards]:
    """Makes a reward function, which asks for all groups of a batch at once.

    asked: k, seed, scalar, deadline_s, ... of the server.
    """

    def grm(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        groups = grouped(prompts)
        bodies = [group_body(prompts, completions, members, asked) for members in groups]
        with ThreadPoolExecutor(max(1, len(bodies))) as pool:
            replies = list(pool.map(lambda body: ask("/compare", body, base_url), bodies))
        return _placed(len(completions), groups, replies)

    return grm


def grm_reward_async(
    base_url: str | None = None, **asked: Any
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Makes an asynchronous reward function, that leaves its loop to others while it waits."""

    async def grm(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        groups = grouped(prompts)
        bodies = [group_body(prompts, completions, members, asked) for members in groups]
        replies = await asyncio.gather(*(ask_async("/compare", b, base_url) for b in bodies))
        return _placed(len(completions), groups, replies)

    return grm


def _placed(
    count: int, groups: Sequence[Sequence[int]], replies: Sequence[Mapping[str, Any]]
) -> Rewards:
    """The rewards of all groups, each at the place of its completion."""
    rewards: Rewards = [None] * count
    for members, reply in zip(groups, replies, strict=True):
        for i, reward in zip(members, reply["rewards"], strict=True):
            rewards[i] = reward
    return rewards
