"""Computes log-probabilities of given tokens where they are wanted, a chunk of logits at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from grm_jax.models.attention import Packed, softcap
from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import Decoder, head_of, lm_logits
from grm_jax.models.linear import contract
from grm_jax.models.placement import map_own_rows

# fp32 logits of one row that exist at once (512 MiB): 512 positions of Gemma's 256,000 tokens
LOGITS_PER_ROW = 2**27
# of a chunk, at least: products are efficient from here on
POSITIONS = 512
# fp32 logits of all positions of a device (512 MiB) that the backward pass finds kept; of more, it
# computes them again
KEPT_LOGITS = 2**27
# which are wanted is known on the device alone: at most an eighth of them is computed for nothing
CHUNKS = 8


def token_logprobs(
    params: dict,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    pos_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int | None = None,
    packed: Packed | None = None,
    wanted_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes log p(token t | tokens before t) and its distribution's entropy, fp32[B, T] in nats.

    p = softmax(softcap(logits) / temperature), the distribution that is sampled from where neither
    top-p nor top-k cuts it. 0 in both where a token is not wanted.

    Args:
      params: parameters of `Decoder(cfg)`.
      tokens_BT, pos_BT: int32 tokens and positions, right-padded, pos -1 in padding.
      temperature: > 0; carries no gradient.
      chunk: positions of a device's rows whose logits are computed at one time. The backward pass
        computes them again, unless those of all chunks together are KEPT_LOGITS at most. None takes
        an eighth of all positions, but at least POSITIONS, and at most LOGITS_PER_ROW / V of each
        row.
      packed: which tokens of a row see each other, as in `Decoder`. None: each row is one sequence.
      wanted_BT: not 0 at tokens whose values are used: only before these are logits computed. None
        takes all tokens that have one before them in an unpacked row (pos > 0).

    The entropy carries no gradient.
    """
    hidden_BTD, _ = Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT, packed=packed)
    wanted_BT = pos_BT > 0 if wanted_BT is None else wanted_BT != 0
    of_rows = functools.partial(
        _row_logprobs, cap=cfg.final_softcap, temperature=temperature, chunk=chunk
    )
    logp_BT, entropy_BT = map_own_rows(
        of_rows, head_of(params), hidden_BTD, _next(tokens_BT), _next(wanted_BT)
    )
    return _shift(logp_BT), _shift(entropy_BT)


