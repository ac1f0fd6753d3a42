"""Two real processes: what lies over both of them goes to files and comes back, and SIGTERM to one
stops both at the same step.
"""

import json

import jax
import numpy as np

from grm_jax.checkpoint.huggingface import load_params
from grm_jax.checkpoint.peft import load_adapters
from grm_jax.checkpoint.state import checksum
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh, param_shardings
from tests.parallel.test_processes import by_environment, finish, start

WORKER = """
import json, os, pathlib, signal, sys, time
from grm_jax.parallel import processes
job = processes.initialize(timeout_s=120, heartbeat_s=100)
import jax, numpy as np, optax
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.checkpoint.peft import save_adapters
from grm_jax.checkpoint.state import checksum, open_checkpoints, restore_latest, save
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.models.lora import LoraConfig, init_adapters
from grm_jax.models.table import abstract_params
from grm_jax.parallel.mesh import make_mesh, param_shardings, place_batch
from grm_jax.training.state import abstract_state, init_state

folder, mesh = pathlib.Path(sys.argv[1]), make_mesh(fsdp=-1)
told = {"told": processes.on_main("pid", os.getpid)}
assert len(processes.on_main("large", lambda: ["long"] * 2_000_000)) == 2_000_000
batch = {"x": np.arange(12).reshape(4, 3)}
placed = place_batch(mesh, batch)["x"]
told["rows"] = [shard.data.tolist() for shard in placed.addressable_shards]
assert not placed.is_fully_addressable and (processes.to_host(placed) == batch["x"]).all()

cfg = ModelConfig(vocab_size=64, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, layer_types=alternating(2))
shardings = param_shardings(mesh, abstract_params(cfg))
params = jax.jit(lambda key: init_params(cfg, key), out_shardings=shardings)(jax.random.key(0))
assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
save_folder(folder / "model", params, cfg, max_shard_bytes=8192)
lora = LoraConfig(2)
adapters = init_adapters(cfg, lora, jax.random.key(1))
save_adapters(folder / "adapters", jax.jit(lambda a: a, out_shardings=param_shardings(mesh, adapters))(adapters), cfg, lora, "base")
processes.barrier("saved")
told["checksum"] = checksum(params)
assert checksum(load_params(folder / "model", cfg, shardings)) == told["checksum"]

optimizer = optax.adam(1e-3)
abstract = abstract_state(params, optimizer)
layout = param_shardings(mesh, abstract)
state = init_state(params, optimizer, layout)
told["state"] = checksum(state)
with open_checkpoints(folder / "checkpoints", keep=2) as manager:
    save(manager, 0, state, {"position": 3}, "digest")
abstract = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, layout)
with open_checkpoints(folder / "checkpoints", keep=2) as manager:
    restored, extra = restore_latest(manager, abstract, "digest")
assert checksum(restored) == told["state"] and extra == {"position": 3}

with open_checkpoints(folder / "checkpoints", keep=2) as manager:
    save(manager, 1, restored.replace(step=restored.step + 1), {"position": 4}, "digest")
if job.index == 0:  # what a host writes last is what is lost when its power goes
    for path in (folder / "checkpoints/1/state/ocdbt.process_1/d").iterdir():
        path.write_bytes(b"")
processes.barrier("torn")
with open_checkpoints(folder / "checkpoints", keep=2) as manager:
    restored, extra = restore_latest(manager, abstract, "digest")
assert checksum(restored) == told["state"] and extra == {"position": 3}, extra
assert (folder / "checkpoints/1.damaged").is_dir()
print(json.dumps(told), flush=True)

with processes.stop_signal() as stopped:
    for step in range(2000):
        if step == 3 and job.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if stopped():
            processes.leave(f"step {step}")
        processes.barrier("step")
"""


def test_files_of_two_processes_and_a_signal_to_one(tmp_path):
    ended = finish(start(2, str(tmp_path), by_environment(2), WORKER), 300)
    assert [status for status, _, _ in ended] == [processes.STOPPED] * 2, ended
    # no progress
    (first, said), (second, said_too) = (
        [line for line in out.splitlines() if line.startswith(("{", "=="))] for _, out, _ in ended
    )
    assert said == said_too and said.startswith("== stopped by SIGTERM: step ")
    first, second = json.loads(first), json.loads(second)
    assert first.pop("rows") == [[[0, 1, 2], [3, 4, 5]]] and second.pop("rows") == [
        [[6, 7, 8], [9, 10, 11]]
    ]
    assert first == second

    cfg = load_config(tmp_path / "model", scan_layers=True)
    here = load_params(
        tmp_path / "model",
        cfg,
        param_shardings(make_mesh(fsdp=4, devices=jax.devices()[:4]), abstract_params(cfg)),
    )
    assert (
        checksum(here) == first["checksum"]
        and len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    )
    adapters, _ = load_adapters(tmp_path / "adapters", cfg)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(adapters))
