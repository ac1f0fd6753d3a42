"""Judges as CLoud does (arXiv 2408.11791): a critic writes, a value head reads and scores.

The critic writes a critique of one response; the value head reads it with the response and gives
one number. The critic is a policy; the head is a scalar model of its own. A response is judged
alone, so any number of responses will do. A vote over k samples adds up the numbers that k
critiques of each response lead to, and ranks as their mean does (Eq 12 of arXiv 2504.02495).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from grm_jax.data.examples import supervised_example
from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.judgment.reasoning import without_reasoning
from grm_jax.judgment.records import Record, gold
from grm_jax.models.config import ModelConfig
from grm_jax.reward_models.meta_rm import make_scorer
from grm_jax.reward_models.protocol import TOO_LONG, RewardModel, new_judgment
from grm_jax.reward_models.scalar import gold_pairs, pair_example, score_groups
from grm_jax.sampling.engine import Drawing
from grm_jax.sampling.rollout import Request, generate
from grm_jax.tokenizer import Tokenizer

TEMPLATE = load_template("scalar")
TRUNCATED = "truncated"  # the failure of a sample in which a critique ran into the token limit
ONLY_REASONING = "only_reasoning"  # ... in which nothing follows the reasoning of one
BATCHES = 8  # sampler batches to a block of records


class Critiques(NamedTuple):
    """Holds one sample: critiques of a record's responses, or why there are none, and the tokens.

    There is one critique for each response; the tokens are those generated.
    """

    record: Record
    sample: int
    texts: list[str] | None
    failure: str | None
    tokens: int


def cloud(
    name: str,
    sampler_of: Callable[[float], Drawing | Callable],
    critic_params: dict,
    head_params: dict,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    buckets: Sequence[int],
    sequence_buckets: Sequence[int],
    rows: int,
    completion: int,
) -> RewardModel:
    """Scores responses by the rewards that the head gives them with their critiques.

    The critiques are in "critiques" of a judgment, and in "text" one below the other.

    sampler_of: temperature -> what draws the critic's texts, for `rollout.generate`, of at most
        `completion` tokens.
    critic_params, head_params: of the policy, and {"backbone", "score"}; both of architecture
        `cfg`.
    seed: with the record, the response and the sample index it fixes every critique.
    buckets, sequence_buckets: widths of the prompts, and of prompt and critique together, in
        tokens. What does not fit fails as "too_long".
    rows: critiques drawn, and sequences scored, at once.
    """
    if max(buckets) + completion > max(sequence_buckets):
        raise ValueError(
            f"sequence_buckets end in {max(sequence_buckets)}; expected at least the longest "
            f"prompt and critique, {max(buckets)} + {completion}"
        )
    scorer = make_scorer(cfg)

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        sampler = sampler_of(temperature)
        for block in write_critiques(
            sampler,
            critic_params,
            tokenizer,
            records,
            samples,
            seed=seed,
            buckets=buckets,
            rows=rows,
        ):
            sequences = [
                critiqued_ids(tokenizer, one.record, one.texts)
                if not one.failure and one.texts
                else []
                for one in block
            ]
            rewards = score_groups(scorer, head_params, sequences, sequence_buckets, rows)
            yield [
                _cloud_row(
                    one,
                    temperature,
                    None if one.failure else scores,
                    one.failure or (TOO_LONG if scores is None else None),
                )
                for one, scores in zip(block, rewards)
            ]

    return RewardModel(name, judge, sampled=True, accepts=lambda n: n >= 1)


def critic(
    name: str,
    sampler_of: Callable[[float], Drawing | Callable],
    params: dict,
    tokenizer: Tokenizer,
    *,
    seed: int,
    buckets: Sequence[int],
    rows: int,
) -> RewardModel:
    """Makes the critic alone, for the critiques that a head is trained on.

    Its judgments have "critiques" and neither scores nor a failure. Arguments as in `cloud`.
    """

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        sampler, sizes = sampler_of(temperature), {"seed": seed, "buckets": buckets, "rows": rows}
        for block in write_critiques(sampler, params, tokenizer, records, samples, **sizes):
            yield [_cloud_row(one, temperature, None, one.failure) for one in block]

    return RewardModel(name, judge, sampled=True, accepts=lambda n: n >= 1)


def critic_prompt(record: Record, i: int) -> str:
    """Writes the user's turn that the critic answers: the conversation and response i, no other."""
    return render_prompt(
        TEMPLATE, dataclasses.replace(record, responses=(record.responses[i],), rewards=None), (0,)
    )


