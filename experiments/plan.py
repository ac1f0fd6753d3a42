"""Know before you launch: what a preset's programs need on chips that are not there, and how long
they take at least.

    python -m experiments.plan --config=experiments/configs/spct_gemma2_27b.py \\
        --topology=v5p:4x4x4

compiles the job's own programs ahead of time for the slice, on a host without a TPU (pip install -e
'.[tpu]'), and prints tables that also go to plan.json and plan.md in --out. How to read them, and
what they leave open: docs/scale.md. Fields of the preset are overridden as in a run, and neither
weights nor data need to be there: a model.path that does not exist is taken for the published size
it is named after.

--search compiles the RL step for all mesh shapes and micro-batches and ranks those that fit.
Compiled programs are remembered in plan.json.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import ml_collections
from absl import app, flags
from rich.console import Console

from experiments import config_flags
from experiments.stages.programs import NAMES, make_programs, planned_model, sampler_call
from grm_jax.parallel.mesh import make_mesh
from grm_jax.planning.measure import measure
from grm_jax.planning.report import markdown, show
from grm_jax.planning.topology import Topology, get_topology

CONFIG = config_flags.define_preset()
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "slice to plan for: v5e:2x4, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4, h100:8",
    required=True,
)
OUT = flags.DEFINE_string(
    "out", None, "folder of plan.json and plan.md; by default runs/plans/PRESET-TOPOLOGY"
)
PROGRAMS = flags.DEFINE_list("programs", list(NAMES), "which programs to plan")
COMPILE = flags.DEFINE_bool(
    "compile", True, "no: shapes, FLOPs and the bounds that follow from them alone, in seconds"
)
CHANGES = flags.DEFINE_bool(
    "changes", True, "for what does not fit, try single changes until one makes it fit"
)
HLO = flags.DEFINE_string("hlo", None, "folder for the compiled programs as text, to look into")
SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "rank mesh shapes and micro-batches of the RL step by time among those that fit",
)

# judgments that the sampling stages' rows of the table are for: their number depends on the data
SAMPLED = 10_000


def main(_):
    if missing := [stage for stage in ("rft", "rl", "meta") if stage not in CONFIG.value]:
        sys.exit(
            "--config: expected a preset of experiments.spct_rl; this one has no "
            f"{', '.join(missing)}"
        )
    config = config_flags.load(CONFIG, files=False)
    jax.config.update("jax_threefry_partitionable", True)  # as experiments/spct_rl.py
    # it cannot load programs of absent devices, and would store each
    jax.config.update("jax_enable_compilation_cache", False)
    preset = pathlib.Path(flags.FLAGS["config"].config_filename)
    try:
        if unknown := [name for name in PROGRAMS.value if name not in NAMES]:
            raise ValueError(
                f"--programs: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}"
            )
        topology = get_topology(TOPOLOGY.value)
        topology = topology._replace(compiles=topology.compiles and COMPILE.value)
        planned_model(config, "tpu" if topology.chip.torus else "gpu")
        make_mesh(**config.mesh, devices=topology.devices)
        if SEARCH.value and not topology.compiles:
            raise ValueError(
                "--search ranks compiled programs, and nothing is compiled here: expected a TPU "
                "slice, or such GPUs at hand, and no --nocompile"
            )
    except (ValueError, ImportError) as error:
        sys.exit(str(error))
    out = pathlib.Path(OUT.value or f"runs/plans/{preset.stem}-{TOPOLOGY.value.replace(':', '-')}")
    for folder in (out, *(() if HLO.value is None else (pathlib.Path(HLO.value),))):
        folder.mkdir(parents=True, exist_ok=True)
    plan = start_plan(config, str(preset), topology, out)

    for name in PROGRAMS.value:
        plan["programs"][name] = figures_of(config, topology, name, plan["cache"])
        write(plan, out)
    plan["stages"] = stages(config, topology, plan["programs"])
    write(plan, out)
    if CHANGES.value:
        for name, figures in plan["programs"].items():
            if figures["fits"] is False and "memory" in figures:  # not where a shape cannot be
                for tried in what_fits(config, topology, name, plan["cache"]):
                    plan["changes"].append(tried)
                    write(plan, out)
    if SEARCH.value:
        plan["searched"] = "rl_step"
        for found in search(config, topology, plan["cache"]):
            plan["search"] = sorted([*plan["search"], found], key=rank)
            write(plan, out)
    show(plan, Console(width=None if sys.stdout.isatty() else 200))
    print(f"plan: {out / 'plan.md'}")


def start_plan(
    config: ml_collections.ConfigDict, preset: str, topology: Topology, out: pathlib.Path
) -> dict:
    """An empty plan, with what an earlier one in the same folder had compiled."""
    path = out / "plan.json"
    cache = json.loads(path.read_text())["cache"] if path.is_file() else {}
    mesh = {axis: size for axis, size in config.mesh.items()}
    return {
        "title": f"{preset} on {topology.name} ({topology.chips} x {topology.chip.name})",
        "config": config.to_dict(),
        "topology": topology.name,
        "chips": topology.chips,
        "devices": len(topology.devices),
        "mesh": mesh,
        "peak_per_device": topology.chip.peak / topology.chip.devices,
        "compiled": topology.compiles,
        "jax": jax.__version__,
        "programs": {},
        "stages": [],
        "changes": [],
        "search": [],
        "searched": "",
        "cache": cache,
    }


def figures_of(
    config: ml_collections.ConfigDict, topology: Topology, name: str, cache: dict
) -> dict:
    """`measure` of one program; a shape that cannot be is an error among the figures."""
    began = time.time()
    try:
        program = make_programs(config, topology.devices, (name,))[name]
    except (ValueError, NotImplementedError) as error:
        say(f"{name}: {error}")
        return {"compiles": False, "fits": False, "error": str(error)}
    hlo = None if HLO.value is None else pathlib.Path(HLO.value)
    figures = measure(program, topology, cache, say, hlo)
    peak = (
        ""
        if figures.get("peak_bytes") is None
        else (f", peak {figures['peak_bytes'] / 2**30:.2f} GiB")
    )
    verdict = {True: "fits", False: "does not fit", None: "not compiled"}[figures["fits"]]
    say(
        f"{name}: {verdict}{peak}{', ' + figures['error'] if figures.get('error') else ''} "
        f"({time.time() - began:.0f} s)"
    )
    return figures


def say(line: str) -> None:
    print(line, flush=True)


def write(plan: dict, out: pathlib.Path) -> None:
    for name, text in (
        ("plan.json", json.dumps(plan, indent=1) + "\n"),
        ("plan.md", markdown(plan)),
    ):
        (out / f"{name}.tmp").write_text(text)
        os.replace(out / f"{name}.tmp", out / name)


def stages(
    config: ml_collections.ConfigDict, topology: Topology, programs: dict[str, dict]
) -> list[dict]:
    """Time of every stage from the programs' times; None where a program has none.

    Every sequence is taken to be as long as the config allows, and every call of the sampler to run
    until lengths.completion.
    """
    seconds = {name: programs.get(name, {}).get("seconds") for name in NAMES}
    sizes = mesh_sizes(config, len(topology.devices))
    prompts, _, G = sampler_call(config, sizes)
    judged, _, _ = sampler_call(config, sizes, judging=True)
    calls, rl = math.ceil(config.rl.batch_size / G / prompts), config.rl
    passes, steps = 1 + (rl.old_logp == "trainer"), config.lengths.completion - 1

    def total(**parts):
        return (
            None
            if any(seconds[name] is None for name in parts)
            else sum(seconds[name] * times for name, times in parts.items())
        )

    def row(stage, what, step, times):
        hours = None if step is None else step * times / 3600
        return {
            "stage": stage,
            "what": what,
            "seconds": step,
            "per_day": None if step is None else 86400 / step,
            "hours": hours,
            "chip_hours": None if hours is None else hours * topology.chips,
        }

    rollout = total(prefill=calls, decode=calls * steps)
    sample = total(judge_prefill=1, judge_decode=steps)
    rl_step = None if rollout is None else total(logprobs=passes, rl_step=rl.updates_per_rollout)
    return [
        row(
            "rft_sample, meta_sample",
            f"{SAMPLED:,} judgments, {judged} at once (judge_prefill + {steps} x judge_decode)",
            sample,
            math.ceil(SAMPLED / judged),
        ),
        row("rft", f"{config.rft.steps} x rft_step", seconds["rft_step"], config.rft.steps),
        row(
            "rl",
            f"{rl.steps} x ({calls} x (prefill + {steps} x decode) + {passes} x logprobs + "
            f"{rl.updates_per_rollout} x rl_step)",
            None if rl_step is None else rollout + rl_step,
            rl.steps,
        ),
        row(
            "  its rollouts",
            f"{rl.steps} x {calls} x (prefill + {steps} x decode)",
            rollout,
            rl.steps,
        ),
        row("meta", f"{config.meta.steps} x meta_step", seconds["meta_step"], config.meta.steps),
    ]


def changed(config: ml_collections.ConfigDict, changes: dict) -> ml_collections.ConfigDict:
    """A locked copy with other values: {"mesh.tensor": 8}."""
    copy = ml_collections.ConfigDict(config.to_dict())
    with copy.ignore_type():
        copy.update_from_flattened_dict(changes)
    return copy.lock()


def mesh_sizes(config: ml_collections.ConfigDict, devices: int) -> dict[str, int]:
    """The mesh of a config with its -1 worked out."""
    sizes = config.mesh.to_dict()
    known = math.prod(size for size in sizes.values() if size != -1)
    return {axis: devices // known if size == -1 else size for axis, size in sizes.items()}


def single_changes(config: ml_collections.ConfigDict, devices: int, name: str) -> Iterator[dict]:
    """Changes of one thing that need less memory, those that cost least first."""
    sizes, heads = mesh_sizes(config, devices), planned_model(config).n_heads
    if name.endswith("_step") or name == "logprobs":
        stage = "rl" if name == "logprobs" else name.removesuffix("_step")
        if name != "logprobs" and config.model.remat != "full":
            yield {"model.remat": "full"}
        micro = config[stage].micro_batch
        while micro % 2 == 0 and (micro := micro // 2) >= sizes["replica"] * sizes["fsdp"]:
            yield {f"{stage}.micro_batch": micro}
    else:
        if config.sampling.sampler == "pmap":
            yield {"sampling.sampler": "jit"}
        rows = config.sampling.rows
        while rows % 2 == 0 and (rows := rows // 2) >= (
            1 if name.startswith("judge_") else config.rl.group_size
        ):
            yield {"sampling.rows": rows}
    tensor = sizes["tensor"]
    while (tensor := 2 * tensor) <= min(heads, devices // sizes["replica"]):
        yield {"mesh.replica": sizes["replica"], "mesh.fsdp": -1, "mesh.tensor": tensor}
    if config.optimizer.mu_dtype != "bfloat16":
        yield {"optimizer.mu_dtype": "bfloat16"}
    if not config.lora.rank:
        yield {"lora.rank": 16}
    if name.endswith(("prefill", "decode")) and config.sampling.sampler == "shard_map":
        yield {"sampling.sampler": "jit"}


def what_fits(
    config: ml_collections.ConfigDict, topology: Topology, name: str, cache: dict
) -> Iterator[dict]:
    """Tries `single_changes` until one makes the program fit, or its arguments where nothing is
    compiled; yields all that were tried.
    """
    for changes in single_changes(config, len(topology.devices), name):
        tried = attempt(changed(config, changes), topology, name, cache, words(changes))
        yield tried
        if tried["fits"] is not False:
            return


def attempt(
    config: ml_collections.ConfigDict, topology: Topology, name: str, cache: dict, change: str
) -> dict:
    say(f"{name} with {change}")
    figures = figures_of(config, topology, name, cache)
    peak = (
        None
        if figures.get("peak_bytes") is None
        else figures["peak_bytes"] + figures["code_bytes"] + sum(figures["resident"].values())
    )
    seconds = figures.get("seconds")
    return {
        "program": name,
        "change": change,
        "fits": figures["fits"],
        "peak_bytes": peak,
        "error": figures.get("error"),
        "seconds": seconds,
        "times": figures.get("times"),
        "bound": figures.get("bound"),
        "tokens_per_second": None if seconds is None else figures["tokens"] / seconds,
    }


def rank(one: dict) -> tuple:
    """What fits first, by time; of programs that the same resource bounds alike, the one that keeps
    the others less busy.
    """
    return not one["fits"], *(
        sorted(one["times"].values(), reverse=True) if one["times"] else [math.inf]
    )


def words(changes: dict) -> str:
    return ", ".join(f"{field}={value}" for field, value in changes.items())


def search(config: ml_collections.ConfigDict, topology: Topology, cache: dict) -> Iterator[dict]:
    """The RL step on every mesh of one replica (tensor up to the number of heads), with
    micro-batches of 1, 2, 4, ... rows a share.
    """
    devices, tensor = len(topology.devices), 1
    while tensor <= min(planned_model(config).n_heads, devices):
        fsdp = devices // tensor
        micro = fsdp
        while micro <= config.rl.batch_size and config.rl.batch_size % micro == 0:
            changes = {
                "mesh.replica": 1,
                "mesh.fsdp": fsdp,
                "mesh.tensor": tensor,
                "rl.micro_batch": micro,
            }
            found = attempt(
                changed(config, changes),
                topology,
                "rl_step",
                cache,
                f"fsdp={fsdp} tensor={tensor} micro_batch={micro}",
            )
            yield found
            if found["fits"] is False:  # larger ones need more
                break
            micro *= 2
        tensor *= 2


if __name__ == "__main__":
    app.run(main)
