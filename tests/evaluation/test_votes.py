"""The vectorized votes against a slow twin built on grm_jax.judgment.voting, and the statistics
around them.
"""

import random

import numpy as np
import pytest

from grm_jax.evaluation import votes
from grm_jax.judgment.records import Record, Turn
from grm_jax.judgment.rules import is_correct
from grm_jax.judgment.voting import expected_credit, is_tie, select_by_meta, strict_credit, vote
from tests.evaluation import fabricated


def rows_of(system="base", split="wide", items=9, samples=8, seed=0, failures=0.3):
    """Sampled rows with many failures and coarse logits, so that lost votes, ties and equal logits
    all occur.
    """
    rng, rows = random.Random(seed), []
    for record in fabricated.records(split, items, seed):
        for sample in range(samples):
            row = fabricated.judgment(record, system, split, sample, 1.0, rng)
            if rng.random() < failures:
                row |= {"scores": None, "failure": "no_box", "meta_logit": None}
            else:
                row["meta_logit"] = float(rng.randrange(3))
            rows.append(row)
    return rows


def pool_of(rows):
    """A pool of rows that carry their gold, as fabricated ones do."""
    records = {
        row["id"]: Record(
            row["id"],
            (Turn("user", "q"),),
            ("r",) * len(row["rewards"] or row["scores"]),
            row["rewards"] and tuple(row["rewards"]),
        )
        for row in reversed(rows)  # the first of an item says
    }
    return votes.make_pool(records.values(), rows)


def slow_twin(rows, item, index_Vk, k_meta):
    """Means over the subsets of (credit, strict, tie, lost) for one item, vote by vote."""
    samples = sorted((row for row in rows if row["id"] == item), key=lambda row: row["sample"])
    rewards, results = samples[0]["rewards"], []
    for index_k in index_Vk:
        group = [samples[i] for i in sorted(index_k)]
        if k_meta is not None:
            group = [
                group[i]
                for i in select_by_meta(
                    [row["scores"] for row in group], [row["meta_logit"] for row in group], k_meta
                )
            ]
        verdict = vote([row["scores"] for row in group])
        results.append(
            (
                expected_credit(verdict, rewards),
                strict_credit(verdict, rewards),
                is_tie(verdict),
                verdict.totals is None,
            )
        )
    return np.array(results, float).mean(axis=0)


@pytest.mark.parametrize("split", ["test", "wide", "single"])
@pytest.mark.parametrize(
    "k,k_meta", [(1, None), (2, None), (3, None), (8, None), (1, 1), (2, 1), (3, 2), (8, 4), (8, 8)]
)
def test_votes_equal_the_slow_twin(split, k, k_meta):
    rows = rows_of(split=split, failures=0.45)
    pool = pool_of(rows)
    found = votes.estimate(pool, k, k_meta, shuffles=3, seed=5)
    index_IVk = votes.subsets(pool.ids, pool.samples, k, 3, 5)
    expected = np.array(
        [slow_twin(rows, item, index_IVk[i], k_meta) for i, item in enumerate(pool.ids)]
    )
    np.testing.assert_allclose(
        np.stack([found.credit_I, found.strict_I, found.tie_I, found.lost_I], axis=1),
        expected,
        atol=1e-12,
    )
    if k == 2 and k_meta is None:
        assert expected[:, 3].any() and expected[:, 2].any(), (
            "the fabricated rows should contain lost votes and ties"
        )


def test_golden_example_of_the_paper_guided_vote():
    """METHOD 1.9: (1,5), (5,6), (4,8), (7,6); the Meta RM keeps samples 1 and 3."""
    rows = [
        {
            "id": "a",
            "sample": s,
            "scores": list(scores),
            "rewards": [0, 1],
            "tokens": 1,
            "meta_logit": logit,
        }
        for s, (scores, logit) in enumerate(
            zip([(1, 5), (5, 6), (4, 8), (7, 6)], [2.0, -1.0, 1.0, -2.0])
        )
    ]
    pool = pool_of(rows)
    assert votes.estimate(pool, 4).credit_I == 1 and votes.estimate(pool, 4, 2).credit_I == 1
    rows[0]["rewards"] = [1, 0]
    assert votes.estimate(pool_of(rows), 4, 2).credit_I == 0


def test_subsets_are_disjoint_seeded_and_depend_on_the_item_alone():
    index_IVk = votes.subsets(("a", "b"), 32, 8, 4, 1)
    assert index_IVk.shape == (2, 16, 8)
    for shuffle in index_IVk[0].reshape(4, 32):
        assert sorted(shuffle) == list(range(32))
    np.testing.assert_array_equal(votes.subsets(("zz", "a"), 32, 8, 4, 1)[1], index_IVk[0])
    assert (votes.subsets(("a",), 32, 8, 4, 2) != index_IVk[0]).any()
    assert votes.subsets(("a",), 32, 1, 4, 1).shape == (1, 32, 1), "k = 1 uses every sample once"
    assert votes.subsets(("a",), 30, 8, 2, 1).shape == (1, 6, 8), (
        "two samples of 30 stand aside in each shuffle"
    )
    with pytest.raises(ValueError, match="k = 9 judgments asked of a pool of 8"):
        votes.subsets(("a",), 8, 9, 1, 0)


