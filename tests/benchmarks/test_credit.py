"""Credit conventions of the official runners, and figures over scores, against counting by hand."""

import itertools
import random

import pytest

from grm_jax.benchmarks import CREDIT, FAMILIES, all_pairs_won, best_of_k, roc_auc
from grm_jax.judgment.voting import vote

PAIR, LIST = (1.0, 0.0), (0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "samples, rewards, expected, strict, parsed, parsed_or_strict",
    [
        ([(9, 2)], PAIR, 1, 1, 1, 1),
        ([(2, 9)], PAIR, 0, 0, 0, 0),
        ([(5, 5)], PAIR, 0.5, 0, 0.5, 0.5),
        ([None], PAIR, 0.5, 0, 0, 0),
        ([(1, 7, 3, 7)], LIST, 0.5, 0, 0.5, 0),
        ([None, None], LIST, 0.25, 0, 0, 0),
        ([None, (1, 7, 3, 6)], LIST, 1, 1, 1, 1),
    ],
)
def test_conventions(samples, rewards, expected, strict, parsed, parsed_or_strict):
    verdict = vote(samples)
    assert {name: credit(verdict, rewards) for name, credit in CREDIT.items()} == {
        "expected": expected,
        "strict": strict,
        "parsed": parsed,
        "parsed_or_strict": parsed_or_strict,
    }


def test_all_pairs_won():
    assert all_pairs_won(vote([(2, 3, 1, 0)]), LIST) == 1.0
    assert all_pairs_won(vote([(2, 3, 1, 0), (1, 2, 2, 1)]), LIST) == 0.0
    assert all_pairs_won(vote([None]), LIST) == 0.0
    lead = vote([(3, 2, 2, 2, 1)])  # ahead, but one pair was lost
    assert (
        all_pairs_won(lead, (1, 0, 0, 0, 0)) == 0.0
        and CREDIT["strict"](lead, (1, 0, 0, 0, 0)) == 1.0
    )


def test_best_of_k_counts_all_subsets():
    rng = random.Random(0)
    for _ in range(20):
        n = rng.randint(1, 7)
        scores = [rng.choice([None, 1, 2, 3]) for _ in range(n)]
        right = [rng.random() < 0.5 for _ in range(n)]
        for k in range(1, n + 1):
            chances = []
            for subset in itertools.combinations(range(n), k):
                top = max(-9 if scores[i] is None else scores[i] for i in subset)
                tied = [right[i] for i in subset if (-9 if scores[i] is None else scores[i]) == top]
                chances.append(sum(tied) / len(tied))
            assert best_of_k(scores, right, k) == pytest.approx(sum(chances) / len(chances))
    with pytest.raises(ValueError, match="best of 3 of 2 candidates"):
        best_of_k([1, 2], [True, False], 3)


def test_roc_auc_counts_pairs():
    rng = random.Random(1)
    for _ in range(20):
        scores = [rng.choice([None, 0, 1, 2]) for _ in range(8)]
        labels = [i < 3 for i in range(8)]
        worth = [
            0.5 if a is None or b is None or a == b else float(a > b)
            for a in scores[:3]
            for b in scores[3:]
        ]
        assert roc_auc(scores, labels) == pytest.approx(sum(worth) / len(worth))
    assert roc_auc([1, 2], [True, True]) is None and roc_auc([None, None], [True, False]) == 0.5


def test_official_conventions_have_names(tmp_path):
    from grm_jax.benchmarks import load_benchmark
    from tests.benchmarks import official_files

    for kind in FAMILIES:
        official = load_benchmark(official_files.WRITERS[kind](tmp_path / kind)).official
        assert official is None or (
            {official.scalar, official.generative} <= CREDIT.keys()
            and official.orders in (None, "mean", "verdicts")
        )
