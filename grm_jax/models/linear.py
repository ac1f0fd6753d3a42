"""Multiplies by the weights of linear maps: plain ones, and frozen ones with an adapter."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["merged", "a", "b"], meta_fields=["scale"]
)
@dataclasses.dataclass(frozen=True)
class Adapted:
    """Holds a frozen weight and its LoRA adapter, which alone gets a gradient.

    merged [..., in..., out...]: W + scale A B, in the weight's dtype: what is multiplied by.
    a [..., in..., r], b [..., r, out...]: A and B, float32.
    """

    merged: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float


Weight = jax.Array | Adapted


def as_matrix(weight: Weight, inputs: int, dtype: jnp.dtype) -> Weight:
    """Returns [in..., out...] as [D, F] in `dtype`; the first `inputs` axes are the inputs'."""

    def matrix(w: jax.Array) -> jax.Array:
        return w.astype(dtype).reshape(math.prod(w.shape[:inputs]), -1)

    if not isinstance(weight, Adapted):
        return matrix(weight)
    rank = weight.a.shape[-1]
    a_Dr, b_rF = weight.a.reshape(-1, rank), weight.b.reshape(rank, -1)
    return Adapted(matrix(weight.merged), a_Dr, b_rF, weight.scale)


def matmul(x: jax.Array, w_DF: Weight) -> jax.Array:
    """Multiplies x [..., D] by a weight; the gradient of an adapter takes no product of W's size.

    With dW = x^T dy it is dA = scale x^T (dy B^T) and dB = scale (x A)^T dy.
    """
    if isinstance(w_DF, Adapted):
        return _adapted(x, w_DF.merged, w_DF.a, w_DF.b, w_DF.scale)
    return _plain(x, w_DF)


def rounds_factors() -> bool:
    """Says whether float32 factors are to be rounded to bfloat16, by JAX's own setting."""
    return jax.config.jax_default_matmul_precision == "bfloat16"  # pyright: ignore


def contract(x: jax.Array, w: jax.Array, axis: int, dtype: jnp.dtype | None = None) -> jax.Array:
    """Multiplies x [..., D] by a matrix whose `axis` is D; the result in x's dtype or in `dtype`.

    XLA takes no notice of `jax_default_matmul_precision` on the CPU. Where that is "bfloat16", as
    it is of itself on a TPU, factors in float32 are rounded here for the CPU, and their products
    summed in float32; cores that have such products take half the time for them.
    """
    dims = (((x.ndim - 1,), (axis,)), ((), ()))

    def plain(x, w):
        return jax.lax.dot_general(x, w, dims, preferred_element_type=dtype)

    def rounded(x, w):
        x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
        return jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)

    if x.dtype != jnp.float32 or not rounds_factors():
        return plain(x, w)
    return jax.lax.platform_dependent(x, w, cpu=rounded, default=plain)


@jax.custom_vjp
def _plain(x, w_DF):
    """The gradient of w_DF is taken as x^T dy.

    JAX derives (dy^T x)^T: XLA on the CPU writes out dy^T, the wider of the two, and the result's
    transpose. Accelerators choose their own layouts, and the product is the same there.
    """
    return contract(x, w_DF, 0)


def _over_rows(x, y, dtype=None):
    """x^T y over the leading axes, which are the same; in their own dtype or in `dtype`."""
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((rows, rows), ((), ())), preferred_element_type=dtype)


def _plain_gradients(saved, d_out):
    x, w_DF = saved
    return contract(d_out, w_DF, 1), _over_rows(x, d_out)


_plain.defvjp(lambda x, w_DF: (contract(x, w_DF, 0), (x, w_DF)), _plain_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _adapted(x, merged_DF, a_Dr, b_rF, scale):
    return contract(x, merged_DF, 0)


def _adapted_gradients(scale, saved, d_out):
    x, merged_DF, a_Dr, b_rF = saved
    low_b, low_a = d_out @ b_rF.T.astype(d_out.dtype), x @ a_Dr.astype(x.dtype)
    d_a, d_b = (_over_rows(*pair, jnp.float32) for pair in ((x, low_b), (low_a, d_out)))
    return contract(d_out, merged_DF, 1), None, scale * d_a, scale * d_b


_adapted.defvjp(
    lambda x, merged_DF, a_Dr, b_rF, scale: (contract(x, merged_DF, 0), (x, merged_DF, a_Dr, b_rF)),
    _adapted_gradients,
)
