"""Puts the pointwise generative reward model behind the protocol.

One generation scores all n responses, n = 1, 2 or many. Guided by a Meta RM it is the same model:
`meta_rm.add_logits` puts a logit beside each of its judgments, and the vote keeps the k_meta best.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grm_jax.judgment.parsing import principles_part
from grm_jax.judgment.records import Record
from grm_jax.reward_models.grm import Ask, Prompter, judge, with_prompts
from grm_jax.reward_models.protocol import TOO_LONG, RewardModel, new_judgment, shown_order
from grm_jax.sampling.engine import Drawing


def pointwise_grm(
    name: str,
    sampler_of: Callable[[float], Drawing | Callable],
    params: dict,
    prompter: Prompter,
    *,
    seed: int,
    buckets: Sequence[int],
    rows: int,
    per_order: int = 1,
    hinted: bool = False,
) -> RewardModel:
    """Makes a reward model of `grm.judge`; its judgments are those of `grm.drawn_judgment`.

    sampler_of: temperature -> what draws (`system.samplers`), for `rollout.generate`.
    seed: of response orders and of sampling.
    buckets, rows: see `grm_jax.sampling.rollout.plan`.
    per_order: samples s with equal s // per_order show the responses in one order, and share the
        prompt's keys and values. They are drawn together whichever of them are asked for, in a
        program of one shape, so that a judgment does not depend on the others.
    hinted: whether the prompts tell the best response, as half of rejective sampling does.

    A prompt that no bucket holds is the failure "too_long".
    """
    if not 1 <= per_order <= rows:
        raise ValueError(f"per_order is {per_order}; expected 1 to rows = {rows}")

    def judge_records(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        # greedy judgments of one prompt are all the same
        together = per_order if temperature > 0 else 1
        starts = sorted({sample - sample % together for sample in samples})
        asks = [
            Ask(
                record,
                shown_order(seed, record, start - start % per_order, swapped),
                tuple(range(start, start + together)),
                record.id,
                hinted,
            )
            for record in records
            for start in starts
        ]
        asks = with_prompts(prompter, asks)
        unfit = [ask for ask in asks if len(ask.prompt_ids or ()) > max(buckets)]
        if unfit:
            yield [
                new_judgment(
                    ask.record,
                    sample,
                    ask.order,
                    temperature,
                    None,
                    failure=TOO_LONG,
                    hinted=hinted,
                    correct=None if ask.record.rewards is None else False,
                )
                for ask in unfit
                for sample in ask.samples
                if sample in samples
            ]
        fitting = [ask for ask in asks if len(ask.prompt_ids or ()) <= max(buckets)]
        settings: dict[str, Any] = {"seed": seed, "temperature": temperature}
        settings |= {"buckets": buckets, "rows": rows}
        for drawn in judge(sampler_of(temperature), params, prompter, fitting, **settings):
            yield [one.judgment for one in drawn if one.judgment["sample"] in samples]

    return RewardModel(name, judge_records, sampled=True, accepts=lambda n: n >= 1)


def with_principles_once(
    model: RewardModel, fits: Callable[[Record], bool], size: int
) -> RewardModel:
    """Makes a model whose samples of a record all go on from the principles of its greedy judgment.

    These are written once a record and kept with the model that is made. Where the greedy judgment
    has none, or none with which the prompt `fits`, its samples write their own. Greedy judgments,
    and records with principles or a rubric, are judged as by `model`, `size` records at a time. No
    sample counts the tokens of the greedy judgment.
    """
    written: dict[tuple, str] = {}

    def key(record: Record) -> tuple:
        return record.id, record.conversation, record.responses, record.reference

    def judge_records(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        if temperature == 0:
            yield from model.judge(records, samples, temperature, swapped)
            return
        for start in range(0, len(records), size):
            some = records[start : start + size]
            own = {r.id: r for r in some if not (r.principles or r.rubric)}
            missing = [record for record in own.values() if key(record) not in written]
            for judgments in model.judge(missing) if missing else ():
                for one in judgments:
                    record, part = own[one["id"]], principles_part(one["text"])
                    given = dataclasses.replace(record, principles=part)
                    written[key(record)] = part if fits(given) else ""
            given = [
                dataclasses.replace(record, principles=written[key(record)])
                if record.id in own
                else record
                for record in some
            ]
            yield from model.judge(given, samples, temperature, swapped)

    return model._replace(judge=judge_records)


def without_rubrics(model: RewardModel) -> RewardModel:
    """Makes a model that is asked the same, and sees no rubric."""

    def judge(records: Sequence[Record], *args: Any, **kwargs: Any) -> Iterator[list[dict]]:
        plain = [dataclasses.replace(record, rubric=()) for record in records]
        yield from model.judge(plain, *args, **kwargs)

    return model._replace(judge=judge)
