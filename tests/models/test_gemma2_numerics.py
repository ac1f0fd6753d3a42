"""One test for each Gemma-2 rule that implementations have got wrong, against formulas in numpy
float64.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from grm_jax.models import Decoder, lm_logits
from grm_jax.models.attention import attend, softcap
from grm_jax.models.config import GEMMA2_2B, GEMMA2_9B, GEMMA2_27B
from grm_jax.models.decoder import MLP, Attention, RMSNorm, rope
from grm_jax.models.families import GLOBAL, LOCAL, alternating
from grm_jax.models.hf_config import from_hf_dict
from grm_jax.models.table import abstract_params
from tests.models.gemma2_cases import BASE, quick_jit, random_params

BF16 = ml_dtypes.bfloat16
attend = quick_jit(attend, static_argnames=("window", "cap"))


def attention_weights(q_pos: int, key_pos: np.ndarray, window: int | None) -> np.ndarray:
    """Weight of each key for one query at `q_pos`, all logits equal, read off one-hot values."""
    S = len(key_pos)
    segment = {
        "k": np.zeros((1, S, 1, S), np.float32),
        "v": np.eye(S, dtype=np.float32)[None, :, None],
        "pos": key_pos[None],
    }
    return np.asarray(
        attend(
            np.zeros((1, 1, 1, S), np.float32),
            np.array([[q_pos]]),
            [segment],
            window=window,
            cap=None,
        )
    )[0, 0, 0]


def test_window_edge_is_exact():
    """A local query at t sees keys t - window < s <= t: exactly `window` of them, itself included.
    Empty slots (-1) are never seen.
    """
    key_pos = np.array([*range(12), -1, -1])
    weights = attention_weights(9, key_pos, window=4)
    np.testing.assert_array_equal(np.flatnonzero(weights), [6, 7, 8, 9])
    np.testing.assert_allclose(weights[6:10], 0.25)
    np.testing.assert_array_equal(
        np.flatnonzero(attention_weights(2, key_pos, window=4)), [0, 1, 2]
    )
    np.testing.assert_array_equal(
        np.flatnonzero(attention_weights(9, key_pos, window=None)), range(10)
    )


@pytest.mark.parametrize("layer_types, reach", [((LOCAL, LOCAL, LOCAL), 6), ((GLOBAL, LOCAL), 11)])
def test_layer_types_are_honored(layer_types, reach):
    """With window w, n local layers carry token 0 exactly n * (w - 1) positions on; one global
    layer carries it to the end.
    """
    cfg = dataclasses.replace(
        BASE,
        n_layers=len(layer_types),
        layer_types=layer_types,
        sliding_window=3,
        n_heads=2,
        n_kv_heads=1,
    )
    pos = np.broadcast_to(np.arange(12), (2, 12))
    tokens = np.full((2, 12), 5)
    tokens[1, 0] = 6  # the rows differ in token 0 only
    hidden, _ = quick_jit(Decoder(cfg).apply)({"params": random_params(cfg)}, tokens, pos)
    changed = np.flatnonzero(np.asarray(hidden[0] != hidden[1]).any(-1))
    np.testing.assert_array_equal(changed, range(reach + 1))


def test_layer_0_is_local_and_layers_alternate():
    for cfg in (GEMMA2_2B, GEMMA2_9B, GEMMA2_27B, from_hf_dict({"model_type": "gemma2"})):
        assert cfg.layer_types == (LOCAL, GLOBAL) * (cfg.n_layers // 2)
        assert cfg.block == (LOCAL, GLOBAL)


def test_softcap_formula_and_off_switch():
    x = np.array([-1e4, -30.0, -1.0, 0.0, 0.5, 29.0, 1e4], np.float32)
    np.testing.assert_allclose(
        softcap(jnp.asarray(x), 30.0), 30.0 * np.tanh(x.astype(np.float64) / 30.0), rtol=1e-6
    )
    assert softcap(x, None) is x


def test_attention_softcap_is_applied_to_scaled_logits_before_the_mask():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(0, 4, (1, 6, 1, 8)).astype(np.float32) for _ in range(3))
    pos = np.arange(6)[None]
    logits_TS = np.tril(
        3.0 * np.tanh(q[0, :, 0].astype(np.float64) @ k[0, :, 0].T / 3.0)
    ) + np.triu(np.full((6, 6), -np.inf), 1)
    probs_TS = np.exp(logits_TS) / np.exp(logits_TS).sum(-1, keepdims=True)
    found = attend(q, pos, [{"k": k, "v": v, "pos": pos}], window=None, cap=3.0)
    np.testing.assert_allclose(found[0, :, 0], probs_TS @ v[0, :, 0], atol=1e-5)


def test_final_softcap_is_part_of_the_logits():
    cfg = dataclasses.replace(BASE, final_softcap=2.0)
    params, hidden = (
        random_params(cfg),
        np.random.default_rng(0).normal(0, 3, (4, cfg.d_model)).astype(np.float32),
    )
    raw = hidden.astype(np.float64) @ params["embedding"].T.astype(np.float64)
    found = lm_logits(params, cfg, jnp.asarray(hidden))
    assert np.abs(raw).max() > 4.0
    np.testing.assert_allclose(found, 2.0 * np.tanh(raw / 2.0), atol=1e-5)


def test_query_heads_share_kv_heads_in_order():
    """Grouped-query attention: query head n reads kv head n // (N / K)."""
    key_value = {
        "k": np.zeros((1, 1, 2, 4), np.float32),
        "v": np.array([1.0, 2.0], np.float32).reshape(1, 1, 2, 1) * np.ones(4, np.float32),
    }
    found = attend(
        np.zeros((1, 1, 6, 4), np.float32),
        np.zeros((1, 1), int),
        [key_value | {"pos": np.zeros((1, 1), int)}],
        window=None,
        cap=None,
    )
    np.testing.assert_array_equal(found[0, 0, :, 0], [1, 1, 1, 2, 2, 2])


