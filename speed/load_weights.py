"""Measures time and host memory of loading a Hugging Face folder, and of writing one.

    python -m speed.load_weights [--layers=12] [--mesh=2,4] [--dtype=bfloat16] [--folder=DIR]

Into 8 virtual CPU devices, and from them.

A folder with random bfloat16 weights of Gemma-2 9B's width (12 layers: 6.1 GiB) is written tensor
by tensor into several files with an index, flushed to disk and dropped from the page cache. A new
process loads it and exports it again. Everything is deleted at the end.

What is measured. Virtual CPU devices keep their arrays in the memory of the host, so the arrays
have to be subtracted. Every 5 ms the process notes RssAnon (/proc/self/status) and, at the same
moment, the bytes of all different device buffers that live (jax.live_arrays, a buffer of two arrays
counted once). Host memory at that moment is RssAnon - RssAnon before loading - device bytes; its
largest value is reported. On an accelerator the device bytes would be elsewhere and just this would
remain: the loader always copies from the host's array into the device's (may_alias=False), also
where CPU devices could have taken it over. RssFile is not counted: these are pages of the files,
mapped for reading, which the kernel gives up whenever memory is wanted. As a check that no peak
fell between two looks, the largest RssAnon + RssFile seen is printed beside VmHWM, the largest that
the kernel saw.

Exit status 1 where loading takes more than the largest slice of a tensor that a device holds plus 1
GiB.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
from absl import app, flags

from grm_jax.checkpoint import huggingface
from grm_jax.models.config import GEMMA2_9B, alternating
from grm_jax.models.hf_config import load_config, to_hf_dict
from grm_jax.models.table import (
    CAUSAL_LM,
    abstract_params,
    find_row,
    hf_names,
    hf_shape,
    is_stacked,
)
from grm_jax.parallel.mesh import make_mesh, param_shardings

LAYERS = flags.DEFINE_integer(
    "layers", 12, "Layers of Gemma-2 9B's width, 0.37 GiB each, beside an embedding of 1.7 GiB."
)
MESH = flags.DEFINE_list(
    "mesh", ["2", "4"], "fsdp,tensor of the 8 virtual devices; what remains is replica."
)
DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Of the parameters on the devices."
)
FILE_GIB = flags.DEFINE_float(
    "file_gib", 2.0, "Size of one file, of those that are read and of those that are written."
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the temporary folder is made; default: the system's."
)
CHILD = flags.DEFINE_string(
    "child", None, "Used by the command itself: load this folder and print one line of JSON."
)
GIB, LOOK = 2**30, threading.Lock()


def tensor_shapes(cfg):
    """Returns {Hugging Face name: shape} of all tensors."""
    shapes = {}
    for key_path, leaf in jax.tree.leaves_with_path(abstract_params(cfg)):
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        shape = hf_shape(leaf.shape[1:] if is_stacked(path) else leaf.shape, find_row(path).inputs)
        shapes |= dict.fromkeys(hf_names(path, cfg), shape)
    return shapes


def write_folder(folder, cfg, file_bytes):
    """Writes files of bfloat16 weights, 32 MiB of random numbers over and over, and counts them."""
    random = np.random.default_rng(0).normal(0, 0.02, 2**24).astype(np.float32)
    # the upper half of a float32 is a bfloat16
    random = (random.view(np.uint32) >> 16).astype(np.uint16)
    files, room = [], 0
    for name, shape in tensor_shapes(cfg).items():
        size = 2 * math.prod(shape)
        if size > room:
            files.append({})
            room = file_bytes
        files[-1][name] = shape
        room -= size
    weight_map, total = {}, 0
    for number, tensors in enumerate(files, 1):
        path = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in tensors.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for shape in tensors.values():
                left = math.prod(shape)
                while left:
                    left -= out.write(random[:left].data) // 2
            out.flush()
            os.fsync(out.fileno())
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        weight_map |= dict.fromkeys(tensors, path.name)
        total += path.stat().st_size
    (folder / huggingface.INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(to_hf_dict(cfg, CAUSAL_LM)))
    return total


def status():
    """Reads {field: bytes} of /proc/self/status."""
    rows = (line.split() for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {row[0][:-1]: 1024 * int(row[1]) for row in rows if row[-1] == "kB"}


def device_bytes():
    """Counts the bytes of all device buffers that live.

    None where one was given up while they were counted.
    """
    buffers = {}
    try:
        for array in jax.live_arrays():
            for shard in array.addressable_shards:
                buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    except (RuntimeError, ValueError):  # deleted or donated by the other thread
        return None
    return sum(buffers.values())


def guard_writes():
    """Keeps from looking at memory while rows are written into a donated array.

    jax then counts neither that array nor the result that takes its place.
    """
    original = huggingface._row_writer

    def guarded(devices):
        sharding, write = original(devices)

        def locked(*args):
            with LOOK:
                return jax.block_until_ready(write(*args))

        return sharding, locked

    huggingface._row_writer = guarded


class Watch(threading.Thread):
    """Looks at memory every 5 ms until `close`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before, self.host, self.rss, self.looks, self.over = (
            status()["RssAnon"] - device_bytes(),
            0,
            0,
            0,
            threading.Event(),
        )
        self.cpu = time.process_time()
        self.start()

    def run(self):
        while not self.over.wait(0.005):
            with LOOK:
                now, on_devices = status(), device_bytes()
            self.rss = max(self.rss, now["RssAnon"] + now["RssFile"])
            if on_devices is not None:
                self.looks += 1
                self.host = max(self.host, now["RssAnon"] - self.before - on_devices)

    def close(self):
        self.over.set()
        self.join()
        return {
            "host": self.host,
            "looks": self.looks,
            "cpu": time.process_time() - self.cpu,
            "seen": self.rss,
            "VmHWM": status()["VmHWM"],
        }


