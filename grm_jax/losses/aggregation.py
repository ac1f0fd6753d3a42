"""From one value per token to one number: every aggregation is a sum over tokens divided by a count
of the whole batch.

The count comes from `cfg.normalizer`, which covers all micro-batches and devices, so the results of
the parts add up to the result of the whole: the split never changes the loss. (A mean of per-part
means does not have this property when lengths differ.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig, Normalizer


def count(mask_BT: jax.Array) -> Normalizer:
    """Counts of the tokens and non-empty sequences in a mask [B, T] of 0 and 1. Call it on the
    global batch, or add up the parts.
    """
    return Normalizer(
        tokens=mask_BT.sum(), sequences=mask_BT.any(axis=1).sum().astype(mask_BT.dtype)
    )


def counts_of(mask_BT: jax.Array, cfg: LossConfig) -> Normalizer:
    """The normalizer that `cfg` carries, or that of this mask where it carries none."""
    return count(mask_BT) if cfg.normalizer is None else cfg.normalizer


def token_mean(x_BT: jax.Array, mask_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """sum_bt x m / (tokens of the batch). Every token weighs the same; long sequences weigh more
    (DAPO, arXiv 2503.14476 Eq 8).
    """
    return (x_BT * mask_BT).sum() / jnp.maximum(counts_of(mask_BT, cfg).tokens, 1)


def sequence_mean(x_BT: jax.Array, mask_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """sum_b (sum_t x m / |o_b|) / (sequences of the batch). Every sequence weighs the same (GRPO,
    arXiv 2402.03300 Eq 3).
    """
    mean_B = (x_BT * mask_BT).sum(axis=1) / jnp.maximum(mask_BT.sum(axis=1), 1)
    return mean_B.sum() / jnp.maximum(counts_of(mask_BT, cfg).sequences, 1)


def constant(x_BT: jax.Array, mask_BT: jax.Array, cfg: LossConfig) -> jax.Array:
    """sum_bt x m / (sequences of the batch * max_length). No length in the weight of a token (Dr.
    GRPO, arXiv 2503.20783).

    Set `cfg.max_length` where the width T varies with length buckets; without it T is used.
    """
    max_length = cfg.max_length or mask_BT.shape[1]
    return (x_BT * mask_BT).sum() / (jnp.maximum(counts_of(mask_BT, cfg).sequences, 1) * max_length)


AGGREGATIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
