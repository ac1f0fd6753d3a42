"""From the logits of one position to one token per row: greedy, or temperature then top-k then top-p.

The log-probability that goes with a token is taken under softmax(logits / temperature) over the WHOLE vocabulary,
before top-k and top-p cut it: the distribution the trainer scores, so ratios of a first on-policy update are 1.
Greedy (temperature 0) reports log-probabilities at temperature 1. `logits` already include the model's final softcap.
"""

import jax
import jax.numpy as jnp


def keep_top_k(scaled_BV: jax.Array, top_k: int) -> jax.Array:
    """-inf everywhere but at the top_k largest logits of each row; ties with the k-th stay in."""
    kth_B1 = jax.lax.top_k(scaled_BV, top_k)[0][:, -1:]
    return jnp.where(scaled_BV >= kth_B1, scaled_BV, -jnp.inf)


def keep_top_p(scaled_BV: jax.Array, top_p: float) -> jax.Array:
    """-inf outside the nucleus: the fewest most likely tokens whose probabilities sum to >= top_p; ties stay in."""
    sorted_BV = -jnp.sort(-scaled_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # mass of the tokens ranked above this one
    last_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled_BV >= last_B1, scaled_BV, -jnp.inf)


def choose_tokens(
    logits_BV: jax.Array, keys_B2: jax.Array, step: jax.Array | int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """One token per row.

    Args:
      logits_BV: float32 logits, final softcap included.
      keys_B2: uint32 raw threefry key of each row; the draw uses fold_in(key, step), so it depends on nothing else.
      step: int32, scalar or per row: index of the token within the completion.
      temperature: 0 is greedy (keys unused).
      top_k: 0 is off. top_p: 1.0 is off. Both: top-k first, then the nucleus of what is left.

    Returns:
      token_B int32 and logp_B float32 (see the module docstring).
    """
    scaled_BV = logits_BV / temperature if temperature > 0 else logits_BV
    if temperature == 0:
        token_B = jnp.argmax(scaled_BV, axis=-1)
    else:
        kept_BV = keep_top_k(scaled_BV, top_k) if top_k > 0 else scaled_BV
        kept_BV = keep_top_p(kept_BV, top_p) if top_p < 1.0 else kept_BV
        keys_B = jax.random.wrap_key_data(keys_B2, impl="threefry2x32")
        steps_B = jnp.broadcast_to(step, keys_B.shape)
        noise_BV = jax.vmap(lambda key, s: jax.random.gumbel(jax.random.fold_in(key, s), (logits_BV.shape[-1],)))(keys_B, steps_B)
        token_B = jnp.argmax(kept_BV + noise_BV, axis=-1)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