def test_rmsnorm_is_one_plus_w_in_float32_under_bfloat16_inputs():
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 5, (8, 64)).astype(BF16), rng.normal(0, 0.01, 64).astype(np.float32)
    x64 = x.astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * (1.0 + w)
    found = RMSNorm(1e-6).apply({"params": {"scale": w}}, x)
    assert found.dtype == BF16
    # rounded once, at the end
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(BF16))
    rounded_weight = exact / (1.0 + w) * (1.0 + w).astype(BF16).astype(np.float64)
    # the test can tell
    assert (rounded_weight.astype(np.float32).astype(BF16) != np.asarray(found)).any()


def test_norms_start_at_scale_one():
    assert (
        RMSNorm(1e-6).init(jax.random.key(0), np.ones((1, 8), np.float32))["params"]["scale"] == 0
    ).all()


def embedded_only(cfg, params):
    """`params` with every post-norm at weight w = -1, so that 1 + w = 0 and layers add nothing to
    the residual stream.
    """
    blocks = {
        name: {"scale": np.full_like(leaf["scale"], -1.0)} if "post" in name else leaf
        for name, leaf in params["blocks"].items()
    }
    return params | {"blocks": blocks}


def test_residual_is_added_after_the_post_norms():
    """A post-norm with scale 0 silences its sub-layer: norms stand around attention and MLP,
    outside the residual stream.
    """
    params = embedded_only(BASE, random_params(BASE))
    tokens = np.array([[5, 9, 11]])
    hidden, _ = quick_jit(Decoder(BASE).apply)({"params": params}, tokens, np.arange(3)[None])
    stream = params["embedding"][tokens] * np.float32(math.sqrt(BASE.d_model))
    np.testing.assert_allclose(
        hidden, RMSNorm(BASE.norm_eps).apply({"params": params["final_norm"]}, stream), atol=1e-6
    )


def test_embedding_scale_is_rounded_to_the_compute_dtype():
    """sqrt(3584) = 59.87 is 59.75 in bfloat16. A huge eps makes the final norm linear, so that the
    scale can be seen.
    """
    cfg = dataclasses.replace(
        BASE, d_model=48, dtype="bfloat16", norm_eps=1e6, n_layers=1, layer_types=alternating(1)
    )
    params = embedded_only(cfg, random_params(cfg))
    tokens = np.arange(3, 90)[None]
    hidden, _ = quick_jit(Decoder(cfg).apply)(
        {"params": params}, tokens, np.arange(tokens.size)[None]
    )
    rows = params["embedding"].astype(BF16)[tokens]

    def final_norm(stream):
        return np.asarray(RMSNorm(cfg.norm_eps).apply({"params": params["final_norm"]}, stream))

    np.testing.assert_array_equal(hidden, final_norm(rows * BF16(math.sqrt(48))))
    unrounded = (rows.astype(np.float32) * np.float32(math.sqrt(48))).astype(BF16)
    assert (np.asarray(hidden) != final_norm(unrounded)).mean() > 0.1  # the test can tell


