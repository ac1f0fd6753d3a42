"""Judges as LLM-as-a-Judge does, and in its TokenProb form.

The policy reads a pair and writes, in a box, the number of the better response (Eq 13), or its
letter as public pairwise judges do.

A pair is one generation. A list goes through all its pairs: the responses of each are shown in the
order in which the sample shows the list, and a response scores the number of pairs that it won. A
pair that fails to parse fails the sample, because sums over some of the pairs would not compare.

TokenProb reads the same judgments in another way (`by_probability`): the winner of a pair scores
the generation probability of the number in the box instead of 1, so the sum over k samples is a
vote weighted by probability.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from grm_jax.judgment.parsing import CHOICES, Choice, parse_choice, parse_letter
from grm_jax.judgment.records import Record
from grm_jax.reward_models.grm import Ask, Drawn, Prompter, judge, with_prompts
from grm_jax.reward_models.protocol import TOO_LONG, RewardModel, new_judgment, pairs, shown_order
from grm_jax.sampling.engine import Drawing
from grm_jax.tokenizer import Tokenizer

# judged together: whole lists are finished, and yielded, after so many batches at the latest
BATCHES_AT_ONCE = 32

UNASKED = {
    "chosen": None,
    "probability": None,
    "text": "",
    "tokens": 0,
    "principles": [],
    "critique": "",
    "failure": TOO_LONG,
}


class Opinion(NamedTuple):
    """Holds one sample of one record: the responses are shown in `order`.

    found: fills with the evidence of each pair (i, j), i < j.
    """

    record: Record
    sample: int
    order: tuple[int, ...]
    found: dict[tuple[int, int], dict]


def llm_judge(
    name: str,
    sampler_of: Callable[[float], Drawing | Callable],
    params: dict,
    prompter: Prompter,
    *,
    seed: int,
    buckets: Sequence[int],
    rows: int,
) -> RewardModel:
    """Makes the pairwise generative judge, n >= 2.

    Arguments as in `pointwise.pointwise_grm`; `prompter.answer` must be one of CHOICES. Besides the
    fields of the protocol a judgment holds "pairs", one object for each generation:

        {
            "pair": [i, j],
            "order": [first shown, second shown],
            "text": what was generated,
            "chosen": index in the record; null for a tie and for a failure,
            "probability": see `index_probability`; null without a choice,
            "tokens", "principles", "critique", "failure"
        }

    For n = 2 the judgment has the text, principles, critique and failure of its one pair; for a
    list its text is "", and its failure is "pair_failed:" with the reason of the first pair that
    failed. A prompt that no bucket holds is the failure "too_long".

    Raises ValueError for a prompter that reads scores, and when judging a record with one response.
    """
    if prompter.answer not in CHOICES:
        raise ValueError(
            f"{name}: a judge of pairs needs a prompter with answer = 'index' or 'letter', got "
            f"{prompter.answer!r}"
        )

    def judge_records(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        sampler = sampler_of(temperature)

        def judge_together(opinions: Sequence[Opinion]) -> Iterator[list[dict]]:
            comparisons = [
                (opinion, pair)
                for opinion in opinions
                for pair in pairs(len(opinion.record.responses))
            ]
            asks = with_prompts(prompter, [pair_ask(*comparison) for comparison in comparisons])
            fits = [len(ask.prompt_ids or ()) <= max(buckets) for ask in asks]
            fitting = [i for i, fit in enumerate(fits) if fit]

            def rows_completed_by(evidence: dict[int, dict]) -> list[dict]:
                completed = []
                for i, found in evidence.items():
                    opinion, pair = comparisons[i]
                    opinion.found[pair] = {
                        "pair": list(pair),
                        "order": [pair[position] for position in asks[i].order],
                    } | found
                    if found["chosen"] is not None:
                        opinion.found[pair]["chosen"] = pair[found["chosen"]]
                    if len(opinion.found) == len(pairs(len(opinion.record.responses))):
                        completed.append(opinion_judgment(opinion, temperature))
                return completed

            yield rows_completed_by({i: UNASKED for i, fit in enumerate(fits) if not fit})
            settings: dict[str, Any] = {"seed": seed, "temperature": temperature}
            settings |= {"buckets": buckets, "rows": rows}
            for drawn in judge(sampler, params, prompter, [asks[i] for i in fitting], **settings):
                yield rows_completed_by(
                    {fitting[one.ask]: generation(prompter, one) for one in drawn}
                )

        opinions, waiting = [], 0
        for record in records:
            if len(record.responses) < 2:
                raise ValueError(
                    f"record {record.id!r} has one response: a judge of pairs needs two or more"
                )
            opinions += [
                Opinion(record, sample, shown_order(seed, record, sample, swapped), {})
                for sample in samples
            ]
            waiting += len(samples) * len(pairs(len(record.responses)))
            if waiting >= BATCHES_AT_ONCE * rows:
                yield from filter(None, judge_together(opinions))
                opinions, waiting = [], 0
        yield from filter(None, judge_together(opinions))

    return RewardModel(name, judge_records, sampled=True, accepts=lambda n: n >= 2)


def pair_ask(opinion: Opinion, pair: tuple[int, int]) -> Ask:
    """Asks about the pair as a record of its own.

    The record has no gold (two losers of a list may be equally good) and, in a list, its own
    randomness.
    """
    record, (i, j) = opinion.record, pair
    two = dataclasses.replace(
        record, responses=(record.responses[i], record.responses[j]), rewards=None
    )
    order = (0, 1) if opinion.order.index(i) < opinion.order.index(j) else (1, 0)
    return Ask(
        two,
        order,
        (opinion.sample,),
        record.id if len(record.responses) == 2 else f"{record.id}\0{i}\0{j}",
    )


def longest_prompt(prompter: Prompter, record: Record) -> int:
    """Counts the tokens of the longest prompt of a record: all its pairs, in both orders."""
    asked = [
        dataclasses.replace(
            record, responses=(record.responses[i], record.responses[j]), rewards=None
        )
        for i, j in pairs(len(record.responses))
    ]
    lengths = [len(prompter.ids(two, order)) for two in asked for order in ((0, 1), (1, 0))]
    return max(lengths, default=0)


def generation(prompter: Prompter, drawn: Drawn) -> dict:
    """Returns what a judgment keeps of one generation about a pair.

    `chosen` is 0 or 1, an index in that pair, or None: a tie, where there is no failure.
    """
    judged, chosen, probability = drawn.judgment, None, None
    if judged["failure"] is None:
        if 1 in judged["scores"]:
            chosen = judged["scores"].index(1)
        parse = parse_letter if prompter.answer == "letter" else parse_choice
        choice = parse(judged["text"], 2)
        assert isinstance(choice, Choice)  # as it was read before
        probability = index_probability(
            prompter.tokenizer, drawn.completion_ids, drawn.logp, choice.span
        )
    return {"chosen": chosen, "probability": probability} | {
        name: judged[name] for name in ("text", "tokens", "principles", "critique", "failure")
    }


def by_probability(judgment: dict) -> dict:
    """Makes TokenProb's judgment from that of an LLM-as-a-Judge.

    The winner of a pair scores the probability of its number in place of 1; of a tie each has half.
    """
    if judgment["failure"] is not None:
        return judgment
    scores = [
        sum(pair["probability"] * share(pair, i) for pair in judgment["pairs"])
        for i in range(len(judgment["order"]))
    ]
    return judgment | {"scores": scores}


def share(pair: dict, i: int) -> float:
    """Returns what response i has of a pair that was judged: 1, 0, or 1/2 of a tie."""
    if pair["chosen"] is None:
        return 0.5 if i in pair["pair"] else 0
    return int(pair["chosen"] == i)


def index_probability(
    tokenizer: Tokenizer, ids_C: np.ndarray, logp_C: np.ndarray, span: tuple[int, int]
) -> float:
    """Returns the probability with which the tokens of characters `span` of the text were drawn.

    It is that at the sampling temperature (1 where greedy). A number written in several tokens has
    the product of their probabilities. Where a token holds other characters as well ("{2" or "2}"),
    its probability is taken whole: that of the number together with them, which is as good as the
    number's own where nothing else could stand there.
    """
    start, end = span
    after = len(ids_C)  # the tokens that hold the span are ids_C[before:after]
    while len(tokenizer.decode(ids_C[: after - 1])) >= end:
        after -= 1
    before = after - 1
    while len(tokenizer.decode(ids_C[:before])) > start:
        before -= 1
    return math.exp(min(0.0, float(np.sum(logp_C[before:after], dtype=np.float64))))


def opinion_judgment(opinion: Opinion, temperature: float) -> dict:
    """Makes the judgment of an opinion whose pairs have all been judged."""
    record, n = opinion.record, len(opinion.record.responses)
    found = [opinion.found[pair] for pair in pairs(n)]
    failure = next((one["failure"] for one in found if one["failure"] is not None), None)
    evidence = {"tokens": sum(one["tokens"] for one in found), "pairs": found}
    if n == 2:
        evidence |= {name: found[0][name] for name in ("text", "principles", "critique")}
    if failure is not None:
        return new_judgment(
            record,
            opinion.sample,
            opinion.order,
            temperature,
            None,
            failure=failure if n == 2 else f"pair_failed:{failure}",
            **evidence,
        )
    scores = [sum(share(one, i) for one in found) for i in range(n)]
    return new_judgment(record, opinion.sample, opinion.order, temperature, scores, **evidence)
