import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm_jax.judgment.rules import (
    accept_hinted,
    accept_unhinted,
    best_index,
    is_correct,
    is_too_easy,
    meta_label,
    rule_reward,
    score_range,
)


@pytest.mark.parametrize(
    "scores, rewards, correct",
    [
        ((8, 7), (1.0, 0.0), True),
        ((7, 8), (1.0, 0.0), False),
        ((8, 8), (1.0, 0.0), False),  # a tie at the top is wrong
        ((9, 1, 1), (3.0, 2.0, 1.0), True),  # order among the losers does not matter
        ((9, 2, 9), (3.0, 2.0, 1.0), False),
        ((2, 4), (0.0, 1.0), True),  # the paper's RFT examples
        ((6, 1), (1.0, 0.0), True),
        ((1,), (1.0,), True),
        ((0,), (1.0,), False),
        ((0,), (0.0,), True),
        ((1,), (0.0,), False),
        (None, (1.0, 0.0), False),
        (None, (0.0,), False),
    ],
)
def test_eq_10_and_11(scores, rewards, correct):
    assert is_correct(scores, rewards) is correct
    reward = rule_reward({"scores": scores, "correct": correct}, None)
    assert reward == (1.0 if correct else -1.0)
    assert meta_label(scores, rewards) == (1.0 if correct else 0.0)


def test_ill_posed_questions_are_errors():
    with pytest.raises(ValueError, match="exactly one largest"):
        best_index((1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="exactly one largest"):
        is_correct((1, 2), (1.0, 1.0))
    with pytest.raises(ValueError, match="3 scores for 2 rewards"):
        is_correct((1, 2, 3), (1.0, 0.0))


def test_score_range():
    assert [score_range(n) for n in (1, 2, 7)] == [(0, 1), (1, 10), (1, 10)]


@given(
    st.lists(
        st.tuples(st.integers(1, 10), st.integers(-5, 5)),
        min_size=2,
        max_size=6,
        unique_by=lambda pair: pair[1],
    ),
    st.randoms(),
)
def test_correctness_ignores_the_order_of_responses(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert is_correct(*zip(*pairs)) == is_correct(*zip(*shuffled))


def test_rejection_of_unhinted_samples():
    T, F = True, False
    assert accept_unhinted([T, F, F], [None, None, "no_box"]) == [
        (T, "accepted"),
        (F, "incorrect"),
        (F, "parse_failure:no_box"),
    ]
    assert accept_unhinted([T, T, T], [None] * 3) == [(F, "too_easy")] * 3
    assert accept_unhinted([T, T, T], [None] * 3, drop_too_easy=False) == [(T, "accepted")] * 3
    assert accept_unhinted([F, F, F], [None, "truncated", None]) == [
        (F, "incorrect"),
        (F, "parse_failure:truncated"),
        (F, "incorrect"),
    ]
    assert accept_unhinted([], []) == []
    assert (is_too_easy([T, T]), is_too_easy([T, F]), is_too_easy([])) == (True, False, False)


def test_rejection_of_the_hinted_sample():
    assert accept_hinted(True, None, too_easy=False) == (True, "accepted")
    assert accept_hinted(False, None, too_easy=False) == (False, "incorrect")
    assert accept_hinted(False, "no_box", too_easy=False) == (False, "parse_failure:no_box")
    assert accept_hinted(True, None, too_easy=True) == (False, "hinted_too_easy")
    assert accept_hinted(True, None, too_easy=True, keep_hinted_of_too_easy=True) == (
        True,
        "accepted",
    )
    assert accept_hinted(False, None, too_easy=True) == (False, "incorrect")


def test_a_failed_sample_cannot_be_correct():
    with pytest.raises(ValueError, match="no_box"):
        accept_unhinted([True, False], ["no_box", None])
