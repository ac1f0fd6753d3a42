"""Know before you launch: what a preset's programs need on chips that are not there, and how long
they take at least.

    python -m experiments.plan --config=experiments/configs/spct_gemma2_27b.py \\
        --topology=v5p:4x4x4

compiles the job's own programs ahead of time for the slice, on a host without a TPU (pip install -e
'.[tpu]'), and prints tables that also go to plan.json and plan.md in --out. How to read them, and
what they leave open: docs/scale.md. Fields of the preset are overridden as in a run, and neither
weights nor data need to be there: a model.path that does not exist is taken for the published size
it is named after.

--lengths adds the hours for texts of given lengths: packed train batches, shared prompts, rows that
make room for others as they end.

--search compiles the RL step for all mesh shapes and micro-batches and ranks those that fit.
Compiled programs are remembered in plan.json.
"""

import pathlib
import sys
import time
from typing import TYPE_CHECKING

import ml_collections
from absl import flags, logging

from experiments import config_flags
from grm_jax.json_files import check_fields, read_object
from grm_jax.whole_files import write_json, write_whole

if TYPE_CHECKING:
    from grm_jax.planning.search import Attempt
    from grm_jax.planning.topology import Topology

CONFIG = config_flags.define_preset("experiments.spct_rl")
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "slice to plan for: v5e:2x4, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4, h100:8",
    required=True,
)
OUT = flags.DEFINE_string(
    "out", None, "folder of plan.json and plan.md; by default runs/plans/PRESET-TOPOLOGY"
)
PROGRAMS = flags.DEFINE_list("programs", None, "which programs to plan; by default all")
COMPILE = flags.DEFINE_bool(
    "compile", True, "no: shapes, FLOPs and the bounds that follow from them alone, in seconds"
)
CHANGES = flags.DEFINE_bool(
    "changes", True, "for what does not fit, try single changes until one makes it fit"
)
HLO = flags.DEFINE_string("hlo", None, "folder for the compiled programs as text, to look into")
LENGTHS = flags.DEFINE_string(
    "lengths",
    None,
    'lengths of texts, a JSON list of {"prompt", "responses", "completion"} in tokens: hours for '
    "such texts beside those of the widest shapes",
)
SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "rank mesh shapes and micro-batches of the RL step by time among those that fit",
)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = config_flags.load(CONFIG, files=False)
    import jax
    from rich.console import Console

    from experiments.stages.planning import job_of
    from grm_jax.parallel.mesh import make_mesh
    from grm_jax.planning import lengths, search
    from grm_jax.planning.programs import NAMES, drawn_needs, stage_times, widest_needs
    from grm_jax.planning.report import show
    from grm_jax.planning.topology import get_topology

    jax.config.update("jax_threefry_partitionable", True)  # as experiments/spct_rl.py
    # it cannot load programs of absent devices, and would store each
    jax.config.update("jax_enable_compilation_cache", False)
    # what can be wrong before anything is compiled
    preset = pathlib.Path(flags.FLAGS["config"].config_filename)
    programs = tuple(PROGRAMS.value or NAMES)
    if unknown := [name for name in programs if name not in NAMES]:
        raise ValueError(
            f"--programs: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}"
        )
    topology = get_topology(TOPOLOGY.value, COMPILE.value)
    job = job_of(config, topology.platform)
    make_mesh(**config.mesh, devices=topology.devices)
    if SEARCH.value and not topology.compiles:
        raise ValueError(
            "--search ranks compiled programs, and nothing is compiled here: expected a TPU "
            "slice, or such GPUs at hand, and no --nocompile"
        )
    out = pathlib.Path(OUT.value or f"runs/plans/{preset.stem}-{TOPOLOGY.value.replace(':', '-')}")
    for folder in (out, *(() if HLO.value is None else (pathlib.Path(HLO.value),))):
        folder.mkdir(parents=True, exist_ok=True)
    text = None
    if LENGTHS.value is not None:
        limits = job.lengths.prompt, job.lengths.completion
        text = lengths.read_lengths(LENGTHS.value, *limits)
    plan, devices = start_plan(config, str(preset), topology, out), len(topology.devices)

    # every program, and the stages that they make up
    for name in programs:
        plan["programs"][name] = figures_of(config, topology, name, plan["cache"])
        write(plan, out)
    needs, plan["widest_loads"] = widest_needs(job, job.mesh_sizes(devices))
    plan["stages"] = stage_times(job, plan["programs"], devices, topology.chips, needs)
    if text is not None:
        needs, plan["loads"] = drawn_needs(job, text, job.mesh_sizes(devices))
        plan["lengths"] = lengths.summary(text)
        plan["drawn"] = stage_times(job, plan["programs"], devices, topology.chips, needs)
    write(plan, out)
    # what would fit, and what would be faster
    if CHANGES.value:
        for name, figures in plan["programs"].items():
            if figures["fits"] is False and "memory" in figures:  # not where a shape cannot be
                attempt = attempts(config, topology, name, plan["cache"])
                for tried in search.what_fits(job, devices, name, attempt):
                    plan["changes"].append(tried)
                    write(plan, out)
    if SEARCH.value:
        plan["searched"] = "rl_step"
        attempt = attempts(config, topology, "rl_step", plan["cache"])
        for tried in search.search(job, devices, attempt):
            plan["search"] = sorted([*plan["search"], tried], key=search.rank)
            write(plan, out)
    show(plan, Console(width=None if sys.stdout.isatty() else 200))
    print(f"plan: {out / 'plan.md'}")
    if not any("memory" in figures for figures in plan["programs"].values()):
        name, figures = next(iter(plan["programs"].items()))
        sys.exit(f"error: no program can be made of this preset here; {name}: {figures['error']}")


