"""Every parameter has exactly one row, and the row's layout functions invert each other."""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from grm_jax.models.config import GEMMA2_27B
from grm_jax.models.table import (
    CAUSAL_LM,
    SCALAR,
    TABLE,
    abstract_params,
    find_row,
    from_hf,
    hf_names,
    hf_shape,
    hf_slice,
    is_stacked,
    to_hf,
)
from tests.models.gemma2_cases import BASE, CASES


@pytest.mark.parametrize("architecture", [CAUSAL_LM, SCALAR])
@pytest.mark.parametrize("name", ["window_shorter_than_sequence", "own_layer_types"])
def test_every_parameter_has_exactly_one_row(name, architecture):
    cfg = CASES[name][0]
    for path, leaf in flatten_dict(abstract_params(cfg, architecture), sep="/").items():
        assert sum(bool(re.fullmatch(rf"(?:.*/)?{row.path}", path)) for row in TABLE) == 1, path
        assert len(find_row(path).spec) in (0, leaf.ndim)


def test_a_parameter_without_a_row_is_an_error():
    for path in ("blocks/layer_0_attn/bias", "embedding_2", "blocks/layer_0_attn/q/extra"):
        with pytest.raises(KeyError, match="has no row"):
            find_row(path)


def test_tensor_names_cover_every_layer_once():
    cfg = CASES["own_layer_types"][0]  # blocks of three layers
    assert hf_names("blocks/layer_1_attn/q", cfg) == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.4.self_attn.q_proj.weight",
    ]
    names = [
        name for path in flatten_dict(abstract_params(cfg), sep="/") for name in hf_names(path, cfg)
    ]
    assert len(names) == len(set(names)) == 2 + 11 * cfg.n_layers


def test_layouts_invert_each_other_and_slices_agree():
    for path, leaf in flatten_dict(abstract_params(BASE), sep="/").items():
        inputs, shape = find_row(path).inputs, leaf.shape[1:] if is_stacked(path) else leaf.shape
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        tensor = to_hf(array, inputs)
        assert tensor.shape == hf_shape(shape, inputs)
        np.testing.assert_array_equal(from_hf(tensor, shape, inputs), array)
        half = tuple(
            slice(size // 2, size) if axis == 0 else slice(None) for axis, size in enumerate(shape)
        )
        np.testing.assert_array_equal(
            from_hf(tensor[hf_slice(half, shape, inputs)], array[half].shape, inputs), array[half]
        )


def test_torch_linear_layout_of_attention():
    """q [D, N, H] is x -> einsum("d,dnh->nh"); torch computes weight @ x and splits the result into
    heads.
    """
    rng = np.random.default_rng(0)
    q, x = rng.normal(size=(5, 3, 4)), rng.normal(size=5)
    np.testing.assert_allclose((to_hf(q, 1) @ x).reshape(3, 4), np.einsum("d,dnh->nh", x, q))
    o, y = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4))
    np.testing.assert_allclose(to_hf(o, 2) @ y.reshape(-1), np.einsum("nh,nhd->d", y, o))


def test_splitting_an_inner_axis_is_refused():
    with pytest.raises(ValueError, match="inner axis"):
        hf_slice((slice(None), slice(None), slice(0, 2)), (5, 3, 4), 1)


def test_27b_has_the_published_size():
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(GEMMA2_27B)))
    assert count == 27_227_128_320


def test_unknown_architecture():
    with pytest.raises(ValueError, match="Gemma2ForTokenClassification"):
        abstract_params(BASE, "Gemma2ForTokenClassification")
