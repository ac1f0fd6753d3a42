"""Lists chips, with what a roofline needs to know of them."""

import dataclasses


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
