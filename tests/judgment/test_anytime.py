"""Stopping early against what would have come: every completion, every order, and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judgment.anytime import BET, CERTAIN, TEST, decided, kept_so_far
from grm_jax.judgment.voting import select_by_meta, vote


def winner_of(samples, logits=None, k=None, k_meta=None):
    """The one response on top of the (guided) vote over these first samples of k, or None."""
    answers = [(1 - s[0], s[0]) if s is not None and len(s) == 1 else s for s in samples]
    if k_meta is not None:
        kept = select_by_meta(answers, logits, kept_so_far(len(samples), k, k_meta))
        answers = [answers[i] for i in kept]
    winners = vote(answers).winners
    return winners[0] if len(winners) == 1 else None


def stands(samples, k, scores, logits=None, k_meta=None):
    """Slow twin of the certain stop: every completion has the winner that is there."""
    winner = winner_of(samples, logits, k, k_meta)
    places = [None]
    if k_meta is not None:  # above, between and below the logits that are there
        seen = sorted({logit for logit in logits if logit is not None})
        places = [x - 0.5 for x in seen] + [seen[-1] + 0.5 if seen else 0.0]
        places += [seen[-1] + 0.7] if seen else [1.0]  # two new ones may differ
    futures = [(None, None), *itertools.product(scores, places)]
    return winner is not None and all(
        winner_of(
            [*samples, *(s for s, _ in more)], [*(logits or ()), *(x for _, x in more)], k, k_meta
        )
        == winner
        for more in itertools.combinations_with_replacement(futures, k - len(samples))
    )


@st.composite
def begun(draw, most_n=3, high=3):
    """(samples, logits, n, highest score) of a vote that has begun."""
    n = draw(st.integers(1, most_n))
    top = 1 if n == 1 else high
    scores = st.tuples(*[st.integers(0, top)] * n)
    samples = draw(st.lists(st.none() | scores, min_size=1, max_size=6))
    logits = [None if s is None else float(draw(st.integers(0, 3))) for s in samples]
    return samples, logits, n, top


@given(begun(), st.integers(1, 2))
@settings(max_examples=80, deadline=None)
def test_it_is_certain_exactly_where_every_completion_has_the_winner(vote_begun, to_come):
    samples, _, n, top = vote_begun
    k = len(samples) + to_come
    every = list(itertools.product(range(top + 1), repeat=n))
    found = decided(samples, k, float(top if n > 1 else 1))
    assert (found == CERTAIN) == stands(samples, k, every)


@given(begun(most_n=2, high=2), st.integers(1, 2), st.data())
@settings(max_examples=80, deadline=None)
def test_a_guided_vote_is_certain_exactly_where_every_completion_has_its_winner(
    vote_begun, to_come, data
):
    samples, logits, n, top = vote_begun
    k = len(samples) + to_come
    k_meta = data.draw(st.integers(1, k))
    every = list(itertools.product(range(top + 1), repeat=n))
    found = decided(samples, k, float(top if n > 1 else 1), 0.0, logits, k_meta)
    assert (found == CERTAIN) == stands(samples, k, every, logits, k_meta)


def test_examples():
    ahead = [(9, 2)] * 4
    assert decided(ahead, 8, 9.0) is None  # 28 against 36 that may come
    assert decided([*ahead, (9, 1)], 8, 9.0) == CERTAIN  # 36 against 27
    assert decided([(10, 1)] * 4, 8, 9.0) is None, "the rest may make it a tie"
    assert decided([(1,)] * 5, 8, 1.0) == CERTAIN and decided([(1,)] * 4, 8, 1.0) is None
    assert decided([(1, 9), None, (1, 9)], 4, 9.0) == CERTAIN
    assert decided([(5, 5)] * 7, 8, 9.0, 0.5) is None, "a tie is no verdict that stands"
    assert decided([None] * 7, 8, 9.0, 0.5) is None and decided([], 8, 9.0, 0.5) is None
    assert decided([(9, 2)] * 8, 8, 9.0, 0.5) is None, "all are drawn"
    assert decided([(9, 1)] * 7, 8, None, 0.5) is None, "who knows what may come"
    assert decided([(8, 2)] * 8, 32, 9.0, 0.05) == TEST
    assert decided([(8, 2)] * 4, 32, 9.0, 0.05) is None
    with pytest.raises(ValueError, match="meta_logits"):
        decided([(9, 2)] * 3, 8, 9.0, 0.05, [1.0, None, 1.0], 4)


def test_the_meta_rm_keeps_the_same_share_of_fewer():
    assert [kept_so_far(m, 32, 16) for m in (1, 2, 3, 4, 31, 32)] == [1, 1, 2, 2, 16, 16]
    assert kept_so_far(5, 7, 1) == 1 and kept_so_far(7, 7, 3) == 3


# ---- the test


def all_wealth(leads, k, span, kept=None, k_meta=None):
    """Slow twin of the gambler's wealth after each sample: sums from the start each time."""
    wealth = [1.0]
    for t, lead in enumerate(leads):
        before = [lead for i, lead in enumerate(leads[:t]) if kept is None or kept[i]]
        left = (k if kept is None else k_meta) - len(before)
        grown = wealth[-1]
        if kept is None or kept[t]:
            mean = -sum(before) / left
            if span + mean <= 0:
                return [*wealth, math.inf]
            grown *= 1 + BET * (lead - mean) / (span + mean)
        wealth.append(grown)
    return wealth


