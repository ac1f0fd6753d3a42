"""Rewards for TRL's GRPOTrainer: a group is judged in one call, a failure is None.

    from grm_jax.adapters.trl import grm_reward
    trainer = GRPOTrainer(..., reward_funcs=[grm_reward(k=8, scalar="wins")])

TRL leaves a sample that has no reward out of its group's baseline. Each process of a distributed
run asks for the completions that it holds: group_size=num_generations makes sure that these are
whole groups, which they are where per_device_train_batch_size * steps_per_generation is a multiple
of it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grm_jax.adapters.client import ask, ask_async, check_asked, group_body, grouped

Rewards = list[float | None]


def grm_reward(
    base_url: str | None = None, *, group_size: int | None = None, **asked: Any
) -> Callable[..., Rewards]:
    """Makes a reward function, which asks for all groups of a batch at once.

    asked: of `grm_jax.adapters.client.HOW`. group_size: completions of a prompt, TRL's
    num_generations; where it is given, the function raises ValueError for a part of a group.
    """
    check_asked(asked)

    def grm(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        groups = _whole(grouped(prompts), group_size)
        bodies = [group_body(prompts, completions, members, asked) for members in groups]
        with ThreadPoolExecutor(max(1, len(bodies))) as pool:
            replies = list(pool.map(lambda body: ask("/compare", body, base_url), bodies))
        return _placed(len(completions), groups, replies)

    return grm


def grm_reward_async(
    base_url: str | None = None, *, group_size: int | None = None, **asked: Any
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Makes an asynchronous `grm_reward`, that leaves its loop to others while it waits."""
    check_asked(asked)

    async def grm(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        groups = _whole(grouped(prompts), group_size)
        bodies = [group_body(prompts, completions, members, asked) for members in groups]
        replies = await asyncio.gather(*(ask_async("/compare", b, base_url) for b in bodies))
        return _placed(len(completions), groups, replies)

    return grm


def _whole(groups: list[list[int]], group_size: int | None) -> list[list[int]]:
    """The groups. Raises ValueError where one has no multiple of `group_size` members."""
    for members in groups:
        if group_size is not None and len(members) % group_size:
            raise ValueError(
                f"this process has {len(members)} completions of a prompt; expected whole groups "
                f"of {group_size}: per_device_train_batch_size * steps_per_generation has to be a "
                "multiple of num_generations"
            )
    return groups


def _placed(
    count: int, groups: Sequence[Sequence[int]], replies: Sequence[Mapping[str, Any]]
) -> Rewards:
    """The rewards of all groups, each at the place of its completion."""
    rewards: Rewards = [None] * count
    for members, reply in zip(groups, replies, strict=True):
        for i, reward in zip(members, reply["rewards"], strict=True):
            rewards[i] = reward
    return rewards
