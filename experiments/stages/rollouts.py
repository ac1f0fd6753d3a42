"""Draws the rollouts of RL: G judgments of each prompt of a step, and in one queue those of the
next steps (config rl.max_lag).

The rows that a step's longest rollouts leave free are taken by prompts of the next one. All of them
are drawn by the policy of the first step, whatever happens to it meanwhile: which rollout is drawn
by which weights depends on the number of its step alone, and none changes its policy on the way.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.stages.workdir import Run
from grm_jax.judgment.records import Record, response_order
from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import cast_weights
from grm_jax.reward_models.grm import Ask, Drawn, judge, with_prompts
from grm_jax.sampling.engine import Counts


@dataclasses.dataclass
class Rollouts:
    """Holds the rollouts of consecutive steps as they come.

    first: the step whose policy draws them.
    records: {step: indices of its records, among those trained on}.
    drawn: {step: its rollouts, asks counted within the step}; size: how many a step has.
    counts: {step: what engines counted until its last rollout, since that of the step before}.
    blocks: those that are still to come, ask by ask of all steps; engines: counts of what draws
        them.
    """

    first: int
    records: dict[int, list[int]]
    drawn: dict[int, list[Drawn]]
    size: int
    prompts: int
    counts: dict[int, Counts] = dataclasses.field(default_factory=dict)
    blocks: Iterator[list[Drawn]] = iter(())
    engines: dict[int, Counts] = dataclasses.field(default_factory=dict)

    @property
    def last(self) -> int:
        """Returns the last step whose rollouts these are."""
        return max(self.records)

    def take(self, step: int, stopped: Callable[[], bool] = lambda: False) -> list[Drawn] | None:
        """Returns the rollouts of a step; rows p*G ... p*G + G - 1 are the group of its record p.

        The devices go on with those of the next steps. None where the process is asked to stop
        behind a block of the first step. Those of a later one are drawn to the end: their policy is
        gone by then.
        """
        while len(self.drawn[step]) < self.size or step == self.last:
            block = next(self.blocks, None)
            if block is None:
                break
            self._add(block)
            if stopped() and step == self.first:
                return None
        return sorted(self.drawn[step], key=lambda r: (r.ask, r.judgment["sample"]))

    def _add(self, block: Sequence[Drawn]) -> None:
        for rollout in block:
            later, ask = divmod(rollout.ask, self.prompts)
            self.drawn[self.first + later].append(rollout._replace(ask=ask))
        for step in self.records:
            if len(self.drawn[step]) < self.size:
                break
            if step not in self.counts and self.engines:
                before = [self.counts[s] for s in self.records if s < step]
                self.counts[step] = Counts(
                    **{
                        name: sum(getattr(one, name) for one in self.engines.values())
                        - sum(getattr(one, name) for one in before)
                        for name in (field.name for field in dataclasses.fields(Counts))
                    }
                )

    def drained(self, step: int) -> dict:
        """Waits for the rollouts of this step and of all after it; returns them, JSON-able."""
        self.take(self.last)
        return {
            "first": self.first,
            "steps": [
                {
                    "step": later,
                    "records": self.records[later],
                    "counts": vars(self.counts[later]) if later in self.counts else None,
                    "rollouts": [
                        r._asdict()
                        | {
                            "prompt_ids": [int(i) for i in r.prompt_ids],
                            "completion_ids": r.completion_ids.tolist(),
                            "logp": r.logp.tolist(),
                        }
                        for r in self.drawn[later]
                    ],
                }
                for later in range(step, self.last + 1)
            ],
        }


def restored(saved: Mapping, size: int) -> Rollouts:
    """Reads what `Rollouts.drained` gave; the bits of log-probabilities are the same."""
    steps = {int(one["step"]): one for one in saved["steps"]}

    def rollout(fields: Mapping) -> Drawn:
        return Drawn(
            **dict(fields)
            | {
                "completion_ids": np.array(fields["completion_ids"], np.int32),
                "logp": np.array(fields["logp"], np.float32),
            }
        )

    return Rollouts(
        int(saved["first"]),
        {step: list(one["records"]) for step, one in steps.items()},
        {step: [rollout(fields) for fields in one["rollouts"]] for step, one in steps.items()},
        size,
        0,
        {step: Counts(**one["counts"]) for step, one in steps.items() if one["counts"]},
    )


def roll_out(
    run: Run,
    sampler: Callable,
    params: dict,
    records: Sequence[Record],
    chosen: Mapping[int, Sequence[int]],
) -> Rollouts:
    """Begins to draw G judgments of each record that consecutive steps have chosen.

    Where a step has two orders of each record (`RlConfig.orders`), a record stands twice in what
    is chosen, the second time for the reverse of its order.

    All are drawn by the policy of these parameters, which the caller may give away afterwards where
    there is more than one step.
    """
    G, seed, settings = run.config.rl.group_size, run.config.seed, run.config.rl
    orders = 1 if settings.consistency is None else 2
    asks = []
    for step, indices in chosen.items():
        for p, record in enumerate(records[i] for i in indices):
            # another order and other samples each time the record comes round
            key = f"{record.id}@{step}.{p}"
            first = f"{record.id}@{step}.{p - p % orders}"
            order = response_order(seed, first, 0, len(record.responses))
            order = order[::-1] if p % orders else order
            asks.append(Ask(record, order, tuple(range(G)), key, turn=step))
    asks = with_prompts(run.prompter, asks)
    if len(chosen) > 1:
        params = kept(params, run.model_cfg)
    first, prompts = min(chosen), len(asks) // len(chosen)
    engines: dict[int, Counts] = {}
    blocks = judge(
        sampler,
        params,
        run.prompter,
        asks,
        seed=seed,
        temperature=settings.temperature,
        buckets=run.asking.lengths.buckets,
        rows=min(len(asks) * G, run.asking.sampling.rows // G * G),
        counts=lambda one: engines.update({id(one): one}),
    )
    return Rollouts(
        first,
        {step: [int(i) for i in indices] for step, indices in chosen.items()},
        {step: [] for step in chosen},
        prompts * G,
        prompts,
        blocks=blocks,
        engines=engines,
    )


def kept(params: dict, cfg: ModelConfig) -> dict:
    """Copies parameters, cast as a sampler casts them: the step takes those of the state."""
    where = jax.tree.map(lambda x: x.sharding, params)
    copy = jax.jit(lambda p: jax.tree.map(jnp.copy, cast_weights(p, cfg)), out_shardings=where)
    return copy(params)
