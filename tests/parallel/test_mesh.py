"""Meshes on 8 virtual CPU devices, and shardings from the parameter table."""

import functools
import types

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from grm_jax.models import Decoder, ModelConfig, lm_logits
from grm_jax.models.config import GEMMA2_27B, alternating
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.parallel.mesh import batch_sharding, fit_spec, make_mesh, param_shardings

CFG = ModelConfig(
    vocab_size=66,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=1,
    head_dim=8,
    d_ff=24,
    layer_types=alternating(2),
    sliding_window=5,
)


def test_axes_and_their_types_are_stated():
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    assert mesh.axis_names == ("replica", "fsdp", "tensor") and mesh.devices.shape == (2, 2, 2)
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_minus_one_takes_the_remaining_devices():
    assert dict(make_mesh().shape) == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert dict(make_mesh(replica=-1, fsdp=1, tensor=2).shape) == {
        "replica": 4,
        "fsdp": 1,
        "tensor": 2,
    }
    assert make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "sizes", [(2, 2, 1), (-1, 3, 1), (-1, -1, 1), (0, -1, 1), (-2, 1, 1), (16, 1, 1)]
)
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh|MeshConfig"):
        make_mesh(*sizes)


def two_slices():
    """2 x (2 x 4) chips of v5e, which are nowhere."""
    return [
        types.SimpleNamespace(
            platform="tpu",
            device_kind="TPU v5 lite",
            slice_index=s,
            id=8 * s + i,
            process_index=2 * s + i // 4,
            coords=(i % 2, i // 2, 0),
            core_on_chip=0,
        )
        for s in (0, 1)
        for i in range(8)
    ]


def test_only_the_replica_axis_leaves_a_slice(monkeypatch):
    # a real one takes real devices alone
    monkeypatch.setattr("grm_jax.parallel.mesh.Mesh", lambda devices, axes, axis_types: devices)
    slice_of = np.vectorize(lambda device: device.slice_index)
    assert (
        slice_of(make_mesh(replica=2, fsdp=4, tensor=2, devices=two_slices()))
        == np.array([0, 1])[:, None, None]
    ).all()
    assert (
        slice_of(make_mesh(replica=4, fsdp=-1, tensor=1, devices=two_slices()))
        == np.array([0, 0, 1, 1])[:, None, None]
    ).all()
    with pytest.raises(
        ValueError, match="the devices are 2 slices; expected a replica axis of a multiple of 2"
    ):
        make_mesh(fsdp=16, devices=two_slices())


def test_27b_is_split_as_the_table_says():
    mesh = make_mesh(fsdp=4, tensor=2)
    shardings = flatten_dict(param_shardings(mesh, abstract_params(GEMMA2_27B)), sep="/")
    assert shardings["embedding"].spec == P("tensor", "fsdp")
    assert shardings["blocks/layer_1_attn/q"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["blocks/layer_0_mlp/down"].spec == P(None, "tensor", "fsdp")
    for path, leaf in flatten_dict(abstract_params(GEMMA2_27B), sep="/").items():
        pieces = leaf.size // np.prod(shardings[path].shard_shape(leaf.shape))
        assert pieces == (1 if path.endswith("scale") else 8), path


def test_tensor_is_dropped_where_it_does_not_divide_and_said_so(caplog):
    mesh = make_mesh(fsdp=2, tensor=4)
    with caplog.at_level("INFO"):
        shardings = flatten_dict(param_shardings(mesh, abstract_params(CFG)), sep="/")
    # one kv head, repeated on all four
    assert shardings["blocks/layer_0_attn/k"].spec == P(None, "fsdp", None, None)
    assert shardings["blocks/layer_0_attn/q"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["embedding"].spec == P(None, "fsdp")  # 66 rows
    assert "blocks/layer_0_attn/k: tensor does not divide 1" in caplog.text


def test_fsdp_must_divide():
    with pytest.raises(ValueError, match="embedding: fsdp = 8 does not divide 12"):
        fit_spec(make_mesh(), P("tensor", "fsdp"), (66, 12), "embedding")
    with pytest.raises(ValueError, match="fewer axes"):
        fit_spec(make_mesh(), P("tensor", "fsdp"), (66,), "embedding")


def test_optimizer_moments_are_split_like_their_parameters():
    mesh = make_mesh(fsdp=4, tensor=2)
    params = abstract_params(CFG, SCALAR)
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): where
        for path, where in jax.tree_util.tree_leaves_with_path(param_shardings(mesh, state))
    }
    for path, where in flatten_dict(param_shardings(mesh, params), sep="/").items():
        assert found[f"0/mu/{path}"] == found[f"0/nu/{path}"] == where
    assert found["0/count"].spec == P()


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(KeyError, match="'adapter' has no row"):
        param_shardings(make_mesh(), {"adapter": jax.ShapeDtypeStruct((8, 8), np.float32)})


def test_sharded_forward_equals_one_device():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_params(CFG)
    )
    tokens_BT = rng.integers(3, CFG.vocab_size, (8, 12)).astype(np.int32)
    pos_BT = np.broadcast_to(np.arange(12, dtype=np.int32), (8, 12))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def logits(params, tokens_BT, pos_BT):
        return lm_logits(params, CFG, Decoder(CFG).apply({"params": params}, tokens_BT, pos_BT)[0])

    expected = logits(params, tokens_BT, pos_BT)
    for sizes in [(1, 4, 2), (2, 2, 2)]:
        mesh = make_mesh(*sizes)
        placed = jax.device_put(params, param_shardings(mesh, params))
        batch = jax.device_put((tokens_BT, pos_BT), batch_sharding(mesh))
        assert batch[0].addressable_shards[0].data.shape == (8 // (sizes[0] * sizes[1]), 12)
        np.testing.assert_allclose(logits(placed, *batch), expected, atol=1e-5)
