"""Holds the Gemma-2 policy and its heads: pure functions of (params, arrays).

Shape letters, used as suffixes of array names throughout the project:

    B batch rows        T query positions    S key positions (cache slots)
    D model width       F feed-forward       V vocabulary
    N query heads       K key/value heads    H head dimension
    G group size        P prompts            C completion positions
    L layers            M micro-batches
"""

from grm_jax.models.config import Gemma2Config
from grm_jax.models.gemma2 import Gemma2, init_params, lm_logits

__all__ = ["Gemma2", "Gemma2Config", "init_params", "lm_logits"]
