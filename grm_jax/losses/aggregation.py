"""Turns one value per token into one number: a sum over tokens, divided by a count of the batch.

The count comes from `cfg.normalizer`, which covers all micro-batches and devices, so the results of
the parts add up to the result of the whole: the split never changes the loss. (A mean of per-part
means does not have this property when lengths differ.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from grm_jax.losses.config import LossConfig


class Normalizer(NamedTuple):
    """Counts one optimizer batch, over all micro-batches and all devices.

    Additive: sum (or psum) the parts.

    tokens: scalar fp32, completion tokens that the loss sees.
    sequences: scalar fp32, sequences with at least one such token.
    """

    tokens: jax.Array
    sequences: jax.Array


def count(mask_BC: jax.Array) -> Normalizer:
    """Counts the tokens and non-empty sequences in a mask [B, C] of 0 and 1.

    Call it on the global batch, or add up the parts.
    """
    return Normalizer(
        tokens=mask_BC.sum(), sequences=mask_BC.any(axis=1).sum().astype(mask_BC.dtype)
    )


def counts_of(mask_BC: jax.Array, cfg: LossConfig) -> Normalizer:
    """Returns the normalizer that `cfg` carries, or that of this mask where it carries none."""
    return count(mask_BC) if cfg.normalizer is None else cfg.normalizer


def token_mean(x_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Averages over tokens (DAPO, arXiv 2503.14476 Eq 8): long sequences weigh more.

    That is `sum_bt x m / (tokens of the batch)`.
    """
    return (x_BC * mask_BC).sum() / jnp.maximum(counts_of(mask_BC, cfg).tokens, 1)


def sequence_mean(x_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Averages each sequence, then over them (GRPO, arXiv 2402.03300 Eq 3): all weigh the same.

    That is `sum_b (sum_t x m / |o_b|) / (sequences of the batch)`.
    """
    mean_B = (x_BC * mask_BC).sum(axis=1) / jnp.maximum(mask_BC.sum(axis=1), 1)
    return mean_B.sum() / jnp.maximum(counts_of(mask_BC, cfg).sequences, 1)


def constant(x_BC: jax.Array, mask_BC: jax.Array, cfg: LossConfig) -> jax.Array:
    """Divides by a constant (Dr. GRPO, arXiv 2503.20783): no length in the weight of a token.

    That is `sum_bt x m / (sequences of the batch * max_length)`.

    Set `cfg.max_length` where the width C varies with length buckets; without it C is used.
    """
    max_length = cfg.max_length or mask_BC.shape[1]
    return (x_BC * mask_BC).sum() / (jnp.maximum(counts_of(mask_BC, cfg).sequences, 1) * max_length)


AGGREGATIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