def hypergeometric(count, seen, k, k_meta):
    ways = math.comb(k_meta, count) * math.comb(k - k_meta, seen - count)
    return ways / math.comb(k, seen)


def passes_twin(samples, k, span, error, logits=None, k_meta=None):
    """Slow twin of the test, without the certain stop."""
    winner = winner_of(samples, logits, k, k_meta)
    if winner is None:
        return False
    answers = [(1 - s[0], s[0]) if s is not None and len(s) == 1 else s for s in samples]
    n = len(next(s for s in answers if s is not None))
    order = select_by_meta(answers, logits, len(samples)) if k_meta is not None else ()
    for rival in set(range(n)) - {winner}:
        leads = [0 if s is None else s[winner] - s[rival] for s in answers]
        if k_meta is None:
            reached = max(all_wealth(leads, k, span))
        else:
            reached = math.inf
            for above in range(len(samples) + 1):
                kept = [i in order[:above] for i in range(len(samples))]
                counts = [sum(kept[:t]) for t in range(len(samples) + 1)]
                likely = [hypergeometric(c, t, k, k_meta) for t, c in enumerate(counts)]
                if 0 in likely:
                    continue
                wealth = all_wealth(leads, k, span, kept, k_meta)
                known = [
                    w * (0.5 + 0.5 * scipy.stats.binom.pmf(c, t, k_meta / k / 2) / p)
                    for t, (w, c, p) in enumerate(zip(wealth, counts, likely))
                ]
                reached = min(reached, max(known))
        if reached < (n - 1) / error:
            return False
    return True


@given(
    begun(), st.integers(1, 10), st.sampled_from([0.02, 0.1, 0.3, 0.6]), st.booleans(), st.data()
)
@settings(max_examples=120, deadline=None)
def test_the_test_is_that_of_its_slow_twin(vote_begun, to_come, error, guided, data):
    samples, logits, n, top = vote_begun
    samples, logits = samples * 2, logits * 2
    k = len(samples) + to_come
    more = (logits, data.draw(st.integers(1, k))) if guided else ()
    span = float(top if n > 1 else 1)
    found = decided(samples, k, span, error, *more)
    if found != CERTAIN:
        assert (found == TEST) == passes_twin(samples, k, span, error, *more)
    assert (decided(samples, k, span, 0.0, *more) == CERTAIN) == (found == CERTAIN)


def left_wrong(samples, logits, k_meta, span, error):
    """Whether a vote of all these samples is left, at any look, with who is no winner of all."""
    k = len(samples)
    for drawn in range(1, k):
        more = () if k_meta is None else (logits[:drawn], k_meta)
        if decided(samples[:drawn], k, span, error, *more):
            winner = winner_of(samples[:drawn], logits[:drawn], k, k_meta)
            answers = [(1 - s[0], s[0]) if s is not None and len(s) == 1 else s for s in samples]
            if k_meta is not None:
                answers = [answers[i] for i in select_by_meta(answers, logits, k_meta)]
            return winner not in vote(answers).winners
    return False


@given(
    st.lists(st.sampled_from([(3, 0), (0, 3), (2, 1), (0, 1), None]), min_size=5, max_size=6),
    st.sampled_from([None, 2, 3]),
    st.sampled_from([0.2, 0.4]),
)
@settings(max_examples=15, deadline=None)
def test_over_all_orders_of_any_judgments_the_error_is_bounded(judgments, k_meta, error):
    """Exact: every order of the samples of an item is as likely."""
    logits = [None if s is None else float(i * 7 % 5) + i / 10 for i, s in enumerate(judgments)]
    orders = list(itertools.permutations(zip(judgments, logits)))
    wrong = sum(
        left_wrong([s for s, _ in order], [x for _, x in order], k_meta, 3.0, error)
        for order in orders
    )
    assert wrong <= error * len(orders)


@pytest.mark.parametrize("n, guided", [(1, False), (2, False), (3, False), (2, True), (3, True)])
def test_the_error_rate_by_simulation_where_it_is_hardest(n, guided):
    """Judgments without a preference: whom all 32 prefer is chance."""
    k, error, items = 32, 0.2, 60 if guided else 250
    rng = np.random.default_rng(n)
    wrong = 0
    for _ in range(items):
        scores_KN = rng.integers(0, 2, (k, 1)) if n == 1 else rng.choice([1, 10], (k, n))
        samples = [tuple(map(int, scores)) for scores in scores_KN]
        # good logits where the first is well judged: the kept ones differ from the others
        logits = list(map(float, rng.normal(size=k) + 0.1 * scores_KN[:, 0]))
        k_meta = 16 if guided else None
        wrong += left_wrong(samples, logits, k_meta, 1.0 if n == 1 else 9.0, error)
    stderr = math.sqrt(error * (1 - error) / items)
    assert wrong / items <= error + 2 * stderr
