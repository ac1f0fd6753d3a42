"""Attends from rows to their own keys (training, log-probabilities, prefill), as the config says.

Every way gives what `grm_jax.models.attention.attend` does, which is the way of "reference".
"""

from typing import Any

import jax

from grm_jax.models import blocked, gpu
from grm_jax.models.attention import Packed, attend
from grm_jax.models.config import LOCAL, Gemma2Config
from grm_jax.models.splash import packed_masks, splash_attend


def _window(cfg: Gemma2Config, layer_type: str) -> int | None:
    return cfg.sliding_window if layer_type == LOCAL else None


def prepare(cfg: Gemma2Config, pos_BT: jax.Array, packed: Packed | None) -> dict[str, Any]:
    """Makes, for each type of layer, what `attend_own_keys` needs to know of the rows.

    Once for all layers. Pytrees whose arrays have the axis of rows first; None where positions
    suffice.
    """

    def of_type(layer_type):
        window = _window(cfg, layer_type)
        if cfg.attention == "blocked" and (packed is not None or pos_BT.shape[1] > blocked.TILE):
            return blocked.make_tiles(pos_BT, packed, window)
        if cfg.attention == "tokamax":
            return gpu.seen_keys(pos_BT, packed, window)
        if packed is not None and cfg.attention.startswith("splash"):
            return packed_masks(pos_BT, packed, window)
        return packed

    return {layer_type: of_type(layer_type) for layer_type in cfg.block}


def attend_own_keys(
    cfg: Gemma2Config,
    layer_type: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pos_BT: jax.Array,
    rows: Any,
) -> jax.Array:
    """Attends from every row to its own keys; BTNH in q's dtype.

    Queries are scaled already.

    pos_BT: -1 in padding. Position t at index t and padding last, or as `Packed` says; without
        `packed`, "reference" takes any positions.
    rows: the layer type's entry of `prepare`.
    """
    window, cap = _window(cfg, layer_type), cfg.attn_softcap
    if isinstance(rows, blocked.Tiles):
        return blocked.blocked_attend(q_BTNH, k_BTKH, v_BTKH, rows, cap)
    if cfg.attention == "tokamax":
        return gpu.tokamax_attend(q_BTNH, k_BTKH, v_BTKH, rows, cap)
    if cfg.attention.startswith("splash"):
        interpret = cfg.attention == "splash_interpreted"
        return splash_attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, interpret, rows)
    own = {"k": k_BTKH, "v": v_BTKH, "pos": pos_BT}
    return attend(q_BTNH, pos_BT, [own], window, cap, rows)
