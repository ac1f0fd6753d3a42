"""Plans of a job: its programs in their shapes, what a plan's tables say, and the whole command
(marked tpu_aot: it compiles for a TPU).
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import run_config
from experiments.configs import spct_gemma2_9b, spct_gemma2_27b, tiny
from experiments.stages.planning import job_of
from grm_jax.models.table import abstract_params
from grm_jax.parallel.hardware import GPUS, TPUS
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.planning.measure import device_bytes, measure
from grm_jax.planning.programs import NAMES, Job, make_programs, stage_times
from grm_jax.planning.report import markdown, notes, show, tables
from grm_jax.planning.topology import Topology
from grm_jax.sampling.chunks import Drawing
from grm_jax.sampling.engine import batch_engine
from grm_jax.sampling.requests import Request
from grm_jax.sampling.sampler import SamplingConfig
from tests.conftest import REPO
from tests.models.test_families import PUBLISHED


def job(module, **changes) -> Job:
    config = module.get_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return job_of(run_config.finish(config, files=False), "cpu")


def test_a_preset_needs_neither_weights_nor_data():
    cfg = job(spct_gemma2_27b).model_cfg
    assert (cfg.d_model, cfg.n_layers, cfg.dtype, cfg.remat) == (4608, 46, "bfloat16", "full")
    with pytest.raises(ValueError, match="gemma-2-9b"):
        job(spct_gemma2_27b, model__path="nowhere/gemma-3-9b")


def test_programs_of_the_27b_preset_have_the_shapes_and_bytes_of_the_job():
    """Shapes alone, on 8 devices as fsdp 4 x tensor 2: 27.2e9 float32 parameters and two moments,
    cut in 8.
    """
    planned = dataclasses.replace(job(spct_gemma2_27b, mesh__tensor=2), platform="tpu")
    programs = make_programs(planned, jax.devices())
    assert tuple(programs) == NAMES
    parameters = 27_227_128_320
    step = programs["rl_step"]
    # norms are whole on every device
    assert abs(device_bytes(step.parts["params"]) / (4 * parameters / 8) - 1) < 0.001
    assert abs(device_bytes(step.parts["optimizer"]) / (8 * parameters / 8) - 1) < 0.001
    assert device_bytes(step.resident["reference"]) == device_bytes(step.parts["params"])
    # packed rows of 8,704 tokens, one a share at a time: a group's prompt once, four completions
    assert step.args[1]["ref_logp"].shape == (32, 4, 8704) and step.tokens == 128 * 8704
    assert programs["logprobs"].tokens == 4 * 8704
    padded = job(spct_gemma2_27b, mesh__tensor=2, packing__rows=())
    step = make_programs(padded, jax.devices(), ("rl_step",))["rl_step"]
    assert step.tokens == 512 * 5120 and step.args[1]["ref_logp"].shape == (512, 5120)
    decode = programs["decode"]
    # bfloat16 and whole over fsdp inside the loop
    assert abs(device_bytes(decode.parts["params"]) / (2 * parameters / 2) - 1) < 0.001
    assert device_bytes(decode.resident["policy"]) == device_bytes(step.parts["params"])
    # what they start from becomes their state
    assert programs["rft_step"].resident == programs["meta_step"].resident == {}
    # 128 prompts and 512 rows on 4 shares; bfloat16 keys and values; heads over tensor; positions
    # beside them, and the state behind each prompt
    keys_values = 2 * 2 * 46 * 16 * 128 * (128 * 4096 + 512 * 1024) / 8
    positions = 4 * (2 * 128 * 4096 + 46 * 512 * 1024) / 4
    hidden = 2 * 128 * 4608 / 4
    assert device_bytes(decode.parts["kv cache"]) == keys_values + positions + hidden
    # a chunk of 32 steps; prompts are prefilled one a share at a time
    assert decode.tokens == 32 * 512 and decode.trips == 32
    assert programs["prefill"].tokens == 4 * 4096
    # judgments have a prompt each
    judged = programs["judge_decode"].args[2]["hidden"].shape
    assert judged == (4, 128, 4608) and decode.args[2]["hidden"].shape == (4, 32, 4608)
    assert programs["meta_step"].args[0].params["score"].shape == (4608, 1)


@pytest.mark.parametrize("sampler", ["shard_map", "pmap", "jit"])
def test_what_is_planned_of_the_engine_is_what_it_runs(sampler, monkeypatch):
    """Every argument of its programs: shape, type and placement."""
    tensor = 1 if sampler == "pmap" else 2
    mesh = {"mesh__replica": 1, "mesh__fsdp": -1, "mesh__tensor": tensor}
    planned = job(tiny, **mesh, sampling__sampler=sampler, rl__batch_size=32, rl__micro_batch=32)
    programs = make_programs(planned, jax.devices(), ("prefill", "decode"))
    mesh = make_mesh(**dataclasses.asdict(planned.mesh))
    cfg, G = planned.model_cfg, planned.rl.group_size
    drawing = Drawing(
        cfg,
        SamplingConfig(planned.lengths.completion, stop_ids=planned.stop_ids),
        sampler,
        None if sampler == "pmap" else mesh,
        planned.sampling.chunk,
    )
    abstract = abstract_params(cfg)
    params = jax.tree.map(
        lambda x, where: jax.device_put(np.zeros(x.shape, x.dtype), where),
        abstract,
        param_shardings(mesh, abstract),
    )
    width, launched = planned.lengths.buckets[-1], {}
    ids = np.ones(width, np.int32)
    requests = [Request(np.append(ids[1:], 2 + i), str(i), tuple(range(G))) for i in range(32 // G)]
    buckets, rows = planned.lengths.buckets, planned.sampling.rows
    engine = batch_engine(drawing, params, requests, 0, buckets, rows)
    for name in ("prefill", "chunk"):

        def record(of, name=name):
            def run(*args):
                launched[name] = args
                return args[{"prefill": 2, "chunk": 3}[name]]

            return run

        monkeypatch.setattr(engine.programs, name, record)
    for request in requests:
        engine.submit(request)
    engine._fill()
    engine._dispatch()

    def placed(args):
        return [
            (jax.tree_util.keystr(path), x.shape, x.dtype, x.sharding)
            for path, x in jax.tree_util.tree_flatten_with_path(args)[0]
        ]

    for theirs, ours in (("prefill", "prefill"), ("chunk", "decode")):
        for a, b in zip(placed(launched[theirs]), placed(programs[ours].args), strict=True):
            assert a[:3] == b[:3] and a[3].is_equivalent_to(b[3], len(a[1])), (a, b)


def test_without_a_kl_no_reference_is_planned():
    without = job(spct_gemma2_9b, rl__beta=0.0)
    programs = make_programs(without, jax.devices(), ("rl_step", "decode"))
    assert programs["rl_step"].resident == {}
    assert "ref_logp" not in programs["rl_step"].args[1]
    assert "reference" not in programs["decode"].resident


def test_adapters_leave_the_optimizer_small():
    adapted = job(spct_gemma2_9b, lora__rank=8)
    step = make_programs(adapted, jax.devices(), ("rl_step",))["rl_step"]
    whole = make_programs(job(spct_gemma2_9b), jax.devices(), ("rl_step",))["rl_step"]
    assert (
        device_bytes(step.parts["optimizer"]) < 0.02 * device_bytes(whole.parts["optimizer"])
        and step.resident == {}
    )


def test_a_first_moment_in_bfloat16_takes_two_bytes_less():
    whole, half = (
        make_programs(job(spct_gemma2_9b, optimizer__mu_dtype=dtype), jax.devices(), ("rl_step",))[
            "rl_step"
        ]
        for dtype in ("float32", "bfloat16")
    )
    assert (
        abs(device_bytes(half.parts["optimizer"]) / device_bytes(whole.parts["optimizer"]) - 6 / 8)
        < 0.001
    )


def test_a_micro_batch_that_the_mesh_cannot_cut_is_refused():
    with pytest.raises(
        ValueError, match="rl.micro_batch: expected a multiple of replica x fsdp = 8"
    ):
        make_programs(job(spct_gemma2_9b, rl__micro_batch=4), jax.devices(), ("rl_step",))


def test_tables_and_notes_of_a_plan(tmp_path):
    gib = 2**30
    figures = {
        "devices": 8,
        "tokens": 1000,
        "model_flops": 1e15,
        "hardware_flops": 2e15,
        "memory": {"params": gib, "temporaries": 2 * gib, "code": 0.0},
        "resident": {"reference": gib},
        "limit_bytes": 16 * gib,
        "compiles": True,
        "error": None,
        "fits": True,
        "compile_seconds": 12.0,
        "host_rss_bytes": 3 * gib,
        "peak_bytes": 3 * gib,
        "code_bytes": 0,
        "argument_bytes": gib,
        "hbm_bytes": 5e9,
        "unknown": ["a while loop"],
        "collectives": [["all-gather", ["fsdp"], 46.0, 2e9]],
        "times": {"compute": 1.0, "hbm": 0.5, "ici": 2.0},
        "seconds": 2.0,
        "bound": "ici",
    }
    plan = {
        "title": "a plan",
        "peak_per_device": 1e14,
        "devices": 8,
        "compiled": True,
        "changes": [],
        "search": [],
        "searched": "",
        "programs": {
            "rl_step": figures,
            "decode": {
                "compiles": False,
                "fits": False,
                "error": "out of memory: Used 20G of 16G hbm",
            },
        },
        "stages": [
            {
                "stage": "rl",
                "what": "900 x rl_step",
                "seconds": 2.0,
                "per_day": 43200,
                "hours": 0.5,
                "chip_hours": 4.0,
            }
        ],
    }
    plan["stages"].append(plan["stages"][0] | {"stage": "  its rollouts"})
    text = markdown(plan)
    assert "| rl: its rollouts | 900 x rl_step | 2 |" in text and "| program | fits |" in text
    assert (
        ("| rl_step | all-gather | fsdp | 46 | 2 |") in text
        and "decode: out of memory" in text
        and "rl_step: a while loop" in text
    )
    memory = tables(plan)[0]
    row = dict(zip(memory[1], memory[2][0]))
    assert (row["peak + code"], row["beside it"], row["fits"], row["temporaries"]) == (
        "3.00",
        "1.00",
        "yes",
        "2.00",
    )
    times = dict(zip(tables(plan)[1][1], tables(plan)[1][2][0]))
    assert times["tokens/s"] == "500" and times["of peak"] == "62 %"  # 1e15 / 8 / 2 s of 1e14
    with open(tmp_path / "out.txt", "w") as file:
        show(plan, Console(file=file, width=200))
    assert "chip-hours" in (tmp_path / "out.txt").read_text()


def test_shapes_alone_bound_what_is_not_compiled():
    """A GPU that is not there: arguments and FLOPs, and a verdict only where arguments alone are
    too much.
    """
    planned = job(tiny, rl__batch_size=32, rl__micro_batch=32)
    topology = Topology("test:8", TPUS["v5e"], (2, 4), jax.devices(), False)
    figures = measure(make_programs(planned, jax.devices(), ("rl_step",))["rl_step"], topology, {})
    assert (
        figures["compiles"] is None and figures["fits"] is None and figures["times"]["ici"] is None
    )
    assert figures["hardware_flops"] > figures["model_flops"] > 0 and figures["bound"] in (
        "compute",
        "hbm",
    )


@pytest.mark.parametrize("name", ["rl_step", "prefill", "decode"])
def test_bounds_of_shapes_are_below_what_is_compiled(name):
    """On each resource; a decode step reads of its cache only what a window shows."""
    planned = job(tiny, rl__batch_size=32, rl__micro_batch=32, sampling__sampler="shard_map")
    topology = Topology("test:8", GPUS["h100"], (8,), jax.devices(), False)
    program = make_programs(planned, jax.devices(), (name,))[name]
    bound = measure(program, topology, {})
    compiled = measure(program, topology._replace(compiles=True), {})
    assert compiled["compiles"] and 0 < bound["hbm_bytes"] <= compiled["hbm_bytes"]
    assert bound["hardware_flops"] == compiled["hardware_flops"]
    assert bound["seconds"] <= compiled["seconds"]


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2", "qwen3", "gemma3"])
def test_a_preset_on_a_folder_of_another_family(tmp_path, name):
    """As `experiments.plan --nocompile` does: shapes, bytes and FLOPs of a published config."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    changes = dict(model__path=str(tmp_path), model__attention="reference", mesh__tensor=1)
    planned = dataclasses.replace(
        job(spct_gemma2_9b, tokenizer__path="nowhere", **changes), platform="tpu"
    )
    cfg = planned.model_cfg
    assert cfg.model_type == PUBLISHED[name]["model_type"]
    program = make_programs(planned, jax.devices(), ("rl_step",))["rl_step"]
    topology = Topology("v5e:2x4", TPUS["v5e"], (2, 4), jax.devices(), False)
    figures = measure(program, topology, {})
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg)))
    held = figures["memory"]["params"]
    assert abs(held / (4 * parameters / 8) - 1) < 0.02  # norms and biases are whole everywhere
    # three products of a forward with every weight but the embedding's, at least
    weights = parameters - cfg.vocab_size * cfg.d_model * (1 if cfg.tied_head else 2)
    assert figures["unknown"] == [] and figures["model_flops"] > 6 * weights * program.tokens


