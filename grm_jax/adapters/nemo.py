"""Rewards for NeMo RL: what an environment's step needs, for the responses to one prompt.

NeMo Gym's own client needs no adapter: POST /compare has the shape of genrm_compare.
"""

import math
from collections.abc import Sequence
from typing import Any

from grm_jax.adapters.client import ask, check_asked, turns_of


def group_rewards(
    conversation: Any, responses: Sequence[str], base_url: str | None = None, **asked: Any
) -> tuple[list[float], list[bool]]:
    """Returns (rewards, whether each is valid) of the responses to one conversation.

    asked: of `grm_jax.adapters.client.HOW`.

    A response without a score has NaN and False: mask it out of the loss, by the second list.
    """
    check_asked(asked)
    body = {"conversation_history": turns_of(conversation), "response_objs": list(responses)}
    found = ask("/compare", body | asked, base_url)["rewards"]
    return [math.nan if r is None else float(r) for r in found], [r is not None for r in found]
