"""Chooses one token per row from its logits: greedy, or temperature then top-k then top-p.

The log-probability that goes with a token is taken under softmax(logits / temperature) over the
WHOLE vocabulary, before top-k and top-p cut it: the distribution the trainer scores, so ratios of a
first on-policy update are 1. Greedy (temperature 0) reports log-probabilities at temperature 1.
`logits` already include the model's final softcap.
"""

import math

import jax
import jax.numpy as jnp


def keep_top_k(scaled_BV: jax.Array, top_k: int) -> jax.Array:
    """Sets all but the top_k largest logits of each row to -inf; ties with the k-th stay in."""
    kth_B1 = jax.lax.top_k(scaled_BV, top_k)[0][:, -1:]
    return jnp.where(scaled_BV >= kth_B1, scaled_BV, -jnp.inf)


def keep_top_p(scaled_BV: jax.Array, top_p: float) -> jax.Array:
    """Sets logits outside the nucleus to -inf; ties stay in.

    The nucleus: the fewest most likely tokens whose probabilities sum to >= top_p.
    """
    sorted_BV = -jnp.sort(-scaled_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # mass of the tokens ranked above this one
    last_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled_BV >= last_B1, scaled_BV, -jnp.inf)


def inverse_cdf(probs_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns the token at which the cumulated probabilities pass uniform_B (in [0, 1)).

    One random number a row, not V. Cumulated in two levels, sqrt(V) blocks and the tokens of one
    block, so that no sum runs over the whole vocabulary in order: fast, and as exact in float32 for
    V = 256,000 as for a small V. A token of probability 0 is never returned.
    """
    B, V = probs_BV.shape
    size = math.isqrt(V - 1) + 1
    blocks_BKS = jnp.pad(probs_BV, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    sums_BK = blocks_BKS.sum(-1)
    target_B1 = uniform_B[:, None] * sums_BK.sum(-1, keepdims=True)
    block_B, rest_B1 = _first_above(sums_BK, target_B1)
    inside_BS = jnp.take_along_axis(blocks_BKS, block_B[:, None, None], axis=1)[:, 0]
    token_B, _ = _first_above(inside_BS, rest_B1)
    return block_B * size + token_B


def _first_above(weights_BK: jax.Array, target_B1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index of the first weight > 0 whose cumulated sum exceeds the target, and what of the target
    is left below it.
    """
    cumulated_BK = jnp.cumsum(weights_BK, axis=-1)
    # rounding may have put it at the very end
    target_B1 = jnp.minimum(target_B1, cumulated_BK[:, -1:] * (1 - 1e-6))
    index_B = jnp.argmax((cumulated_BK > target_B1) & (weights_BK > 0), axis=-1)
    below_BK = cumulated_BK - weights_BK
    return index_B, jnp.maximum(
        target_B1 - jnp.take_along_axis(below_BK, index_B[:, None], axis=-1), 0.0
    )


@jax.named_scope("draw")
def choose_tokens(
    logits_BV: jax.Array,
    keys_B2: jax.Array,
    step: jax.Array | int,
    temperature: jax.Array | float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token per row.

    Args:
      logits_BV: float32 logits, final softcap included.
      keys_B2: uint32 raw threefry key of each row; the draw uses fold_in(key, step), so it depends
        on nothing else.
      step: int32, scalar or per row: index of the token within the completion.
      temperature: 0 is greedy (keys unused). An array has one for each row.
      top_k: 0 is off.
      top_p: 1.0 is off. Both: top-k first, then the nucleus of what is left.

    Returns:
      token_B int32 and logp_B float32 (see the module docstring).
    """
    of_rows = isinstance(temperature, jax.Array)
    if of_rows:
        scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)[:, None]
    else:
        scaled_BV = logits_BV / temperature if temperature > 0 else logits_BV
    if not of_rows and temperature == 0:
        token_B = jnp.argmax(scaled_BV, axis=-1)
    else:
        kept_BV = keep_top_k(scaled_BV, top_k) if top_k > 0 else scaled_BV
        kept_BV = keep_top_p(kept_BV, top_p) if top_p < 1.0 else kept_BV
        keys_B = jax.random.wrap_key_data(keys_B2, impl="threefry2x32")
        steps_B = jnp.broadcast_to(step, keys_B.shape)
        uniform_B = jax.vmap(lambda key, s: jax.random.uniform(jax.random.fold_in(key, s)))(
            keys_B, steps_B
        )
        token_B = inverse_cdf(jax.nn.softmax(kept_BV, axis=-1), uniform_B)
    if of_rows:
        token_B = jnp.where(temperature > 0, token_B, jnp.argmax(scaled_BV, axis=-1))
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
