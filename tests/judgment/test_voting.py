import collections
import fractions

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm_jax.judgment.records import response_order, to_record_order
from grm_jax.judgment.voting import (
    Verdict,
    default_k_meta,
    expected_credit,
    is_tie,
    pick_winner,
    select_by_meta,
    strict_credit,
    vote,
)


def test_figure_3_of_the_paper():
    samples = [(1, 5), (5, 6), (4, 8), (7, 6)]
    assert vote(samples) == Verdict((17, 25), (1,), valid=4, failed=0)
    kept = select_by_meta(samples, [1.2, -0.3, 2.0, 0.1], 2)
    assert sorted(kept) == [0, 2]
    assert vote([samples[i] for i in kept]).totals == (5, 13)


def test_table_17_of_the_paper():
    """Three outputs boxed 8,8 / 9,5 / 10,7; the second and third saw the responses reversed."""
    boxed, orders = [(8, 8), (9, 5), (10, 7)], [(0, 1), (1, 0), (1, 0)]
    samples = [to_record_order(scores, order) for scores, order in zip(boxed, orders)]
    assert vote(samples).totals == (20, 27)
    kept = select_by_meta(samples, [-15.7781, 1.3126, 1.6739], k_meta=2)
    assert kept == (2, 1)
    assert vote([samples[i] for i in kept]).totals == (12, 19)


def test_failed_samples_are_left_out_and_counted():
    assert vote([(9, 1), None, (1, 2), None]) == Verdict((10, 3), (0,), valid=2, failed=2)
    assert vote([None, None]) == Verdict(None, (), valid=0, failed=2)
    assert vote([]) == Verdict(None, (), valid=0, failed=0)
    with pytest.raises(ValueError):
        vote([(1, 2), (1, 2, 3)])


@pytest.mark.parametrize(
    "samples, rewards, expected, strict, tie",
    [
        ([(9, 1)], (1, 0), 1, 1, False),
        ([(9, 1)], (0, 1), 0, 0, False),
        ([(5, 5)], (0, 1), "1/2", 0, True),
        ([(5, 5, 1)], (0, 0, 1), 0, 0, True),
        ([(5, 5, 5)], (0, 0, 1), "1/3", 0, True),
        ([None], (0, 0, 0, 1), "1/4", 0, False),
        ([(1,), (1,), (0,)], (1,), 1, 1, False),
        ([(1,), (1,), (0,)], (0,), 0, 0, False),
        ([(0,), None, (0,)], (0,), 1, 1, False),
        ([(1,), (0,)], (0,), "1/2", 0, True),
        ([None], (1,), "1/2", 0, False),
    ],
)
def test_credit(samples, rewards, expected, strict, tie):
    verdict = vote(samples)
    assert expected_credit(verdict, rewards) == float(fractions.Fraction(expected))
    assert strict_credit(verdict, rewards) == strict
    assert is_tie(verdict) == tie


def test_credit_checks_its_input():
    with pytest.raises(ValueError, match="2 responses against 3 rewards"):
        expected_credit(vote([(1, 2)]), (1, 0, 0))
    with pytest.raises(ValueError, match="scores 0 or 1"):
        expected_credit(vote([(7,)]), (1,))


lists = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.none() | st.tuples(*[st.integers(1, 10)] * n), min_size=1, max_size=8)
)


@given(lists, st.randoms(), st.integers(0, 99))
def test_the_vote_does_not_depend_on_any_order(samples, random, seed):
    """Neither on the order of samples, nor on the order in which each sample saw the responses."""
    n = next((len(sample) for sample in samples if sample), 2)
    seen = []
    for i, sample in enumerate(samples):
        order = response_order(seed, "item", i, n)
        seen.append(None if sample is None else to_record_order([sample[j] for j in order], order))
    assert vote(random.sample(seen, len(seen))) == vote(samples)


@given(lists)
def test_renaming_the_responses_renames_the_verdict(samples):
    flipped = vote([sample and sample[::-1] for sample in samples])
    verdict = vote(samples)
    assert flipped.totals == (verdict.totals and verdict.totals[::-1])
    if verdict.totals:
        rewards = [0.0] * len(verdict.totals)
        rewards[0] = 1.0
        assert (
            expected_credit(flipped, rewards[::-1])
            == expected_credit(verdict, rewards)
            >= strict_credit(verdict, rewards)
        )


@given(lists)
def test_credits_over_all_golds_sum_to_one(samples):
    verdict = vote(samples)
    if verdict.totals:
        n = len(verdict.totals)
        golds = [[float(i == j) for i in range(n)] for j in range(n)]
        assert sum(expected_credit(verdict, gold) for gold in golds) == pytest.approx(1.0)


def test_tie_break_is_seeded_and_fair():
    tied = vote([(3, 9, 9, 1, 9)])
    assert pick_winner(tied, 0, "a") == pick_winner(tied, 0, "a")
    assert pick_winner(vote([(1, 9)]), 0, "a") == 1
    assert pick_winner(vote([None]), 0, "a") is None
    counts = collections.Counter(pick_winner(tied, 0, f"item-{i}") for i in range(3000))
    # 4 standard deviations
    assert set(counts) == {1, 2, 4} and all(abs(count - 1000) < 110 for count in counts.values())
    # fixed for ever
    assert [pick_winner(tied, 0, record_id) for record_id in "abcdef"] == [2, 1, 2, 4, 1, 2]


def test_k_meta():
    assert [default_k_meta(k) for k in (1, 2, 3, 8, 33)] == [1, 1, 1, 4, 16]
    # default k/2 rounded down; ties by sample index
    assert select_by_meta([(1, 2)] * 5, [0.0] * 5) == (0, 1)
    assert select_by_meta([(1, 2)] * 4, [0.5, 1.0, 0.5, 1.0], 3) == (1, 3, 0)
    # valid ones first, whatever the logit
    assert select_by_meta([None, (1, 2), None, (2, 1)], [9.0, -1.0, None, 0.0], 2) == (3, 1)
    assert select_by_meta([None, (1, 2), None], [None, -1.0, 5.0], 3) == (1, 0, 2)
    for k_meta in (0, 3):
        with pytest.raises(ValueError, match="k_meta: expected 1 to 2"):
            select_by_meta([(1, 2)] * 2, [0.0, 0.0], k_meta)
    for logit in (None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="meta_logits\\[1\\]"):
            select_by_meta([(1, 2)] * 2, [0.0, logit])
    with pytest.raises(ValueError):
        select_by_meta([(1, 2)] * 2, [0.0])


@given(lists, st.data())
def test_keeping_all_samples_is_the_plain_vote(samples, data):
    logits = data.draw(st.lists(st.floats(-20, 20), min_size=len(samples), max_size=len(samples)))
    kept = select_by_meta(samples, logits, len(samples))
    assert sorted(kept) == list(range(len(samples)))
    assert vote([samples[i] for i in kept]) == vote(samples)
