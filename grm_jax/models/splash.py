"""Attends causally with JAX's splash kernels (Pallas, TPU), which skip masked blocks.

There is no array of all query-key pairs. The slow twin is `grm_jax.models.attention.attend`, which
also does what is not here: decoding, and keys of a shared prefix.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from grm_jax.models.placement import auto_axes, row_axes

LANES = 128  # what a block is a multiple of


@jax.named_scope("attention")
def splash_attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pos_BT: jax.Array,
    window: int | None,
    cap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Attends from every row to its own keys, forward and backward by kernels; BTNH in q's dtype.

    Queries are scaled already. Logits, softcap and softmax are float32.

    pos_BT: position t at index t, or -1 for padding, which comes last in a row. So what a query
        sees follows from indices, and on real tokens the result is that of `attend`. In padding it
        is finite, and another one; real tokens have no gradient from there where the loss has none.
    window: a key at this distance is not seen any more; None: no window.
    interpret: run the kernels as plain JAX, on any platform.

    T is padded to a multiple of 128; blocks are 512, 256 or 128 square, the largest that divides
    it.

    On a mesh (that of q's type) the compiler cannot split a kernel, so it runs in `jax.shard_map`:
    rows over the data axes where those divide B, heads over `tensor` where it divides N, or else
    whole on each device. Where `tensor` does not divide the K heads of keys and values, they are
    repeated to the least common multiple. Axes that are manual already, inside another shard_map,
    are left as they are.
    """
    mesh, auto = auto_axes(q_BTNH)
    if not auto:
        return _attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, interpret)
    N, K = q_BTNH.shape[2], k_BTKH.shape[2]
    rows = row_axes(q_BTNH)
    tensor = mesh.shape["tensor"] if "tensor" in auto else 1
    heads = "tensor" if tensor > 1 and N % tensor == 0 else None
    if heads:
        k_BTKH, v_BTKH = (jnp.repeat(x, math.lcm(K, tensor) // K, axis=2) for x in (k_BTKH, v_BTKH))
    spec = P(rows, None, heads)
    return jax.shard_map(
        lambda q, k, v, pos: _attend(q, k, v, pos, window, cap, interpret),
        mesh=mesh,
        in_specs=(spec, spec, spec, P(rows)),
        out_specs=spec,
        axis_names=set(auto),
        check_vma=False,
    )(q_BTNH, k_BTKH, v_BTKH, pos_BT)


def _attend(q_BTNH, k_BTKH, v_BTKH, pos_BT, window, cap, interpret):
    """`splash_attend` of one device's rows and heads."""
    T, N = q_BTNH.shape[1:3]
    padded = -(-T // LANES) * LANES
    block = block_size(padded)
    sizes = kernels.BlockSizes(
        block, block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([visible(padded, window)] * N),
        block_sizes=sizes,
        attn_logits_soft_cap=cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q_BNTH, k_BKTH, v_BKTH = (
        jnp.pad(x, [(0, 0), (0, padded - T), (0, 0), (0, 0)]).swapaxes(1, 2)
        for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    # tokens see tokens, padding sees padding
    real_BT = jnp.pad((pos_BT >= 0).astype(jnp.int32), [(0, 0), (0, padded - T)])
    segments = kernels.SegmentIds(real_BT, real_BT)
    out_BNTH: Any = jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH, segments)
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
