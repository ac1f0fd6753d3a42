"""Baselines are functions of what they name, and chance is chance."""

import numpy as np
import pytest

from grm_jax.judgment.rules import best_index
from grm_jax.judgment.voting import expected_credit, vote
from grm_jax.reward_models.baselines import constant, length_only, oracle, random_scores
from tests.reward_models.judge_cases import record


def rows_of(model, records, **how):
    return [row for block in model.judge(records, **how) for row in block]


RECORDS = [record("one", (1,)), record("two", (9, 2)), record("five", (5, 6, 100, 1, 2))]
ALL = [length_only(), random_scores(0), constant(), oracle()]


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_rows_are_those_of_the_protocol_and_samples_stand_alone(model):
    rows = rows_of(model, RECORDS, samples=(3, 7), temperature=0.5)
    assert [(row["id"], row["sample"], row["temperature"]) for row in rows] == [
        (r.id, s, 0.5) for r in RECORDS for s in (3, 7)
    ]
    assert all(
        len(row["scores"]) == len(row["rewards"]) == len(row["order"])
        and row["failure"] is None
        and row["tokens"] == 0
        for row in rows
    )
    assert rows[2:] == rows_of(model, RECORDS[1:], samples=(3, 7), temperature=0.5)
    assert rows[1::2] == rows_of(model, RECORDS, samples=[7], temperature=0.5)
    assert [row["scores"] for row in rows_of(model, RECORDS, swapped=True)] == [
        row["scores"] for row in rows_of(model, RECORDS)
    ]
    differs = any(a["scores"] != b["scores"] for a, b in zip(rows[::2], rows[1::2]))
    assert differs == model.sampled and all(model.accepts(n) for n in (1, 2, 7))


def test_length_constant_and_oracle():
    assert [row["scores"] for row in rows_of(length_only(), RECORDS)] == [
        [13],
        [13, 13],
        [13, 13, 15, 13, 13],
    ]
    for r, row in zip(RECORDS, rows_of(constant(), RECORDS)):
        assert expected_credit(vote([row["scores"]]), r.rewards) == pytest.approx(
            1 / len(r.rewards)
        )
    assert [row["scores"] for row in rows_of(oracle(), RECORDS)] == [
        list(r.rewards) for r in RECORDS
    ]
    with pytest.raises(ValueError, match="record 'r' has no rewards"):
        rows_of(oracle(), [record("r", (1, 2), gold=False)])


@pytest.mark.parametrize("n, k", [(2, 1), (2, 8), (5, 1), (5, 8)])
def test_random_scores_are_at_chance_within_three_standard_errors(n, k):
    records = [record(f"r{i}", range(1, n + 1)) for i in range(1500)]
    hits = []
    for block in random_scores(7).judge(records, samples=range(k)):
        totals = np.sum([row["scores"] for row in block], axis=0)
        assert len(set(totals)) == n and 0 <= totals.min() and totals.max() < k
        hits.append(totals.argmax() == best_index(block[0]["rewards"]))
    error = np.sqrt((1 / n) * (1 - 1 / n) / len(records))
    assert abs(np.mean(hits) - 1 / n) < 3 * error


def test_another_seed_gives_other_random_scores():
    assert rows_of(random_scores(0), RECORDS) != rows_of(random_scores(1), RECORDS)
    values = np.concatenate(
        [row["scores"] for row in rows_of(random_scores(0), RECORDS, samples=range(200))]
    )
    assert (
        abs(values.mean() - 0.5) < 3 / np.sqrt(12 * len(values))
        and values.min() >= 0
        and values.max() < 1
    )
