"""Attends in plain JAX, all pairs of queries and keys at once: the reference for every other way.

Keys carry their absolute position; a slot with position -1 is empty (padding, unused cache). A mask
follows from positions: key s is visible to query t iff 0 <= pos_s <= pos_t, and
pos_t - pos_s < window in local layers; in rows of several sequences also from `Packed`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Keys that b rows hold in common; b divides the batch. k_bSKH, v_bSKH, pos_bS, or laid out for
# products that read them again and again (`lay`): keys_bKHS, values_bKSH, pos_bS. In int8 each has
# float32 scales beside it (`quantize`): k_scale_bSK, v_scale_bSK, keys_scale_bKS, values_scale_bKS
# rows of the batch may read it in any order: row_bf says which (empty places repeat one), place_B
# where each is among these b * f
Segment = dict[str, jax.Array]

QUERIES = 256  # of a block of `attend_after`


class Packed(NamedTuple):
    """Says which tokens of a row see each other, where it holds several trees of sequences.

    A tree is a trunk (a prompt) and the branches (its completions) that each go on from it. A query
    sees the keys of its own tree's trunk and of its own branch, as positions and window allow.

    Trees lie one behind the other in a row, the trunk first, then each branch, padding last.
    Positions count up from 0 in the trunk, and go on from there in every branch.

    segment_BT: int32, the number of the tree within its row; -1 in padding.
    branch_BT: int32, 0 on the trunk, 1, 2, ... on the branches.
    """

    segment_BT: jax.Array
    branch_BT: jax.Array


def stretches(
    pos_BT: jax.Array, packed: Packed | None, window: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the two stretches of keys that each query sees, by index in its row.

    start_BT, end_BT, own_BT: the query at index t sees keys start to end - 1 of its trunk, and own
    to t of its branch (of the trunk, where it is a query of the trunk: there start = end). Padding
    sees itself. The layout of packed rows (`Packed`), or position t at index t and padding last,
    makes this the visibility that `attend` follows.
    """
    index_T = jnp.arange(pos_BT.shape[1])
    if packed is None:
        tree_BT = branch_BT = jnp.zeros_like(pos_BT)
    else:
        new_tree_BT, new_branch_BT = (jnp.diff(x, axis=1, prepend=x[:, :1]) != 0 for x in packed)
        tree_BT, branch_BT = (
            jax.lax.cummax(jnp.where(new_BT, index_T, 0), axis=1)
            for new_BT in (new_tree_BT, new_tree_BT | new_branch_BT)
        )
    end_BT = tree_BT + pos_BT - (index_T - branch_BT)
    start_BT, own_BT = tree_BT, branch_BT
    if window is not None:
        start_BT = jnp.minimum(tree_BT + jnp.maximum(pos_BT - window + 1, 0), end_BT)
        own_BT = jnp.maximum(branch_BT, index_T - window + 1)
    real_BT = pos_BT >= 0
    return (
        jnp.where(real_BT, start_BT, 0),
        jnp.where(real_BT, end_BT, 0),
        jnp.where(real_BT, own_BT, index_T),
    )


def _same_tree(packed: Packed) -> jax.Array:
    """Whether a key's place in the trees lets a query see it; [B, queries, keys]."""
    segment_BT, branch_BT = packed
    key_B1S = branch_BT[:, None, :]
    own_branch_BTS = (key_B1S == 0) | (key_B1S == branch_BT[..., None])
    return own_branch_BTS & (segment_BT[:, None, :] == segment_BT[..., None])


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap * tanh(x / cap), elementwise; the identity where cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


# {plain: (laid out, where an axis lies, where it then lies)}
LAID = {
    "k": ("keys", -3, -1),
    "v": ("values", -3, -2),
    "k_scale": ("keys_scale", -2, -1),
    "v_scale": ("values_scale", -2, -1),
}


def lay(segment: Mapping[str, jax.Array]) -> Segment:
    """Turns a segment as the products of `attend` want it, which else turn it in every call."""
    turned = {
        laid: jnp.moveaxis(segment[name], plain_axis, axis)
        for name, (laid, plain_axis, axis) in LAID.items()
        if name in segment
    }
    return turned | {"pos": segment["pos"]}


def lift(segment: Segment) -> Segment:
    """Turns what `lay` has laid out back."""
    turned = {
        name: jnp.moveaxis(segment[laid], axis, plain_axis)
        for name, (laid, plain_axis, axis) in LAID.items()
        if laid in segment
    }
    return turned | {"pos": segment["pos"]}


