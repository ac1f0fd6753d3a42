"""Reward models that tests of the evaluator name as "tests.experiments.fabricated_models:NAME".

ASKED holds every (system, id, sample, temperature, swapped).
"""

import random

from grm_jax.reward_models.protocol import RewardModel, new_judgment, shown_order

ASKED: list[tuple] = []
LOADED: list[str] = []
BREAK_AFTER: list[int] = []  # one number: raise after so many judgments, as a kill would


def _model(spec, seed, scores, sampled=False, accepts=lambda n: True, **evidence):
    LOADED.append(spec["name"])

    def judge(records, samples=(0,), temperature=0.0, swapped=False):
        for record in records:
            block = []
            for sample in samples:
                if BREAK_AFTER and len(ASKED) >= BREAK_AFTER[0]:
                    raise KeyboardInterrupt
                ASKED.append((spec["name"], record.id, sample, temperature, swapped))
                given = scores(record, sample, temperature, swapped)
                order, told = shown_order(seed, record, sample, swapped), dict(evidence)
                if isinstance(given, str):
                    given, told["failure"] = None, given
                block.append(
                    new_judgment(
                        record,
                        sample,
                        order,
                        temperature,
                        given,
                        tokens=7 * sampled,
                        text=f"sample {sample} of <b>{record.id}</b>",
                        **told,
                    )
                )
            yield block

    return RewardModel(spec["name"], judge, sampled, accepts)


def perfect(spec, asking, seed):
    return _model(spec, seed, lambda record, *_: record.rewards)


def constant(spec, asking, seed):
    return _model(spec, seed, lambda record, *_: [1.0] * len(record.responses))


def pairwise(spec, asking, seed):
    """Scalar, pairs and lists alone; in the reverse order it says the reverse."""
    return _model(
        spec,
        seed,
        lambda record, sample, temperature, swapped: [-r if swapped else r for r in record.rewards],
        accepts=lambda n: n >= 2,
    )


def sampled(spec, asking, seed):
    """Right in seven of ten samples, with a Meta RM that knows."""

    def scores(record, sample, temperature, swapped):
        good = random.Random(f"{seed}{record.id}{sample}{temperature}").random() < 0.7
        values = [2.0 if (r == max(record.rewards)) == good else 1.0 for r in record.rewards]
        return (
            [float(record.rewards[0] if good else 1 - record.rewards[0])]
            if len(values) == 1
            else values
        )

    model = _model(spec, seed, scores, sampled=True)

    def judge(records, *args, **kwargs):
        for block in model.judge(records, *args, **kwargs):
            yield [
                one
                | {
                    "meta_logit": float(
                        one["scores"] is not None
                        and (one["scores"][0] > 1.5) == (one["rewards"][0] == 1)
                    )
                }
                for one in block
            ]

    return model._replace(judge=judge, span=lambda n: 1.0)


def failing(spec, asking, seed):
    """One judgment in three is no judgment, and one in three did not come over the network."""
    return _model(
        spec,
        seed,
        lambda record, sample, *_: ("no_box", "request_failed:timeout", record.rewards)[
            (sample + int(record.id[1:])) % 3
        ],
        sampled=True,
    )