def start_plan(
    config: ml_collections.ConfigDict, preset: str, topology: "Topology", out: pathlib.Path
) -> dict:
    """An empty plan, with what an earlier one in the same folder had compiled."""
    import jax

    path = out / "plan.json"
    kinds: dict = {"cache": dict}
    cache = {}
    if path.is_file():
        cache = check_fields(read_object(path), kinds, str(path), kinds)["cache"]
    return {
        "title": f"{preset} on {topology.name} ({topology.chips} x {topology.chip.name})",
        "config": config.to_dict(),
        "topology": topology.name,
        "chips": topology.chips,
        "devices": len(topology.devices),
        "mesh": config.mesh.to_dict(),
        "peak_per_device": topology.chip.peak / topology.chip.devices,
        "compiled": topology.compiles,
        "jax": jax.__version__,
        "programs": {},
        "stages": [],
        "widest_loads": {},
        "lengths": None,
        "drawn": [],
        "changes": [],
        "search": [],
        "searched": "",
        "cache": cache,
    }


def figures_of(
    config: ml_collections.ConfigDict, topology: "Topology", name: str, cache: dict
) -> dict:
    """`measure` of one program; a shape that cannot be is an error among the figures."""
    from experiments.stages.planning import job_of
    from grm_jax.planning.measure import measure
    from grm_jax.planning.programs import make_programs

    began = time.time()
    try:
        job = job_of(config, topology.platform)
        program = make_programs(job, topology.devices, (name,))[name]
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


def attempts(
    config: ml_collections.ConfigDict, topology: "Topology", name: str, cache: dict
) -> "Attempt":
    """The function that makes a program with other values, {"mesh.tensor": 8}, and keeps of its
    figures what the table of changes shows.
    """

    def attempt(changes: dict, words: str) -> dict:
        changed = ml_collections.ConfigDict(config.to_dict())
        with changed.ignore_type():
            changed.update_from_flattened_dict(changes)
        say(f"{name} with {words}")
        figures = figures_of(changed, topology, name, cache)
        peak = (
            None
            if figures.get("peak_bytes") is None
            else figures["peak_bytes"] + figures["code_bytes"] + sum(figures["resident"].values())
        )
        seconds = figures.get("seconds")
        return {
            "program": name,
            "change": words,
            "fits": figures["fits"],
            "peak_bytes": peak,
            "error": figures.get("error"),
            "seconds": seconds,
            "times": figures.get("times"),
            "bound": figures.get("bound"),
            "tokens_per_second": None if seconds is None else figures["tokens"] / seconds,
        }

    return attempt


def say(line: str) -> None:
    print(line, flush=True)


def write(plan: dict, out: pathlib.Path) -> None:
    """plan.json and plan.md, each of which appears whole."""
    from grm_jax.planning.report import markdown

    write_json(out / "plan.json", plan)
    write_whole(out / "plan.md", markdown(plan))


if __name__ == "__main__":
    config_flags.run(main)
