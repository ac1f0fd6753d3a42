"""A stack of whole blocks and a rest, against the same layers as one block: forward, gradients,
caches, folders, meshes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.models import Decoder, blocked
from grm_jax.models.attention import Packed
from grm_jax.models.config import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    GLOBAL,
    LOCAL,
    ModelConfig,
    from_sizes,
)
from grm_jax.models.table import abstract_params, flatten, hf_names
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.sampling.chunks import Drawing
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.rollout import Request, generate
from grm_jax.sampling.sampler import SamplingConfig
from tests.jaxprs import equations
from tests.models.gemma2_cases import quick_jit, random_params
from tests.models.packed_cases import lay_out

# two blocks of three layers, and two more
CFG = from_sizes(
    dict(
        model_type="gemma3_text",
        d_model=24,
        n_layers=8,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=32,
        layer_types=(LOCAL, LOCAL, GLOBAL) * 2 + (LOCAL, LOCAL),
        sliding_window=6,
        query_pre_attn_scalar=5.0,
    ),
    vocab_size=62,
)


class OneBlock(ModelConfig):
    """The slow twin: all layers are one block, which is there once."""

    @property
    def block(self):
        return self.layer_types


ONE_BLOCK = OneBlock(**{f.name: getattr(CFG, f.name) for f in dataclasses.fields(CFG)})


@pytest.fixture(scope="module")
def params():
    return random_params(CFG, factor=2.0)


@pytest.fixture(scope="module")
def twin(params, tmp_path_factory):
    """The same parameters as one block, through a folder."""
    folder = tmp_path_factory.mktemp("rest") / "m"
    save_folder(folder, params, CFG)
    return load_params(folder, ONE_BLOCK)


def by_name(tree, cfg):
    """{name in a folder: array} of parameters or their gradients."""
    return {
        name: np.asarray(leaf[i] if "model.layers" in name else leaf)
        for path, leaf in flatten(tree).items()
        for i, name in enumerate(hf_names(path, cfg))
    }


@pytest.mark.parametrize("n_layers, blocks, rest", [(26, 4, 2), (34, 5, 4), (62, 10, 2)])
def test_whole_blocks_are_scanned_and_the_rest_is_not(n_layers, blocks, rest):
    sizes = dict(model_type="gemma3_text", d_model=8, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=8)
    cfg = from_sizes(sizes | {"n_layers": n_layers}, 16)
    assert (cfg.n_blocks, cfg.block) == (blocks, (LOCAL,) * 5 + (GLOBAL,))
    assert cfg.block * blocks + cfg.rest == cfg.layer_types and len(cfg.rest) == rest
    names = [name for path in flatten(abstract_params(cfg)) for name in hf_names(path, cfg)]
    assert len(names) == len(set(names)) == 2 + 13 * n_layers
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    program = jax.make_jaxpr(lambda p, t: Decoder(cfg).apply({"params": p}, t, t)[0])(
        abstract_params(cfg), tokens
    )
    scans = [eqn.params for eqn in equations(program.jaxpr) if eqn.primitive.name == "scan"]
    assert [scan["length"] for scan in scans] == [blocks, 1]


def test_where_blocks_are_whole_there_is_no_rest():
    for cfg in (GEMMA2_2B, GEMMA2_9B, GEMMA2_27B):
        assert cfg.block == (LOCAL, GLOBAL) and not cfg.rest
        assert {path.split("/")[0] for path in flatten(abstract_params(cfg))} == {
            "embedding",
            "blocks",
            "final_norm",
        }
    # fewer than two whole blocks are not scanned
    short = dataclasses.replace(CFG, n_layers=5, layer_types=CFG.layer_types[:5])
    assert short.block == short.layer_types and not short.rest


@pytest.mark.parametrize(
    "changes",
    [{}, {"scan_layers": False}, {"remat": "full", "attention": "blocked"}],
    ids=["scanned", "unrolled", "remat, blocked"],
)
def test_forward_and_gradients_of_packed_rows_are_those_of_one_block(
    monkeypatch, params, twin, changes
):
    monkeypatch.setattr(blocked, "TILE", 16)
    layout = lay_out([[(20, (5, 9, 1)), (3, (6,))], [(6, (20,)), (9, ())]], T=48)
    tokens_BT = np.random.default_rng(1).integers(3, CFG.vocab_size, layout.pos_BT.shape)
    packed = Packed(layout.segment_BT, layout.branch_BT)

    def run(cfg, params):
        def loss(params):
            hidden, _ = Decoder(cfg).apply(
                {"params": params}, tokens_BT, layout.pos_BT, packed=packed
            )
            hidden = jnp.where(layout.pos_BT[..., None] >= 0, hidden, 0.0)
            return jnp.sum(jnp.sin(3.0 * hidden)), hidden

        (_, hidden), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
        return hidden, by_name(gradients, cfg)

    hidden, gradients = run(dataclasses.replace(CFG, **changes), params)
    expected, expected_gradients = run(ONE_BLOCK, twin)
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        atol = 1e-5 * np.abs(gradient).max()
        assert atol > 0
        np.testing.assert_allclose(gradients[name], gradient, atol=atol, rtol=1e-4, err_msg=name)


FRONT, BUCKETS = 8, (10, 16, 24)  # a front longer than the window
SETTINGS = SamplingConfig(max_new_tokens=9, temperature=0.8, stop_ids=(3, 7))


def drawn(sampler, params):
    rng = np.random.default_rng(4)
    front = rng.integers(8, 62, FRONT).tolist()
    requests = [
        Request(front + rng.integers(8, 62, n).tolist(), f"item{i}", (0, 1), None, FRONT)
        for i, n in enumerate((1, 9, 2, 15, 5))
    ]
    return {
        (c.item_id, c.sample): c
        for _, completions in generate(sampler, params, requests, 0, BUCKETS, 6)
        for c in completions
    }


@pytest.fixture(scope="module")
def expected(twin):
    return drawn(make_sampler(dataclasses.replace(ONE_BLOCK, scan_layers=False), SETTINGS), twin)


@pytest.mark.parametrize(
    "engine, scan_layers, mode, mesh_shape",
    [
        (False, True, "jit", None),
        (False, False, "jit", None),
        (True, True, "jit", None),
        pytest.param(True, False, "shard_map", (1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_one_block(params, expected, engine, scan_layers, mode, mesh_shape):
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    sampler = Drawing(cfg, SETTINGS, mode, mesh, 3) if engine else make_sampler(cfg, SETTINGS)
    found = drawn(sampler, placed)
    assert found.keys() == expected.keys() and len(expected) == 10
    for name, completion in expected.items():
        np.testing.assert_array_equal(found[name].token_ids, completion.token_ids)
        np.testing.assert_allclose(found[name].logp, completion.logp, atol=1e-5)


def test_a_folder_is_the_same_and_lies_on_a_mesh_as_blocks_do(params, twin, tmp_path):
    save_folder(tmp_path / "m", twin, ONE_BLOCK)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "m", CFG), params)
    shardings = flatten(param_shardings(make_mesh(2, 2, 2), params))
    of_rest = {path: where for path, where in shardings.items() if path.startswith("rest/")}
    assert len(of_rest) == 2 * 13
    for path, where in of_rest.items():
        number = int(path.split("layer_")[1][0])
        in_block = path.replace("rest", "blocks").replace(f"layer_{number}", "layer_0")
        assert number in (3, 4) and where.spec == shardings[in_block].spec
