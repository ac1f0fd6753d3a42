"""Products of a linear map: in which precision they are taken, on which platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models.linear import Adapted, contract, matmul

LEADING, D, F, R = (3, 5), 64, 48, 4


def rounded(x) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(*LEADING, D)), rng.normal(size=(D, F))
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("asked", ["bfloat16", "highest", None])
def test_float32_factors_are_rounded_where_that_is_asked_for(arrays, asked, axis):
    x, w = arrays
    with jax.default_matmul_precision(asked):
        found = jax.jit(contract, static_argnums=2)(x, w if axis == 0 else w.T, axis)
    assert found.dtype == jnp.float32
    exact, narrow = np.asarray(x, np.float64) @ np.asarray(w), rounded(x) @ rounded(w)
    assert np.abs(exact - narrow).max() > 1e-2
    np.testing.assert_allclose(found, narrow if asked == "bfloat16" else exact, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_products_of_bfloat16_are_summed_in_float32_and_rounded_once(arrays, dtype):
    x, w = (one.astype(jnp.bfloat16) for one in arrays)
    found = contract(x, w, 0, dtype)
    assert found.dtype == (dtype or jnp.bfloat16)
    atol, rtol = (1e-4, 0) if dtype else (1e-4, 2**-8)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), rounded(x) @ rounded(w), atol=atol, rtol=rtol
    )


def test_gradients_are_those_of_float32_to_the_rounding(arrays):
    x, w = arrays
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((D, R), (R, F)))

    def total(x, w, a, b):
        plain = matmul(x, w)
        return jnp.sum(jnp.sin(plain / 8)) + jnp.sum(jnp.sin(matmul(x, Adapted(w, a, b, 2.0)) / 8))

    gradient = jax.grad(total, (0, 1, 2, 3))
    wanted = gradient(x, w, a, b)
    with jax.default_matmul_precision("bfloat16"):
        found = gradient(x, w, a, b)
    for one, other in zip(found, wanted):
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one, other, atol=0.03 * np.abs(other).max())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_an_accelerator_is_asked_as_the_setting_says(arrays, platform):
    """It takes notice of the setting by itself: nothing is rounded for it."""
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.jit(contract, static_argnums=2).trace(*arrays, 0)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        here = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "bf16" not in text and "dot_general" in text and "bf16" in here
