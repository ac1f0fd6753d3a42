"""Attends in tiles of queries and keys, in plain JAX: those alone in which a query sees a key.

On any platform, packed rows or not. Memory grows with the length of a row, not with its square, and
work with what is to be seen. The slow twin is `grm_jax.models.attention.attend`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grm_jax.models.attention import Packed, softcap, stretches
from grm_jax.models.placement import map_rows_and_heads

TILE = 256  # queries, and keys, of a tile: at most
SHORT = 1024  # tokens of a row whose tiles are smallest on CPU


class Tiles(NamedTuple):
    """Says what the queries of each row see: made once for all layers of a kind.

    start_BT, end_BT, own_BT: `grm_jax.models.attention.stretches`, T a multiple of the tile.
    next_BIJ: int32, the first tile of keys at or behind J in which tile I of queries sees a key, or
        the number of tiles; J from 0 to the number of tiles.
    """

    start_BT: jax.Array
    end_BT: jax.Array
    own_BT: jax.Array
    next_BIJ: jax.Array


def make_tiles(pos_BT: jax.Array, packed: Packed | None, window: int | None) -> Tiles:
    """Finds the tiles to compute, from the layout of the rows (`stretches` says which it may be).

    window: a key at this distance is not seen any more; None: no window.
    """
    T = pos_BT.shape[1]
    tile = min(_tile(T), T)
    n = -(-T // tile)
    seen = stretches(pos_BT, packed, window)
    start_BT, end_BT, own_BT = (jnp.pad(x, [(0, 0), (0, n * tile - T)]) for x in seen)
    index_T = jnp.arange(n * tile)
    own_BT = jnp.where(index_T < T, own_BT, index_T)
    first_J = jnp.arange(n) * tile
    start_BT1, end_BT1, own_BT1 = (x[..., None] for x in (start_BT, end_BT, own_BT))
    trunk_BTJ = (start_BT1 < jnp.minimum(end_BT1, first_J + tile)) & (first_J < end_BT1)
    own_BTJ = (own_BT1 < first_J + tile) & (first_J <= index_T[:, None])
    visible_BIJ = (trunk_BTJ | own_BTJ).reshape(-1, n, tile, n).any(2)
    later_Jj = jnp.arange(n) >= jnp.arange(n + 1)[:, None]
    next_BIJ = jnp.where(visible_BIJ[:, :, None] & later_Jj, jnp.arange(n), n).min(-1)
    return Tiles(start_BT, end_BT, own_BT, next_BIJ)


def _tile(T: int) -> int:
    """The tile of rows of T tokens: small ones leave out more of what packing hides.

    On CPU the steps that they add cost little.
    """
    if jax.default_backend() != "cpu":
        return TILE
    return min(TILE, 64 if T <= SHORT else 128)


@jax.named_scope("attention")
def blocked_attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, tiles: Tiles, cap: float | None
) -> jax.Array:
    """Attends from every row to its own keys, a tile at a time; BTNH in q's dtype.

    A loop goes over the tiles of queries of all rows, and in it one over the tiles of keys in which
    these see something, with a running softmax; the backward pass goes the same way and computes
    the logits again. Queries are scaled already. Logits, softcap and softmax are float32. In
    padding the result is finite, and another one than that of `attend`.

    On a mesh each device has its own rows and heads: `map_rows_and_heads`.
    """

    def one_device(q_BTNH, k_BTKH, v_BTKH, tiles):
        B, T, N, H = q_BTNH.shape
        K, n = k_BTKH.shape[2], tiles.next_BIJ.shape[1]
        tile = tiles.own_BT.shape[1] // n
        q_BTNH, k_BTKH, v_BTKH = (
            jnp.pad(x, [(0, 0), (0, n * tile - T), (0, 0), (0, 0)])
            for x in (q_BTNH, k_BTKH, v_BTKH)
        )
        # i: tiles of all rows; Y: the queries of a tile for each head of a key head
        q_BnKGXH = q_BTNH.reshape(B, n, tile, K, N // K, H).transpose(0, 1, 3, 4, 2, 5)
        k_iKSH, v_iKSH = (
            x.reshape(B, n, tile, K, H).swapaxes(2, 3).reshape(B * n, K, tile, H)
            for x in (k_BTKH, v_BTKH)
        )
        out_iKYH: Any = _attend(q_BnKGXH.reshape(B * n, K, -1, H), k_iKSH, v_iKSH, tiles, cap)
        out_BnXKGH = out_iKYH.reshape(B, n, K, N // K, tile, H).transpose(0, 1, 4, 2, 3, 5)
        return out_BnXKGH.reshape(B, n * tile, N, H)[:, :T]

    return map_rows_and_heads(one_device, q_BTNH, k_BTKH, v_BTKH, tiles)


def _logits(q_KYH, k_KHS, visible_XS, cap):
    """Masked logits [K, Y, S], and the derivative of the softcap."""
    K, Y, _ = q_KYH.shape
    X, S = visible_XS.shape
    logits_KYS = softcap(
        jnp.einsum("kyh,khs->kys", q_KYH, k_KHS, preferred_element_type=jnp.float32), cap
    )
    slope_KYS = 1.0 if cap is None else 1.0 - (logits_KYS / cap) ** 2
    logits_KGXS = jnp.where(visible_XS, logits_KYS.reshape(K, Y // X, X, S), -1e30)
    return logits_KGXS.reshape(K, Y, S), slope_KYS


def _visible(tiles: Tiles, i, j):
    """What the queries of tile i of all rows see in tile j of the same row's keys; bool [X, S]."""
    n = tiles.next_BIJ.shape[1]
    start_X1, end_X1, own_X1 = (x.reshape(-1, x.shape[1] // n)[i][:, None] for x in tiles[:3])
    offset_X = jnp.arange(start_X1.shape[0])
    query_X1, key_S = (i % n * len(offset_X) + offset_X)[:, None], j * len(offset_X) + offset_X
    trunk_XS = (start_X1 <= key_S) & (key_S < end_X1)
    return trunk_XS | ((own_X1 <= key_S) & (key_S <= query_X1))


def _over_key_tiles(tiles: Tiles, i, body, carry):
    """Runs body(j, carry) for the tiles j of keys that tile i of queries sees something in."""
    n = tiles.next_BIJ.shape[1]
    next_J = tiles.next_BIJ.reshape(-1, n + 1)[i]
    _, carry = jax.lax.while_loop(
        lambda state: state[0] < n,
        lambda state: (next_J[state[0] + 1], body(state[0], state[1])),
        (next_J[0], carry),
    )
    return carry


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_iKYH, k_iKSH, v_iKSH, tiles, cap):
    return _forward(q_iKYH, k_iKSH, v_iKSH, tiles, cap)[0]


def _forward(q_iKYH, k_iKSH, v_iKSH, tiles, cap):
    n, k_iKHS, shape = tiles.next_BIJ.shape[1], k_iKSH.swapaxes(2, 3), q_iKYH.shape

    def query_tile(i, carry):
        out_iKYH, lse_iKY = carry

        def key_tile(j, carry):
            out_KYH, most_KY, total_KY = carry
            j_of_all = i // n * n + j
            logits_KYS, _ = _logits(q_iKYH[i], k_iKHS[j_of_all], _visible(tiles, i, j), cap)
            larger_KY = jnp.maximum(most_KY, logits_KYS.max(-1))
            weight_KYS = jnp.exp(logits_KYS - larger_KY[..., None])
            shrink_KY = jnp.exp(most_KY - larger_KY)
            mixed_KYH = _dot("kys,ksh->kyh", weight_KYS.astype(v_iKSH.dtype), v_iKSH[j_of_all])
            return (
                out_KYH * shrink_KY[..., None] + mixed_KYH,
                larger_KY,
                total_KY * shrink_KY + weight_KYS.sum(-1),
            )

        nothing = (
            jnp.zeros(shape[1:], jnp.float32),
            jnp.full(shape[1:3], -1e30, jnp.float32),
            jnp.zeros(shape[1:3], jnp.float32),
        )
        out_KYH, most_KY, total_KY = _over_key_tiles(tiles, i, key_tile, nothing)
        return (
            out_iKYH.at[i].set((out_KYH / total_KY[..., None]).astype(out_iKYH.dtype)),
            lse_iKY.at[i].set(most_KY + jnp.log(total_KY)),
        )

    nothing = jnp.zeros(shape, q_iKYH.dtype), jnp.zeros(shape[:3], jnp.float32)
    out_iKYH, lse_iKY = jax.lax.fori_loop(0, shape[0], query_tile, nothing)
    return out_iKYH, (q_iKYH, k_iKSH, v_iKSH, tiles, out_iKYH, lse_iKY)


def _backward(cap, saved, dout_iKYH):
    q_iKYH, k_iKSH, v_iKSH, tiles, out_iKYH, lse_iKY = saved
    n = tiles.next_BIJ.shape[1]
    mean_iKY = (out_iKYH.astype(jnp.float32) * dout_iKYH.astype(jnp.float32)).sum(-1)
    # a product wants what it sums over last on its left and first on its right: laid so here, once
    k_iKHS, v_iKHS, q_iKHY, dout_iKHY = (
        x.swapaxes(2, 3) for x in (k_iKSH, v_iKSH, q_iKYH, dout_iKYH)
    )

    def query_tile(i, carry):
        dq_iKYH, dk_iKHS, dv_iKHS = carry

        def key_tile(j, carry):
            dq_KYH, dk_iKHS, dv_iKHS = carry
            j_of_all = i // n * n + j
            logits_KYS, slope_KYS = _logits(q_iKYH[i], k_iKHS[j_of_all], _visible(tiles, i, j), cap)
            probs_KYS = jnp.exp(logits_KYS - lse_iKY[i][..., None])
            dprobs_KYS = _dot("kyh,khs->kys", dout_iKYH[i], v_iKHS[j_of_all])
            dlogits_KYS = probs_KYS * (dprobs_KYS - mean_iKY[i][..., None]) * slope_KYS
            probs_KYS, dlogits_KYS = (x.astype(q_iKYH.dtype) for x in (probs_KYS, dlogits_KYS))
            return (
                dq_KYH + _dot("kys,ksh->kyh", dlogits_KYS, k_iKSH[j_of_all]),
                dk_iKHS.at[j_of_all].add(_dot("khy,kys->khs", q_iKHY[i], dlogits_KYS)),
                dv_iKHS.at[j_of_all].add(_dot("khy,kys->khs", dout_iKHY[i], probs_KYS)),
            )

        nothing = jnp.zeros(q_iKYH.shape[1:], jnp.float32)
        dq_KYH, dk_iKHS, dv_iKHS = _over_key_tiles(tiles, i, key_tile, (nothing, dk_iKHS, dv_iKHS))
        return dq_iKYH.at[i].set(dq_KYH.astype(dq_iKYH.dtype)), dk_iKHS, dv_iKHS

    nothing = jnp.zeros_like(q_iKYH), *(jnp.zeros(x.shape, jnp.float32) for x in (k_iKHS, v_iKHS))
    dq_iKYH, dk_iKHS, dv_iKHS = jax.lax.fori_loop(0, q_iKYH.shape[0], query_tile, nothing)
    dk_iKSH, dv_iKSH = (x.swapaxes(2, 3).astype(k_iKSH.dtype) for x in (dk_iKHS, dv_iKHS))
    return dq_iKYH, dk_iKSH, dv_iKSH, None


_attend.defvjp(_forward, _backward)
