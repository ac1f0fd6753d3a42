"""The table in grm_jax/losses/kl.py, cell by cell: exact expectations by summing over a categorical
policy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import KL_ESTIMATORS, LOSSES, LossConfig, LossInputs, kl_penalty

THETA = np.array([0.9, -2.1, 1.6, 0.0, -1.5])
REF = np.array([-0.5, 0.4, 0.2, 1.0, -0.9])
CFG = LossConfig()


def log_pi(theta):
    return jax.nn.log_softmax(jnp.asarray(theta))


def kl(p, q):
    return (jnp.exp(p) * (p - q)).sum()


def expected_value(name):
    """sum_a pi(a) estimator(a)"""
    p = log_pi(THETA)
    return (jnp.exp(p) * KL_ESTIMATORS[name](p, log_pi(REF), CFG)).sum()


def expected_loss_gradient(name):
    """sum_a pi(a) grad estimator(a): the samples come from a fixed pi, autodiff sees only log pi(a)
    inside the estimator.
    """
    weights = jax.lax.stop_gradient(jnp.exp(log_pi(THETA)))
    return jax.grad(
        lambda theta: (weights * KL_ESTIMATORS[name](log_pi(theta), log_pi(REF), CFG)).sum()
    )(jnp.asarray(THETA))


def expected_reward_gradient(name):
    """sum_a pi(a) estimator(a) grad log pi(a): REINFORCE with the estimator as a cost."""
    p = log_pi(THETA)
    cost = jnp.exp(p) * KL_ESTIMATORS[name](p, log_pi(REF), CFG)
    return jax.grad(lambda theta: (cost * log_pi(theta)).sum())(jnp.asarray(THETA))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def reverse_gradient():
    return jax.grad(lambda theta: kl(log_pi(theta), log_pi(REF)))(jnp.asarray(THETA))


def forward_gradient():
    return jax.grad(lambda theta: kl(log_pi(REF), log_pi(theta)))(jnp.asarray(THETA))


def test_values_k1_and_k3_unbiased_k2_not():
    true = kl(log_pi(THETA), log_pi(REF))
    assert abs(expected_value("k1") - true) < 1e-12 and abs(expected_value("k3") - true) < 1e-12
    assert abs(expected_value("k2") - true) > 0.01


def test_k1_in_the_loss_pulls_nowhere():
    np.testing.assert_allclose(expected_loss_gradient("k1"), 0, atol=1e-12)


def test_k2_in_the_loss_is_the_gradient_of_the_kl():
    np.testing.assert_allclose(expected_loss_gradient("k2"), reverse_gradient(), atol=1e-12)


def test_k3_in_the_loss_is_the_gradient_of_the_other_kl():
    np.testing.assert_allclose(expected_loss_gradient("k3"), forward_gradient(), atol=1e-12)
    assert np.abs(expected_loss_gradient("k3") - reverse_gradient()).max() > 0.05


def test_in_the_reward_k1_is_right_k2_and_k3_are_not():
    np.testing.assert_allclose(expected_reward_gradient("k1"), reverse_gradient(), atol=1e-12)
    np.testing.assert_allclose(
        expected_reward_gradient("k3"), reverse_gradient() - forward_gradient(), atol=1e-12
    )
    assert np.abs(expected_reward_gradient("k2") - reverse_gradient()).max() > 0.05


def test_k2_in_the_loss_equals_k1_in_the_reward_through_a_whole_loss():
    """The two right choices have one gradient, action by action: one token per sequence, no other
    reward, on-policy.
    """
    logp, ref, mask = log_pi(THETA)[:, None], log_pi(REF)[:, None], jnp.ones((5, 1))
    in_reward = LossConfig(kl="k1", kl_in="reward")
    penalty = kl_penalty(logp, ref, mask, in_reward)
    grad = jax.grad(
        lambda x, advantages, cfg: LOSSES["rloo"](
            LossInputs(x, logp, ref, None, advantages, mask), cfg
        )[0]
    )
    np.testing.assert_allclose(
        grad(logp, jnp.zeros(5), LossConfig(kl="k2")), grad(logp, -penalty, in_reward), atol=1e-12
    )


def test_k3_stays_finite_and_pulls_back_far_below_the_reference():
    """logp far below ref: the value and gradient are finite, the gradient says "raise logp", and
    both join smoothly at the clamp.
    """
    k3 = KL_ESTIMATORS["k3"]
    value_and_grad = jax.value_and_grad(lambda logp: k3(logp, 0.0, CFG))
    for logp in (-1e4, -100.0, -10.001):
        value, grad = value_and_grad(jnp.asarray(logp))
        np.testing.assert_allclose(grad, 1 - np.exp(10.0), rtol=1e-9)
        np.testing.assert_allclose(value, np.exp(10.0) * (1 - logp - 10) - 1 + logp, rtol=1e-9)
    before, after = value_and_grad(jnp.asarray(-10 + 1e-9)), value_and_grad(jnp.asarray(-10 - 1e-9))
    np.testing.assert_allclose(before, after, rtol=1e-8)


def test_k3_is_finite_in_float32_at_the_largest_clamp_that_is_allowed():
    """Above it the exponential is inf, and inf * 0 no number."""
    for clamp in (0, 81, np.inf, np.nan):
        with pytest.raises(ValueError, match="kl_clamp: expected a number > 0, at most 80"):
            LossConfig(kl_clamp=clamp)
    value_and_grad = jax.value_and_grad(
        lambda logp: KL_ESTIMATORS["k3"](logp, jnp.float32(0), LossConfig(kl_clamp=80.0))
    )
    for logp in (-1000.0, -100.0, -80.0, 0.0):
        assert np.isfinite(value_and_grad(jnp.float32(logp))).all()


def test_k3_keeps_its_digits_near_the_reference():
    """In fp32 exp(d) - 1 - d at d = 1e-4 would be pure rounding (true value 5e-9)."""
    d = jnp.asarray(1e-4, jnp.float32)
    np.testing.assert_allclose(
        KL_ESTIMATORS["k3"](-d, jnp.zeros((), jnp.float32), CFG), 5e-9, rtol=2e-2
    )
