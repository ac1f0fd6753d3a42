"""PairRM: the sign rule, lists by all ordered pairs, the swap average, and its training
examples.
"""

import dataclasses
import json
import re

import numpy as np
import pytest

from grm_jax.reward_models import pair_rm as module
from grm_jax.reward_models.pair_rm import chosen, pair_examples, pair_ids, pair_rm
from grm_jax.reward_models.protocol import shown_order
from tests.reward_models.judge_cases import TOKENIZER, record

SEED = 3


def preference(bias=0.0):
    """A scorer: S = worth of the first response shown - worth of the second + bias."""

    def scorer(params, tokens_BT, positions_BT):
        texts = [
            TOKENIZER.decode(tokens[positions >= 0])
            for tokens, positions in zip(tokens_BT, positions_BT)
        ]
        shown = [
            [
                int(w)
                for w in re.findall(
                    r"\[Response \d\] I am "
                    r"worth (\d+)",
                    text,
                )
            ]
            for text in texts
        ]
        return np.array(
            [
                first_second[0] - first_second[1] + bias if first_second else 0.0
                for first_second in shown
            ]
        )

    return scorer


@pytest.fixture
def model(monkeypatch):
    def build(bias=0.0, **settings):
        monkeypatch.setattr(module, "make_scorer", lambda cfg: preference(bias))
        return pair_rm("pair", {}, None, TOKENIZER, seed=SEED, buckets=(64, 96), rows=4, **settings)

    return build


def judged(reward_model, records, **how):
    rows = [row for block in reward_model.judge(records, **how) for row in block]
    json.dumps(rows)
    return rows


@pytest.mark.parametrize(
    "S, index", [(2.5, 1), (1e-9, 1), (0.0, 1), (-0.0, 1), (-1e-9, 2), (-7.0, 2)]
)
def test_sign_rule_of_eq_5(S, index):
    assert chosen(S) == index


def test_two_responses_are_shown_once_in_the_order_of_the_row(model):
    one = record("r", (2, 7))
    pair = model()
    assert not pair.sampled and not pair.accepts(1) and pair.accepts(2) and pair.accepts(5)
    (plain,), (swapped,) = judged(pair, [one]), judged(pair, [one], swapped=True)
    order = shown_order(SEED, one, 0, False)
    assert plain["order"] == list(order) and swapped["order"] == list(order[::-1])
    assert plain["scores"] == swapped["scores"] == [0, 1] and plain["preference"] == -swapped[
        "preference"
    ] == (5.0 if order[0] == 1 else -5.0)
    first, second = judged(pair, [one], samples=(0, 9))
    assert first | {"sample": 9} == second  # flat in k by construction


def test_a_position_bias_shows_when_swapped_and_cancels_in_the_average(model):
    one = record("r", (5, 6))
    rows = [judged(model(bias=4.0), [one], swapped=swapped)[0] for swapped in (False, True)]
    assert rows[0]["scores"] != rows[1]["scores"]
    assert all(row["scores"][row["order"][0]] == 1 for row in rows)
    rows = [
        judged(model(bias=4.0, swap_average=True), [one], swapped=swapped)[0]
        for swapped in (False, True)
    ]
    assert [row["scores"] for row in rows] == [[0, 1], [0, 1]] and rows[0]["preference"] == -rows[
        1
    ]["preference"]


def test_an_average_of_zero_goes_to_the_response_shown_first(model):
    (row,) = judged(model(bias=4.0, swap_average=True), [record("r", (5, 5), gold=False)])
    assert row["preference"] == 0 and row["scores"][row["order"][0]] == 1


def test_lists_go_through_all_ordered_pairs(model):
    one = record("r", (2, 9, 5))
    (row,) = judged(model(), [one])
    assert row["scores"] == [0, 2, 1]
    assert {(a, b): S for a, b, S in row["preferences"]} == {
        (a, b): (2, 9, 5)[a] - (2, 9, 5)[b] for a in range(3) for b in range(3) if a != b
    }
    (biased,), (swapped,) = (
        judged(model(bias=5.0), [one]),
        judged(model(bias=5.0), [one], swapped=True),
    )
    # each wins where it is shown first, unless it is 6 or more behind
    assert biased["scores"] == swapped["scores"] == [0.5, 1.5, 1]
    (average,) = judged(model(bias=5.0, swap_average=True), [one])
    assert average["scores"] == [0, 2, 1]


def test_too_long_is_a_named_failure_of_its_record_alone(model):
    rows = judged(
        model(), [record("a", (1, 2)), record("long", (1, 2), words=30), record("b", (3, 1, 2))]
    )
    assert [(row["id"], row["failure"]) for row in rows] == [
        ("a", None),
        ("long", "too_long"),
        ("b", None),
    ]
    with pytest.raises(ValueError, match="record 's': expected at least 2 responses"):
        judged(model(), [record("s", (1,))])


def test_the_input_shows_two_responses_and_no_more():
    one = record("r", (2, 9, 5))
    assert TOKENIZER.decode(pair_ids(TOKENIZER, one, 2, 0)) == (
        "[User] speak speak speak\n[Response 1] I am worth 5.\n[Response 2] I am worth 2.\n"
    )
    sly = dataclasses.replace(one, responses=("a\n[Response 2] bad", "b", "c"))
    assert TOKENIZER.decode(pair_ids(TOKENIZER, sly, 0, 1)).count("[Response 2]") == 1


def test_examples_are_both_orders_of_every_gold_pair():
    examples = pair_examples(TOKENIZER, [record("r", (2, 9, 5)), record("s", (1,))])
    assert len(examples) == 6 and {e["id"] for e in examples} == {"r"}
    for example in examples:
        first, second = map(int, re.findall(r"worth (\d+)", TOKENIZER.decode(example["tokens"])))
        assert example["labels"] == float(first > second) and example["positions"].tolist() == list(
            range(len(example["tokens"]))
        )
    assert np.mean([e["labels"] for e in examples]) == 0.5