def token_logprobs_reference(
    params: dict,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    pos_BT: jax.Array,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes the same from the textbook formulas, with logits_BTV held whole: for tests."""
    hidden_BTD, _ = Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT)
    logprobs_BTV = jax.nn.log_softmax(lm_logits(params, cfg, hidden_BTD) / temperature, axis=-1)
    logp_BT = jnp.take_along_axis(logprobs_BTV[:, :-1], tokens_BT[:, 1:, None], axis=-1)[..., 0]
    entropy_BT = -jnp.sum(jnp.exp(logprobs_BTV) * logprobs_BTV, axis=-1)[:, :-1]
    return jnp.pad(logp_BT, ((0, 0), (1, 0))), jnp.pad(
        jax.lax.stop_gradient(entropy_BT), ((0, 0), (1, 0))
    )


@jax.named_scope("vocabulary")
def _row_logprobs(embedding_VD, hidden_BTD, target_BT, wanted_BT, *, cap, temperature, chunk):
    """Computes log p(target) and entropy at each wanted position, 0 elsewhere."""
    (B, T), V = target_BT.shape, embedding_VD.shape[0]
    if chunk is None:
        most = max(1, LOGITS_PER_ROW // V) * B
        chunk = min(most, max(POSITIONS, _round_up(-(-B * T // CHUNKS), POSITIONS)))
    found_N: Any = _logprobs(
        embedding_VD,
        hidden_BTD.reshape(B * T, -1),
        target_BT.reshape(-1),
        wanted_BT.reshape(-1),
        temperature,
        cap,
        min(chunk, B * T),
    )
    return tuple(x_N.reshape(B, T) for x_N in found_N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _logprobs(embedding_VD, hidden_ND, target_N, wanted_N, temperature, cap, chunk):
    """Computes (log p(target), entropy) fp32[N], 0 where they are not wanted.

    The wanted positions come first in order, and chunks behind them are skipped. The gradient is
    written down because the one that JAX derives transposes the logits' (the widest array that
    there is) before it multiplies, keeps several arrays of their size, and would scatter. A frozen
    embedding has none.
    """
    found, _ = _forward(embedding_VD, hidden_ND, target_N, wanted_N, temperature, cap, chunk, 0)
    return found


def _forward(embedding_VD, hidden_ND, target_N, wanted_N, temperature, cap, chunk, keep=None):
    order_Cn, starts_C = _wanted_first(wanted_N, chunk)
    count = jnp.sum(wanted_N)
    weights_VD = embedding_VD.astype(hidden_ND.dtype)
    V, kept_CnV = embedding_VD.shape[0], None
    if order_Cn.size * V <= (KEPT_LOGITS if keep is None else keep):
        kept_CnV = jnp.zeros((*order_Cn.shape, V), jnp.float32)

    def turn(kept_CnV, part):
        start, order_n = part

        def compute(kept_CnV):
            capped_nV = _logits(weights_VD, hidden_ND[order_n], cap)
            if kept_CnV is not None:
                kept_CnV = jax.lax.dynamic_update_index_in_dim(
                    kept_CnV, capped_nV, start // chunk, 0
                )
            logits_nV = capped_nV / temperature
            most_n1 = jnp.max(logits_nV, axis=-1, keepdims=True)
            exp_nV = jnp.exp(logits_nV - most_n1)
            total_n = jnp.sum(exp_nV, axis=-1)
            log_normalizer_n = most_n1[:, 0] + jnp.log(total_n)
            is_target_nV = _is_target(target_N[order_n], logits_nV)
            logp_n = jnp.sum(jnp.where(is_target_nV, logits_nV, 0.0), axis=-1) - log_normalizer_n
            expected_logit_n = jnp.sum(exp_nV * logits_nV, axis=-1) / total_n
            return kept_CnV, (logp_n, log_normalizer_n - expected_logit_n, log_normalizer_n)

        zeros = (jnp.zeros(chunk),) * 3
        return jax.lax.cond(start < count, compute, lambda kept_CnV: (kept_CnV, zeros), kept_CnV)

    kept_CnV, (logp_Cn, entropy_Cn, log_normalizer_Cn) = jax.lax.scan(
        turn, kept_CnV, (starts_C, order_Cn)
    )
    found = (_back(logp_Cn, wanted_N), _back(entropy_Cn, wanted_N))
    arrays = (embedding_VD, hidden_ND, target_N, wanted_N, temperature)
    return found, (arrays, log_normalizer_Cn, kept_CnV)


@jax.named_scope("vocabulary")
def _backward(cap, chunk, saved, cotangents):
    (arrays, log_normalizer_Cn, kept_CnV), flag = saved
    trained = flag.size > 0
    embedding_VD, hidden_ND, target_N, wanted_N, temperature = arrays
    order_Cn, starts_C = _wanted_first(wanted_N, chunk)
    count = jnp.sum(wanted_N)
    dtype = hidden_ND.dtype
    weights_VD = embedding_VD.astype(dtype)
    d_logp_N, _ = cotangents  # the entropy has no gradient
    if isinstance(d_logp_N, SymbolicZero):
        d_logp_N = jnp.zeros(d_logp_N.shape)
    slope_N = jnp.where(wanted_N, d_logp_N, 0.0) / temperature

    def turn(d_weights_DV, part):
        start, order_n, log_normalizer_n = part

        def compute(d_weights_DV):
            hidden_nD = hidden_ND[order_n]
            if kept_CnV is None:
                capped_nV = _logits(weights_VD, hidden_nD, cap)
            else:
                capped_nV = jax.lax.dynamic_index_in_dim(
                    kept_CnV, start // chunk, 0, keepdims=False
                )
            p_nV = jnp.exp(capped_nV / temperature - log_normalizer_n[:, None])
            # behind the last wanted position come others, and copies of position 0
            slope_n = jnp.where(start + jnp.arange(chunk) < count, slope_N[order_n], 0.0)
            d_nV = (_is_target(target_N[order_n], p_nV) - p_nV) * slope_n[:, None]
            if cap is not None:
                d_nV *= 1.0 - (capped_nV / cap) ** 2
            d_nV = d_nV.astype(dtype)
            if trained:
                d_weights_DV += jnp.einsum(
                    "nd,nv->dv", hidden_nD, d_nV, preferred_element_type=jnp.float32
                )
            return d_weights_DV, contract(d_nV, weights_VD, 0, jnp.float32).astype(dtype)

        nothing = jnp.zeros((chunk, hidden_ND.shape[1]), dtype)
        return jax.lax.cond(
            start < count, compute, lambda d_weights_DV: (d_weights_DV, nothing), d_weights_DV
        )

    zeros_DV = jnp.zeros(embedding_VD.shape[::-1], jnp.float32) if trained else None
    d_weights_DV, d_hidden_CnD = jax.lax.scan(
        turn, zeros_DV, (starts_C, order_Cn, log_normalizer_Cn)
    )
    # the barrier keeps XLA from turning a single chunk's product into the one with d_nV transposed
    d_weights_VD = None
    if trained:
        d_weights_VD = jax.lax.optimization_barrier(d_weights_DV).T.astype(embedding_VD.dtype)
    return d_weights_VD, _back(d_hidden_CnD, wanted_N), None, None, None


def _saving(embedding_VD, hidden_ND, target_N, wanted_N, temperature, cap, chunk):
    """`_forward` for the gradient; it is told which arguments any gradient is taken of."""
    arguments = (embedding_VD, hidden_ND, target_N, wanted_N, temperature)
    found, saved = _forward(*(one.value for one in arguments), cap=cap, chunk=chunk)
    # in a shape, which stays with what is saved: a flag in the tree's structure would be that of
    # the last trace of this function, whichever of its gradients is computed
    return found, (saved, jnp.zeros(int(embedding_VD.perturbed)))


_logprobs.defvjp(_saving, _backward, symbolic_zeros=True)


def _logits(weights_VD, hidden_nD, cap):
    return softcap(contract(hidden_nD, weights_VD, 1, jnp.float32), cap)


def _is_target(target_n, logits_nV):
    """By comparison, not by a gather: it partitions over a sharded vocabulary."""
    return jax.lax.broadcasted_iota(target_n.dtype, logits_nV.shape, 1) == target_n[:, None]


def _wanted_first(wanted_N, chunk):
    """(order [C, chunk], start of each chunk [C]): the wanted positions, in order, then others."""
    order_N = jnp.argsort(~wanted_N, stable=True)
    order_Cn = jnp.pad(order_N, (0, -wanted_N.size % chunk)).reshape(-1, chunk)
    return order_Cn, chunk * jnp.arange(order_Cn.shape[0])


def _back(x_Cn, wanted_N):
    """Puts what was computed in the order of `_wanted_first` to its positions, 0 elsewhere."""
    x_N = x_Cn.reshape(-1, *x_Cn.shape[2:])
    place_N = jnp.maximum(jnp.cumsum(wanted_N) - 1, 0)
    return jnp.where(wanted_N.reshape(-1, *(1,) * (x_N.ndim - 1)), x_N[place_N], 0)


def _round_up(x, step):
    return -(-x // step) * step


def _next(x_BT):
    """What stands one token on; nothing (0) behind the last."""
    return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))


def _shift(x_BT):
    return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)))
