"""Lists chips, with what a roofline needs to know of them; measures a CPU, which is in no list."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models.linear import rounds_factors


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes one chip. Where JAX shows it as several devices, they share these figures equally.

    peak: bf16 FLOP/s without sparsity.
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s in one direction over one link to another chip.
    links: of a chip.
    torus: dimensions of the network of links; 0 where a switch joins all chips (GPU nodes).
    hbm: bytes that programs of one device may use in all: for TPUs the limit that libtpu's compiler
        enforces, for GPUs the memory's size.
    """

    name: str
    peak: float
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    links: int
    torus: int
    devices: int = 1


GIB = 2**30
# TPU peaks, bandwidths and links: https://cloud.google.com/tpu/docs, pages v5e, v5p, v6e, tpu7x
# ("key specifications"). They give the bidirectional bandwidth of a chip over all links, so one
# link in one direction has that / 2 / links. 7x: bf16 is half of the published FP8 figure of 4,614
# TFLOP/s. The HBM limits were found with libtpu 0.0.42.1, by the largest array that the compiler
# accepts. GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM; bf16 without
# sparsity, NVLink as one link to a switch, one direction.
TPUS = {
    "v5e": Chip("TPU v5e", 1.97e14, 15.75 * GIB, 8.2e11, 400e9 / 2 / 4, 4, 2),
    "v5p": Chip("TPU v5p", 4.59e14, 95.74 * GIB, 2.765e12, 1200e9 / 2 / 6, 6, 3),
    "v6e": Chip("TPU v6e", 9.18e14, 31.25 * GIB, 1.64e12, 800e9 / 2 / 4, 4, 2),
    "tpu7x": Chip("TPU7x", 2.307e15, 94.75 * GIB, 7.37e12, 1200e9 / 2 / 6, 6, 3, devices=2),
}
GPUS = {
    "a100": Chip("A100 80GB SXM", 3.12e14, 80e9, 2.039e12, 300e9, 1, 0),
    "h100": Chip("H100 SXM", 9.89e14, 80e9, 3.35e12, 450e9, 1, 0),
    "h200": Chip("H200 SXM", 9.89e14, 141e9, 4.8e12, 450e9, 1, 0),
}
# what JAX calls a device of each kind
_KINDS = {
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "TPU7x": TPUS["tpu7x"],
}
MATMUL, AT_MOST_S = 1024, 0.5  # of the measurement on CPU


def chip_of(device_kind: str) -> Chip | None:
    """Finds the chip that JAX calls so; None where it is none of the table."""
    if device_kind in _KINDS:
        return _KINDS[device_kind]
    words = device_kind.replace("-", " ").split()
    return next((chip for chip in GPUS.values() if chip.name.split()[0] in words), None)


def peak_flops(devices: Sequence[Any], dtype: str = "bfloat16") -> float | None:
    """Returns the peak FLOP/s of these devices together; None where it is not known.

    dtype: of the products. Those of the table are bf16's.

    CPUs are measured, at most half a second and once a process: the fastest of some matrix products
    on all cores, which all devices of the process share; processes are taken to have a host each.
    """
    if devices[0].platform == "cpu":
        if rounds_factors():
            dtype = "bfloat16"
        return _measured(dtype) * len({device.process_index for device in devices})
    chip = chip_of(devices[0].device_kind)
    return None if chip is None else chip.peak / chip.devices * len(devices)


@functools.cache
def _measured(dtype: str) -> float:
    device = jax.local_devices(backend="cpu")[0]
    x = jax.device_put(jnp.ones((MATMUL, MATMUL), dtype), device)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    began, fastest = time.monotonic(), float("inf")
    for _ in range(20):
        before = time.monotonic()
        product(x, x).block_until_ready()
        after = time.monotonic()
        fastest = min(fastest, after - before)
        if after - began > AT_MOST_S:
            break
    return 2.0 * MATMUL**3 / max(fastest, 1e-9)


def memory_in_use() -> tuple[float, float] | None:
    """Returns the (present, largest so far) bytes in use on the fullest local device.

    None where the platform does not tell, as on CPU.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    told = [one for one in stats if one and "bytes_in_use" in one]
    if not told:
        return None
    return (
        float(max(one["bytes_in_use"] for one in told)),
        float(max(one.get("peak_bytes_in_use", one["bytes_in_use"]) for one in told)),
    )
