"""Advantage estimators: goldens for G = 4, NumPy on random rewards, groups without variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import ADVANTAGES, LossConfig, count, kl_penalty, objective_mask, zero_variance

S3 = np.sqrt(3.0)


@pytest.mark.parametrize(
    "right, want",
    [  # the paper's setting: +1 / -1, G = 4, population std
        (0, [0, 0, 0, 0]),
        (1, [S3, -1 / S3, -1 / S3, -1 / S3]),
        (2, [1, 1, -1, -1]),
        (3, [1 / S3, 1 / S3, 1 / S3, -S3]),
        (4, [0, 0, 0, 0]),
    ],
)
def test_group_goldens(right, want):
    rewards = jnp.array([1.0] * right + [-1.0] * (4 - right))
    np.testing.assert_allclose(ADVANTAGES["group"](rewards, 4), want, atol=1e-5)


def test_against_numpy():
    rewards = np.random.default_rng(0).normal(size=12).astype(np.float32)
    groups = rewards.reshape(3, 4)
    others = np.array([[np.delete(g, i).mean() for i in range(4)] for g in groups])
    want = {
        "group": (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-6),
        "group_no_std": groups - groups.mean(1, keepdims=True),
        "rloo": groups - others,
        "reinforce_pp": (groups - rewards.mean()) / (rewards.std() + 1e-6),
    }
    assert set(want) == set(ADVANTAGES)
    for name, value in want.items():
        got = jax.jit(ADVANTAGES[name], static_argnums=1)(rewards, 4)
        np.testing.assert_allclose(got, value.reshape(-1), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("equal", [1.0, -1.0, 0.1, 1e6])
def test_equal_rewards_give_exact_zero_in_group(equal):
    """0.1 + 0.1 + 0.1 + 0.1 rounds, so std is not exactly 0: the rule looks at the rewards, not at
    the std.
    """
    assert (ADVANTAGES["group"](jnp.full(4, equal, jnp.float32), 4) == 0).all()


def test_zero_variance_is_per_group():
    rewards = jnp.array([1.0, 1, 1, 1, 1, -1, 1, 1, -1, -1, -1, -1])
    assert zero_variance(rewards, 4).tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_objective_mask_drops_rows_and_their_count():
    rewards = jnp.array([1.0, 1, 1, 1, 1, -1, 1, 1])
    mask = jnp.ones((8, 3))
    assert objective_mask(mask, rewards, 4, LossConfig()) is mask
    dropped = objective_mask(mask, rewards, 4, LossConfig(zero_variance="drop"))
    assert (
        dropped[:4].sum() == 0
        and dropped[4:].sum() == 12
        and [float(n) for n in count(dropped)] == [12.0, 4.0]
    )


def test_penalty_is_not_divided_by_a_groups_std():
    """An all-right group and tiny penalties: the advantage stays of the size of the penalty, and
    centered.
    """
    penalty = jnp.array([0.01, 0.02, 0.03, 0.04])
    got = ADVANTAGES["group"](jnp.ones(4), 4, penalty)
    np.testing.assert_allclose(got, [0.015, 0.005, -0.005, -0.015], atol=1e-7)
    mixed = ADVANTAGES["group"](jnp.array([1.0, -1, -1, -1]), 4, penalty)
    np.testing.assert_allclose(mixed, np.array([S3, -1 / S3, -1 / S3, -1 / S3]) + got, atol=1e-5)


@pytest.mark.parametrize("name", ["group_no_std", "rloo", "reinforce_pp"])
def test_penalty_is_a_negative_reward_elsewhere(name):
    rng = np.random.default_rng(1)
    rewards, penalty = rng.normal(size=8).astype(np.float32), rng.normal(size=8).astype(np.float32)
    np.testing.assert_allclose(
        ADVANTAGES[name](rewards, 4, penalty), ADVANTAGES[name](rewards - penalty, 4), atol=1e-6
    )


def test_kl_penalty_is_beta_times_the_sum_over_the_completion():
    old, ref = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[-1.5, -2.5, jnp.nan]])
    mask = jnp.array([[1.0, 1.0, 0.0]])
    cfg = LossConfig(beta=0.1, kl="k1", kl_in="reward")
    np.testing.assert_allclose(kl_penalty(old, ref, mask, cfg), [0.1 * (0.5 + 0.5)], rtol=1e-6)
    assert (kl_penalty(old, ref, mask, cfg.replace(kl_in="loss")) == 0).all()
    assert (kl_penalty(old, None, mask, cfg.replace(beta=0.0)) == 0).all()
    assert (jax.grad(lambda x: kl_penalty(x, ref, mask, cfg).sum())(old) == 0).all()


@pytest.mark.parametrize("group_size", [1, 3, 0])
def test_a_batch_that_is_not_made_of_groups_is_an_error(group_size):
    with pytest.raises(ValueError, match=f"divisor of the batch of 8 sequences, got {group_size}"):
        ADVANTAGES["group"](jnp.ones(8), group_size)
