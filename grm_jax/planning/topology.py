"""Describes slices that this host does not have: TPU topologies by libtpu, GPUs by name alone.

- v5e:2x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4: programs compile for real, without a chip.
- h100:8, a100:16: abstract shapes and the roofline; programs compile where such GPUs are at hand.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend.backend import clear_backends
from jax.sharding import Mesh

from grm_jax.parallel.hardware import GPUS, TPUS, Chip

# Read when libtpu is loaded: no questions to a metadata server, no lock against a second process
# that compiles.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_PLANE = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
_ALIASES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "v7x": "tpu7x",
    "7x": "tpu7x",
    "v7": "tpu7x",
    "ironwood": "tpu7x",
    "trillium": "v6e",
}


class Topology(NamedTuple):
    """Holds a slice.

    name: as given.
    devices: as many as JAX shows on the slice.
    compiles: whether programs can be compiled for them here.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]  # chips along each dimension of the torus; (chips,) for GPUs
    devices: list
    compiles: bool

    @property
    def chips(self) -> int:
        """Counts the chips of the slice."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """Returns what JAX calls the chips, whatever devices stand for them here."""
        return "tpu" if self.chip.torus else "gpu"


def get_topology(name: str, compiles: bool = True) -> Topology:
    """Returns the slice called `name`. To be called before JAX is used: it chooses the platform.

    compiles: False for shapes alone, on virtual CPU devices: nothing needs libtpu then.

    Raises ValueError for a name that is not understood, with what to write, and ImportError where
    libtpu is missing.
    """
    kind, _, size = name.lower().partition(":")
    if kind in GPUS:
        if not size.isdigit() or int(size) < 1:
            raise ValueError(f"topology {name!r}: expected {kind}:NUMBER_OF_GPUS, such as {kind}:8")
        found = _gpus(name, GPUS[kind], int(size))
        return found._replace(compiles=found.compiles and compiles)
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)+", size):
        raise ValueError(_advice(name))
    shape = tuple(int(n) for n in size.split("x"))
    if len(shape) != TPUS[kind].torus:
        raise ValueError(_advice(name))
    if not compiles:
        count = math.prod(shape) * TPUS[kind].devices
        return Topology(name, TPUS[kind], shape, _virtual(count), False)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "compiling for a TPU needs libtpu; install it with the extra, pip install -e '.[tpu]', "
            "or see shapes, FLOPs and their bounds without it: --nocompile"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    # a host of these kinds has 4 chips or more otherwise
    alone = {"chips_per_host_bounds": [1] * 3} if math.prod(shape) == 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{'TPU7x' if kind == 'tpu7x' else kind}:{size}", **alone
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology {name!r}: libtpu does not know it: {str(error).splitlines()[0]}"
        ) from error
    return Topology(name, TPUS[kind], shape, list(described.devices), True)


def _gpus(name, chip, count):
    """Real GPUs if there are `count` of this kind, else as many virtual CPU devices, for shapes
    alone.
    """
    try:
        found = [
            device for device in jax.devices("gpu") if chip.name.split()[0] in device.device_kind
        ]
    except RuntimeError:
        found = []
    if len(found) >= count:
        return Topology(name, chip, (count,), found[:count], True)
    return Topology(name, chip, (count,), _virtual(count), False)


def _virtual(count: int) -> list:
    cpus = jax.devices("cpu")
    if len(cpus) < count:
        clear_backends()
        jax.config.update("jax_num_cpu_devices", count)
        cpus = jax.devices("cpu")
    return cpus[:count]


def _advice(name: str) -> str:
    """What to write in place of a name that is not understood."""
    shapes = f"{', '.join(TPUS)} with chips along each dimension (v5e:2x4, v5p:4x4x4)"
    text = f"topology {name!r}: expected {shapes}, or {', '.join(GPUS)} with a number (h100:8)"
    kind, _, count = re.sub(r"[-:=_]", "-", name.lower()).partition("-")
    known = _ALIASES.get(kind, kind)
    if known not in TPUS:
        return text
    example = f"{known}:{'4x4' if TPUS[known].torus == 2 else '4x4x4'}"
    if count.isdigit():
        # Google's v5p-N counts cores, two to a chip
        chips = int(count) // 2 if known == "v5p" else int(count)
        shapes = _PLANE if TPUS[known].torus == 2 else _CUBE
        if chips in shapes:
            example = f"{known}:{shapes[chips]}"
    elif re.fullmatch(r"\d+(x\d+)+", count) and count.count("x") + 1 == TPUS[known].torus:
        example = f"{known}:{count}"
    return f"{text}; for this one write {example}"


def axis_bandwidth(topology: Topology, mesh: Mesh, axes: tuple[str, ...]) -> float:
    """Bounds the bytes/s that leave a device in one direction over the links along `axes`.

    TPU: every dimension of the torus that the axes run along gives a ring, both ways round where it
    closes (a full dimension: 4 in a 3-D torus, 16 in a 2-D one), one way where it does not. Devices
    of one chip share its links. GPU: the link to the switch.
    """
    chip = topology.chip
    if chip.torus == 0:
        return chip.link_bandwidth * chip.links
    coords = np.array([device.coords for device in mesh.devices.flat]).reshape(
        *mesh.devices.shape, -1
    )
    bandwidth = 0.0
    closed = 16 if chip.torus == 2 else 4
    for dimension, size in enumerate(topology.shape):
        spread = coords[..., dimension]
        lines = [np.ptp(spread, axis=mesh.axis_names.index(axis)).any() for axis in axes]
        if any(lines):
            bandwidth += chip.link_bandwidth * (2 if size % closed == 0 else 1)
    return (bandwidth or 2 * chip.link_bandwidth) / chip.devices
