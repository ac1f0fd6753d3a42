"""Judges as PairRM does: one number S of two responses says by its sign which is better.

It reads a conversation and the two responses (Eq 5 of arXiv 2504.02495).

    chosen = floor((3 - sgn S) / 2)

This is 1, the response shown first, for S >= 0, and 2 for S < 0.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.judgment.records import Record, gold
from grm_jax.models.config import ModelConfig
from grm_jax.reward_models.meta_rm import make_scorer
from grm_jax.reward_models.protocol import TOO_LONG, RewardModel, new_judgment, shown_order
from grm_jax.reward_models.scalar import gold_pairs, score_groups
from grm_jax.tokenizer import Tokenizer

TEMPLATE = load_template("scalar")


def pair_rm(
    name: str,
    params: dict,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    buckets: Sequence[int],
    rows: int,
    swap_average: bool = False,
) -> RewardModel:
    """Scores responses by the pairs they win, the same for every sample.

    Two responses are shown once, in the order of sample 0 (`swapped`: reversed): scores (1, 0) or
    (0, 1), and S in "preference". A list of n > 2 goes through all n (n - 1) ordered pairs, and a
    response scores half of those it wins: n - 1 when it wins against each other one in both orders.
    S of each is in "preferences" as [first, second, S], with indices of the record.

    params: {"backbone", "score"}.
    buckets: lengths that sequences are padded to; a record with a longer one fails as "too_long".
    rows: sequences scored at once.
    swap_average: S(a, b) becomes (S(a, b) - S(b, a)) / 2, in which a position bias cancels.
    """
    scorer = make_scorer(cfg)

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        for start in range(0, len(records), rows):
            block = records[start : start + rows]
            orders = [shown_order(seed, record, 0, swapped) for record in block]
            asked = [_asked_pairs(record, order) for record, order in zip(block, orders)]
            shown = [pairs + [(b, a) for a, b in pairs] * swap_average for pairs in asked]
            sequences = [
                [pair_ids(tokenizer, record, *pair) for pair in pairs]
                for record, pairs in zip(block, shown)
            ]
            found = []
            for record, order, pairs, values in zip(
                block, orders, asked, score_groups(scorer, params, sequences, buckets, rows)
            ):
                if values is not None and swap_average:
                    values = [
                        (there - back) / 2
                        for there, back in zip(values[: len(pairs)], values[len(pairs) :])
                    ]
                found += [
                    _pair_row(record, sample, order, temperature, pairs, values)
                    for sample in samples
                ]
            yield found

    return RewardModel(name, judge, sampled=False, accepts=lambda n: n >= 2)


def pair_ids(tokenizer: Tokenizer, record: Record, first: int, second: int) -> list[int]:
    """Returns the token ids of the conversation with two responses.

    The responses are given by their index in the record; the ids end where the model begins to
    write.
    """
    two = dataclasses.replace(
        record, responses=(record.responses[first], record.responses[second]), rewards=None
    )
    return tokenizer.chat_prompt(render_prompt(TEMPLATE, two, (0, 1)))


def longest_pair(tokenizer: Tokenizer, record: Record) -> int:
    """Counts the tokens of the longest input of a record: every two responses, in both orders."""
    n = len(record.responses)
    asked = [(i, j) for i in range(n) for j in range(n) if i != j]
    return max((len(pair_ids(tokenizer, record, *pair)) for pair in asked), default=0)


def chosen(preference: float) -> int:
    """Returns 1 if the response shown first is chosen, else 2 (Eq 5; S = 0 goes to the first)."""
    return math.floor((3 - np.sign(preference)) / 2)


def pair_examples(tokenizer: Tokenizer, records: Sequence[Record]) -> list[dict]:
    """Makes training examples of `training.step.meta_loss` from all gold pairs.

    Both orders of each, label 1 where the better one is shown first.
    """
    examples = []
    for record in records:
        for better, worse in gold_pairs(gold(record)):
            for pair, label in (((better, worse), 1.0), ((worse, better), 0.0)):
                ids = pair_ids(tokenizer, record, *pair)
                examples.append(
                    {
                        "id": record.id,
                        "tokens": np.array(ids),
                        "positions": np.arange(len(ids)),
                        "labels": label,
                    }
                )
    return examples


def _asked_pairs(record: Record, order: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (shown first, shown second) of every question that a record asks."""
    if len(record.responses) < 2:
        raise ValueError(
            f"record {record.id!r}: expected at least 2 responses for a pairwise model, got 1"
        )
    if len(order) == 2:
        return [(order[0], order[1])]
    return [(a, b) for a in order for b in order if a != b]


def _pair_row(record, sample, order, temperature, pairs, values) -> dict:
    if values is None:
        return new_judgment(record, sample, order, temperature, None, failure=TOO_LONG)
    wins = [0] * len(record.responses)
    for pair, value in zip(pairs, values):
        wins[pair[chosen(value) - 1]] += 1
    if len(pairs) == 1:
        return new_judgment(record, sample, order, temperature, wins, preference=values[0])
    return new_judgment(
        record,
        sample,
        order,
        temperature,
        [won / 2 for won in wins],
        preferences=[[*pair, value] for pair, value in zip(pairs, values)],
    )
