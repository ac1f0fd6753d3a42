"""Rewards for OpenRLHF, as a file of its --remote_rm_url: a batch is judged prompt by prompt.

    --reward.remote_url .../grm_jax/adapters/openrlhf.py

The URL of the server, http://host:8000/get_reward, does the same without this file.
"""

from collections.abc import Sequence
from typing import Any

from grm_jax.adapters.client import Unanswered, ask


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Returns {"rewards", "scores", "extra_logs"} as tensors.

    Raises Unanswered where a response could not be scored: a reward of this trainer has no word for
    it, and a number would be a lie.
    """
    import torch  # pyright: ignore[reportMissingImports] (OpenRLHF has it)

    body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels or [])}
    reply = ask("/get_reward", body)
    failures = [failure for failure in reply["failures"] if failure is not None]
    if failures:
        raise Unanswered(f"{len(failures)} of {len(queries)} without a score: {failures[:8]}")
    return {
        "rewards": torch.tensor(reply["rewards"]),
        "scores": torch.tensor(reply["scores"]),
        "extra_logs": {n: torch.tensor(values) for n, values in reply["extra_logs"].items()},
    }
