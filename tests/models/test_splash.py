"""Splash attention against `attend`: interpreted on CPU, alone, over meshes and in the whole model;
compiled for a TPU (marked tpu_aot).
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models import config
from grm_jax.models.attention import Packed, attend
from grm_jax.models.config import ModelConfig, Numerics, alternating
from grm_jax.models.flops import forward_flops
from grm_jax.models.placement import DATA_AXES
from grm_jax.models.splash import packed_masks, splash_attend
from grm_jax.models.table import abstract_params
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from grm_jax.planning.measure import Program, measure
from grm_jax.planning.topology import get_topology
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.training.state import abstract_state
from grm_jax.training.step import make_train_step, rft_loss
from tests.models.gemma2_cases import BASE, inputs, logits_of, random_params
from tests.models.packed_cases import lay_out, random_rows

# largest differences in float32: of values of order 1, of gradients that are sums of terms up to
# 100
FORWARD, BACKWARD = 1e-5, 3e-4


def arrays(B, T, N, K, H, dtype=jnp.float32):
    """Queries, keys and values, standard normal; queries scaled so that logits have a standard
    deviation of 4.
    """
    rng = np.random.default_rng(0)
    q_BTNH, k_BTKH, v_BTKH = (rng.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    return [jnp.asarray(x, dtype) for x in (4 * H**-0.5 * q_BTNH, k_BTKH, v_BTKH)]


def positions(lengths, T):
    at_T = np.arange(T)[None]
    return jnp.asarray(np.where(at_T < np.asarray(lengths)[:, None], at_T, -1), jnp.int32)


def reference(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, packed=None):
    own = {"k": k_BTKH, "v": v_BTKH, "pos": pos_BT}
    return attend(q_BTNH, pos_BT, [own], window, cap, packed)


interpreted = functools.partial(splash_attend, interpret=True)


def out_and_gradients(attention, qkv, pos_BT, window, cap):
    """The output on real tokens, 0 in padding, and the gradients of a loss over real tokens."""

    def real(*qkv):
        return jnp.where((pos_BT >= 0)[:, :, None, None], attention(*qkv, pos_BT, window, cap), 0)

    def loss(*qkv):
        out_BTNH = real(*qkv)
        return jnp.sum(jnp.sin(3.0 * out_BTNH.astype(jnp.float32))), out_BTNH

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return out, gradients


@pytest.mark.parametrize(
    "lengths, T, N, K, H, window, cap",
    [
        pytest.param(
            (256, 77), 256, 4, 2, 128, 100, 3.0, id="grouped heads, a window, a cap that bites"
        ),
        pytest.param(
            (200, 1), 200, 4, 1, 32, None, 3.0, id="one kv head, no window, T not a multiple of 128"
        ),
        pytest.param(
            (128,), 128, 2, 2, 256, 1, None, id="a kv head for each, only oneself in sight, no cap"
        ),
        pytest.param((300,), 384, 2, 1, 16, 128, 50.0, id="three blocks, a window of one block"),
    ],
)
def test_output_and_gradients_are_those_of_the_reference(lengths, T, N, K, H, window, cap):
    qkv, pos_BT = arrays(len(lengths), T, N, K, H), positions(lengths, T)
    slow, slow_gradients = out_and_gradients(reference, qkv, pos_BT, window, cap)
    fast, fast_gradients = out_and_gradients(interpreted, qkv, pos_BT, window, cap)
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)
    for changed in ((50, cap), (window, None)):  # window and cap matter here
        if changed != (window, cap):
            other = jnp.where((pos_BT >= 0)[:, :, None, None], reference(*qkv, pos_BT, *changed), 0)
            assert np.abs(other - slow).max() > 100 * FORWARD


@pytest.mark.parametrize(
    "window, cap, N, K",
    [
        pytest.param(None, 3.0, 4, 2, id="no window, grouped heads"),
        pytest.param(50, 50.0, 2, 1, id="a window shorter than trunks"),
    ],
)
def test_packed_rows_are_those_of_the_reference(window, cap, N, K):
    """Blocks of 128, three of them."""
    T = 384
    layout = lay_out(random_rows(7, B=2, T=T, longest=150), T)
    qkv, pos_BT = arrays(2, T, N, K, 32), jnp.asarray(layout.pos_BT)
    packed = Packed(jnp.asarray(layout.segment_BT), jnp.asarray(layout.branch_BT))

    def kernels(q, k, v, pos_BT, window, cap):
        return interpreted(
            q, k, v, pos_BT, window, cap, packed=packed_masks(pos_BT, packed, window)
        )

    slow, slow_gradients = out_and_gradients(
        functools.partial(reference, packed=packed), qkv, pos_BT, window, cap
    )
    fast, fast_gradients = out_and_gradients(kernels, qkv, pos_BT, window, cap)
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)


def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_reference():
    qkv, pos_BT = arrays(1, 256, 2, 1, 64, jnp.bfloat16), positions([256], 256)
    truth = reference(*(x.astype(jnp.float32) for x in qkv), pos_BT, 100, 50.0)
    outs = (
        jax.jit(f, static_argnums=(4, 5))(*qkv, pos_BT, 100, 50.0) for f in (reference, interpreted)
    )
    slow, fast = (np.abs(out.astype(jnp.float32) - truth).max() for out in outs)
    assert fast < 1.1 * slow < 0.1


def test_padding_is_finite_and_without_influence():
    qkv, pos_BT = arrays(2, 128, 2, 1, 16), positions([100, 0], 128)
    out = interpreted(*qkv, pos_BT, 30, 3.0)
    other = interpreted(*(x.at[:, 100:].set(1e4) for x in qkv), pos_BT, 30, 3.0)
    assert np.isfinite(out).all() and np.isfinite(other).all()
    np.testing.assert_array_equal(out[0, :100], other[0, :100])


@pytest.mark.parametrize(
    "B, N, K",
    [
        pytest.param(4, 4, 2, id="everything is split"),
        pytest.param(4, 8, 1, id="one kv head"),
        pytest.param(3, 3, 3, id="nothing divides"),
    ],
)
def test_over_a_mesh(B, N, K):
    """fsdp 2 x tensor 4; 2 kv heads on 4 shards are repeated twice. The same inside shard_map over
    the data axes, as the sampler has it.
    """
    mesh, T = make_mesh(replica=1, fsdp=2, tensor=4), 100
    qkv, pos_BT = arrays(B, T, N, K, 16), positions([T, 60, 1, 99][:B], T)
    rows = DATA_AXES if B % 2 == 0 else None
    specs = [P(rows, None, "tensor" if N % 4 == 0 else None), P(rows), P(rows)]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(qkv, specs)]
    pos_placed = jax.device_put(pos_BT, NamedSharding(mesh, P(rows)))
    slow, slow_gradients = out_and_gradients(reference, qkv, pos_BT, 30, 3.0)
    fast, fast_gradients = out_and_gradients(interpreted, placed, pos_placed, 30, 3.0)
    np.testing.assert_allclose(fast, slow, atol=FORWARD, rtol=0)
    for got, expected in zip(fast_gradients, slow_gradients):
        np.testing.assert_allclose(got, expected, atol=BACKWARD, rtol=0)
    if rows is not None:
        inside = jax.shard_map(
            lambda *arrays: interpreted(*arrays, 30, 3.0),
            mesh=mesh,
            in_specs=(P(DATA_AXES),) * 4,
            out_specs=P(DATA_AXES),
            axis_names=set(DATA_AXES),
            check_vma=False,
        )
        found = jnp.where((pos_BT >= 0)[:, :, None, None], jax.jit(inside)(*placed, pos_placed), 0)
        np.testing.assert_allclose(found, slow, atol=FORWARD, rtol=0)


SMALL = dataclasses.replace(BASE, n_layers=2, layer_types=alternating(2))
SPLASH = dataclasses.replace(SMALL, attention="splash_interpreted")


def test_logits_of_the_model():
    real_BT = inputs(SMALL)[1] >= 0
    slow, fast = (
        np.asarray(logits_of(random_params(SMALL), cfg, *inputs(SMALL))) for cfg in (SMALL, SPLASH)
    )
    np.testing.assert_allclose(fast[real_BT], slow[real_BT], atol=1e-5, rtol=0)
    # another way was taken: padding differs
    assert np.abs(fast[~real_BT] - slow[~real_BT]).max() > 1e-3


def test_prefill_of_the_sampler_on_a_sharded_model():
    """Prompts by splash, decoding by the reference over the keys that prefill left: the same
    tokens.
    """
    mesh, scfg = make_mesh(replica=1, fsdp=4, tensor=2), SamplingConfig(5, temperature=0.0)
    tokens_BT, pos_BT = inputs(SMALL)
    prompts, lengths = (
        np.concatenate([tokens_BT, tokens_BT[::-1]]),
        np.tile((pos_BT >= 0).sum(1).astype(np.int32), 2)[[0, 1, 1, 0]],
    )
    keys = np.zeros((4, 1, 2), np.uint32)
    params = jax.device_put(random_params(SMALL), param_shardings(mesh, random_params(SMALL)))
    slow, fast = (
        make_sampler(cfg, scfg, "shard_map", mesh)(params, prompts, lengths, keys)
        for cfg in (SMALL, SPLASH)
    )
    np.testing.assert_array_equal(fast["tokens"], slow["tokens"])
    np.testing.assert_allclose(fast["logp"], slow["logp"], atol=1e-4)


def test_bad_values_are_refused():
    with pytest.raises(
        ValueError, match="attention: expected one of reference, blocked, splash, .*, got 'flash'"
    ):
        dataclasses.replace(BASE, attention="flash")
    with pytest.raises(
        ValueError,
        match="model.attention: 'splash' needs a TPU, the platform is cpu; expected 'auto' or "
        "'reference'",
    ):
        Numerics(attention="splash").resolve("cpu")


def test_auto_is_splash_on_tpu_alone(monkeypatch):
    monkeypatch.setattr(config, "tokamax_is_installed", lambda: False)
    resolved = [Numerics().resolve(platform)["attention"] for platform in ("tpu", "gpu", "cpu")]
    assert resolved == ["splash", "blocked", "blocked"]
    for attention, platform in (
        ("splash", "tpu"),
        ("blocked", "gpu"),
        ("reference", "tpu"),
        ("splash_interpreted", "cpu"),
    ):
        assert Numerics(attention=attention).resolve(platform)["attention"] == attention


def kernels(hlo: str) -> list[str]:
    """What Mosaic compiled, by name, as often as it is called in the text of a program."""
    names = re.findall(r"%(splash_mha_[a-z]+)_\S* = .*custom_call_target=\"tpu_custom_call\"", hlo)
    assert len(names) == hlo.count('custom_call_target="tpu_custom_call"')
    return sorted(names)


@pytest.mark.tpu_aot
def test_the_kernels_compile_for_a_tpu_with_the_heads_of_2b_and_9b():
    """Head dimension 256, 5,120 tokens, no mesh: forward and backward in blocks of 512 are within
    the memory of a core.
    """
    one = NamedSharding(make_mesh(devices=get_topology("v5e:2x4").devices[:1]), P())
    q, kv = (
        jax.ShapeDtypeStruct((1, 5120, heads, 256), jnp.bfloat16, sharding=one) for heads in (2, 1)
    )
    pos = jax.ShapeDtypeStruct((1, 5120), jnp.int32, sharding=one)

    def loss(q, k, v, pos):
        return splash_attend(q, k, v, pos, 4096, 50.0).astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, pos).compile()
    assert kernels(compiled.as_text()) == ["splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd"]
    # less than the float32 logits of one head
    assert compiled.memory_analysis().temp_size_in_bytes < 5120 * 5120 * 4


@pytest.mark.tpu_aot
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_packed_rows_compile_for_a_tpu(topology):
    """fsdp 2 x tensor 2, two rows of 4,096 on each device, masks of the local and the global layer:
    forward and backward. Rows run one after the other, each with its own mask.
    """
    mesh = make_mesh(replica=1, fsdp=2, tensor=2, devices=get_topology(topology).devices[:4])
    B, T = 4, 4096
    rows = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=NamedSharding(mesh, P(DATA_AXES)))
    q, kv = (
        jax.ShapeDtypeStruct(
            (B, T, heads, 128),
            jnp.bfloat16,
            sharding=NamedSharding(mesh, P(DATA_AXES, None, "tensor")),
        )
        for heads in (8, 4)
    )

    def loss(q, k, v, pos_BT, segment_BT, branch_BT):
        packed = Packed(segment_BT, branch_BT)
        for window in (1024, None):
            masks = packed_masks(pos_BT, packed, window)
            q = splash_attend(q, k, v, pos_BT, window, 50.0, packed=masks)
        return q.astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, rows, rows, rows).compile()
    # forward, dq and dkv of two layers, each in a loop over rows, where they have other names
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 6
    # less than the float32 logits of a device's rows and heads in one layer
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * T * T * 4


@pytest.mark.tpu_aot
def test_a_train_step_compiles_for_a_tpu(tmp_path):
    """fsdp 4 x tensor 2: the kernels of forward, dq and dkv for either layer of the scanned pair,
    and the forward once more (remat).
    """
    topology = get_topology("v5e:2x4")
    mesh = make_mesh(fsdp=4, tensor=2, devices=topology.devices)
    cfg = ModelConfig(
        vocab_size=512,
        d_model=256,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=128,
        d_ff=512,
        layer_types=alternating(4),
        sliding_window=200,
        dtype="bfloat16",
        remat="full",
        attention="splash",
    )
    B, T, optimizer = 8, 1024, optax.sgd(1e-3)
    state = abstract_state(abstract_params(cfg), optimizer)
    shardings = param_shardings(mesh, state)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, shardings
    )
    batch = {
        name: jax.ShapeDtypeStruct((B, T), dtype, sharding=batch_sharding(mesh))
        for name, dtype in (("tokens", jnp.int32), ("positions", jnp.int32), ("mask", jnp.float32))
    }
    step = make_train_step(rft_loss(cfg), optimizer, 1, shardings)
    program = Program(
        "step",
        step,
        (state, batch),
        mesh,
        {"params": state},
        {},
        3 * B * forward_flops(cfg, T, logits=T),
        B * T,
    )
    figures = measure(program, topology, {}, hlo=tmp_path)
    assert (
        figures["compiles"]
        and figures["fits"]
        and not any("Pallas" in what for what in figures["unknown"])
    )
    hlo = next(tmp_path.iterdir()).read_text()
    assert kernels(hlo) == 2 * ["splash_mha_dkv"] + 2 * ["splash_mha_dq"] + 4 * ["splash_mha_fwd"]
