"""How much of the files is read and held while a folder is loaded: each process its own slices,
each slice once, small pieces on the host.
"""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from grm_jax import progress
from grm_jax.checkpoint import huggingface
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.models import ModelConfig
from grm_jax.models.config import alternating
from grm_jax.models.table import abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh, param_shardings

REPO = pathlib.Path(__file__).resolve().parents[2]
CFG = ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    layer_types=alternating(4),
    sliding_window=5,
    query_pre_attn_scalar=12.0,
    rope_theta=5000.0,
)


def n_bytes(wanted=lambda leaf: True):
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_params(CFG)) if wanted(leaf))


def random_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_params(CFG)
    )


class Spy:
    """A lazy slice that notes the bytes of every read."""

    def __init__(self, lazy, reads):
        self.lazy, self.reads = lazy, reads

    def __getattr__(self, name):
        return getattr(self.lazy, name)

    def __getitem__(self, index):
        part = self.lazy[index]
        self.reads.append(part.nbytes)
        return part


def spied_load(folder, mesh, cfg=CFG):
    """(parameters, bytes of each read)"""
    reads, original = [], huggingface._open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            huggingface,
            "_open",
            lambda *args: {
                name: (path, Spy(lazy, reads)) for name, (path, lazy) in original(*args).items()
            },
        )
        return load_params(folder, cfg, param_shardings(mesh, abstract_params(cfg))), reads


def check(params):
    """Every shard of this process holds what was saved."""
    for (path, leaf), expected in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(random_params())
    ):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(
                shard.data, expected[shard.index], err_msg=jax.tree_util.keystr(path)
            )


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", random_params(), CFG, max_shard_bytes=8000)
    return tmp_path / "model"


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_every_number_is_read_once_however_many_devices_hold_it(folder, sizes):
    params, reads = spied_load(folder, make_mesh(*sizes))
    check(params)
    assert sum(reads) == n_bytes()


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("staged", [1, 200])
def test_in_pieces_the_same_as_at_once(folder, monkeypatch, sizes, staged):
    """One row at a time, and a few rows with a rest; read in small steps."""
    puts, original = [], jax.device_put
    monkeypatch.setattr(huggingface, "STAGED_BYTES", staged)
    monkeypatch.setattr(huggingface, "READ_BYTES", 256)
    monkeypatch.setattr(
        jax, "device_put", lambda x, *args, **kwargs: puts.append(x) or original(x, *args, **kwargs)
    )
    params, reads = spied_load(folder, make_mesh(*sizes))
    check(params)
    assert all(put.nbytes <= staged or len(put) == 1 for put in puts) and len(puts) > 8 * len(
        jax.tree.leaves(params)
    )
    assert max(reads) <= 256 and sum(reads) == n_bytes()


def test_a_padded_vocabulary_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(huggingface, "STAGED_BYTES", 100)
    wide = dataclasses.replace(CFG, vocab_size=72)
    embedding = spied_load(folder, make_mesh(fsdp=2, tensor=4), wide)[0]["embedding"]
    np.testing.assert_array_equal(
        embedding,
        np.concatenate([random_params()["embedding"], np.zeros((8, CFG.d_model), np.float32)]),
    )


def test_loading_shows_how_far_it_is(folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    load_params(folder, CFG)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("load model: 1/1 MB") and len(lines) == len(
        jax.tree.leaves(random_params())
    )
    save_folder(folder, random_params(), CFG)
    assert capsys.readouterr().err.splitlines()[-1].startswith("write model: 1/1 MB")


def test_each_of_two_processes_reads_its_half(folder):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": str(REPO),
        "NPROC": "16",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, __file__, str(folder), f"localhost:{port}"]
    workers = [
        subprocess.Popen([*command, str(i)], env=env, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0
        norms = n_bytes(lambda leaf: leaf.shape in ((CFG.d_model,), (CFG.n_blocks, CFG.d_model)))
        assert (
            norms == 17 * CFG.d_model * 4
            and int(output.split()[-1]) == (n_bytes() - norms) // 2 + norms
        )


if __name__ == "__main__":  # one of the two processes
    processes.initialize(sys.argv[2], 2, int(sys.argv[3]))
    loaded, reads = spied_load(pathlib.Path(sys.argv[1]), make_mesh(fsdp=4, tensor=2))
    check(loaded)
    print(sum(reads))
    processes.barrier("loaded", timeout_s=60)
