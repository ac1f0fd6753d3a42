"""Attention in blocks of queries against `attend`: values, gradients, memory, the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models import attention
from grm_jax.models.attention import blocked_attend
from grm_jax.models.config import alternating
from grm_jax.models.placement import DATA_AXES
from grm_jax.parallel.mesh import make_mesh
from tests.models.gemma2_cases import BASE, inputs, logits_of, random_params
from tests.models.test_splash import (
    BACKWARD,
    FORWARD,
    arrays,
    out_and_gradients,
    positions,
    reference,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 queries."""
    monkeypatch.setattr(attention, "QUERIES", 8)


@pytest.mark.parametrize(
    "lengths, T, N, K, H, window, cap",
    [
        pytest.param((40, 11), 40, 4, 2, 16, 13, 3.0, id="grouped heads, a window that bites"),
        pytest.param((37, 1), 37, 4, 1, 8, None, 3.0, id="one kv head, a last block of 5"),
        pytest.param((24, 0), 24, 2, 2, 16, 1, None, id="only oneself in sight, a row of padding"),
        pytest.param((33,), 48, 2, 1, 8, 8, 50.0, id="a window of one block, padding of one"),
        pytest.param((8, 5), 8, 4, 2, 8, 3, 3.0, id="one block"),
    ],
)
def test_output_and_gradients_are_those_of_the_reference(lengths, T, N, K, H, window, cap):
    qkv, pos_BT = arrays(len(lengths), T, N, K, H), positions(lengths, T)
    slow, slow_gradients = out_and_gradients(reference, qkv, pos_BT, window, cap)
    fast, fast_gradients = out_and_gradients(blocked_attend, qkv, pos_BT, window, cap)
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)


def test_padding_is_finite_and_without_influence():
    qkv, pos_BT = arrays(2, 32, 2, 1, 16), positions([20, 0], 32)
    out = blocked_attend(*qkv, pos_BT, 9, 3.0)
    other = blocked_attend(*(x.at[:, 20:].set(1e4) for x in qkv), pos_BT, 9, 3.0)
    assert np.isfinite(out).all() and np.isfinite(other).all()
    np.testing.assert_array_equal(out[0, :20], other[0, :20])


def test_over_a_mesh():
    mesh, T = make_mesh(replica=1, fsdp=2, tensor=4), 20
    qkv, pos_BT = arrays(4, T, 4, 2, 16), positions([T, 12, 1, 19], T)
    specs = [P(DATA_AXES, None, "tensor"), P(DATA_AXES), P(DATA_AXES)]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(qkv, specs)]
    pos_placed = jax.device_put(pos_BT, NamedSharding(mesh, P(DATA_AXES)))
    slow, slow_gradients = out_and_gradients(reference, qkv, pos_BT, 6, 3.0)
    fast, fast_gradients = out_and_gradients(blocked_attend, placed, pos_placed, 6, 3.0)
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)


def test_logits_of_the_model():
    small = dataclasses.replace(BASE, n_layers=2, layer_types=alternating(2))
    real_BT = inputs(small)[1] >= 0
    slow, fast = (
        np.asarray(logits_of(random_params(small), cfg, *inputs(small)))
        for cfg in (small, dataclasses.replace(small, attention="blocked"))
    )
    np.testing.assert_allclose(fast[real_BT], slow[real_BT], atol=1e-5, rtol=0)


def test_memory_grows_with_the_length_not_with_its_square(monkeypatch):
    """Temporaries of a forward and backward pass, twice the length: less than 2.5 times as many,
    where the reference has four times.
    """
    monkeypatch.setattr(attention, "QUERIES", 128)

    def temporaries(attend, T):
        qkv, pos_BT = arrays(1, T, 4, 2, 16), positions([T], T)
        loss = jax.grad(lambda *qkv: jnp.sum(attend(*qkv, pos_BT, None, 50.0)), (0, 1, 2))
        return jax.jit(loss).lower(*qkv).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(blocked_attend, 2048) < 2.5 * temporaries(blocked_attend, 1024)
    assert temporaries(reference, 2048) > 3.5 * temporaries(reference, 1024)
