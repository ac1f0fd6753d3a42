"""Arrays, rewards and metrics of a batch of rollouts, by hand."""

import math

import numpy as np
import pytest

from grm_jax.judgment.records import Record, Turn
from grm_jax.training.rollouts import (
    consistency_rewards,
    rewards_of,
    rollout_batch,
    rollout_metrics,
    sampler_gap,
)

COLUMNS = {
    "tokens": [4, 8, 6, 2],
    "finish": ["stop", "length", "stop", "stop"],
    "reward": [1.0, -1.0, -1.0, -1.0],
    "correct": [True, False, False, False],
    "scores": [(9, 2), None, (7, 7, 1), (0,)],
    "failure": [None, "truncated", None, None],
}
PROMPTS = [10, 10, 20, 20]


def judgments(**columns):
    columns = COLUMNS | columns
    return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]


def test_rollouts_side_by_side():
    batch = rollout_batch([[5, 6], [7]], [[8], [9, 1]], [[-0.5], [-1.0, -2.0]], buckets=(2, 4, 8))
    want = {
        "tokens": [[5, 6, 8, 0], [7, 9, 1, 0]],
        "positions": [[0, 1, 2, -1], [0, 1, 2, -1]],
        "mask": [[0, 0, 1, 0], [0, 1, 1, 0]],
        "old_logp": [[0, 0, -0.5, 0], [0, -1, -2, 0]],
    }
    assert {name: array.tolist() for name, array in batch.items()} == want
    assert [batch[name].dtype.name for name in want] == ["int32"] * 2 + ["float32"] * 2
    with pytest.raises(ValueError, match="length 3 exceeds"):
        rollout_batch([[5, 6]], [[8]], [[-0.5]], buckets=(2,))


def test_rewards_are_finite_numbers_or_the_record_is_named():
    records = [Record(name, (Turn("user", "q"),), ("a", "b"), (1.0, 0.0)) for name in "xy"]
    pair = [{"sample": 3, "scores": (9, 2)}, {"sample": 4, "scores": None}]

    def margin(judgment, record):
        assert record.responses == ("a", "b")
        return (
            np.float32(judgment["scores"][0] - judgment["scores"][1]) if judgment["scores"] else 0
        )

    rewards = rewards_of(margin, pair, records)
    assert rewards == [7.0, 0.0] and all(type(reward) is float for reward in rewards)
    for wrong in (math.nan, math.inf, -math.inf, 1e39, None, "much"):
        with pytest.raises(ValueError, match=r"^record 'y', sample 4: the reward is .*finite"):
            rewards_of(
                lambda judgment, _, w=wrong: w if judgment["sample"] == 4 else 1, pair, records
            )


def test_by_hand():
    metrics = rollout_metrics(judgments(), PROMPTS, 2)
    assert metrics == pytest.approx(
        {
            "num_tokens": 80,
            "completions/mean_length": 5,
            "completions/min_length": 2,
            "completions/max_length": 8,
            "completions/mean_terminated_length": 4,
            "completions/min_terminated_length": 2,
            "completions/max_terminated_length": 6,
            "completions/clipped_ratio": 0.25,
            "reward/mean": -0.5,
            "reward/std": np.sqrt(0.75),
            "reward/group_std": 0.5,
            "frac_reward_zero_std": 0.5,
            "correct@1": 0.25,
            "oracle@2": 0.5,
            "parse_failure_rate": 0.25,
            "parse_failure/truncated": 0.25,
            "tie_rate": 0.5,
            "score_share/1": 0.2,
            "score_share/2": 0.2,
            "score_share/7": 0.4,
            "score_share/9": 0.2,
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_a_share_of_nothing_is_left_out():
    nothing = judgments(scores=[None] * 4, failure=["no_box"] * 4, finish=["length"] * 4)
    metrics = rollout_metrics(nothing, PROMPTS, 2)
    assert metrics["parse_failure/no_box"] == 1 and "tie_rate" not in metrics
    assert not [name for name in metrics if "terminated" in name or name.startswith("score_share")]


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="a multiple of 2; got 4 and 1"):
        rollout_metrics(judgments(), [10], 2)
    with pytest.raises(ValueError, match="a multiple of 3; got 4 and 4"):
        rollout_metrics(judgments(), PROMPTS, 3)


def test_sampler_gap_reads_only_the_mask_and_clamps_nothing():
    sampler = np.array([[0.0, -1.0, -30.0, 5.0]])
    trainer = np.array([[0.0, -1.5, -20.0, np.nan]])
    metrics = sampler_gap(sampler, trainer, np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert metrics["sampling/logp_difference/mean"] == pytest.approx(5.25)
    assert metrics["sampling/logp_difference/max"] == pytest.approx(10.0)
    assert metrics["sampling/importance_ratio/min"] == pytest.approx(np.exp(-0.5))
    assert metrics["sampling/importance_ratio/max"] == pytest.approx(np.exp(10.0))
    assert metrics["sampling/token_mult_prob_error"] == pytest.approx(
        (np.exp(0.5) + np.exp(10)) / 2
    )
    assert sampler_gap(sampler, sampler, np.ones((1, 4)))["sampling/token_mult_prob_error"] == 1.0
    assert sampler_gap(sampler, trainer, np.zeros((1, 4))) == {}


def test_a_right_judgment_gets_the_share_of_right_ones_in_the_other_order():
    def group(order, *correct):
        return [{"order": order, "correct": one} for one in correct]

    pair = group([0, 1], True, True, False, True) + group([1, 0], False, True, False, False)
    assert consistency_rewards(pair, 4) == [0.25, 0.25, 0, 0.25, 0, 0.75, 0, 0]
    both_wrong = group([0, 1], False, False) + group([1, 0], False, False)
    one_response = group([0], True, False) + group([0], True, True)
    assert consistency_rewards(both_wrong + one_response, 2) == [0] * 8
    none_given = group([0, 1], True, True) + group([1, 0], False, False)
    assert consistency_rewards(none_given, 2) == [0] * 4
