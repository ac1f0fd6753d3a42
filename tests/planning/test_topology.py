"""Names of slices, the table of chips, bandwidth along mesh axes, and rooflines: arithmetic,
nothing is compiled.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from grm_jax.parallel.hardware import GPUS, TPUS
from grm_jax.planning.collectives import Collective
from grm_jax.planning.roofline import roofline
from grm_jax.planning.topology import Topology, axis_bandwidth, get_topology

AXES = ("replica", "fsdp", "tensor")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-8", "v5e:2x4"),
        ("v5p-128", "v5p:4x4x4"),
        ("v6e-256", "v6e:16x16"),
        ("v7x:2x2x1", "tpu7x:2x2x1"),
        ("ironwood", "tpu7x:4x4x4"),
        ("v5e:4x4x4", "v5e:4x4"),
        ("h100", "h100:8"),
    ],
)
def test_wrong_names_say_what_to_write(name, write):
    with pytest.raises(ValueError, match=write):
        get_topology(name)


def test_a_name_of_nothing_lists_the_kinds():
    with pytest.raises(ValueError, match="v5e, v5p, v6e, tpu7x"):
        get_topology("cray:2")


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"\[tpu\]"):
        get_topology("v5e:2x4")


def test_a_gpu_that_is_not_there_gives_shapes_only():
    topology = get_topology("h100:8")
    assert (
        not topology.compiles
        and len(topology.devices) == topology.chips == 8
        and topology.chip is GPUS["h100"]
    )


def torus(*shape):
    return [SimpleNamespace(coords=coords) for coords in np.ndindex(*shape)]


def slice_of(kind, *shape):
    topology = Topology(f"{kind}:x", TPUS[kind], shape, torus(*shape), True)

    def mesh(*sizes):
        return SimpleNamespace(
            devices=np.array(topology.devices, dtype=object).reshape(sizes), axis_names=AXES
        )

    return topology, mesh


def test_bandwidth_follows_the_torus():
    """One ring for each dimension that an axis runs along; both ways round where the dimension is
    closed.
    """
    topology, mesh = slice_of("v5p", 4, 4, 4)
    link = TPUS["v5p"].link_bandwidth
    cube = mesh(1, 16, 4)  # fsdp over two dimensions, tensor over the third
    assert axis_bandwidth(topology, cube, ("tensor",)) == 2 * link
    assert axis_bandwidth(topology, cube, ("fsdp",)) == 4 * link
    assert axis_bandwidth(topology, cube, ("fsdp", "tensor")) == 6 * link
    topology, mesh = slice_of("v6e", 8, 8)
    # 8 of 16: not closed
    assert axis_bandwidth(topology, mesh(1, 8, 8), ("tensor",)) == TPUS["v6e"].link_bandwidth
    topology, mesh = slice_of("v5e", 16, 16)
    assert axis_bandwidth(topology, mesh(1, 16, 16), ("tensor",)) == 2 * TPUS["v5e"].link_bandwidth


def test_roofline_by_hand():
    topology, mesh = slice_of("v5e", 16, 16)
    grid = SimpleNamespace(**vars(mesh(1, 16, 16)), size=256)
    chip = TPUS["v5e"]
    times = roofline(
        topology,
        grid,
        256 * chip.peak,
        2 * chip.hbm_bandwidth,
        [Collective("all-gather", ("fsdp",), 1, 6 * chip.link_bandwidth)],
    )
    assert times == (1.0, 2.0, 3.0) and times.seconds == 3.0 and times.bound == "ici"
    alone = roofline(topology, grid, 256 * chip.peak, None, None)
    assert alone.seconds == 1.0 and alone.bound == "compute"


def test_devices_of_a_chip_share_it():
    chip = TPUS["tpu7x"]
    assert chip.devices == 2
    topology = Topology("x", chip, (2, 2, 1), torus(2, 2, 1) * 2, True)
    grid = SimpleNamespace(
        devices=np.array(topology.devices, dtype=object).reshape(1, 8, 1), axis_names=AXES, size=8
    )
    assert roofline(topology, grid, 4 * chip.peak, chip.hbm_bandwidth / 2, []).compute == 1.0
    assert roofline(topology, grid, 4 * chip.peak, chip.hbm_bandwidth / 2, []).hbm == 1.0
