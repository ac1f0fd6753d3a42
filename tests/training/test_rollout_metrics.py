import numpy as np
import pytest

from grm_jax.training.rollout_metrics import rollout_metrics, sampler_gap

ROLLOUTS = dict(
    group_size=2,
    prompt_tokens_B=[10, 10, 20, 20],
    completion_tokens_B=[4, 8, 6, 2],
    truncated_B=[False, True, False, False],
    rewards_B=[1.0, -1.0, -1.0, -1.0],
    correct_B=[True, False, False, False],
    scores_B=[(9, 2), None, (7, 7, 1), (0,)],
    failures_B=[None, "truncated", None, None],
)


def test_by_hand():
    metrics = rollout_metrics(**ROLLOUTS)
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
    metrics = rollout_metrics(
        **ROLLOUTS
        | {"scores_B": [None] * 4, "failures_B": ["no_box"] * 4, "truncated_B": [True] * 4}
    )
    assert metrics["parse_failure/no_box"] == 1 and "tie_rate" not in metrics
    assert not [name for name in metrics if "terminated" in name or name.startswith("score_share")]


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="7 columns of one length, a multiple of 2"):
        rollout_metrics(**ROLLOUTS | {"correct_B": [True]})
    with pytest.raises(ValueError, match="a multiple of 3"):
        rollout_metrics(**ROLLOUTS | {"group_size": 3})


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
