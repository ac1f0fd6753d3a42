"""Makes meshes with the axes (replica, fsdp, tensor), and shardings from the parameter table.

Axis types are Auto: the compiler propagates shardings from the arguments. Parameters are split over
fsdp and tensor and repeated over replica; the batch is split over (replica, fsdp), and so are the
rows of activations, where the model pins them (models/placement.py).
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models.lora import A, B, adapter_spec
from grm_jax.models.placement import DATA_AXES
from grm_jax.models.table import find_row
from grm_jax.settings import Rule, check

Device = Any  # a jax.Device, which type checkers take for a variable
AXES = ("replica", "fsdp", "tensor")
BATCH = P(DATA_AXES)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of a mesh; one may be -1: all that are left."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        size: Rule = (
            "a positive integer, or -1 for all devices that are left",
            lambda x: x >= 1 or x == -1,
        )
        once = ("fsdp replica tensor", "at most one axis of -1", lambda *x: x.count(-1) <= 1)
        check(self, {"replica fsdp tensor": size}, [once])


def make_mesh(
    replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Device] | None = None
) -> Mesh:
    """Makes a mesh over all devices (or those given). One size may be -1: whatever remains.

    Raises ValueError unless the product fits. Of several TPU slices each holds whole replicas: only
    the replica axis, over which gradients alone are summed, leaves a slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dataclasses.asdict(MeshConfig(replica, fsdp, tensor))
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"mesh {sizes} does not cover the {len(devices)} devices exactly")
    slices = (
        len({getattr(device, "slice_index", 0) for device in devices})
        if devices[0].platform == "tpu"
        else 1
    )
    if sizes["replica"] % slices:
        raise ValueError(
            f"mesh {sizes}: the devices are {slices} slices; expected a replica axis of a "
            f"multiple of {slices}, the only one that spans slices"
        )
    # jax.make_mesh would refuse to cut a dimension of the torus in two, on all chips but v5e: 16 x
    # 4 on 8x8
    if slices == 1:
        placed = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    else:
        inside = (sizes["replica"] // slices, sizes["fsdp"], sizes["tensor"])
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fit_spec(mesh: Mesh, spec: P, shape: tuple[int, ...], path: str) -> P:
    """Fits `spec` to an array of this shape.

    `fsdp` must divide its dimension (ValueError otherwise): memory plans rest on it. `tensor` is
    dropped, with a log line, from a dimension that it does not divide: fewer kv heads than tensor
    shards (they are repeated then) or an odd vocabulary.
    """
    if len(spec) > len(shape):
        raise ValueError(
            f"{path}: shape {shape} has fewer axes than its {spec} in the parameter table"
        )
    fitted = []
    for axis, size in zip(spec, shape):
        if axis is not None and size % mesh.shape[axis]:
            if axis == "fsdp":
                raise ValueError(
                    f"{path}: fsdp = {mesh.shape[axis]} does not divide {size} in shape {shape}; "
                    "choose another mesh"
                )
            logging.getLogger(__name__).info(
                "%s: %s does not divide %d in %s; not split over it", path, axis, size, shape
            )
            axis = None
        fitted.append(axis)
    return P(*fitted)


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns the NamedSharding of each leaf of a tree that holds trees of parameters.

    Such as the parameters themselves, or an optimizer's moments. Leaves are arrays or
    ShapeDtypeStructs, found in the table by the end of their path. Leaves of rank 0 are replicated.
    """

    def sharding(key_path, leaf):
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        spec = adapter_spec(path) if path.endswith((A, B)) else find_row(path).spec
        return NamedSharding(mesh, fit_spec(mesh, spec, leaf.shape, path))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def shares(mesh: Mesh) -> int:
    """Counts the parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in DATA_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over (replica, fsdp), and leaves the rest whole."""
    return NamedSharding(mesh, BATCH)


def place_batch(mesh: Mesh, batch: Mapping[str, Any], axis: int = 0) -> dict[str, jax.Array]:
    """Splits one axis of arrays over the mesh's data axes; those that do not have it stay whole.

    axis: that of the rows; 1 in packed rows [M, R, ...].

    Every process passes the whole batch, the same, and its devices take their rows: whichever rows
    these are, also where the tensor axis goes over several processes. Raises ValueError for a batch
    that the data axes do not divide.
    """
    split = NamedSharding(mesh, P(*[None] * axis, DATA_AXES))
    whole = NamedSharding(mesh, P())
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    return {
        name: jax.make_array_from_callback(
            array.shape,
            split if array.ndim > axis else whole,
            lambda index, array=array: array[index],
        )
        for name, array in arrays.items()
    }
