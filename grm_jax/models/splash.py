"""Attends causally with JAX's splash kernels (Pallas, TPU), which skip masked blocks.

There is no array of all query-key pairs. The slow twin is `grm_jax.models.attention.attend`, which
also does what is not here: decoding, and keys of a shared prefix.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as mask_infos,
)

from grm_jax.models.attention import Packed, stretches
from grm_jax.models.placement import map_rows_and_heads

LANES = 128  # what a block is a multiple of


class PackedMasks(NamedTuple):
    """Holds the masks of packed rows in the kernels' form, [B, ...]: for queries, and for keys.

    Per row T^2 bytes each. Made once for all heads, and all layers of a kind.
    """

    queries: mask_infos.MaskInfo
    keys: mask_infos.MaskInfo


@jax.named_scope("attention")
def splash_attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pos_BT: jax.Array,
    window: int | None,
    cap: float | None,
    interpret: bool = False,
    packed: PackedMasks | None = None,
) -> jax.Array:
    """Attends from every row to its own keys, forward and backward by kernels; BTNH in q's dtype.

    Queries are scaled already. Logits, softcap and softmax are float32.

    pos_BT: position t at index t, or -1 for padding, which comes last in a row. So what a query
        sees follows from indices, and on real tokens the result is that of `attend`. In padding it
        is finite, and another one; real tokens have no gradient from there where the loss has none.
    window: a key at this distance is not seen any more; None: no window.
    interpret: run the kernels as plain JAX, on any platform.
    packed: what `packed_masks` gives for packed rows and this window; then pos_BT says nothing.

    T is padded to a multiple of 128; blocks are 512, 256 or 128 square, the largest that divides
    it. On a mesh each device has its own rows and heads: `map_rows_and_heads`.
    """
    return map_rows_and_heads(
        lambda q, k, v, rows: _attend(q, k, v, rows, window, cap, interpret),
        q_BTNH,
        k_BTKH,
        v_BTKH,
        pos_BT if packed is None else packed,
    )


def packed_masks(pos_BT: jax.Array, packed: Packed, window: int | None) -> PackedMasks:
    """Makes the masks of packed rows: which blocks a kernel skips, computes whole, or in part."""
    T = pos_BT.shape[1]
    padded = -(-T // LANES) * LANES
    start_BT, end_BT, own_BT = (
        jnp.pad(x, [(0, 0), (0, padded - T)])[..., None] for x in stretches(pos_BT, packed, window)
    )
    key_S, query_T1 = jnp.arange(padded), jnp.arange(padded)[:, None]
    own_BT = jnp.where(query_T1 < T, own_BT, query_T1)
    trunk_BTS = (start_BT <= key_S) & (key_S < end_BT)
    visible_BTS = trunk_BTS | ((own_BT <= key_S) & (key_S <= query_T1))
    block = block_size(padded)

    def in_blocks(process):
        # the flag of a dynamic mask is no array
        return jax.vmap(
            lambda visible_TS: process(visible_TS[None], (block, block))[0]._replace(
                is_dynamic_mask=None
            )
        )(visible_BTS)

    return PackedMasks(
        in_blocks(mask_infos.process_dynamic_mask), in_blocks(mask_infos.process_dynamic_mask_dkv)
    )


def _attend(q_BTNH, k_BTKH, v_BTKH, rows, window, cap, interpret):
    """`splash_attend` of one device's rows and heads. rows: pos_BT, or the `PackedMasks`."""
    T, N = q_BTNH.shape[1:3]
    padded = -(-T // LANES) * LANES
    block = block_size(padded)
    sizes = kernels.BlockSizes(
        block, block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    q_BNTH, k_BKTH, v_BKTH = (
        jnp.pad(x, [(0, 0), (0, padded - T), (0, 0), (0, 0)]).swapaxes(1, 2)
        for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    if isinstance(rows, PackedMasks):

        def row(q_NTH, k_KTH, v_KTH, row_masks):
            of_queries, of_keys = (mask._replace(is_dynamic_mask=True) for mask in row_masks)
            kernel = kernels.SplashAttentionKernel(
                of_queries,
                of_queries,
                of_keys,
                block_sizes=sizes,
                is_mqa=False,
                save_residuals=False,
                mask_value=kernels.DEFAULT_MASK_VALUE,
                attn_logits_soft_cap=cap,
                residual_checkpoint_name=None,
                mask_function=None,
                interpret=interpret,
            )
            return kernel(q_NTH, k_KTH, v_KTH)

        out_BNTH: Any = jax.vmap(row)(q_BNTH, k_BKTH, v_BKTH, rows)
    else:
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([visible(padded, window)] * N),
            block_sizes=sizes,
            attn_logits_soft_cap=cap,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        # tokens see tokens, padding sees padding
        real_BT = jnp.pad((rows >= 0).astype(jnp.int32), [(0, 0), (0, padded - T)])
        out_BNTH: Any = jax.vmap(kernel)(
            q_BNTH, k_BKTH, v_BKTH, kernels.SegmentIds(real_BT, real_BT)
        )
    return out_BNTH.swapaxes(1, 2)[:, :T]


def block_size(length: int) -> int:
    """Returns how many queries, and keys, one block has, for a length that is a multiple of 128."""
    return next(size for size in (512, 256, LANES) if length % size == 0)


def visible(length: int, window: int | None) -> masks.Mask:
    """Says which keys (columns) a query (row) sees, by index."""
    shape = (length, length)
    return masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)


def blocks_computed(name: str, grid: tuple[int, ...]) -> int | None:
    """Counts the steps of a splash kernel's grid that compute something.

    For the masks and blocks of this file; None for another kernel. Row i of a causal mask in square
    blocks has i + 1 blocks that are not empty; with a window, at most as many of those as the grid
    is wide. Columns have the same, in reverse. Grids are (rows of the batch, heads, block rows,
    width), for dk and dv (rows of the batch, block columns, heads, width).
    """
    if not name.startswith("splash_mha_"):
        return None
    *batch, n, width = grid if "_dkv" not in name else (*grid[:-3], grid[-2], grid[-3], grid[-1])
    return math.prod(batch) * sum(min(i + 1, width) for i in range(n))
