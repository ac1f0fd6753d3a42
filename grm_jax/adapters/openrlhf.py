"""Rewards for OpenRLHF, as a file of its --reward.remote_url: samples are collected to groups.

    from grm_jax.adapters.openrlhf import grm_reward
    reward_func = grm_reward(k=8, scalar="wins", group_size=8)

OpenRLHF asks for one sample at a time, as each is drawn; group_size, its samples per prompt, lets
the server wait for the others. This file itself asks for what the server does of itself. The URL,
http://host:8000/get_reward?k=8&scalar=wins&group_size=8, needs no file.
"""

from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.adapters.client import Unanswered, ask


def grm_reward(base_url: str | None = None, **asked: Any) -> Callable[..., dict[str, Any]]:
    """Makes a reward function. asked: k, seed, scalar, group_size, ... of the server.

    It returns {"rewards", "scores", "extra_logs"} as tensors, and raises Unanswered where a
    response could not be scored: a reward of this trainer has no word for it, and a number would be
    a lie.
    """

    def reward_func(
        queries: Sequence[str],
        prompts: Sequence[str],
        labels: Sequence[Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        import torch  # pyright: ignore[reportMissingImports] (OpenRLHF has it)

        body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels or [])}
        reply = ask("/get_reward", body | asked, base_url)
        failures = [failure for failure in reply["failures"] if failure is not None]
        if failures:
            raise Unanswered(f"{len(failures)} of {len(queries)} without a score: {failures[:8]}")
        return {
            "rewards": torch.tensor(reply["rewards"]),
            "scores": torch.tensor(reply["scores"]),
            "extra_logs": {n: torch.tensor(values) for n, values in reply["extra_logs"].items()},
        }

    return reward_func


reward_func = grm_reward()
