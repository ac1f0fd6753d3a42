"""Bradley-Terry against NumPy; parts add up; padding cannot leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import bradley_terry, count


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_value_gradient_and_parts(center):
    rng = np.random.default_rng(0)
    better, worse = 2 * rng.normal(size=6), 2 * rng.normal(size=6)
    better[0] = worse[0]
    mask = np.array([1.0, 1, 1, 1, 1, 0])
    margin, total = (better - worse)[:5], (better + worse)[:5]
    sigma = 1 / (1 + np.exp(-margin))
    want = (-np.log(sigma) + center * total**2).mean()
    better[5], worse[5] = np.nan, np.inf
    arrays = [jnp.asarray(x, jnp.float32) for x in (better, worse, mask)]
    (loss, metrics), grads = jax.value_and_grad(bradley_terry, argnums=(0, 1), has_aux=True)(
        *arrays, center
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(
        grads[0], np.append((sigma - 1 + 2 * center * total) / 5, 0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        grads[1], np.append((1 - sigma + 2 * center * total) / 5, 0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(metrics["accuracy"], (0.5 + (margin[1:] > 0).sum()) / 5, rtol=1e-6)
    np.testing.assert_allclose(
        [metrics["margin"], metrics["reward_mean"]], [margin.mean(), total.mean() / 2], rtol=1e-5
    )
    whole = count(arrays[2][:, None])
    parts = [
        bradley_terry(*[x[rows] for x in arrays], center, whole)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    for key in metrics:
        np.testing.assert_allclose(
            sum(m[key] for _, m in parts), metrics[key], rtol=1e-5, err_msg=key
        )


def test_finite_at_extreme_margins_and_zero_without_pairs():
    loss, _ = bradley_terry(jnp.array([-1e4, 1e4]), jnp.array([1e4, -1e4]), jnp.ones(2))
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)
    assert bradley_terry(jnp.ones(2), jnp.zeros(2), jnp.zeros(2))[0] == 0


def test_only_centring_sees_a_shift_of_both_rewards():
    better, worse, mask = jnp.array([1.0, -0.5]), jnp.array([0.2, 0.1]), jnp.ones(2)
    assert bradley_terry(better + 3, worse + 3, mask)[0] == pytest.approx(
        float(bradley_terry(better, worse, mask)[0]), rel=1e-5
    )
    assert (
        bradley_terry(better + 3, worse + 3, mask, 0.1)[0]
        > bradley_terry(better, worse, mask, 0.1)[0] + 1
    )
