"""Cross-entropy and binary cross-entropy against NumPy; parts add up; padding cannot leak."""

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.losses import bce, count, cross_entropy


def test_cross_entropy_value_gradient_and_parts():
    logp = jnp.array([[-1.0, -2.0, -jnp.inf], [-0.5, jnp.nan, jnp.nan]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    (loss, metrics), grad = jax.value_and_grad(cross_entropy, has_aux=True)(logp, mask)
    np.testing.assert_allclose(loss, 3.5 / 3, rtol=1e-6)
    np.testing.assert_allclose(grad, -mask / 3, rtol=1e-6)
    assert metrics == {}
    parts = [cross_entropy(logp[i : i + 1], mask[i : i + 1], count(mask))[0] for i in range(2)]
    np.testing.assert_allclose(sum(parts), loss, rtol=1e-6)
    assert cross_entropy(logp, mask * 0)[0] == 0


def test_bce_value_gradient_and_parts():
    rng = np.random.default_rng(0)
    z, y = 4 * rng.normal(size=6), rng.integers(0, 2, 6).astype(np.float64)
    mask = np.array([1.0, 1, 1, 1, 1, 0])
    sigma = 1 / (1 + np.exp(-z))
    want = -(y * np.log(sigma) + (1 - y) * np.log(1 - sigma))[:5].mean()
    z[5] = np.nan
    arrays = [jnp.asarray(x, jnp.float32) for x in (z, y, mask)]
    (loss, metrics), grad = jax.value_and_grad(bce, has_aux=True)(*arrays)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(grad, np.append((sigma - y)[:5] / 5, 0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics["accuracy"], ((z > 0) == (y > 0.5))[:5].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["label_mean"], y[:5].mean(), rtol=1e-6)
    total = count(arrays[2][:, None])
    parts = [bce(*[x[rows] for x in arrays], total) for rows in (slice(0, 2), slice(2, 6))]
    for key in metrics:
        np.testing.assert_allclose(
            sum(m[key] for _, m in parts), metrics[key], rtol=1e-5, err_msg=key
        )


def test_bce_is_finite_at_extreme_logits():
    loss, _ = bce(jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0]), jnp.ones(2))
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)
