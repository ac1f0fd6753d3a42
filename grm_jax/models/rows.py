"""Where activations lie on a mesh: rows over the data axes, the rest whole; and the embedding where logits are taken again and again."""

import math

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_AXES = ("replica", "fsdp")  # of the mesh: those that a batch is split over


def auto_axes(x: jax.Array) -> tuple[jax.sharding.AbstractMesh, list[str]]:
    """(mesh of the array's type, those of its axes over which the compiler places arrays). Axes of an enclosing `jax.shard_map` are not."""
    mesh = jax.typeof(x).sharding.mesh
    return mesh, [name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto]


def split_rows(x_BTD: jax.Array) -> jax.Array:
    """The same array, pinned to this placement in a jitted program: rows over the data axes, T and D whole.

    The residual stream needs it. Weights are split over fsdp along D, and the compiler, left alone, splits activations along D too: all
    rows on every device, and partial products added up over fsdp, which moves far more than gathering the weights does. What lies
    between two pins follows: rows from them, heads and d_ff over `tensor` from the weights.

    The mesh is the one in the array's type, that of the arguments which it was computed from. Nothing is done on one device, inside
    `jax.shard_map` over the data axes (its rows are a device's own), where the data axes do not divide B, and at T = 1: the activations of
    a decode step are smaller than the weights.
    """
    mesh, auto = auto_axes(x_BTD)
    axes = tuple(name for name in auto if name in DATA_AXES)
    shares = math.prod(mesh.shape[name] for name in axes)
    if shares == 1 or x_BTD.shape[0] % shares or x_BTD.shape[1] == 1:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(mesh, P(axes)))


@jax.custom_vjp
def gather_width(embedding_VD: jax.Array) -> jax.Array:
    """The same array, its width D whole on every device; the vocabulary stays over `tensor` where that divides it.

    Before a loop over chunks of positions: left split over fsdp, the embedding is gathered anew for every chunk. Its gradient is left to the
    compiler, which scatters each chunk's: a sum of chunks is split as the parameter is, and never whole on a device.
    """
    return _gather_width(embedding_VD)


gather_width.defvjp(lambda embedding_VD: (_gather_width(embedding_VD), None), lambda _, gradient_VD: (gradient_VD,))


def _gather_width(embedding_VD):
    mesh, auto = auto_axes(embedding_VD)
    if all(mesh.shape[name] == 1 for name in auto):
        return embedding_VD
    tensor = "tensor" if "tensor" in auto and embedding_VD.shape[0] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(embedding_VD, NamedSharding(mesh, P(tensor)))
