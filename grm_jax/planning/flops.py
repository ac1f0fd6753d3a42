"""Counts a program's FLOPs on its jaxpr, loops as often as they run.

XLA's `cost_analysis()` counts the body of a loop once: 46 scanned layers look like 2. A multiply
and an add count as two.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr

from grm_jax.models.splash import blocks_computed


class Flops(NamedTuple):
    """Holds a count.

    total: of matrix products and convolutions on all devices together.
    unknown: what could not be counted, in words.
    """

    total: float
    unknown: tuple[str, ...] = ()


def count(jaxpr: ClosedJaxpr | Jaxpr, while_trips: int | None = None) -> Flops:
    """Counts the FLOPs that the program executes, recomputation included.

    scan: body times length.
    cond: its most expensive branch.
    while: body times `while_trips`, or named in `unknown` and counted once where that is None.
    shard_map: a device's share times the devices of its manual axes.
    pallas_call: its body times the blocks that are not masked (kernels of models/splash.py), or its
        own cost estimate, or its body over the whole grid, and then it is named.
    """
    total, unknown = 0.0, []
    for eqn in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        found = _equation(eqn, while_trips)
        total += found.total
        unknown += [what for what in found.unknown if what not in unknown]
    return Flops(total, tuple(unknown))


def _equation(eqn, while_trips) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return Flops(
            2.0
            * eqn.outvars[0].aval.size
            * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        )
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return Flops(2.0 * eqn.outvars[0].aval.size * math.prod(kernel) / out_features)
    inner = [count(sub, while_trips) for sub in _sub_jaxprs(params)]
    if name == "cond":
        return max(inner)
    total, unknown = (
        sum(found.total for found in inner),
        tuple(what for found in inner for what in found.unknown),
    )
    if name == "scan":
        return Flops(total * params["length"], unknown)
    if name == "while" and total:
        if while_trips is None:
            return Flops(
                total, unknown + (f"a while loop of unknown length, {total:.3g} FLOPs a trip",)
            )
        return Flops(total * while_trips, unknown)
    if name == "shard_map":
        # JAX 0.10.2, others
        axes = (
            params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
        )
        return Flops(total * math.prod(params["mesh"].shape[axis] for axis in axes), unknown)
    if name == "pallas_call":
        grid = params["grid_mapping"].grid
        steps = blocks_computed(params["name"], grid)
        if steps is not None:
            return Flops(total * steps, unknown)
        if params["cost_estimate"] is not None:
            return Flops(float(params["cost_estimate"].flops))
        return Flops(
            total * math.prod(grid),
            unknown + ("a Pallas kernel without a cost estimate, counted over its whole grid",),
        )
    return Flops(total, unknown)


def _sub_jaxprs(params: dict) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item