def longest_critic_prompt(tokenizer: Tokenizer, record: Record) -> int:
    """Counts the tokens of the longest prompt of the critic for a record: one for each response."""
    prompts = (critic_prompt(record, i) for i in range(len(record.responses)))
    return max(len(tokenizer.chat_prompt(prompt)) for prompt in prompts)


def critiqued_ids(tokenizer: Tokenizer, record: Record, texts: Sequence[str]) -> list[list[int]]:
    """Returns, for each response, the token ids that the head reads.

    They are the critic's prompt, and the critique as the model's turn, without its reasoning.
    """
    return [
        tokenizer.chat_prompt_with_answer(critic_prompt(record, i), without_reasoning(text))
        for i, text in enumerate(texts)
    ]


def write_critiques(
    sampler: Drawing | Callable,
    params: dict,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    samples: Sequence[int],
    *,
    seed: int,
    buckets: Sequence[int],
    rows: int,
) -> Iterator[list[Critiques]]:
    """Draws every sample of every record, in their order, block by block.

    A record with a prompt over the largest bucket fails as "too_long".
    """
    # samples that share a prompt's prefill
    at_once = next(k for k in range(min(len(samples), rows), 0, -1) if len(samples) % k == 0)
    for block in _blocks(records, max(1, BATCHES * rows // len(samples))):
        requests, owners, over_long = [], [], set()
        for r, record in enumerate(block):
            prompts = [
                tokenizer.chat_prompt(critic_prompt(record, i))
                for i in range(len(record.responses))
            ]
            if max(map(len, prompts)) > max(buckets):
                over_long.add(r)
                continue
            for i, prompt in enumerate(prompts):
                for start in range(0, len(samples), at_once):
                    requests.append(
                        Request(
                            prompt, f"{record.id}\0{i}", tuple(samples[start : start + at_once])
                        )
                    )
                    owners.append((r, i))
        drawn = {}
        for indices, completions in generate(sampler, params, requests, seed, buckets, rows):
            of_request = [index for index in indices for _ in range(at_once)]
            drawn |= {
                (*owners[index], one.sample): one
                for index, one in zip(of_request, completions, strict=True)
            }
        yield [
            Critiques(record, sample, None, TOO_LONG, 0)
            if r in over_long
            else _critiques(
                tokenizer,
                record,
                sample,
                [drawn[r, i, sample] for i in range(len(record.responses))],
            )
            for r, record in enumerate(block)
            for sample in samples
        ]


def critic_example(tokenizer: Tokenizer, record: Record) -> dict:
    """Makes the critic's training example for `training.step.rft_loss`.

    The record has one response and metadata {"critique": str}.
    """
    if len(record.responses) != 1 or not isinstance(record.metadata.get("critique"), str):
        raise ValueError(
            f'record {record.id!r}: expected one response and its "critique" (text) under '
            '"metadata"'
        )
    prompt = tokenizer.chat_prompt(critic_prompt(record, 0))
    completion = tokenizer.chat_completion(record.metadata["critique"])
    return supervised_example(record.id, prompt, completion)


def head_examples(tokenizer: Tokenizer, record: Record, texts: Sequence[str]) -> list[dict]:
    """Makes the head's training examples for `training.step.preference_loss`.

    They are all gold pairs of a record, each response with its critique.
    """
    ids = critiqued_ids(tokenizer, record, texts)
    return [
        pair_example(record.id, ids[better], ids[worse])
        for better, worse in gold_pairs(gold(record))
    ]


def _blocks(records: Sequence[Record], responses: int) -> Iterator[list[Record]]:
    """Cuts records, in their order, into blocks that end once they hold `responses` responses."""
    block, held = [], 0
    for record in records:
        block.append(record)
        held += len(record.responses)
        if held >= responses:
            yield block
            block, held = [], 0
    if block:
        yield block


def _critiques(tokenizer, record, sample, completions) -> Critiques:
    texts = [tokenizer.decode(one.token_ids) for one in completions]
    failure = None if all(one.finished for one in completions) else TRUNCATED
    if any(text.strip() and not without_reasoning(text) for text in texts):
        failure = failure or ONLY_REASONING
    return Critiques(record, sample, texts, failure, sum(len(one.token_ids) for one in completions))


def _cloud_row(
    one: Critiques, temperature: float, scores: list[float] | None, failure: str | None
) -> dict:
    text = "\n".join(f"[Response {i}] {text}" for i, text in enumerate(one.texts or (), 1))
    return new_judgment(
        one.record,
        one.sample,
        range(len(one.record.responses)),
        temperature,
        scores,
        failure=failure,
        text=text,
        tokens=one.tokens,
        critiques=one.texts,
    )
