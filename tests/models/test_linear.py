"""Products of a linear map: in which precision they are taken, on which platform, and the gradient
that is written down for them against the one that JAX derives.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import Decoder, init_params
from grm_jax.models.linear import Adapted, contract, matmul
from grm_jax.parallel.mesh import make_mesh
from tests.jaxprs import equations
from tests.models.gemma2_cases import BASE

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_an_accelerator_is_asked_as_the_setting_says(arrays, platform, dtype):
    """It takes notice of the setting by itself: nothing is rounded for it."""
    arrays = [one.astype(dtype) for one in arrays]
    plain = jax.jit(contract, static_argnums=2).trace(*arrays, 0)
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.jit(contract, static_argnums=2).trace(*arrays, 0)

    def types(traced, platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"dot_general.*x(f32|bf16)>.*x(f32|bf16)>.*x(f32|bf16)>", text)

    own = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    assert types(traced, platform) == types(plain, "cpu") == [(own,) * 3]
    assert types(traced, "cpu") == [("bf16", "bf16", own)]


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("rows", [(5,), (3, 4), (2, 3, 4)])
def test_value_and_gradients_are_those_of_the_plain_product(rows, dtype, rtol):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*rows, 8), dtype)
    w_DF = jax.random.normal(keys[1], (8, 6), dtype)
    weight = jax.random.normal(keys[2], (*rows, 6), dtype)
    found, want = (
        jax.value_and_grad(lambda x, w, f=f: jnp.sum(f(x, w) * weight), (0, 1))(x, w_DF)
        for f in (matmul, jnp.matmul)
    )
    assert [g.dtype for g in found[1]] == [dtype] * 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=rtol, atol=10 * rtol
        ),
        found,
        want,
    )


def test_no_product_takes_a_transposed_gradient():
    """The gradient of every projection is x^T dy: [D, F] as it comes out, with x on the left."""
    x_BTD, w_DF = jnp.zeros((2, 3, 8)), jnp.zeros((8, 6))
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: matmul(x_BTD, w).sum()))(w_DF).jaxpr
    (product,) = [
        eqn
        for eqn in equations(jaxpr)
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape == (8, 6)
    ]
    assert [v.aval.shape for v in product.invars] == [(2, 3, 8), (2, 3, 6)]
    assert not [
        eqn
        for eqn in equations(jaxpr)
        if eqn.primitive.name == "transpose" and eqn.outvars[0].aval.shape == (8, 6)
    ]


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_gradients_on_a_mesh(sizes):
    """Rows over the data axes, the width over fsdp and the outputs over tensor."""
    mesh = make_mesh(*sizes)
    P = jax.sharding.PartitionSpec
    x_BTD = jax.random.normal(jax.random.key(0), (8, 3, 16))
    w_DF = jax.random.normal(jax.random.key(1), (16, 4))

    def loss(x, w):
        return jnp.sum(jnp.sin(matmul(x, w)))

    want = jax.grad(loss, (0, 1))(x_BTD, w_DF)
    shardings = [
        jax.sharding.NamedSharding(mesh, spec)
        for spec in (P(("replica", "fsdp")), P("fsdp", "tensor"))
    ]
    found = jax.jit(jax.grad(loss, (0, 1)), out_shardings=tuple(shardings))(
        *jax.device_put((x_BTD, w_DF), tuple(shardings))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want)


def test_rematerialization_sees_the_products():
    """ "dots" keeps the output of every projection: the backward pass does none of them again, and
    "full" does all.
    """
    cfg = dataclasses.replace(BASE, scan_layers=False)
    params = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)

    def projections(remat):
        model = Decoder(dataclasses.replace(cfg, remat=remat))
        jaxpr = jax.make_jaxpr(jax.grad(lambda p, t: model.apply({"params": p}, t, t)[0].sum()))(
            params, tokens
        ).jaxpr
        return sum(
            eqn.primitive.name == "dot_general" and eqn.params["dimension_numbers"][1] == ((), ())
            for eqn in equations(jaxpr)
        )

    forward = 7 * len(cfg.block)
    assert projections("none") == projections("dots") == 3 * forward
    assert projections("full") > 3.5 * forward
