"""Small programs compiled for a TPU slice that is not there (marked tpu_aot: needs libtpu)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.parallel.mesh import make_mesh
from grm_jax.planning.measure import Program, measure
from grm_jax.planning.topology import get_topology

pytestmark = pytest.mark.tpu_aot
L, D, B = 6, 512, 4096


def program(fn, mesh, *args):
    return Program("test", jax.jit(fn), args, mesh, {"arguments": args}, {}, 1.0, B)


def test_a_scan_over_sharded_weights():
    """Weights [6, 512, 512] over fsdp 4 and tensor 2, gathered over fsdp layer by layer."""
    topology = get_topology("v5e:2x4")
    mesh = make_mesh(fsdp=4, tensor=2, devices=topology.devices)

    def step(w_LDD, x_BD):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(
                jnp.tanh(x @ w), NamedSharding(mesh, P("fsdp"))
            ), None

        return jax.lax.scan(layer, x_BD, w_LDD)[0]

    w = jax.ShapeDtypeStruct(
        (L, D, D), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "fsdp", "tensor"))
    )
    x = jax.ShapeDtypeStruct((B, D), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    cache = {}
    figures = measure(program(step, mesh, w, x), topology, cache)
    assert figures["compiles"] and figures["fits"] and figures["unknown"] == []
    assert (
        figures["memory"]["arguments"]
        == figures["argument_bytes"]
        == 2 * (L * D * D / 8 + B * D / 4)
    )
    assert figures["hardware_flops"] == 2 * B * D * D * L
    assert figures["peak_bytes"] >= figures["argument_bytes"]
    moved = sum(size for _, axes, _, size in figures["collectives"] if "fsdp" in axes)
    # every device gets the three quarters of a layer's columns that it lacks
    assert moved >= 2 * L * D * (D / 2) * 3 / 4

    again = measure(program(step, mesh, w, x), topology, dict(cache))
    assert again == figures


def test_a_program_that_needs_too_much_is_a_verdict_and_not_an_error():
    topology = get_topology("v5e:2x4")
    mesh = make_mesh(fsdp=8, devices=topology.devices)
    x = jax.ShapeDtypeStruct((2**17,), np.float32, sharding=NamedSharding(mesh, P()))
    figures = measure(program(lambda x: jnp.outer(x, x), mesh, x), topology, {})
    assert (
        figures["compiles"] is False
        and figures["fits"] is False
        and "out of memory" in figures["error"]
        and "seconds" not in figures
    )


def test_arguments_that_are_too_much_are_not_compiled():
    topology = get_topology("v5e:2x4")
    mesh = make_mesh(fsdp=8, devices=topology.devices)
    x = jax.ShapeDtypeStruct((2**33,), np.float32, sharding=NamedSharding(mesh, P()))
    figures = measure(program(jnp.tanh, mesh, x), topology, {})
    assert (
        figures["compiles"] is None
        and figures["fits"] is False
        and "32.00 of 15.75 GiB" in figures["error"]
    )