def test_a_time_that_is_not_there_says_why():
    planned = job(tiny)
    topology = Topology("test:8", TPUS["v5e"], (2, 4), jax.devices(), False)
    figures = {"seconds": 1.0, "tokens": 1}
    there = {name: figures for name in NAMES if name not in ("decode", "rft_step")}
    there["logprobs"] = {"error": "a shape that cannot be"}
    stages = {s["stage"].strip(): s for s in stage_times(planned, there, 8, 8)}
    lacking = {name: stage["lacking"] for name, stage in stages.items()}
    assert lacking == {
        "rft_sample, meta_sample": [],
        "rft": ["rft_step"],
        "rl": ["logprobs", "decode"],
        "its rollouts": ["decode"],
        "meta": [],
        "evaluation": [],
    }
    plan = {"programs": there, "stages": list(stages.values()), "compiled": topology.compiles}
    assert [note for note in notes(plan) if note.startswith(("rft", "rl", "its"))] == [
        "rft: no time, rft_step left out of --programs",
        "rl: no time, decode left out of --programs; logprobs without a time (above)",
        "its rollouts: no time, decode left out of --programs",
    ]


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_the_command_compiles_a_tiny_job_for_a_tpu(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.plan",
        "--config=experiments/configs/tiny.py",
        "--topology=v5e:2x4",
        f"--out={tmp_path}",
        "--config.model.scan_layers=True",
        "--config.model.remat=full",
        "--config.mesh.replica=1",
        "--config.mesh.fsdp=4",
        "--config.mesh.tensor=2",
        "--config.model.dtype=bfloat16",
        "--programs=rl_step,decode",
    ]
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    plan = json.loads((tmp_path / "plan.json").read_text())
    for name in ("rl_step", "decode"):
        figures = plan["programs"][name]
        assert figures["compiles"] and figures["fits"] and figures["unknown"] == []
        assert 0 < figures["argument_bytes"] <= figures["peak_bytes"] < figures["limit_bytes"]
        assert figures["hbm_bytes"] >= figures["argument_bytes"] / 2
    kinds = {(kind, tuple(axes)) for kind, axes, _, _ in plan["programs"]["rl_step"]["collectives"]}
    assert any("tensor" in axes for _, axes in kinds) and any("fsdp" in axes for _, axes in kinds)
    again = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)
    assert again.stdout.count("compiled before") == 2
