"""Attention in tiles against `attend`: values, gradients, what is left out, memory, the model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models import blocked
from grm_jax.models.attention import Packed
from grm_jax.models.blocked import make_tiles
from grm_jax.models.config import alternating
from grm_jax.models.placement import DATA_AXES
from grm_jax.parallel.mesh import make_mesh
from tests.models.gemma2_cases import BASE, inputs, logits_of, random_params
from tests.models.packed_cases import lay_out, random_rows
from tests.models.test_splash import (
    BACKWARD,
    FORWARD,
    arrays,
    out_and_gradients,
    positions,
    reference,
)


def blocked_attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, packed=None):
    tiles = make_tiles(pos_BT, packed, window)
    return blocked.blocked_attend(q_BTNH, k_BTKH, v_BTKH, tiles, cap)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Tiles of 8 queries and keys."""
    monkeypatch.setattr(blocked, "TILE", 8)


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


@pytest.mark.parametrize(
    "seed, T, N, K, window, cap",
    [
        (1, 105, 4, 2, None, 3.0),
        (2, 64, 2, 2, 1, 50.0),
        (3, 103, 3, 1, 5, None),
        (4, 61, 4, 2, 17, 3.0),
        (5, 7, 4, 1, 3, 3.0),
    ],
)
def test_packed_rows_are_those_of_the_reference(seed, T, N, K, window, cap):
    layout = lay_out(random_rows(seed, B=2, T=T, longest=T // 2), T)
    qkv, pos_BT = arrays(2, T, N, K, 8), jnp.asarray(layout.pos_BT)
    packed = Packed(jnp.asarray(layout.segment_BT), jnp.asarray(layout.branch_BT))
    (slow, slow_gradients), (fast, fast_gradients) = (
        out_and_gradients(functools.partial(way, packed=packed), qkv, pos_BT, window, cap)
        for way in (reference, blocked_attend)
    )
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)


def test_tiles_in_which_nothing_is_seen_are_left_out():
    """Two trees in tiles of 8: a trunk of 16 with branches of 8, 16 and 8, and one of 16 alone."""
    layout = lay_out([[(16, (8, 16, 8)), (16, ())]], 72)
    packed = Packed(jnp.asarray(layout.segment_BT), jnp.asarray(layout.branch_BT))
    expected = {  # tile of queries: tiles of keys, with no window, and with one of 6
        0: ([0], [0]),
        1: ([0, 1], [0, 1]),
        2: ([0, 1, 2], [1, 2]),
        3: ([0, 1, 3], [1, 3]),
        4: ([0, 1, 3, 4], [3, 4]),
        5: ([0, 1, 5], [1, 5]),
        6: ([6], [6]),
        7: ([6, 7], [6, 7]),
        8: ([8], [8]),
    }
    for which, window in enumerate((None, 6)):
        next_IJ = np.asarray(make_tiles(jnp.asarray(layout.pos_BT), packed, window).next_BIJ[0])
        found = {i: sorted(set(next_J[next_J < 9].tolist())) for i, next_J in enumerate(next_IJ)}
        assert found == {i: tiles[which] for i, tiles in expected.items()}


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
    """Temporaries of a forward and backward pass of packed rows, in bytes: a step from 2,048 to
    4,096 tokens costs half of the next one, to 8,192, give or take a tenth.
    """
    monkeypatch.setattr(blocked, "TILE", 256)

    def temporaries(attend, T):
        qkv, pos_BT = arrays(1, T, 4, 2, 64), positions([T], T)
        packed = Packed(jnp.zeros_like(pos_BT), jnp.zeros_like(pos_BT))
        loss = jax.grad(lambda *qkv: jnp.sum(attend(*qkv, pos_BT, None, 50.0, packed)), (0, 1, 2))
        return jax.jit(loss).lower(*qkv).compile().memory_analysis().temp_size_in_bytes

    short, middle, long = (temporaries(blocked_attend, T) for T in (2048, 4096, 8192))
    assert 1.8 < (long - middle) / (middle - short) < 2.2
    assert temporaries(reference, 2048) > 3.5 * temporaries(reference, 1024)