def child(folder):
    cfg = load_config(folder)
    fsdp, tensor = map(int, MESH.value)
    shardings = param_shardings(make_mesh(-1, fsdp, tensor), abstract_params(cfg))
    guard_writes()
    watch, began = Watch(), time.perf_counter()
    params = huggingface.load_params(folder, cfg, shardings, dtype=DTYPE.value)
    loading = {"seconds": time.perf_counter() - began} | watch.close()
    slices = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)[leaf.ndim > 2 :]) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )
    loading |= {"devices": device_bytes(), "slice": max(slices)}
    watch, began = Watch(), time.perf_counter()
    huggingface.save_folder(
        folder.parent / "again",
        params,
        cfg,
        dtype="bfloat16",
        max_shard_bytes=int(FILE_GIB.value * GIB),
    )
    writing = {"seconds": time.perf_counter() - began} | watch.close()
    print(json.dumps({"loading": loading, "writing": writing}))


def main(_):
    if CHILD.value:
        return child(pathlib.Path(CHILD.value))
    cfg = dataclasses.replace(
        GEMMA2_9B, n_layers=LAYERS.value, layer_types=alternating(LAYERS.value)
    )
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        folder = pathlib.Path(folder) / "model"
        folder.mkdir()
        n_bytes = write_folder(folder, cfg, int(FILE_GIB.value * GIB))
        print(
            f"{n_bytes / GIB:.2f} GiB of bfloat16 in {len(list(folder.glob('*.safetensors')))} "
            f"files, {LAYERS.value} layers",
            flush=True,
        )
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "NPROC": "16",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        }
        command = [sys.executable, "-m", "speed.load_weights", f"--child={folder}", *sys.argv[1:]]
        *lines, last = subprocess.run(
            command, env=env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
        written = sum(path.stat().st_size for path in folder.parent.glob("again/*.safetensors"))
    print(*lines, sep="\n")
    loading, writing = json.loads(last).values()
    for title, row, size in (("loading", loading, n_bytes), ("writing", writing, written)):
        print(
            f"{title}: {row['seconds']:.1f} s ({row['cpu']:.1f} s of a core), "
            f"{size / GIB / row['seconds']:.2f} GiB/s of file; "
            f"host memory beside the device arrays at most {row['host'] / GIB:.2f} GiB "
            f"({row['looks']} looks)"
        )
        print(
            "  resident memory with device arrays and file pages: at most "
            f"{row['seen'] / GIB:.2f} GiB seen, {row['VmHWM'] / GIB:.2f} GiB by VmHWM"
        )
    bound = loading["slice"] + GIB
    print(
        f"device arrays {loading['devices'] / GIB:.2f} GiB, {DTYPE.value}; largest slice of a "
        f"tensor on a device {loading['slice'] / GIB:.2f} GiB, "
        f"so the bound of loading is {bound / GIB:.2f} GiB"
    )
    if loading["host"] > bound:
        raise SystemExit("loading took more than that")


if __name__ == "__main__":
    app.run(main)
