"""Compiles one program ahead of time and takes its figures.

Memory by part, collectives, HBM traffic, FLOPs, times.
"""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import pathlib
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from grm_jax.parallel.hardware import GIB
from grm_jax.planning.collectives import Collective, collectives
from grm_jax.planning.flops import count
from grm_jax.planning.roofline import roofline
from grm_jax.planning.topology import Topology
from grm_jax.planning.traffic import hbm_bytes

FORMAT = 4  # of cached figures; another number makes them anew


class Program(NamedTuple):
    """Holds a jitted function of a job and its arguments: ShapeDtypeStructs, sharded over `mesh`.

    parts: {label: arguments} whose memory is told apart ("params", "optimizer", "kv cache", ...).
    resident: {label: arrays} that the job keeps on the same devices while the program runs, besides
        its arguments.
    flops: model FLOPs of one call (no recomputation, no masked attention).
    tokens: that one call reads or writes.
    trips: how often the loops run whose length is known on the device alone.
    """

    name: str
    fn: Any
    args: tuple
    mesh: Mesh
    parts: dict[str, Any]
    resident: dict[str, Any]
    flops: float
    tokens: int
    trips: int | None = None


def measure(
    program: Program,
    topology: Topology,
    cache: dict[str, dict],
    say: Callable[[str], None] = lambda line: None,
    hlo: pathlib.Path | None = None,
) -> dict:
    """Compiles one program and returns its figures, JSON values only.

    Bytes are those of one device, FLOPs of all devices: compiles (None where the topology is for
    shapes only, or the arguments alone are too much), error, fits, compile_seconds, host_rss_bytes,
    memory {part: bytes}, peak_bytes (arguments, results and temporaries at their largest), resident
    {label: bytes}, limit_bytes, collectives, hbm_bytes, model_flops, hardware_flops, unknown (what
    was not counted), times {compute, hbm, ici}, seconds, bound, tokens.

    cache: figures of the compiler by digest of the lowered program, the topology and the versions;
        read, and added to. JAX's own cache cannot load programs of absent devices.
    say: gets a line of progress every 20 s.
    hlo: a folder that gets the text of what was compiled.
    """
    with _telling(f"{program.name}: tracing", say):
        traced = program.fn.trace(*program.args)
        flops = count(traced.jaxpr, program.trips)
    memory = {label: device_bytes(part) for label, part in program.parts.items()}
    resident = {label: device_bytes(part) for label, part in program.resident.items()}
    limit, beside = topology.chip.hbm, sum(resident.values())
    least = sum(memory.values()) + beside
    if least > limit:
        error = (
            f"arguments and what lies beside them alone take {least / GIB:.2f} of "
            f"{limit / GIB:.2f} GiB; not compiled"
        )
        made = {"compiles": None, "error": error}
    elif topology.compiles:
        made = _compiled(program, traced, topology, cache, say, hlo)
    else:
        made = {"compiles": None}
    figures = {
        "devices": program.mesh.size,
        "tokens": program.tokens,
        "model_flops": program.flops,
        "hardware_flops": flops.total,
        "memory": memory,
        "resident": resident,
        "limit_bytes": limit,
    } | made
    if made["compiles"]:
        figures["memory"]["temporaries"] = max(0.0, made["peak_bytes"] - made["argument_bytes"])
        figures["memory"]["code"] = made["code_bytes"]
        figures["fits"] = made["peak_bytes"] + made["code_bytes"] + beside <= limit
    else:  # with shapes alone nobody knows how much more than the arguments is needed
        figures["fits"] = False if least > limit or topology.compiles else None
    figures["unknown"] = [*flops.unknown, *made.get("uncounted", ())]
    if made["compiles"] or not topology.compiles:
        # not compiled: what every turn reads whole; of a cache or a batch it may be less
        whole = sum(memory.get(part, 0.0) for part in ("params", "optimizer"))
        figures.setdefault("hbm_bytes", whole * (program.trips or 1))
        moved = [Collective(*one) for one in made["collectives"]] if made["compiles"] else None
        times = roofline(topology, program.mesh, flops.total, figures["hbm_bytes"], moved)
        figures |= {"times": times._asdict(), "seconds": times.seconds, "bound": times.bound}
    return figures


def device_bytes(tree: Any) -> float:
    """Counts the bytes of one device's shards, without the padding of tiles.

    `tree` holds ShapeDtypeStructs with shardings.
    """
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def _compiled(program, traced, topology, cache, say, hlo_folder) -> dict:
    with _telling(f"{program.name}: lowering", say):
        lowered = traced.lower()
        text = lowered.as_text()
    versions = [
        FORMAT,
        program.trips,
        jax.__version__,
        _libtpu_version(),
        topology.name,
        list(program.mesh.shape.items()),
    ]
    versions += [os.environ.get(name) for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    digest = hashlib.sha256(f"{versions}\n{text}".encode()).hexdigest()
    if digest in cache:
        say(f"{program.name}: compiled before ({cache[digest]['compile_seconds']:.0f} s then)")
        return cache[digest]
    _reset_peak_rss()
    began = time.time()
    try:
        with _telling(f"{program.name}: compiling", say):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        cache[digest] = {
            "compiles": False,
            "error": _short(str(error)),
            "compile_seconds": time.time() - began,
            "host_rss_bytes": _peak_rss(),
        }
        return cache[digest]
    seconds = time.time() - began
    sizes, hlo = compiled.memory_analysis(), compiled.as_text()
    if hlo_folder is not None:
        (hlo_folder / f"{program.name}-{digest[:8]}.hlo.txt").write_text(hlo, encoding="utf-8")
    moved, uncounted = collectives(hlo, dict(program.mesh.shape), program.trips)
    cache[digest] = {
        "compiles": True,
        "error": None,
        "compile_seconds": seconds,
        "host_rss_bytes": _peak_rss(),
        "peak_bytes": sizes.peak_memory_in_bytes,
        "argument_bytes": sizes.argument_size_in_bytes,
        "code_bytes": sizes.generated_code_size_in_bytes,
        "collectives": [list(one) for one in moved],
        "hbm_bytes": hbm_bytes(hlo, program.trips),
        "uncounted": list(uncounted),
    }
    return cache[digest]


def _short(error: str) -> str:
    """The part of a compiler's message that says why."""
    error = " ".join(error.split())
    why = re.search(
        r"Used [\d.]+\w* of [\d.]+\w* \w+|total memory required for .{,60}? exceeds available "
        r"HBM \([\d.]+\w*\)",
        error,
    )
    if "RESOURCE_EXHAUSTED" in error:
        return f"out of memory: {why[0]}" if why else error[:200]
    return error[:400]


def _libtpu_version() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _reset_peak_rss() -> None:
    """Linux forgets the peak of this process's memory, so that the next one can be told from it."""
    path = pathlib.Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="utf-8")


def _peak_rss() -> float:
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024.0 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def _telling(what: str, say: Callable[[str], None], every: float = 20.0) -> Iterator[None]:
    """A line of progress every so many seconds."""
    began, over = time.time(), threading.Event()

    def tell():
        while not over.wait(every):
            say(f"{what}, {time.time() - began:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
