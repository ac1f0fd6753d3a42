"""Places activations on a mesh: rows over the data axes, the rest whole.

Also the embedding, where logits are taken again and again.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_AXES = ("replica", "fsdp")  # of the mesh: those that a batch is split over


def auto_axes(x: jax.Array) -> tuple[jax.sharding.AbstractMesh, list[str]]:
    """Returns the mesh of the array's type, and the axes over which the compiler places arrays.

    Axes of an enclosing `jax.shard_map` are not among them.
    """
    mesh = jax.typeof(x).sharding.mesh
    return mesh, [
        name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto
    ]


def row_axes(x: jax.Array) -> tuple[str, ...]:
    """Returns the data axes over which the compiler can split the rows of x [B, ...].

    None where they have one device or do not divide B.
    """
    mesh, auto = auto_axes(x)
    axes = tuple(name for name in auto if name in DATA_AXES)
    shares = math.prod(mesh.shape[name] for name in axes)
    return axes if shares > 1 and x.shape[0] % shares == 0 else ()


def split_rows(x_BTD: jax.Array) -> jax.Array:
    """Pins an array in a jitted program to this placement: rows over the data axes, T and D whole.

    The residual stream needs it. Weights are split over fsdp along D, and the compiler, left alone,
    splits activations along D too: all rows on every device, and partial products added up over
    fsdp, which moves far more than gathering the weights does. What lies between two pins follows:
    rows from them, heads and d_ff over `tensor` from the weights.

    The mesh is the one in the array's type, that of the arguments which it was computed from.
    Nothing is done on one device, inside `jax.shard_map` over the data axes (its rows are a
    device's own), where the data axes do not divide B, and at T = 1: the activations of a decode
    step are smaller than the weights.
    """
    axes = row_axes(x_BTD)
    if not axes or x_BTD.shape[1] == 1:
        return x_BTD
    return jax.lax.with_sharding_constraint(
        x_BTD, NamedSharding(jax.typeof(x_BTD).sharding.mesh, P(axes))
    )


def gather_width(embedding_VD: jax.Array) -> jax.Array:
    """Pins the embedding with its width D whole on every device.

    The vocabulary stays over `tensor` where that divides it. Before a loop over chunks of positions
    or micro-batches: left split over fsdp, the embedding is gathered anew in each turn.
    """
    mesh, auto = auto_axes(embedding_VD)
    if all(mesh.shape[name] == 1 for name in auto):
        return embedding_VD
    tensor = (
        "tensor" if "tensor" in auto and embedding_VD.shape[0] % mesh.shape["tensor"] == 0 else None
    )
    return jax.lax.with_sharding_constraint(embedding_VD, NamedSharding(mesh, P(tensor)))


def map_own_rows(fn: Callable, embedding_VD: jax.Array, *rows_B: jax.Array) -> Any:
    """Calls fn(embedding_VD, *rows_B) on each device of the data axes with its own rows.

    The embedding's width is whole. fn works row by row, and returns arrays [B, ...]. With a loop in
    fn, a device adds up its turns' gradients of the embedding by itself, in one array of the
    embedding's shape, and the devices' sums are added up once behind the loop; the compiler, left
    alone, adds up each turn's. Plain fn where the data axes have one device, are manual already, or
    do not divide B.
    """
    axes = row_axes(rows_B[0])
    if axes:
        mesh, specs = jax.typeof(rows_B[0]).sharding.mesh, (P(), *[P(axes)] * len(rows_B))
        fn = jax.shard_map(
            fn, mesh=mesh, in_specs=specs, out_specs=P(axes), axis_names=set(axes), check_vma=False
        )
    return fn(gather_width(embedding_VD), *rows_B)


def map_rows_and_heads(
    attend: Callable, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Any
) -> jax.Array:
    """Calls attend(q_BTNH, k_BTKH, v_BTKH, rows) on each device of a mesh with its own share.

    rows: a pytree of arrays whose first axis is that of the rows.

    What the compiler cannot split runs so in `jax.shard_map`, over the mesh of q's type: rows over
    the data axes where those divide B, heads over `tensor` where it divides N, or else whole on
    each device. Where `tensor` does not divide the K heads of keys and values, they are repeated to
    the least common multiple. Axes that are manual already, inside another shard_map, are left as
    they are.
    """
    mesh, auto = auto_axes(q_BTNH)
    if not auto:
        return attend(q_BTNH, k_BTKH, v_BTKH, rows)
    N, K = q_BTNH.shape[2], k_BTKH.shape[2]
    axes = row_axes(q_BTNH)
    tensor = mesh.shape["tensor"] if "tensor" in auto else 1
    heads = "tensor" if tensor > 1 and N % tensor == 0 else None
    if heads:
        k_BTKH, v_BTKH = (jnp.repeat(x, math.lcm(K, tensor) // K, axis=2) for x in (k_BTKH, v_BTKH))
    spec = P(axes, None, heads)
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(spec, spec, spec, P(axes)),
        out_specs=spec,
        axis_names=set(auto),
        check_vma=False,
    )(q_BTNH, k_BTKH, v_BTKH, rows)
