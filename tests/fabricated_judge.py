"""Reward models for tests of the front door, which `grm_jax.load` takes as {"kind":
"tests.fabricated_judge:NAME"}. They read the scores in the responses: "7" scores 7, and a text that
is no number fails every second sample, or all.
"""

import time

from grm_jax.judgment.rubric import read_rubric
from grm_jax.reward_models.protocol import RewardModel, new_judgment, shown_order

CALLS: list[tuple] = []  # (record ids, samples, temperature, seed) of every call


def _model(spec, seed, sampled=True, accepts=lambda n: n >= 1, wait_s=0.0, span=None):
    def judge(records, samples=(0,), temperature=0.0, swapped=False):
        CALLS.append((tuple(r.id for r in records), tuple(samples), temperature, seed))
        for record in reversed(records):  # blocks come in an order of their own
            time.sleep(wait_s)
            yield [_judgment(record, sample, seed, temperature) for sample in samples]

    return RewardModel(spec["name"], judge, sampled, accepts, span)


def _judgment(record, sample, seed, temperature):
    order, texts = shown_order(seed, record, sample, False), record.responses
    about = {"text": f"sample {sample}", "tokens": 3, "principles": [["worth", 1.0], ["x", None]]}
    if record.rubric:  # "8 3" scores 8 by the first criterion and 3 by the second
        shown = [texts[i].split() for i in order]
        boxes = [
            f"{criterion.name}: \\boxed{{{', '.join(words[c] for words in shown)}}}"
            for c, criterion in enumerate(record.rubric)
        ]
        text = "Scores:\n" + "\n".join(boxes)
        about |= {"text": text} | read_rubric(text, order, record.rubric)
        return new_judgment(record, sample, order, temperature, meta_logit=0.0, **about)
    failed = "fails" in texts or ("half" in texts and sample % 2)
    if failed:
        return new_judgment(record, sample, order, temperature, None, failure="no_box", **about)
    scores = [int(text) if text.isdecimal() else 1 for text in texts]
    # the Meta RM likes late samples; early ones see the first response as the best
    if "early" in texts and sample < 4:
        scores[0] = 100
    return new_judgment(
        record, sample, order, temperature, scores, meta_logit=float(sample), **about
    )


def honest(spec, asking, seed):
    return _model(spec, seed)


def bounded(spec, asking, seed):
    return _model(spec, seed, span=lambda n: 9)


def slow(spec, asking, seed):
    return _model(spec, seed, wait_s=0.05)


def pairs(spec, asking, seed):
    return _model(spec, seed, sampled=False, accepts=lambda n: n >= 2)
