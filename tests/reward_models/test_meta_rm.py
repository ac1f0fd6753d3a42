"""Examples and scores of the Meta RM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.judgment.prompts import load_template, render_meta_prompt
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.models.heads import init_scalar_params
from grm_jax.reward_models.grm import Ask, judge
from grm_jax.reward_models.meta_rm import (
    add_logits,
    make_scorer,
    meta_examples,
    meta_ids,
    of_size,
    score_sequences,
)
from tests.reward_models.judge_cases import PROMPTER, TOKENIZER, FakeSampler, judgment, record

TEMPLATE = load_template("tiny_meta")
CFG = ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(2),
    sliding_window=4,
    query_pre_attn_scalar=8.0,
    scan_layers=False,
)


def rows_of(asks, text):
    batches = judge(
        FakeSampler(lambda prompt, key: (text, True)),
        {},
        PROMPTER,
        asks,
        seed=0,
        temperature=1.0,
        buckets=(256,),
        rows=4,
    )
    return [one.judgment for batch in batches for one in batch]


def test_a_meta_rm_reads_no_reasoning():
    one, row = record("r", (2, 7)), {"order": (1, 0), "text": judgment([9, 3])}
    thought = row | {"text": f"<think>{judgment([1, 8])}</think>\n{row['text']}"}
    assert meta_ids(TOKENIZER, TEMPLATE, one, thought) == meta_ids(TOKENIZER, TEMPLATE, one, row)


def test_examples_are_unhinted_judgments_with_the_rules_label():
    one, single = record("r", (2, 7)), record("s", (1,))
    asks = [
        Ask(one, (1, 0), (0,), "r"),
        Ask(one, (0, 1), (1,), "r"),
        Ask(one, (0, 1), (2,), "r", hinted=True),
    ]
    rows = rows_of(asks, judgment([9, 3]))  # right where the better response is shown first
    rows += rows_of([Ask(one, (0, 1), (3,), "r")], "no idea") + rows_of(
        [Ask(single, (0,), (0,), "s")], judgment([1])
    )
    examples = meta_examples(TOKENIZER, TEMPLATE, {"r": one, "s": single}, rows)
    assert [(e["id"], e["labels"]) for e in examples] == [
        ("r", 1.0),
        ("r", 0.0),
        ("r", 0.0),
        ("s", 1.0),
    ]
    kept = [row for row in rows if not row["hinted"]]
    for example, row, of in zip(examples, kept, (one, one, one, single)):
        prompt = render_meta_prompt(TEMPLATE, of, row["order"])
        assert example["tokens"].tolist() == TOKENIZER.chat_prompt(
            prompt
        ) + TOKENIZER.chat_completion(row["text"])
        assert example["positions"].tolist() == list(range(len(example["tokens"])))
        shown = [prompt.index(of.responses[i]) for i in row["order"]]
        assert shown == sorted(shown)  # the responses stand as the judge saw them


def test_a_judgment_that_the_meta_rm_cannot_read_is_a_named_failure():
    """The others are scored, and evaluation goes on: a guided vote has no place for it."""
    one = record("r", (2, 7))
    fits, long, failed = rows_of([Ask(one, (0, 1), (0, 1, 2), "r")], judgment([3, 9]))
    long["text"] += " and so on" * 40
    failed |= {"failure": "no_box", "scores": None}
    limit = len(meta_ids(TOKENIZER, TEMPLATE, one, fits))

    def scorer(params, tokens_BT, positions_BT):
        return np.arange(len(tokens_BT)) + 7.0

    rows = [fits, long, failed]
    add_logits(rows, {"r": one}, scorer, {}, TOKENIZER, TEMPLATE, (limit,), 2)
    assert [row["failure"] for row in rows] == [None, "too_long_for_meta", "no_box"]
    assert [row["meta_logit"] for row in rows] == [7.0, None, None]
    assert long["scores"] is None and long["correct"] is False and fits["correct"] is True


def test_the_hint_is_never_part_of_the_input():
    one = record("r", (2, 7))
    (row,) = rows_of([Ask(one, (1, 0), (0,), "r", hinted=True)], judgment([9, 3]))
    assert "The best response is" not in TOKENIZER.decode(meta_ids(TOKENIZER, TEMPLATE, one, row))


@pytest.fixture(scope="module")
def scored():
    """(scorer, params, eleven sequences of 1 to 16 tokens)."""
    params = init_scalar_params(CFG, init_params(CFG, jax.random.key(0)), jax.random.key(1))
    rng = np.random.default_rng(0)
    sequences = [
        rng.integers(0, CFG.vocab_size, size=n).tolist()
        for n in (5, 16, 1, 8, 9, 3, 12, 8, 2, 7, 16)
    ]
    return make_scorer(CFG), params, sequences


def test_scores_in_batches_are_those_of_one_by_one(scored):
    scorer, params, sequences = scored
    alone = [
        score for s in sequences for score in score_sequences(scorer, params, [s], (8, 16), rows=1)
    ]
    assert np.std(alone) > 0.1
    # the last batch has a padding row
    np.testing.assert_allclose(
        score_sequences(scorer, params, sequences, (8, 16), rows=4), alone, atol=1e-5
    )
    bare = sequences[4]  # nine tokens, with no padding at all
    np.testing.assert_allclose(
        scorer(params, jnp.array([bare]), jnp.arange(9)[None]), alone[4:5], atol=1e-5
    )


def test_no_sequences_no_scores_and_too_long_is_an_error(scored):
    scorer, params, sequences = scored
    assert score_sequences(scorer, params, [], (8,), 4) == []
    with pytest.raises(ValueError, match="length 9 exceeds the largest of the buckets"):
        score_sequences(scorer, params, sequences, (8,), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error(value):
    """No place in a vote, no score, no winner of a pair is made of it."""

    def scorer(params, tokens_BT, positions_BT):
        return np.where(tokens_BT[:, 0] == 9, value, 1.0)

    scores = score_sequences(scorer, {}, [[1, 2], [3]], (4,), 2)
    assert scores == [1.0, 1.0]
    with pytest.raises(
        ValueError, match=rf"the logit of a sequence of 3 tokens is {value}, not finite"
    ):
        score_sequences(scorer, {}, [[1, 2], [9, 2, 3]], (4,), 2)


def test_judgments_are_scored_in_full_batches_and_none_is_lost_before_an_error():
    def blocks():
        yield from ([{"n": 0}], [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}], [], [{"n": 5}])
        raise OSError("the disk is full")

    given = []
    with pytest.raises(OSError):
        for block in of_size(blocks(), 4):
            given.append([row["n"] for row in block])
    assert given == [[0, 1, 2, 3], [4, 5]]
    assert [len(block) for block in of_size(iter([[{}] * 9]), 4)] == [4, 4, 1]
