"""Losses with labels: cross-entropy of tokens (rejective fine-tuning) and binary (Meta RM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.aggregation import Normalizer, count


def cross_entropy(
    logp_BT: jax.Array, mask_BT: jax.Array, normalizer: Normalizer | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the next-token cross-entropy, in nats per token.

        L = -sum_bt m log pi(token_bt) / (tokens of the batch)

    logp: fp32[B, T] log-probabilities of the target tokens.
    mask: fp32[B, T], 1 on completion tokens.
    normalizer: `count` of the global batch's mask, None if these arrays are all of it.

    Returns (scalar, no metrics); micro-batches add up.
    """
    tokens = (count(mask_BT) if normalizer is None else normalizer).tokens
    loss = -jnp.where(mask_BT > 0, logp_BT, 0.0).sum() / jnp.maximum(tokens, 1)
    return loss, {}


def bce(
    logits_B: jax.Array,
    labels_B: jax.Array,
    mask_B: jax.Array,
    normalizer: Normalizer | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the binary cross-entropy of a logit.

        L = -sum_b m [ y log sigmoid(z) + (1 - y) log sigmoid(-z) ] / (rows of the batch)

    logits: fp32[B] z.
    labels: fp32[B] y, 1 for a correct judgment (Eq 10), else 0.
    mask: fp32[B], 1 on real rows, 0 on padding.
    normalizer: `count(mask_B[:, None])` of the global batch, None if these arrays are all of it.

    Returns (scalar, metrics): accuracy (of z > 0) and label_mean, the share of correct judgments;
    micro-batches add up.
    """
    rows = jnp.maximum((count(mask_B[:, None]) if normalizer is None else normalizer).sequences, 1)
    inside_B = mask_B > 0
    z_B = jnp.where(inside_B, logits_B, 0.0)
    nll_B = -labels_B * jax.nn.log_sigmoid(z_B) - (1 - labels_B) * jax.nn.log_sigmoid(-z_B)
    loss = jnp.where(inside_B, nll_B, 0.0).sum() / rows
    return loss, {
        "accuracy": jnp.where(inside_B, (z_B > 0) == (labels_B > 0.5), False).sum() / rows,
        "label_mean": jnp.where(inside_B, labels_B, 0.0).sum() / rows,
    }