def quantize(segment: Mapping[str, jax.Array]) -> Segment:
    """Stores keys and values in int8, with a float32 scale for every position and kv head.

    x = int8 * scale, where the largest magnitude of the head is 127 * scale: off by scale / 2 at
    most. `attend` multiplies logits by the scales of keys, and probabilities by those of values.
    """
    stored = {"pos": segment["pos"]}
    for name, x in segment.items():
        if name == "pos":
            continue
        axis = -2 if name == "keys" else -1
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
        whole = jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
        stored |= {name: whole, f"{name}_scale": jnp.squeeze(scale, axis)}
    return stored


def _query_key(q_bXKGH: jax.Array, k_bSKH: jax.Array) -> jax.Array:
    """Logits bKGXS in float32. One query a row is a thin product that the CPU's dot does badly:
    multiply and add it there.
    """

    def dot(q, k):
        return jnp.einsum(
            "bxkgh,bskh->bkgxs", q, k.astype(q.dtype), preferred_element_type=jnp.float32
        )

    def multiply_add(q, k):
        logits_bSKG = (q.astype(jnp.float32) * k[:, :, :, None].astype(jnp.float32)).sum(-1)
        return logits_bSKG.transpose(0, 2, 3, 1)[:, :, :, None]

    if q_bXKGH.shape[1] > 1:
        return dot(q_bXKGH, k_bSKH)
    return jax.lax.platform_dependent(q_bXKGH, k_bSKH, cpu=multiply_add, default=dot)


def _mix_values(probs_bKGXS: jax.Array, v_bSKH: jax.Array) -> jax.Array:
    """Weighted sums bXKGH of the values; see `_query_key`."""

    def dot(probs, v):
        return jnp.einsum("bkgxs,bskh->bxkgh", probs, v.astype(probs.dtype))

    def multiply_add(probs, v):
        probs_bSKG = probs[:, :, :, 0].transpose(0, 3, 1, 2)
        return (probs_bSKG[..., None] * v[:, :, :, None].astype(probs.dtype)).sum(1)[:, None]

    if probs_bKGXS.shape[3] > 1:
        return dot(probs_bKGXS, v_bSKH)
    return jax.lax.platform_dependent(probs_bKGXS, v_bSKH, cpu=multiply_add, default=dot)


def _scale(segment: Segment, laid: str, name: str) -> jax.Array | None:
    """The scales of a segment in int8, bKS; None where it has none."""
    if f"{laid}_scale" in segment:
        return segment[f"{laid}_scale"]
    return jnp.swapaxes(segment[f"{name}_scale"], 1, 2) if f"{name}_scale" in segment else None


def _seating(segment: Segment, rows: int) -> tuple[int, Callable, Callable]:
    """How many rows read each of a segment, rows -> places in which they lie together, and back."""
    if "row" not in segment:
        return rows // segment["pos"].shape[0], lambda x_B: x_B, lambda x_B: x_B
    row_bf, place_B = segment["row"], segment["place"]
    return row_bf.shape[1], lambda x_B: x_B[row_bf.reshape(-1)], lambda x_X: x_X[place_B]


