"""Chunked log-probabilities against the textbook formulas, and the memory that chunking is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import Gemma2Config, init_params
from grm_jax.models.config import alternating
from grm_jax.training.logprobs import LOGITS_PER_ROW, token_logprobs, token_logprobs_reference
from tests.jaxprs import equations

CFG = Gemma2Config(
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


def masked_sums(function, cfg=CFG, **options):
    """Jitted: (values, gradient) of a sum over real tokens that weighs each one differently."""
    params, tokens_BT, pos_BT = inputs(cfg)
    weight_BT = jnp.where(pos_BT > 0, jnp.sin(jnp.arange(B * T).reshape(B, T)), 0.0)

    def total(params):
        logp_BT, entropy_BT = function(params, cfg, tokens_BT, pos_BT, TEMPERATURE, **options)
        return jnp.sum(logp_BT * weight_BT) + jnp.sum(entropy_BT), (logp_BT, entropy_BT)

    (_, values), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return values, grads


@pytest.fixture(scope="module")
def reference():
    return masked_sums(token_logprobs_reference)


@pytest.mark.parametrize("chunk", [None, 5])
def test_values_and_gradients_equal_the_reference(reference, chunk):
    """All in one, and in chunks that do not divide T; the softcap of 2 bites and the temperature is
    not 1.
    """
    (logp, entropy), grads = masked_sums(token_logprobs, chunk=chunk)
    (want_logp, want_entropy), want_grads = reference
    np.testing.assert_allclose(logp, want_logp, atol=2e-6)
    np.testing.assert_allclose(entropy, want_entropy, atol=5e-6)
    assert np.all(logp[:, 0] == 0) and np.all(entropy[:, 0] == 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, want_grads)


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

    assert largest(600) >= 2 * 600 * cfg.vocab_size
    assert largest(100) <= 2 * 100 * cfg.vocab_size
    assert largest(None) <= 2 * LOGITS_PER_ROW
