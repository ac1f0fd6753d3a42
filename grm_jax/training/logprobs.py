"""Computes log-probabilities of given tokens, never holding logits of a whole large batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from grm_jax.models.config import Gemma2Config
from grm_jax.models.gemma2 import Gemma2, lm_logits
from grm_jax.models.placement import map_own_rows

# fp32 logits of one row that exist at once (512 MiB): 512 positions of Gemma's 256,000 tokens
LOGITS_PER_ROW = 2**27


def token_logprobs(
    params: dict,
    cfg: Gemma2Config,
    tokens_BT: jax.Array,
    pos_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes log p(token t | tokens before t) and its distribution's entropy, fp32[B, T] in nats.

    p = softmax(softcap(logits) / temperature), the distribution that is sampled from where neither
    top-p nor top-k cuts it. Position 0 has nothing before it: 0 in both. Values at padding (pos -1)
    are finite and mean nothing; mask them.

    Args:
      params: parameters of `Gemma2(cfg)`.
      tokens_BT, pos_BT: int32 tokens and positions, right-padded, pos -1 in padding.
      temperature: > 0.
      chunk: positions of each row whose logits exist at one time; forward and backward recompute
        them chunk by chunk. None takes LOGITS_PER_ROW / V, so small vocabularies are done in one
        piece. The rule looks at neither B nor the mesh: results do not depend on what else is in
        the batch.

    The entropy carries no gradient.
    """
    hidden_BTD, _ = Gemma2(cfg).apply({"params": params}, tokens_BT, pos_BT)
    target_BT = jnp.roll(tokens_BT, -1, axis=1)  # the last column is dropped below
    T, chunk = tokens_BT.shape[1], chunk or max(1, LOGITS_PER_ROW // cfg.vocab_size)
    if chunk >= T:
        logp_BT, entropy_BT = _target_logprobs(
            params["embedding"], cfg, hidden_BTD, target_BT, temperature
        )
    else:
        in_chunks = functools.partial(
            _chunked_logprobs, cfg=cfg, temperature=temperature, chunk=chunk
        )
        logp_BT, entropy_BT = map_own_rows(in_chunks, params["embedding"], hidden_BTD, target_BT)
    return _shift(logp_BT), _shift(entropy_BT)


def token_logprobs_reference(
    params: dict,
    cfg: Gemma2Config,
    tokens_BT: jax.Array,
    pos_BT: jax.Array,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes the same from the textbook formulas, with logits_BTV held whole: for tests."""
    hidden_BTD, _ = Gemma2(cfg).apply({"params": params}, tokens_BT, pos_BT)
    logprobs_BTV = jax.nn.log_softmax(lm_logits(params, cfg, hidden_BTD) / temperature, axis=-1)
    logp_BT = jnp.take_along_axis(logprobs_BTV[:, :-1], tokens_BT[:, 1:, None], axis=-1)[..., 0]
    entropy_BT = -jnp.sum(jnp.exp(logprobs_BTV) * logprobs_BTV, axis=-1)[:, :-1]
    return jnp.pad(logp_BT, ((0, 0), (1, 0))), jnp.pad(
        jax.lax.stop_gradient(entropy_BT), ((0, 0), (1, 0))
    )


def _chunked_logprobs(embedding_VD, hidden_BTD, target_BT, *, cfg, temperature, chunk):
    body = jax.checkpoint(
        lambda part: _target_logprobs(embedding_VD, cfg, part[0], part[1], temperature)
    )
    logp_CBt, entropy_CBt = jax.lax.map(body, (_split(hidden_BTD, chunk), _split(target_BT, chunk)))
    T = target_BT.shape[1]
    return _join(logp_CBt, T), _join(entropy_CBt, T)


def _target_logprobs(embedding_VD, cfg, hidden_BTD, target_BT, temperature):
    """Computes log p(target) and entropy at each position.

    The target's logit is picked by comparison, not by gather: its gradient is then no scatter, and
    it partitions over a sharded vocabulary.
    """
    logits_BTV = lm_logits({"embedding": embedding_VD}, cfg, hidden_BTD) / temperature
    log_normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    is_target_BTV = (
        jax.lax.broadcasted_iota(target_BT.dtype, logits_BTV.shape, 2) == target_BT[..., None]
    )
    logp_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1) - log_normalizer_BT
    fixed_BTV, fixed_normalizer_BT = jax.lax.stop_gradient((logits_BTV, log_normalizer_BT))
    expected_logit_BT = jnp.sum(
        jnp.exp(fixed_BTV - fixed_normalizer_BT[..., None]) * fixed_BTV, axis=-1
    )
    return logp_BT, fixed_normalizer_BT - expected_logit_BT


def _split(x_BT, chunk):
    """Cuts [B, T, ...] -> [C, B, chunk, ...], the end padded with zeros.

    Rows stay whole, so a batch sharded over devices stays so.
    """
    B, T = x_BT.shape[:2]
    padded = jnp.pad(x_BT, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (x_BT.ndim - 2))
    return jnp.moveaxis(padded.reshape(B, -1, chunk, *x_BT.shape[2:]), 1, 0)


def _join(x_CBt, T):
    return jnp.moveaxis(x_CBt, 0, 1).reshape(x_CBt.shape[1], -1)[:, :T]


def _shift(x_BT):
    return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)))
