"""Turns records into judgments with the pointwise generative reward model.

One road for every stage: an `Ask` (record, response order, sample indices) becomes a prompt, the
sampler draws completions, each completion is parsed, and its scores are put back into the record's
order. RFT sampling, RL rollouts, the Meta RM's own samples and evaluation differ only in the asks
they make.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.judgment.parsing import ANSWERS, CHOICES, PARSINGS, read_answer
from grm_jax.judgment.prompts import Template, render_prompt
from grm_jax.judgment.records import Record, Turn, gold
from grm_jax.judgment.rubric import read_rubric
from grm_jax.judgment.rules import is_correct
from grm_jax.reward_models.thinking import generate_within, thought_of
from grm_jax.sampling.engine import Counts, Drawing
from grm_jax.sampling.rollout import Completion, Request
from grm_jax.tokenizer import Tokenizer

NO_RUBRIC = "this model was given no template for it (templates.rubric), so it judges by none"
NO_PRINCIPLES = (
    "this model does not go on from principles; expected a pointwise_grm that answers by scores, "
    "whose chat template marks no thinking"
)
FRONT_STEP = 64  # tokens: a front is a multiple, so that a word more or less compiles nothing anew


@dataclasses.dataclass(frozen=True)
class Prompter:
    """Says how a record is put to the policy, and how its answer is read.

    It holds the tokenizer and the templates for lists and for single responses, and for records
    with a rubric where the model judges by one.

    answer: "scores" (one for each response), "ten" (the same, but a single response is put by the
        template for lists and scored from 1 to 10 as well), "index" (the number of the best one:
        LLM-as-a-Judge) or "letter" (of the best one). See `read_answer`.
    parsing: "strict", or "released": scores as the code on the card of DeepSeek-GRM reads them.
    thinking_budget: tokens of thinking, after which it is closed; None for no limit but that of the
        completion. For models whose chat template marks thinking.
    """

    tokenizer: Tokenizer
    pointwise: Template
    single: Template
    answer: str = "scores"
    parsing: str = "strict"
    thinking_budget: int | None = None
    rubric: Template | None = None

    def __post_init__(self):
        if self.answer not in ANSWERS:
            raise ValueError(f"answer is {self.answer!r}; expected one of {', '.join(ANSWERS)}")
        if self.parsing not in PARSINGS:
            raise ValueError(f"parsing is {self.parsing!r}; expected one of {', '.join(PARSINGS)}")

    def ids(self, record: Record, order: Sequence[int], hint: bool = False) -> list[int]:
        """Returns the token ids of the prompt, up to where the model begins to write.

        It goes on from the principles of a record that has some.

        Raises ValueError for one response where the answer names one of several, for a rubric where
        there is no template that shows one, and for principles that cannot be gone on from.
        """
        if record.principles:
            if not self.goes_on:
                raise ValueError(f'record {record.id!r}: field "principles": {NO_PRINCIPLES}')
            plain = dataclasses.replace(record, principles="")
            return [*self.ids(plain, order, hint), *self.tokenizer.encode(record.principles)]
        if record.rubric:
            if self.rubric is None:
                raise ValueError(f'record {record.id!r}: field "rubric": {NO_RUBRIC}')
            text = render_prompt(self.rubric, record, order, hint)
            return self.tokenizer.chat_prompt(text)
        if self.answer in CHOICES and len(record.responses) == 1:
            raise ValueError(
                f"record {record.id!r} has one response: an answer by {self.answer} needs two or "
                "more to choose from"
            )
        template = (
            self.single
            if len(record.responses) == 1 and self.answer == "scores"
            else self.pointwise
        )
        return self.tokenizer.chat_prompt(render_prompt(template, record, order, hint))

    @property
    def goes_on(self) -> bool:
        """Whether a judgment can begin with principles that were written before."""
        return self.answer not in CHOICES and self.tokenizer.thinking is None

    def front_of(self, prompt_ids: Sequence[int], n: int) -> int:
        """Counts the tokens with which a prompt of n responses begins whatever the record.

        They are what prompts of other texts have in common, cut to a multiple of FRONT_STEP: a
        function of template and tokenizer alone. 0 where this prompt does not begin with them.
        """
        if n not in self._fronts:
            asked = [
                Record("front", (Turn("user", text),), (text,) * n, reference=reference)
                for text, reference in (("a", None), ("Z", "Z"), ("4", None))
            ]
            prompts = [self.ids(record, range(n)) for record in asked]
            same = [len(set(tokens)) == 1 for tokens in zip(*prompts)]
            length = same.index(False) if False in same else 0
            self._fronts[n] = tuple(prompts[0][: length - length % FRONT_STEP])
        front = self._fronts[n]
        begins = len(prompt_ids) > len(front) and tuple(prompt_ids[: len(front)]) == front
        return len(front) if begins else 0

    @functools.cached_property
    def _fronts(self) -> dict[int, tuple[int, ...]]:
        return {}


@dataclasses.dataclass(frozen=True)
class Ask:
    """Asks to judge `record` once for every index in `samples`, its responses shown in `order`.

    key: names the randomness.
    turn: those of a lower one are drawn first.
    prompt_ids: the prompt, once it is rendered (`with_prompts`).
    """

    record: Record
    order: tuple[int, ...]
    samples: tuple[int, ...]
    key: str
    hinted: bool = False
    prompt_ids: list[int] | None = None
    turn: int = 0


def with_prompts(prompter: Prompter, asks: Iterable[Ask]) -> list[Ask]:
    """Renders and tokenizes the prompts of the asks that have none yet."""
    return [
        ask
        if ask.prompt_ids is not None
        else dataclasses.replace(ask, prompt_ids=prompter.ids(ask.record, ask.order, ask.hinted))
        for ask in asks
    ]


def prompt_length(prompter: Prompter, record: Record, hint: bool | None = None) -> int:
    """Counts the tokens of the prompt of a record.

    hint: whether it is counted in; None: where there is gold, so that a record that fits fits in
        every stage.
    """
    hint = record.rewards is not None if hint is None else hint
    return len(prompter.ids(record, range(len(record.responses)), hint))


def drawn_judgment(
    tokenizer: Tokenizer,
    ask: Ask,
    completion: Completion,
    prompt_tokens: int,
    temperature: float,
    answer: str = "scores",
    parsing: str = "strict",
    thinking_cut: bool = False,
) -> dict:
    """Makes one judgment as it is stored, from a completion.

    It holds the raw text, what was parsed from it, and whether it is correct (Eq 10). The text
    begins with the record's principles, which are none of its tokens. `scores` are
    in the record's order, or None with the reason in `failure` (`read_answer`). Whether a single
    response's score from 1 to 10 is correct cannot be said. Where the chat template marks thinking,
    "thinking_tokens" counts what the text begins with of it, and "thinking_cut" says whether a
    budget closed it.
    """
    record, thought = ask.record, thought_of(tokenizer, completion.token_ids)
    text = record.principles + tokenizer.decode(completion.token_ids)
    thinking, cut = tokenizer.thinking, not completion.finished
    opened = thinking.opens if thinking is not None and thinking.opened else ""
    if record.rubric:
        read = read_rubric(text, ask.order, record.rubric, cut, opened)
    else:
        read = read_answer(text, ask.order, answer, cut, parsing, opened)
    of_ten = answer == "ten" or record.rubric
    ungraded = record.rewards is None or (of_ten and len(record.responses) == 1)
    return {
        "id": record.id,
        "domain": record.domain,
        "sample": completion.sample,
        "order": list(ask.order),
        "hinted": ask.hinted,
        "temperature": temperature,
        "text": text,
        "finish": "stop" if completion.finished else "length",
        "tokens": len(completion.token_ids),
        "prompt_tokens": prompt_tokens,
        **read,
        "rewards": None if record.rewards is None else list(record.rewards),
        "correct": None if ungraded else is_correct(read["scores"], gold(record)),
        "meta_logit": None,
    } | (
        {} if thought is None else {"thinking_tokens": thought.tokens, "thinking_cut": thinking_cut}
    )


class Drawn(NamedTuple):
    """Holds one judgment, the index of its ask, and the ids and log-probabilities for RL."""

    judgment: dict
    ask: int
    prompt_ids: list[int]
    completion_ids: np.ndarray  # int32[C], the stop token included
    logp: np.ndarray  # float32[C], at the sampling temperature


def judge(
    sampler: Drawing | Callable,
    params: dict,
    prompter: Prompter,
    asks: Sequence[Ask],
    *,
    seed: int,
    temperature: float,
    buckets: Sequence[int],
    rows: int,
    counts: Callable[[Counts], None] = lambda counts: None,
) -> Iterator[list[Drawn]]:
    """Draws and parses judgments, block by block, as `grm_jax.sampling.rollout.generate` does."""
    asks = with_prompts(prompter, asks)
    requests = [Request(ask.prompt_ids or (), ask.key, ask.samples, turn=ask.turn) for ask in asks]
    if isinstance(sampler, Drawing):
        fronts = [prompter.front_of(r.prompt_ids, len(a.order)) for r, a in zip(requests, asks)]
        requests = [dataclasses.replace(r, front=n) for r, n in zip(requests, fronts)]
    budget, tokenizer = prompter.thinking_budget, prompter.tokenizer
    how = (sampler, params, requests, seed, buckets, rows, counts)
    for indices, completions, cut in generate_within(budget, tokenizer, *how):
        drawn = []
        of_ask = [i for i in indices for _ in asks[i].samples]
        for i, completion, thinking_cut in zip(of_ask, completions, cut, strict=True):
            prompt_ids = requests[i].prompt_ids
            judgment = drawn_judgment(
                tokenizer,
                asks[i],
                completion,
                len(prompt_ids),
                temperature,
                prompter.answer,
                prompter.parsing,
                thinking_cut,
            )
            drawn.append(
                Drawn(judgment, i, list(prompt_ids), completion.token_ids, completion.logp)
            )
        yield drawn
