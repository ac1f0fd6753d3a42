"""Attention by tokamax against `attend`: on CPU through its plain JAX in chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models import config, gpu
from grm_jax.models.attention import Packed
from grm_jax.models.config import Numerics, alternating
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

with_tokamax = pytest.mark.skipif(
    not config.tokamax_is_installed(), reason="tokamax is not installed: pip install -e '.[gpu]'"
)


def tokamax_attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, packed=None):
    seen = gpu.seen_keys(pos_BT, packed, window)
    return gpu.tokamax_attend(q_BTNH, k_BTKH, v_BTKH, seen, cap)


def assert_same(slow, fast):
    (slow, slow_gradients), (fast, fast_gradients) = slow, fast
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)


@with_tokamax
@pytest.mark.parametrize(
    "lengths, T, N, K, window, cap",
    [
        pytest.param(
            (256, 77), 256, 4, 2, 100, 3.0, id="grouped heads, a window, a cap that bites"
        ),
        pytest.param((200, 1), 200, 4, 1, None, None, id="one kv head, no window, no cap"),
        pytest.param((130, 0), 130, 2, 2, 1, 50.0, id="only oneself in sight, a row of padding"),
    ],
)
def test_output_and_gradients_are_those_of_the_reference(lengths, T, N, K, window, cap):
    qkv, pos_BT = arrays(len(lengths), T, N, K, 32), positions(lengths, T)
    assert_same(
        out_and_gradients(reference, qkv, pos_BT, window, cap),
        out_and_gradients(tokamax_attend, qkv, pos_BT, window, cap),
    )


@with_tokamax
@pytest.mark.parametrize("window, cap, N, K", [(None, 3.0, 4, 2), (50, 50.0, 2, 1)])
def test_packed_rows_are_those_of_the_reference(window, cap, N, K):
    T = 300
    layout = lay_out(random_rows(7, B=2, T=T, longest=150), T)
    qkv, pos_BT = arrays(2, T, N, K, 32), jnp.asarray(layout.pos_BT)
    packed = Packed(jnp.asarray(layout.segment_BT), jnp.asarray(layout.branch_BT))
    assert_same(
        *(
            out_and_gradients(functools.partial(way, packed=packed), qkv, pos_BT, window, cap)
            for way in (reference, tokamax_attend)
        )
    )


@with_tokamax
def test_over_a_mesh():
    mesh, T = make_mesh(replica=1, fsdp=2, tensor=4), 64
    qkv, pos_BT = arrays(4, T, 4, 2, 16), positions([T, 12, 1, 19], T)
    specs = [P(DATA_AXES, None, "tensor"), P(DATA_AXES), P(DATA_AXES)]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(qkv, specs)]
    pos_placed = jax.device_put(pos_BT, NamedSharding(mesh, P(DATA_AXES)))
    assert_same(
        out_and_gradients(reference, qkv, pos_BT, 6, 3.0),
        out_and_gradients(tokamax_attend, placed, pos_placed, 6, 3.0),
    )


@with_tokamax
def test_logits_of_the_model():
    small = dataclasses.replace(BASE, n_layers=2, layer_types=alternating(2))
    real_BT = inputs(small)[1] >= 0
    slow, fast = (
        np.asarray(logits_of(random_params(small), cfg, *inputs(small)))
        for cfg in (small, dataclasses.replace(small, attention="tokamax"))
    )
    np.testing.assert_allclose(fast[real_BT], slow[real_BT], atol=1e-5, rtol=0)


def test_auto_on_a_gpu_takes_it_where_it_is_installed(monkeypatch):
    for installed, attention in ((True, "tokamax"), (False, "blocked")):
        monkeypatch.setattr(config, "tokamax_is_installed", lambda installed=installed: installed)
        assert Numerics().resolve("gpu")["attention"] == attention
    with pytest.raises(ValueError, match="'tokamax' needs the package tokamax; .* '.*gpu.*'"):
        Numerics(attention="tokamax").resolve("gpu")
    with pytest.raises(ValueError, match="'tokamax' needs a GPU, the platform is cpu; expected"):
        Numerics(attention="tokamax").resolve("cpu")
