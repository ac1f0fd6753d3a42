"""Counts a model's FLOPs by formula: no recomputation, no masked attention.

A multiply and an add count as two.
"""

from typing import NamedTuple

import numpy as np

from grm_jax.models.config import LOCAL, MOST, ModelConfig


class Passes(NamedTuple):
    """Says how often the products of a forward pass are made: with weights, and in attention."""

    weights: float
    attention: float


FORWARD = Passes(1, 1)
TRAINED = Passes(3, 3)  # two products backward for each forward: by each of its operands
ADAPTED = Passes(2, 3)  # frozen weights have no gradient


def forward_flops(
    cfg: ModelConfig, length: int, start: int = 0, logits: int = 0, passes: Passes = FORWARD
) -> float:
    """Counts a row's model FLOPs at positions start ... length - 1, earlier keys in a cache.

    Matrix products of the layers, attention over the visible keys alone (causal, within the window
    in local layers), and the vocabulary at `logits` positions; of training, with other `passes`.
    """
    window = cfg.sliding_window
    seen = {LOCAL: _visible(length, window) - _visible(start, window)}
    pairs = sum(
        seen.get(layer_type, _visible(length) - _visible(start)) for layer_type in cfg.layer_types
    )
    return _flops(cfg, length - start, logits, pairs, passes)


def token_flops(
    cfg: ModelConfig, positions: np.ndarray, logits: int = 0, passes: Passes = FORWARD
) -> float:
    """Counts the model FLOPs of a forward pass over tokens at these positions, -1 for padding.

    As `forward_flops`, for rows however they are packed: a token at position t sees t + 1 keys, or
    a window of them, whether or not others share them.
    """
    seen = positions[positions >= 0].astype(np.int64) + 1
    local = sum(layer_type == LOCAL for layer_type in cfg.layer_types)
    window = cfg.sliding_window or MOST
    pairs = local * int(np.minimum(seen, window).sum())
    pairs += (cfg.n_layers - local) * int(seen.sum())
    return _flops(cfg, seen.size, logits, pairs, passes)


def _flops(cfg: ModelConfig, tokens: int, logits: int, pairs: int, passes: Passes) -> float:
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    dense = cfg.n_layers * (attention + 3 * cfg.d_model * cfg.d_ff) * tokens
    dense += cfg.d_model * cfg.vocab_size * logits
    attention_flops = 4.0 * cfg.n_heads * cfg.head_dim * pairs
    return passes.weights * 2.0 * dense + passes.attention * attention_flops


def _visible(length: int, window: int | None = None) -> int:
    """Pairs of a query and a key that it sees, over the first `length` positions."""
    full = min(length, window or length)
    return full * (full + 1) // 2 + (length - full) * full