@jax.named_scope("attention")
def attend(
    q_BTNH: jax.Array,
    pos_BT: jax.Array,
    segments: list[Segment],
    window: int | None,
    cap: float | None,
    packed: Packed | None = None,
) -> jax.Array:
    """Attends from each query to several key segments, joined by one softmax; BTNH in q's dtype.

    A segment may be shared: with b rows for a batch of B = b * fold, row i of the batch reads row
    i // fold of the segment, without copying it (the fold is moved into the query axis). One in
    int8 (`quantize`) is read as it is: its scales go to the logits and the probabilities. The
    softcap is elementwise, so joining the logits of all segments before one softmax is exact. A
    query that sees no key gets the mean of all values (padding). With "row" and "place" rows read a
    segment in any order, as many of each of its b as there are.

    packed: trees of the rows, where the only segment is the rows' own keys.
    """
    B, T, N, H = q_BTNH.shape
    first = segments[0]
    K = first["keys"].shape[1] if "keys" in first else first["k"].shape[2]
    logits, sizes = [], []
    for segment in segments:
        b, S = segment["pos"].shape
        fold, seat, unseat = _seating(segment, B)
        q_bXKGH = seat(q_BTNH).reshape(b, fold * T, K, N // K, H)
        if "keys" in segment:
            logits_bKGXS = jnp.einsum(
                "bkgxh,bkhs->bkgxs",
                q_bXKGH.transpose(0, 2, 3, 1, 4),
                segment["keys"].astype(q_BTNH.dtype),
                preferred_element_type=jnp.float32,
            )
        else:
            logits_bKGXS = _query_key(q_bXKGH, segment["k"])
        if (scale_bKS := _scale(segment, "keys", "k")) is not None:
            logits_bKGXS *= scale_bKS[:, :, None, None]
        pos_bX, key_b1S = seat(pos_BT).reshape(b, fold * T), segment["pos"][:, None, :]
        visible_bXS = (key_b1S >= 0) & (key_b1S <= pos_bX[..., None])
        if window is not None:
            visible_bXS &= pos_bX[..., None] - key_b1S < window
        if packed is not None:
            visible_bXS &= _same_tree(packed)
        logits_bKGXS = jnp.where(visible_bXS[:, None, None], softcap(logits_bKGXS, cap), -1e30)
        logits_bfKGTS = logits_bKGXS.reshape(b, K, N // K, fold, T, S).transpose(0, 3, 1, 2, 4, 5)
        logits.append(unseat(logits_bfKGTS.reshape(b * fold, K, N // K, T, S)))
        sizes.append(S)
    probs_BKGTS = jax.nn.softmax(jnp.concatenate(logits, -1), axis=-1).astype(q_BTNH.dtype)
    out_BTNH, start = jnp.zeros((), q_BTNH.dtype), 0
    for segment, S in zip(segments, sizes):
        b = segment["pos"].shape[0]
        fold, seat, unseat = _seating(segment, B)
        part = (
            seat(probs_BKGTS[..., start : start + S])
            .reshape(b, fold, K, N // K, T, S)
            .transpose(0, 2, 3, 1, 4, 5)
        )
        part_bKGXS = part.reshape(b, K, N // K, fold * T, S)
        if (scale_bKS := _scale(segment, "values", "v")) is not None:
            part_bKGXS = (part_bKGXS * scale_bKS[:, :, None, None]).astype(q_BTNH.dtype)
        if "values" in segment:
            values_bKSH = segment["values"].astype(q_BTNH.dtype)
            mixed_bKGXH = jnp.einsum("bkgxs,bksh->bkgxh", part_bKGXS, values_bKSH)
            mixed_bXKGH = mixed_bKGXH.transpose(0, 3, 1, 2, 4)
        else:
            mixed_bXKGH = _mix_values(part_bKGXS, segment["v"])
        out_BTNH += unseat(mixed_bXKGH.reshape(b * fold, T, N, H))
        start += S
    return out_BTNH


def attend_after(
    q_BTNH: jax.Array,
    pos_BT: jax.Array,
    prefix: list[Segment],
    own: Segment,
    window: int | None,
    cap: float | None,
) -> jax.Array:
    """Attends from rows that go on behind a prefix, a block of queries at a time; BTNH.

    `attend` over [*prefix, own] is the slow twin. A block sees its row up to the end of its
    quarter, so that the logits of one block live at a time, and 5/8 of a row's own are computed.

    own: keys and values of the rows themselves, whose positions count up, padding (-1) last.
    """
    B, T = pos_BT.shape
    own = lay(own)
    if T <= QUERIES:
        return attend(q_BTNH, pos_BT, [*prefix, own], window, cap)
    blocks = -(-T // QUERIES)
    more = blocks * QUERIES - T
    q_BTNH = jnp.pad(q_BTNH, [(0, 0), (0, more), (0, 0), (0, 0)])
    pos_BT = jnp.pad(pos_BT, [(0, 0), (0, more)], constant_values=-1)

    def loop(first: int, end: int) -> jax.Array:
        S = min(end * QUERIES, T)
        seen = {
            "keys": own["keys"][..., :S],
            "values": own["values"][..., :S, :],
            "pos": own["pos"][:, :S],
        }

        def block(_, index):
            q_BXNH, pos_BX = (
                jax.lax.dynamic_slice_in_dim(x, index * QUERIES, QUERIES, axis=1)
                for x in (q_BTNH, pos_BT)
            )
            return None, attend(q_BXNH, pos_BX, [*prefix, seen], window, cap)

        _, out_nBXNH = jax.lax.scan(block, None, jnp.arange(first, end))
        return jnp.moveaxis(out_nBXNH, 0, 1).reshape(B, -1, *q_BTNH.shape[2:])

    ends = sorted({-(-blocks * quarter // 4) for quarter in range(5)})
    outs = [loop(first, end) for first, end in zip(ends, ends[1:])]
    return jnp.concatenate(outs, axis=1)[:, :T]