def test_query_scale_comes_from_the_config_27b_is_144():
    assert (
        GEMMA2_27B.query_pre_attn_scalar
        == 144.0
        == GEMMA2_27B.d_model / GEMMA2_27B.n_heads
        != GEMMA2_27B.head_dim
    )
    assert (
        GEMMA2_2B.query_pre_attn_scalar == GEMMA2_2B.head_dim
        and GEMMA2_9B.query_pre_attn_scalar == GEMMA2_9B.head_dim
    )
    cfg = dataclasses.replace(BASE, query_pre_attn_scalar=144.0)
    params = jax.tree.map(
        lambda leaf: leaf[0], random_params(cfg, factor=3.0)["blocks"]["layer_0_attn"]
    )
    x_BTD, pos_BT = (
        np.random.default_rng(0).normal(size=(1, 5, cfg.d_model)).astype(np.float32),
        np.arange(5)[None],
    )

    def attention(cfg, params):
        apply = quick_jit(
            lambda params: Attention(cfg, LOCAL).apply(
                {"params": params}, x_BTD, pos_BT, None, None, 0, None, None
            )[0]
        )
        return np.asarray(apply(params))

    unscaled = attention(
        dataclasses.replace(cfg, query_pre_attn_scalar=1.0),
        params | {"q": params["q"] / np.float32(12.0)},
    )
    np.testing.assert_allclose(attention(cfg, params), unscaled, atol=1e-5)


def test_query_scale_is_not_rounded_to_bfloat16():
    """144**-0.5 rounded to bfloat16 is 0.2 % too large: a temperature error in every attention of
    the 27B model.
    """
    q = np.random.default_rng(0).normal(size=(1, 4, 2, 16)).astype(BF16)
    pos = np.arange(4)[None]
    exact = np.asarray(rope(q.astype(np.float32), pos, 10_000.0)).astype(np.float64) / 12.0
    found = np.asarray(rope(q, pos, 10_000.0, 144**-0.5)).astype(np.float64)
    assert abs((found / exact).mean() - 1.0) < 5e-4


def test_rope_is_float32_and_half_split():
    """(x_i, x_{i + H/2}) turn by pos * theta**(-2 i / H), also far out and from bfloat16 inputs,
    rounded once at the end.
    """
    H, theta = 16, 10_000.0
    x = np.random.default_rng(0).normal(size=(1, 3, 2, H)).astype(BF16)
    pos = np.array([[0, 1, 8191]])
    angle = pos[..., None, None] * theta ** (-2.0 * np.arange(H // 2) / H)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    exact = np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ],
        -1,
    )
    found = np.asarray(rope(x.astype(np.float32), pos, theta))
    # float32 angles near 8191 are exact to 5e-4
    np.testing.assert_allclose(found, exact, atol=2e-3)
    np.testing.assert_allclose(found[:, :2], exact[:, :2], atol=1e-6)
    np.testing.assert_array_equal(rope(x, pos, theta), found.astype(BF16))


def test_embeddings_are_tied():
    """One table, read for the input and for the logits; no other parameter has a vocabulary
    axis.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(BASE))
    assert [
        jax.tree_util.keystr(path, simple=True)
        for path, leaf in leaves
        if BASE.vocab_size in leaf.shape
    ] == ["embedding"]
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        from_hf_dict({"model_type": "gemma2", "tie_word_embeddings": False})


def test_gelu_is_the_tanh_approximation():
    """down(gelu(gate x) * up x) with weights that pick out gelu(x_0) * x_1; tanh and erf differ by
    up to 5e-4.
    """
    cfg = dataclasses.replace(BASE, d_model=2, n_heads=2, d_ff=1)
    params = {
        "gate": np.array([[1.0], [0.0]]),
        "up": np.array([[0.0], [1.0]]),
        "down": np.array([[1.0, 0.0]]),
    }
    v = np.linspace(-4, 4, 41)
    x = np.stack([v, np.ones_like(v)], -1).astype(np.float32)[None]
    found = np.asarray(MLP(cfg).apply({"params": params}, x))[0, :, 0]
    np.testing.assert_allclose(
        found, 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))), atol=1e-6
    )
    exact = 0.5 * v * (1 + np.array([math.erf(value / math.sqrt(2)) for value in v]))
    assert np.abs(found - exact).max() > 1e-4
    with pytest.raises(ValueError, match="hidden_activation"):
        from_hf_dict({"model_type": "gemma2", "hidden_activation": "gelu"})
