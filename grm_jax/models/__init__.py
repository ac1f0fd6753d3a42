"""Holds the decoder and its heads: pure functions of (params, arrays).

Shape letters, used as suffixes of array names throughout the project:

    B batch rows        T query positions    S key positions (cache slots)
    D model width       F feed-forward       V vocabulary
    N query heads       K key/value heads    H head dimension
    G group size        P prompts            C completion positions
    L layers            M micro-batches
"""

from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import Decoder, init_params, lm_logits

__all__ = ["Decoder", "ModelConfig", "init_params", "lm_logits"]
