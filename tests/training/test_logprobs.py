"""Chunked log-probabilities against the textbook formulas, and the memory that chunking is for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.training import logprobs
from grm_jax.training.logprobs import (
    LOGITS_PER_ROW,
    _wanted_first,
    token_logprobs,
    token_logprobs_reference,
)
from tests.jaxprs import equations

CFG = ModelConfig(
    vocab_size=50,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(1),
    sliding_window=5,
    final_softcap=2.0,
    query_pre_attn_scalar=8.0,
    scan_layers=False,
)
B, T, TEMPERATURE = 3, 13, 0.7


def inputs(cfg=CFG):
    params = init_params(cfg, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (B, T), 0, cfg.vocab_size)
    lengths_B1 = jnp.array([[13], [7], [2]])
    pos_BT = jnp.where(jnp.arange(T) < lengths_B1, jnp.arange(T), -1)
    return params, tokens_BT, pos_BT


@functools.cache
def weighed(function, cfg=CFG, **options):
    """Jitted `f(wanted_BT)`: (values where wanted, gradient) of a sum that weighs each differently.

    The reference computes all; the other twin is told.
    """
    params, tokens_BT, pos_BT = inputs(cfg)
    weight_BT = 2 + jnp.sin(jnp.arange(B * T).reshape(B, T))

    def total(params, wanted_BT):
        told = options | ({} if function is token_logprobs_reference else {"wanted_BT": wanted_BT})
        values = function(params, cfg, tokens_BT, pos_BT, TEMPERATURE, **told)
        counted = [jnp.where(wanted_BT > 0, x_BT, 0.0) for x_BT in values]
        return jnp.sum(weight_BT * sum(counted)), dict(zip(("logp", "entropy"), counted))

    jitted = jax.jit(jax.value_and_grad(total, has_aux=True))

    def values_and_gradient(wanted_BT):
        (_, values), grads = jitted(params, wanted_BT)
        return values, grads

    return values_and_gradient


def assert_equal(found, want, rtol=1e-5):
    """Each array, to a part of its largest entry."""

    def compare(path, a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=rtol * max(np.abs(b).max(), 1e-3), err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, found, want)


def masks():
    """Of wanted tokens: all that have one before them, none, one alone, the last of the last row,
    and random ones of every density.
    """
    has_one_before_BT = np.asarray(inputs()[2]) > 0
    one_BT, last_BT = np.zeros((2, B, T), np.float32)
    one_BT[1, 3] = last_BT[2, 1] = 1
    rng = np.random.default_rng(0)
    random = [(rng.random((B, T)) < share) * has_one_before_BT for share in (0.2, 0.5, 0.8)]
    return [
        np.asarray(mask_BT, np.float32)
        for mask_BT in (has_one_before_BT, 0 * one_BT, one_BT, last_BT, *random)
    ]


@pytest.mark.parametrize("cap", [2.0, None])
@pytest.mark.parametrize("chunk", [None, 5, 13])
def test_values_and_gradients_equal_the_reference(chunk, cap):
    """In one chunk that holds all, in chunks that divide neither T nor B T, and in chunks as long
    as a row; the softcap of 2 bites and the temperature is not 1. Nothing, all and some are wanted.
    """
    cfg = dataclasses.replace(CFG, final_softcap=cap)
    for wanted_BT in masks():
        found = weighed(token_logprobs, cfg, chunk=chunk)(wanted_BT)
        assert_equal(found, weighed(token_logprobs_reference, cfg)(wanted_BT))


def test_logits_kept_and_computed_again_give_the_same(monkeypatch):
    kept = weighed(token_logprobs, CFG, chunk=5)
    monkeypatch.setattr(logprobs, "KEPT_LOGITS", 0)
    again = weighed.__wrapped__(token_logprobs, CFG, chunk=5)
    for wanted_BT in masks():
        assert_equal(again(wanted_BT), kept(wanted_BT), rtol=1e-6)


def test_values_that_are_not_wanted_are_zero():
    """Where nothing is said, those of all tokens that have one before them are wanted."""
    params, tokens_BT, pos_BT = inputs()
    jitted = jax.jit(
        lambda wanted_BT: token_logprobs(params, CFG, tokens_BT, pos_BT, wanted_BT=wanted_BT)
    )
    for wanted_BT in masks():
        for x_BT in jitted(wanted_BT):
            assert np.all((np.asarray(x_BT) != 0) == (wanted_BT > 0))
    jax.tree.map(np.testing.assert_array_equal, jitted(None), jitted(pos_BT > 0))


def test_chunks_without_a_wanted_token_are_skipped():
    """What a chunk costs stands in a branch that runs only where it holds wanted positions, and
    these come first: 3 of 38 positions in chunks of 4 run one of ten.
    """
    order_Cn, starts_C = _wanted_first(jnp.isin(jnp.arange(38), jnp.array([7, 20, 33])), 4)
    np.testing.assert_array_equal(order_Cn[0], [7, 20, 33, 0])
    np.testing.assert_array_equal(starts_C, np.arange(0, 40, 4))
    params, tokens_BT, pos_BT = inputs()
    total = jax.grad(lambda params: token_logprobs(params, CFG, tokens_BT, pos_BT)[0].sum())
    jaxpr = jax.make_jaxpr(total)(params).jaxpr
    branches = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "cond"]
    assert len(branches) == 2  # forward and backward

    def wide(eqns):
        return [eqn for eqn in eqns if any(CFG.vocab_size in v.aval.shape for v in eqn.outvars)]

    inside = [
        eqn
        for branch in branches
        for body in branch.params["branches"]
        for eqn in equations(body.jaxpr)
    ]
    dots = [eqn for eqn in wide(equations(jaxpr)) if eqn.primitive.name == "dot_general"]
    assert dots and all(any(eqn is other for other in inside) for eqn in dots)


def test_a_frozen_head_gets_no_gradient_computed():
    """As under adapters: the others' gradients are the same, and no product is as large as it."""
    params, tokens_BT, pos_BT = inputs()
    others = dict(params)
    frozen = others.pop("embedding")

    def total(others, frozen):
        whole = others | {"embedding": frozen}
        return token_logprobs(whole, CFG, tokens_BT, pos_BT, chunk=5)[0].sum()

    def of_embedding_size(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(total, argnums))(others, frozen).jaxpr
        D, V = CFG.d_model, CFG.vocab_size
        dots = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
        return sum({D, V} == set(v.aval.shape) for eqn in dots for v in eqn.outvars)

    jitted = jax.jit(total)  # one trace of it may serve gradients by different arguments
    whole = jax.grad(jitted, (0, 1))(others, frozen)
    assert_equal(jax.grad(jitted)(others, frozen), whole[0], rtol=1e-6)
    assert_equal(jax.grad(jitted, 1)(others, frozen), whole[1], rtol=1e-6)
    assert_equal(jax.grad(jitted, (0, 1))(others, frozen), whole, rtol=1e-6)
    assert of_embedding_size((0, 1)) == 1 and of_embedding_size(0) == 0


