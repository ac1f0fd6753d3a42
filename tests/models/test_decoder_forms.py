"""The same function in its several forms: scanned, unrolled, rematerialized, padded left or right,
with a shared prefix.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import Decoder
from grm_jax.models.attention import attend, attend_after, lay, quantize
from grm_jax.models.config import LOCAL
from grm_jax.models.heads import init_scalar_params, scalar_logits
from tests.models.gemma2_cases import (
    BASE,
    SHORT,
    T,
    inputs,
    jax_logits,
    logits_of,
    quick_jit,
    random_params,
)

NAME = "window_shorter_than_sequence"  # the case whose config is BASE


# two blocks of one layer
SMALL = dataclasses.replace(BASE, n_layers=2, layer_types=(LOCAL, LOCAL), n_heads=2, n_kv_heads=1)


def test_scanned_equals_unrolled():
    scanned, unrolled = (
        logits_of(
            random_params(SMALL), dataclasses.replace(SMALL, scan_layers=flag), *inputs(SMALL)
        )
        for flag in (True, False)
    )
    real_BT = inputs(SMALL)[1] >= 0
    np.testing.assert_allclose(
        np.asarray(unrolled)[real_BT], np.asarray(scanned)[real_BT], atol=1e-5
    )


def test_padding_side_and_padding_content_do_not_matter():
    tokens_BT, pos_BT = inputs(BASE)
    left = T - SHORT
    left_tokens, left_pos = tokens_BT.copy(), pos_BT.copy()
    left_tokens[1], left_pos[1] = np.roll(tokens_BT[1], left), np.roll(pos_BT[1], left)
    left_tokens[1, :left] = 55  # another padding id
    found = np.asarray(logits_of(random_params(BASE), BASE, left_tokens, left_pos))
    np.testing.assert_array_equal(found[0], jax_logits(NAME)[0])
    np.testing.assert_allclose(found[1, left:], jax_logits(NAME)[1, :SHORT], atol=1e-5)
    assert np.isfinite(found).all()


def test_scalar_logit_is_read_at_the_last_token_whatever_the_padding():
    tokens_BT, pos_BT = inputs(BASE)
    params = init_scalar_params(BASE, random_params(BASE), jax.random.key(0))
    head = quick_jit(scalar_logits, static_argnums=1)
    right_B = head(params, BASE, tokens_BT, pos_BT)
    rolled_B = head(
        params, BASE, *(np.stack([x[0], np.roll(x[1], T - SHORT)]) for x in (tokens_BT, pos_BT))
    )
    np.testing.assert_allclose(rolled_B, right_B, atol=1e-5)
    tokens_BT[1, SHORT:] = 77
    np.testing.assert_array_equal(head(params, BASE, tokens_BT, pos_BT), right_B)
    tokens_BT[1, SHORT - 1] += 1
    assert head(params, BASE, tokens_BT, pos_BT)[1] != right_B[1]


def test_remat_policies_give_the_same_gradients():
    tokens_BT, pos_BT = inputs(SMALL)
    params = random_params(SMALL)

    def gradient(cfg):
        def loss(params):
            hidden_BTD, _ = Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT)
            return jnp.sum(jnp.sin(3.0 * hidden_BTD) * (pos_BT >= 0)[..., None])

        return quick_jit(jax.grad(loss))(params)

    plain = gradient(SMALL)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    for remat in ("full", "dots"):
        found = gradient(dataclasses.replace(SMALL, remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain
        )


@pytest.mark.parametrize("window, cap", [(None, 1.5), (5, None)])
def test_shared_segments_equal_copied_ones(window, cap):
    """attend with a prefix that three rows share equals attend over the concatenation of copies, in
    one segment.
    """
    rng = np.random.default_rng(0)
    b, fold, T, S, N, K, H = 2, 3, 2, 7, 4, 2, 8
    B = b * fold
    q = rng.normal(size=(B, T, N, H)).astype(np.float32)
    pos = np.broadcast_to(np.array([7, 8]), (B, T))
    make = lambda rows, length, pos: {  # noqa: E731
        "k": rng.normal(size=(rows, length, K, H)).astype(np.float32),
        "v": rng.normal(size=(rows, length, K, H)).astype(np.float32),
        "pos": np.broadcast_to(pos, (rows, length)),
    }
    prefix, own = make(b, S, np.array([0, 1, 2, 3, 4, 5, -1])), make(B, T, np.array([7, 8]))
    whole = {name: np.concatenate([np.repeat(prefix[name], fold, 0), own[name]], 1) for name in own}
    run = quick_jit(attend, static_argnames=("window", "cap"))
    shared = run(q, pos, [prefix, own], window=window, cap=cap)
    right = run(q, pos, [whole], window=window, cap=cap)
    np.testing.assert_allclose(shared, right, atol=1e-6)
    laid = run(q, pos, [lay(prefix), lay(own)], window=window, cap=cap)
    np.testing.assert_allclose(laid, right, atol=1e-6)


@pytest.mark.parametrize("dtype, rounding", [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("window, cap", [(None, 1.5), (5, None)])
def test_attention_to_keys_in_int8(window, cap, dtype, rounding):
    """One token of each row, behind a shared prefix that is laid out and keys of its own: what
    attention to the same numbers in float gives, and as far from the unrounded twin as the rounding
    allows: e off in a logit at most, probabilities off by a factor of exp(2 e) at most.
    """
    b, fold, S, N, K, H = 2, 3, 9, 4, 2, 16
    rng = np.random.default_rng(7)

    def segment(rows, S, start):
        k, v = rng.normal(size=(2, rows, S, K, H)).astype(np.float32)
        k[:, :, 1] *= 1e3  # a head's scale is its own
        pos = np.broadcast_to(start + np.arange(S), (rows, S)).astype(np.int32).copy()
        pos[1, -2:] = -1
        return {"k": jnp.asarray(k, dtype), "v": jnp.asarray(v, dtype), "pos": jnp.asarray(pos)}

    q = jnp.asarray(rng.normal(size=(b * fold, 1, N, H)) / 4, dtype)
    q = q.at[:, :, N // K :].multiply(1e-3)
    pos = jnp.full((b * fold, 1), S + 3, jnp.int32)
    prefix, own = segment(b, S, 0), segment(b * fold, 4, S)

    def back(stored):
        """In float: the int8 numbers times their scales."""
        return {
            name: x.astype(jnp.float32) * stored[f"{name}_scale"][..., None]
            for name, x in stored.items()
            if name in ("k", "v")
        } | {"pos": stored["pos"]}

    def run(segments, q=q):
        return np.asarray(quick_jit(attend)(q, pos, segments, window, cap), np.float32)

    int8 = [quantize(lay(prefix)), quantize(own)]
    assert {x.dtype for x in (int8[0]["keys"], int8[1]["v"])} == {jnp.dtype("int8")}
    np.testing.assert_array_equal(int8[0]["keys"], jnp.moveaxis(quantize(prefix)["k"], 1, -1))
    found, q32 = run(int8), q.astype(jnp.float32)
    np.testing.assert_allclose(
        found, run([back(quantize(prefix)), back(int8[1])], q32), atol=rounding
    )
    exact = run([jax.tree.map(lambda x: x.astype(jnp.float32), s) for s in (prefix, own)], q32)
    scales = [quantize(s) for s in (prefix, own)]
    off = 0.0
    for stored in scales:
        rows = b * fold // len(stored["pos"])
        size_BKS = jnp.repeat(jnp.swapaxes(stored["k_scale"], 1, 2), rows, axis=0) / 2
        off = max(
            off,
            float(
                (jnp.abs(q32).sum(-1).reshape(-1, K, N // K).max(-1)[..., None] * size_BKS).max()
            ),
        )
    most = max(float(jnp.abs(s["v"].astype(jnp.float32)).max()) for s in (prefix, own))
    bound = np.expm1(2 * off) * most + max(float(s["v_scale"].max()) for s in scales) / 2
    assert 1e-4 < np.abs(found - exact).max() < bound + rounding and bound < 1


@pytest.mark.parametrize("window, cap", [(None, 5.0), (300, None)])
def test_rows_that_go_on_behind_a_prefix_attend_in_blocks(window, cap):
    """Of 2, 3 and 1 blocks, with rows that end before the others."""
    rng = np.random.default_rng(0)
    B, F, N, K, H = 2, 64, 4, 2, 8
    make = lambda rows, length: {  # noqa: E731
        name: rng.normal(size=(rows, length, K, H)).astype(np.float32) for name in ("k", "v")
    }
    prefix = lay(make(1, F) | {"pos": np.arange(F)[None]})
    for length in (400, 600, 200):
        real = np.arange(length) < np.array([[length], [length - 150]])
        pos = np.where(real, F + np.arange(length), -1)
        q = rng.normal(size=(B, length, N, H)).astype(np.float32)
        own = make(B, length) | {"pos": pos}
        run = quick_jit(attend_after, static_argnames=("window", "cap"))
        found = run(q, pos, [prefix], own, window=window, cap=cap)
        right = attend(q, pos, [prefix, own], window, cap)
        np.testing.assert_allclose(found[pos >= 0], right[pos >= 0], atol=1e-5)


def test_prefix_kept_from_one_call_equals_one_long_call():
    """Prefill one prompt, then run three completions against its shared keys: same hidden states as
    three full sequences.
    """
    P, C, fold = 9, 6, 3
    rng = np.random.default_rng(3)
    prompt_1P = rng.integers(3, BASE.vocab_size, (1, P))
    completion_BC = rng.integers(3, BASE.vocab_size, (fold, C))
    params = {"params": random_params(BASE)}
    apply = quick_jit(Decoder(BASE).apply, static_argnames="keep_kv")
    _, extra = apply(params, prompt_1P, np.arange(P)[None], keep_kv=True)
    pos_BC = np.broadcast_to(np.arange(P, P + C), (fold, C))
    split, _ = apply(params, completion_BC, pos_BC, prefix=extra["kv"])
    full_tokens = np.concatenate([np.repeat(prompt_1P, fold, 0), completion_BC], 1)
    full, _ = apply(params, full_tokens, np.broadcast_to(np.arange(P + C), (fold, P + C)))
    np.testing.assert_allclose(split, full[:, P:], atol=1e-5)
