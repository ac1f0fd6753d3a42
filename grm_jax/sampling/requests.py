"""Says what is asked of a sampler, and what comes back."""

import dataclasses
from collections.abc import Sequence

import numpy as np

NO_LIMIT = int(np.iinfo(np.int32).max)  # of a sample's tokens, but for the sampler's own


@dataclasses.dataclass(frozen=True)
class Request:
    """Asks for a completion of `prompt_ids` for every index in `samples`, all upon one prefix.

    limits: the most tokens of each sample, stop token included, 1 to the sampler's; None: the
        sampler's.
    front: so many of the first tokens are a front that other prompts begin with as well, word for
        word: what stands in a template before the record. The engine computes it once.
    turn: those of a lower one begin first.
    begun: so many tokens of the completion stand at the end of the prompt already: the next one is
        drawn as number `begun`, so that it is the one which an uninterrupted completion would have.
    seed: of its own, in place of the engine's.
    temperature: of its own, where the rows of the engine have theirs (`Drawing`); 0 is greedy.
    """

    prompt_ids: Sequence[int]
    item_id: str
    samples: tuple[int, ...] = (0,)
    limits: tuple[int, ...] | None = None
    front: int = 0
    turn: int = 0
    begun: int = 0
    seed: int | None = None
    temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """Holds one completion: ids int32[n] and their log-probabilities float32[n].

    The stop token is included if `finished`.
    """

    item_id: str
    sample: int
    token_ids: np.ndarray
    logp: np.ndarray
    finished: bool


def check_request(request: Request, widest: int) -> None:
    """Raises ValueError where a prompt is empty or longer than `widest`, or limits do not fit.

    So it does where no samples are asked for: nothing would ever complete the request.
    """
    length, k = len(request.prompt_ids), len(request.samples)
    if not 0 < length <= widest:
        raise ValueError(
            f"item {request.item_id}: prompt of {length} tokens; expected 1 to {widest} "
            "(widest bucket)"
        )
    if not k:
        raise ValueError(f"item {request.item_id}: asks for 0 samples; expected 1 or more")
    limits = request.limits
    if limits is not None and (len(limits) != k or min(limits) < 1):
        raise ValueError(
            f"item {request.item_id}: limits {limits}; expected a positive number of tokens for "
            f"each of {k} samples"
        )
    if not 0 <= request.begun < length:
        raise ValueError(
            f"item {request.item_id}: {request.begun} tokens of the completion are said to stand "
            f"in a prompt of {length}"
        )
    if not 0 <= request.front < length:
        raise ValueError(
            f"item {request.item_id}: a front of {request.front} tokens; expected fewer than the "
            f"prompt's {length}"
        )


def check_logits(request: Request, sample: int, logp_C: np.ndarray) -> None:
    """Raises ValueError where logits were not finite: what they chose is no text of the model."""
    if np.isfinite(logp_C).all():
        return
    token = int(np.argmin(np.isfinite(logp_C)))
    raise ValueError(
        f"item {request.item_id!r}, sample {sample}: the logits of token {token} behind a prompt "
        f"of {len(request.prompt_ids)} tokens are not finite (log-probability {logp_C[token]}); "
        "the weights, or the dtype that is computed in, are not those of a model that works, or "
        "the temperature is too low to divide by (0 is greedy)"
    )
