"""CLoud: critiques of single responses, rewards of critiqued responses, failures by name, and the
training examples of critic and head.
"""

import dataclasses
import json
import re

import numpy as np
import pytest

from grm_jax.data.world import make_critiques
from grm_jax.reward_models import cloud as module
from grm_jax.reward_models.cloud import cloud, critic_example, critic_prompt, head_examples
from tests.reward_models.judge_cases import EOS, TOKENIZER, FakeSampler, record


def critique(prompt, key):
    """Says what the response is worth, and a digit that depends on the sample."""
    (worth,) = re.findall(r"I am worth (\d+)\.", prompt)
    if worth in ("14", "15"):  # says nothing, or something, behind its reasoning
        said = "" if worth == "14" else "It says 4 and a bit 2"
        return f"<think>It says 99 and a bit 9</think>{said}", True
    return f"It says {worth} and a bit {key[0] % 10}", worth != "13"  # 13 runs into the token limit


def head(params, tokens_BT, positions_BT):
    """Reads the critique: worth + digit / 100."""
    texts = [
        TOKENIZER.decode(tokens[positions >= 0])
        for tokens, positions in zip(tokens_BT, positions_BT)
    ]
    said = [re.search(r"It says (\d+) and a bit (\d)$", text) for text in texts]
    return np.array(
        [0.0 if match is None else int(match[1]) + int(match[2]) / 100 for match in said]
    )


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr(module, "make_scorer", lambda cfg: head)
    asked = []

    def sampler_of(temperature):
        asked.append(temperature)
        return FakeSampler(critique)

    def model(rows=4, sequence_buckets=(256, 320)):
        return cloud(
            "cloud",
            sampler_of,
            {},
            {},
            None,
            TOKENIZER,
            seed=0,
            buckets=(64, 96),
            sequence_buckets=sequence_buckets,
            rows=rows,
            completion=200,
        ), asked

    return model


def judged(model, records, samples=(0,), **how):
    rows = [row for block in model.judge(records, samples, **how) for row in block]
    json.dumps(rows)
    return rows


def test_scores_are_the_rewards_of_critiqued_responses(build):
    model, asked = build()
    assert model.sampled and model.accepts(1) and model.accepts(6)
    rows = judged(
        model,
        [record("a", (4, 70, 1)), record("b", (9,), gold=False)],
        samples=(0, 1, 5),
        temperature=0.7,
    )
    assert asked == [0.7]
    assert [(row["id"], row["sample"]) for row in rows] == [
        (name, sample) for name in "ab" for sample in (0, 1, 5)
    ]
    for row in rows:
        assert [int(score) for score in row["scores"]] == ([4, 70, 1] if row["id"] == "a" else [9])
        assert (
            row["failure"] is None
            and row["temperature"] == 0.7
            and row["order"] == list(range(len(row["scores"])))
        )
        assert row["tokens"] == sum(len(text) + 1 for text in row["critiques"])
        assert row["text"] == "\n".join(
            f"[Response {i}] {text}" for i, text in enumerate(row["critiques"], 1)
        )
    assert len({tuple(row["scores"]) for row in rows if row["id"] == "a"}) > 1  # samples differ
    one = {row["sample"]: row["scores"] for row in rows if row["id"] == "a"}
    # so do the responses of one sample
    assert len({score % 1 for score in one[0]}) > 1 or len({score % 1 for score in one[1]}) > 1


def test_a_row_depends_on_its_record_and_sample_alone(build):
    records = [record(f"r{i}", (i + 1, i + 20)) for i in range(7)]
    together = {
        (row["id"], row["sample"]): row for row in judged(build()[0], records, samples=range(4))
    }
    alone = judged(build(rows=2)[0], [records[3]], samples=(2,), swapped=True)
    assert alone == [together["r3", 2]]
    many = judged(build(rows=2)[0], records[3:4], samples=range(5))  # more samples than rows
    assert many[2] == together["r3", 2] and len(many) == 5


def test_a_critique_that_was_cut_fails_its_sample_and_stays_on_record(build):
    rows = judged(build()[0], [record("a", (4, 13)), record("b", (4, 5))])
    assert [(row["scores"] is None, row["failure"]) for row in rows] == [
        (True, "truncated"),
        (False, None),
    ]
    assert rows[0]["text"].startswith("[Response 1] It says 4") and rows[0]["tokens"] > 0


def test_the_head_reads_no_reasoning_and_a_critique_of_nothing_else_fails(build):
    thought, silent = judged(build()[0], [record("a", (5, 15)), record("b", (5, 14))])
    assert thought["scores"][1] == 4.02 and thought["failure"] is None
    assert silent["scores"] is None and silent["failure"] == "only_reasoning"
    assert thought["critiques"][1].startswith("<think>"), "what was written stays on record"


def test_too_long_for_the_critic_or_for_the_head(build):
    rows = judged(
        build()[0],
        [record("a", (4, 5)), record("long", (4, 5), words=30), record("b", (2,), gold=False)],
        samples=(0, 1),
    )
    assert [row["failure"] for row in rows] == [None, None, "too_long", "too_long", None, None]
    with pytest.raises(
        ValueError,
        match=r"sequence_buckets end in 256; expected at least the longest prompt and critique, 96 "
        r"\+ "
        r"200",
    ):
        build(sequence_buckets=(256,))


def test_the_critic_sees_one_response_and_no_gold():
    one = record("r", (2, 9, 5))
    assert critic_prompt(one, 1) == "[User] speak speak speak\n[Response 1] I am worth 9.\n"
    assert critic_prompt(dataclasses.replace(one, rewards=None), 1) == critic_prompt(one, 1)


def test_critic_examples_learn_the_critique_alone():
    (one, *_) = make_critiques(1)
    example = critic_example(TOKENIZER, one)
    learned = example["tokens"][example["mask"] > 0]
    assert TOKENIZER.decode(learned) == one.metadata["critique"] and learned[-1] == EOS
    assert (
        TOKENIZER.decode(example["tokens"][example["mask"] == 0]).strip()
        == critic_prompt(one, 0).strip()
    )
    with pytest.raises(ValueError, match="record 'r': expected one response and its \"critique\""):
        critic_example(TOKENIZER, record("r", (1,)))


def test_head_examples_are_gold_pairs_of_critiqued_responses():
    examples = head_examples(TOKENIZER, record("r", (2, 9, 5)), ["first", "second", "third"])
    texts = [
        [
            TOKENIZER.decode(e[f"{name}_tokens"][e[f"{name}_positions"] >= 0])
            for name in ("better", "worse")
        ]
        for e in examples
    ]
    assert [[text.rsplit("\n", 1)[-1] for text in pair] for pair in texts] == [
        ["second", "first"],
        ["second", "third"],
        ["third", "first"],
    ]
    assert all("worth 9." in better or "worth 5." in better for better, _ in texts)