def test_gradients_have_the_types_of_their_arrays():
    """float32 parameters under bfloat16 compute keep a float32 gradient; values and gradient are
    those of the reference to bfloat16's rounding.
    """
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    values, grads = weighed(token_logprobs, cfg, chunk=5)(masks()[0])
    want_values, want_grads = weighed(token_logprobs_reference, cfg)(masks()[0])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))
    assert_equal(values, want_values)
    assert_equal(grads, want_grads, rtol=2e-2)


def test_padding_is_finite_and_does_not_reach_real_tokens():
    params, tokens_BT, pos_BT = inputs()
    jitted = jax.jit(token_logprobs, static_argnums=1)
    logp, entropy = jitted(params, CFG, tokens_BT, pos_BT)
    other, _ = jitted(params, CFG, jnp.where(pos_BT < 0, 7, tokens_BT), pos_BT)
    assert np.isfinite(logp).all() and np.isfinite(entropy).all()
    np.testing.assert_array_equal(np.where(pos_BT >= 0, logp, 0), np.where(pos_BT >= 0, other, 0))


def test_logits_of_a_large_vocabulary_are_never_whole():
    """Forward and backward of 600 positions of Gemma's vocabulary, traced only: nothing is larger
    than a chunk of logits.
    """
    cfg = dataclasses.replace(CFG, vocab_size=256_000)
    params = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 600), jnp.int32)

    def largest(chunk):
        loss = jax.grad(
            lambda p, tokens, pos: token_logprobs(p, cfg, tokens, pos, chunk=chunk)[0].sum()
        )
        jaxpr = jax.make_jaxpr(loss)(params, tokens, tokens).jaxpr
        return max(np.prod(v.aval.shape) for eqn in equations(jaxpr) for v in eqn.outvars)

    assert largest(1200) >= 1200 * cfg.vocab_size
    assert largest(100) <= 100 * cfg.vocab_size
    assert largest(None) <= 2 * LOGITS_PER_ROW
