"""Attends from rows to their own keys (training, log-probabilities, prefill), as the config says.

Every way gives what `grm_jax.models.attention.attend` does, which is the way of "reference".
"""

from typing import Any

import jax

from grm_jax.models import blocked, gpu
from grm_jax.models.attention import Packed, attend
from grm_jax.models.config import LOCAL, ModelConfig
from grm_jax.models.splash import packed_masks, splash_attend


def _window(cfg: ModelConfig, layer_type: str, length: int) -> int | None:
    """The window of a layer in rows of this length: None where none of their positions feels it."""
    window = cfg.sliding_window if layer_type == LOCAL else None
    if window is not None and window >= length and cfg.attention != "reference":
        return None
    return window


def prepare(cfg: ModelConfig, pos_BT: jax.Array, packed: Packed | None) -> dict[int, Any]:
    """Makes, for each window that layers have, what `attend_own_keys` needs to know of the rows.

    Once for all layers; under 0 what those without a window need. Pytrees of arrays with the axis
    of rows first; None where positions suffice.
    """
    T = pos_BT.shape[1]

    def for_window(window):
        if cfg.attention == "blocked" and (packed is not None or T > blocked.TILE):
            return blocked.make_tiles(pos_BT, packed, window)
        if cfg.attention == "tokamax":
            return gpu.seen_keys(pos_BT, packed, window)
        if packed is not None and cfg.attention.startswith("splash"):
            return packed_masks(pos_BT, packed, window)
        return packed

    windows = {_window(cfg, layer_type, T) for layer_type in cfg.block}
    return {window or 0: for_window(window) for window in windows}


def attend_own_keys(
    cfg: ModelConfig,
    layer_type: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pos_BT: jax.Array,
    prepared: dict[int, Any],
) -> jax.Array:
    """Attends from every row to its own keys; BTNH in q's dtype.

    Queries are scaled already.

    pos_BT: -1 in padding. Position t at index t and padding last, or as `Packed` says; without
        `packed`, "reference" takes any positions.
    prepared: what `prepare` made of these rows.
    """
    window, cap = _window(cfg, layer_type, q_BTNH.shape[1]), cfg.attn_softcap
    rows = prepared[window or 0]
    if isinstance(rows, blocked.Tiles):
        return blocked.blocked_attend(q_BTNH, k_BTKH, v_BTKH, rows, cap)
    if cfg.attention == "tokamax":
        return gpu.tokamax_attend(q_BTNH, k_BTKH, v_BTKH, rows, cap)
    if cfg.attention.startswith("splash"):
        interpret = cfg.attention == "splash_interpreted"
        return splash_attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, interpret, rows)
    own = {"k": k_BTKH, "v": v_BTKH, "pos": pos_BT}
    return attend(q_BTNH, pos_BT, [own], window, cap, rows)
