"""Tells what a model thinks before it answers from its answer, and keeps it within a budget.

The thinking stands between the marks of the model's own chat template; a prompt may end in the mark
that opens it. A budget is a number of tokens. A thinking that has not closed when it is spent is
closed by the template's own mark, and the model goes on with its answer (budget forcing, arXiv
2501.19393; Qwen's thinking budget). What it drew before stands: a thinking that ends within its
budget, and the answer behind it, are the tokens that no budget would have given.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.sampling.engine import Counts, Drawing
from grm_jax.sampling.rollout import Completion, Request, generate
from grm_jax.tokenizer import Tokenizer


class Thought(NamedTuple):
    """Says how far a completion thinks: its first `tokens`, mark included; whether it closed."""

    tokens: int
    closed: bool


def thought_of(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> Thought | None:
    """Finds the thinking at the start of a completion; None where the template has no marks."""
    thinking = tokenizer.thinking
    if thinking is None:
        return None
    text = tokenizer.decode(ids)
    if not thinking.opened and not text.lstrip().startswith(thinking.opens):
        return Thought(0, True)
    if thinking.closes not in text:
        return Thought(len(ids), False)
    fewer, enough = 0, len(ids)  # tokens without the mark, and with it
    while enough - fewer > 1:
        middle = (fewer + enough) // 2
        if thinking.closes in tokenizer.decode(ids[:middle]):
            enough = middle
        else:
            fewer = middle
    return Thought(enough, True)


def generate_within(
    budget: int | None,
    tokenizer: Tokenizer,
    sampler: Drawing | Callable,
    params: dict,
    requests: Sequence[Request],
    seed: int,
    buckets: Sequence[int],
    rows: int,
    counts: Callable[[Counts], None] = lambda counts: None,
) -> Iterator[tuple[list[int], list[Completion], list[bool]]]:
    """Draws all completions as `generate` does, their thinking within `budget` tokens.

    First each is drawn up to the budget. Of those that are not whole the ones that think still are
    closed, and all go on behind what they have. The longest completion counts all its tokens; those
    of the mark that was put in have the log-probability 0.

    budget: None for none. Yields also whether the budget closed the thinking, for each completion.
    """
    settings = (seed, buckets, rows, counts)
    if budget is None or tokenizer.thinking is None:
        for indices, completions in generate(sampler, params, requests, *settings):
            yield indices, completions, [False] * len(completions)
        return
    if not isinstance(sampler, Drawing):
        raise ValueError("a budget of thinking needs the engine, which goes on with a completion")
    longest, end = sampler.scfg.max_new_tokens, tokenizer.thinking.end_ids
    budget = min(budget, longest)
    begun = [dataclasses.replace(r, limits=(budget,) * len(r.samples)) for r in requests]
    drawn: dict[tuple[int, int], tuple[Completion, bool]] = {}
    waiting: list[tuple[int, int, Completion, Request]] = []
    open_still = [len(request.samples) for request in requests]

    def complete(done: Sequence[int]) -> tuple[list[int], list[Completion], list[bool]]:
        whole = [i for i in dict.fromkeys(done) if open_still[i] == 0]
        of = [drawn.pop((i, j)) for i in whole for j in range(len(requests[i].samples))]
        return whole, [completion for completion, _ in of], [cut for _, cut in of]

    for indices, completions in generate(sampler, params, begun, *settings):
        at = [(i, j) for i in indices for j in range(len(requests[i].samples))]
        for (i, j), completion in zip(at, completions, strict=True):
            cut = False
            if not completion.finished:
                thought = thought_of(tokenizer, completion.token_ids)
                room = longest - len(completion.token_ids) - len(end)
                cut = thought is not None and not thought.closed and room > 0
                if cut:
                    completion = _with(completion, end)
            left = longest - len(completion.token_ids)
            drawn[i, j] = completion, cut
            if completion.finished or left < 1:
                open_still[i] -= 1
                continue
            ids = [*requests[i].prompt_ids, *completion.token_ids.tolist()]
            request = dataclasses.replace(
                requests[i],
                prompt_ids=ids,
                samples=(completion.sample,),
                limits=(left,),
                begun=len(completion.token_ids),
            )
            waiting.append((i, j, completion, request))
        if any(open_still[i] == 0 for i in indices):
            yield complete(indices)
    widths = [bucket + budget + len(end) for bucket in sorted(buckets)]
    rest = [request for *_, request in waiting]
    for indices, completions in (
        generate(sampler, params, rest, seed, widths, rows, counts) if rest else ()
    ):
        for index, more in zip(indices, completions, strict=True):
            i, j, before, _ = waiting[index]
            drawn[i, j] = _joined(before, more), drawn[i, j][1]
            open_still[i] -= 1
        done = [waiting[index][0] for index in indices]
        if any(open_still[i] == 0 for i in done):
            yield complete(done)


def _with(completion: Completion, ids: Sequence[int]) -> Completion:
    """A completion with ids behind it that were not drawn."""
    return dataclasses.replace(
        completion,
        token_ids=np.concatenate([completion.token_ids, np.array(ids, np.int32)]),
        logp=np.concatenate([completion.logp, np.zeros(len(ids), np.float32)]),
    )


def _joined(before: Completion, more: Completion) -> Completion:
    return dataclasses.replace(
        more,
        token_ids=np.concatenate([before.token_ids, more.token_ids]),
        logp=np.concatenate([before.logp, more.logp]),
    )