def test_order_of_rows_does_not_matter():
    rows = rows_of()
    shuffled = random.Random(1).sample(rows, len(rows))
    a, b = (votes.estimate(pool_of(r), 4, 2) for r in (rows, shuffled))
    assert a.ids == b.ids
    for name in ("credit_I", "strict_I", "tie_I", "lost_I", "failed_I", "tokens_I", "chance_I"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_accuracy_recovers_the_known_rate_of_an_independent_judge():
    """Two responses, each judgment right with probability 0.7: the vote's accuracy is the binomial
    tail plus half of the ties.
    """
    rng = np.random.default_rng(0)
    right = rng.random((400, 32)) < 0.7
    rows = [
        {
            "id": f"{i}",
            "sample": s,
            "scores": [2, 1] if right[i, s] else [1, 2],
            "rewards": [1, 0],
            "tokens": 10,
        }
        for i in range(400)
        for s in range(32)
    ]
    pool = pool_of(rows)
    of_k = {k: votes.estimate(pool, k) for k in (1, 2, 3, 8)}
    for k, truth in ((1, 0.7), (2, 0.7), (3, 0.784), (8, 0.8740)):
        credit_I, stderr = of_k[k].credit_I, votes.item_stderr(of_k[k].credit_I)
        assert abs(credit_I.mean() - truth) < 4 * stderr and stderr < 0.012
        assert set(of_k[k].chance_I) == {0.5} and set(of_k[k].tokens_I) == {10}
    gain_I = of_k[8].credit_I - of_k[1].credit_I
    assert votes.item_stderr(gain_I) < votes.item_stderr(of_k[8].credit_I), (
        "pairing removes the items' own difficulty"
    )


def test_failures_are_counted_over_everything_generated_and_lost_votes_apart():
    rows = [
        {"id": "a", "sample": s, "scores": None, "rewards": [0, 1, 0], "tokens": 5}
        for s in range(2)
    ]
    rows += [
        {"id": "b", "sample": s, "scores": [1, 9] if s else None, "rewards": [0, 1], "tokens": 7}
        for s in range(2)
    ]
    found = votes.estimate(pool_of(rows), 2)
    assert list(found.failed_I) == [1, 0.5] and list(found.lost_I) == [1, 0]
    assert list(found.credit_I) == [pytest.approx(1 / 3), 1] and list(found.strict_I) == [0, 1]
    assert list(found.tie_I) == [0, 0] and list(found.tokens_I) == [5, 7]


def test_without_gold_a_vote_ties_and_fails_and_is_neither_right_nor_wrong():
    rows = [
        {"id": i, "sample": 0, "scores": scores, "rewards": None, "tokens": 5}
        for i, scores in (("a", [1, 9]), ("b", [5, 5]), ("c", [1]))
    ]
    records = [
        Record(i, (Turn("user", "q"),), ("r",) * n) for i, n in (("a", 2), ("b", 2), ("c", 1))
    ]
    rows.append(rows[0] | {"id": "d", "scores": None})
    records.append(Record("d", (Turn("user", "q"),), ("r", "r", "r")))
    found = votes.estimate(votes.make_pool(records, rows), 1)
    assert np.isnan(found.credit_I).all() and np.isnan(found.strict_I).all()
    assert list(found.tie_I) == [0, 1, 0, 0] and list(found.lost_I) == [0, 0, 0, 1]


def test_auc_counts_ties_half_and_needs_both_classes():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert votes.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert votes.auc(scores, np.ones(60, bool)) is None


def test_meta_auc_within_items_is_the_mean_over_items_with_both_classes():
    rows = rows_of(items=12, failures=0.2)
    found = votes.meta_auc(pool_of(rows))
    valid = [row for row in rows if row["scores"] is not None]
    labels = np.array([is_correct(row["scores"], row["rewards"]) for row in valid])
    assert found["judgments"] == len(valid) and found["correct_rate"] == pytest.approx(
        labels.mean()
    )
    assert found["auc"] == pytest.approx(
        votes.auc(np.array([row["meta_logit"] for row in valid]), labels)
    )
    within = []
    for item in sorted({row["id"] for row in valid}):
        mine = [i for i, row in enumerate(valid) if row["id"] == item]
        within.append(votes.auc(np.array([valid[i]["meta_logit"] for i in mine]), labels[mine]))
    within = [value for value in within if value is not None]
    assert found["items_with_both"] == len(within) and found["auc_within_item"] == pytest.approx(
        np.mean(within)
    )


@pytest.mark.parametrize(
    "change,message",
    [
        ({"sample": 1}, "sample 1 twice"),
        ({"rewards": [1, 1]}, "exactly one largest reward"),
        ({"rewards": [3]}, "must be 0 or 1"),
        ({"scores": [1, 2, 3]}, r"scores \[1, 2, 3\] for 2"),
    ],
)
def test_bad_rows_are_named(change, message):
    rows = [
        {"id": "a", "sample": s, "scores": [1, 2], "rewards": [0, 1], "tokens": 1} for s in range(2)
    ]
    rows[0] |= change
    with pytest.raises(ValueError, match="'a'.*" + message):
        pool_of(rows)


def test_an_evaluation_cut_short_or_half_scored_is_refused():
    rows = rows_of()
    with pytest.raises(ValueError, match="every item needs the same number"):
        pool_of(rows[:-1])
    with pytest.raises(ValueError, match="no judgments: a pool needs at least one item"):
        pool_of([])
    next(row for row in rows if row["scores"])["meta_logit"] = None
    with pytest.raises(ValueError, match="without a finite Meta RM logit"):
        votes.estimate(pool_of(rows), 4, 2)
