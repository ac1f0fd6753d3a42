"""Rewards for OpenRLHF, as a file of its --reward.remote_url: samples are collected to groups.

    from grm_jax.adapters.openrlhf import grm_reward
    reward_func = grm_reward(k=8, scalar="wins", group_size=8)

OpenRLHF asks for one sample at a time, as each is drawn; group_size, its samples per prompt, lets
the server wait for the others. A file holds a thread for each sample that waits, and OpenRLHF has
32 of them at most: where more samples are under way, take the URL, which needs no file,
http://host:8000/get_reward?k=8&scalar=wins&group_size=8&deadline_s=150
"""

from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.adapters.client import Unanswered, ask, check_asked


def grm_reward(
    base_url: str | None = None, *, group_size: int, **asked: Any
) -> Callable[..., dict[str, Any]]:
    """Makes a reward function. asked: of `grm_jax.adapters.client.HOW`.

    group_size: samples of a prompt, which are judged together; 1: each by itself.

    It returns {"rewards", "scores", "extra_logs"} as tensors, and raises Unanswered where a
    response could not be scored: a reward of this trainer has no word for it, and a number would be
    a lie.
    """
    check_asked(asked)

    def reward_func(
        queries: Sequence[str],
        prompts: Sequence[str],
        labels: Sequence[Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        import torch  # pyright: ignore[reportMissingImports] (OpenRLHF has it)

        body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels or [])}
        reply = ask("/get_reward", body | {"group_size": group_size} | asked, base_url)
        failures = [failure for failure in reply["failures"] if failure is not None]
        if failures:
            raise Unanswered(f"{len(failures)} of {len(queries)} without a score: {failures[:8]}")
        return {
            "rewards": torch.tensor(reply["rewards"]),
            "scores": torch.tensor(reply["scores"]),
            "extra_logs": {n: torch.tensor(values) for n, values in reply["extra_logs"].items()},
        }

    return reward_func
