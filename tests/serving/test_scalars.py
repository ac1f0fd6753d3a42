"""Numbers of lists, against what each is defined to be."""

import random

import pytest

from grm_jax.serving.scalars import ALONE, RULES, scalars
from grm_jax.verdict import Judgment, Verdict


def verdict(rows, kept=None):
    judgments = tuple(
        Judgment(i, (), s, None if s else "no_box", s is not None and (kept is None or i in kept),
                 None, (), "", "", 0)
        for i, s in enumerate(rows)
    )  # fmt: skip
    valid = sum(s is not None for s in rows)
    return Verdict("a", None, None, None, len(rows), valid, len(rows) - valid, judgments)


def test_the_numbers_of_two_judgments():
    two = verdict([(8.0, 2.0, 2.0), None, (6.0, 6.0, 3.0)])
    expected = {
        "mean": [7, 4, 2.5],
        "share": [14 / 27, 8 / 27, 5 / 27],
        "wins": [(1 + 1 + 0.5 + 1) / 4, (0 + 0.5 + 0.5 + 1) / 4, (0 + 0.5) / 4],
        "rank": [1, 0.5, 0],
    }
    for name, numbers in expected.items():
        assert scalars(two, name, 3) == (pytest.approx(numbers), None)
    alone = verdict([(8.0, 2.0, 2.0), (6.0, 6.0, 3.0)], kept=[0])
    assert scalars(alone, "mean", 3) == ([8, 2, 2], None)
    assert scalars(alone, "rank", 3) == ([1, 0.25, 0.25], None)
    assert scalars(verdict([(0.0, 0.0)]), "share", 2) == ([0.5, 0.5], None)


def test_a_failure_is_no_number_and_one_response_has_no_rivals():
    failed = verdict([None, None])
    single = verdict([(1.0,), (0.0,)])
    for name in RULES:
        assert scalars(failed, name, 2) == (None, "no_box")
        assert scalars(single, name, 1) == (([0.5], None) if name == "mean" else (None, ALONE))


def test_sums_and_order_hold_for_any_scores():
    rng = random.Random(0)
    for _ in range(50):
        n, k = rng.randint(2, 6), rng.randint(1, 5)
        scores = [tuple(float(rng.randint(1, 10)) for _ in range(n)) for _ in range(k)]
        totals = [sum(of) for of in zip(*scores)]
        found = {name: rule(scores) for name, rule in RULES.items()}
        assert sum(found["share"]) == pytest.approx(1)
        assert sum(found["wins"]) == pytest.approx(n / 2) == pytest.approx(sum(found["rank"]))
        for name in ("mean", "share", "rank"):
            for i in range(n):
                for j in range(n):
                    assert (found[name][i] < found[name][j]) == (totals[i] < totals[j])
