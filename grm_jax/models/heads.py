"""Puts a scalar head on the policy's architecture: Meta RM and Bradley-Terry reward models.

Same parameters as transformers' `...ForSequenceClassification` of the family.
"""

import jax
import jax.numpy as jnp

from grm_jax.models.attention import Packed
from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import Decoder, without_head


def init_scalar_params(cfg: ModelConfig, backbone: dict, key: jax.Array) -> dict:
    """Adds a head to a policy's parameters: {"backbone": them, "score": float32 [D, 1]}.

    A head for tokens of its own is left out.

    score ~ N(0, 1 / (D + 1)) (Stiennon et al. 2020, appendix).
    """
    score_D1 = jax.random.normal(key, (cfg.d_model, 1), jnp.float32) * (cfg.d_model + 1) ** -0.5
    return {"backbone": without_head(backbone), "score": score_D1}


def scalar_logits(
    params: dict, cfg: ModelConfig, tokens_BT: jax.Array, pos_BT: jax.Array
) -> jax.Array:
    """Returns logits_B in float32: the last token's final hidden state times the score vector.

    The last token is the one with the highest position; no bias, no softcap. Padding has position
    -1 and may stand on either side. A row that is all padding gives a finite number without
    meaning.
    """
    hidden_BTD, _ = Decoder(cfg).apply({"params": params["backbone"]}, tokens_BT, pos_BT)
    last_B11 = jnp.argmax(pos_BT, axis=1)[:, None, None]
    hidden_BD = jnp.take_along_axis(hidden_BTD, last_B11, axis=1)[:, 0].astype(jnp.float32)
    return (hidden_BD @ params["score"].astype(jnp.float32))[:, 0]


def packed_scalar_logits(
    params: dict,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    pos_BT: jax.Array,
    packed: Packed,
    last_BS: jax.Array,
) -> jax.Array:
    """Returns logits_BS of the sequences in packed rows, read at index `last_BS` of their rows."""
    hidden_BTD, _ = Decoder(cfg).apply(
        {"params": params["backbone"]}, tokens_BT, pos_BT, packed=packed
    )
    hidden_BSD = jnp.take_along_axis(hidden_BTD, last_BS[..., None], axis=1).astype(jnp.float32)
    return (hidden_BSD @ params["score"].astype(jnp.float32))[..., 0]
