"""Computes how long a program takes at least on each resource of a chip, and which bounds it."""

from typing import NamedTuple

from jax.sharding import Mesh

from grm_jax.planning.collectives import Collective
from grm_jax.planning.topology import Topology, axis_bandwidth


class Roofline(NamedTuple):
    """Holds the seconds of one call at the peak of each resource, were the others free.

    None where it is not known (nothing was compiled).
    """

    compute: float
    hbm: float | None
    ici: float | None

    @property
    def seconds(self) -> float:
        """Returns the largest: the time with perfect overlap, which no program beats."""
        return max(value for value in self if value is not None)

    @property
    def bound(self) -> str:
        """Names the resource that takes longest."""
        return max((value, name) for name, value in self._asdict().items() if value is not None)[1]


def roofline(
    topology: Topology,
    mesh: Mesh,
    flops: float,
    hbm_bytes: float | None,
    moved: list[Collective] | None,
) -> Roofline:
    """Computes the times of one call.

    flops: on all devices of the mesh together.
    hbm_bytes, moved: of one device. Links of different axes are taken to work one after the other.
    """
    chip = topology.chip
    ici = (
        None
        if moved is None
        else sum(one.bytes / axis_bandwidth(topology, mesh, one.axes) for one in moved if one.axes)
    )
    return Roofline(
        flops / mesh.size / (chip.peak / chip.devices),
        None if hbm_bytes is None else hbm_bytes / (chip.hbm_bandwidth / chip.devices),
        ici,
    )
