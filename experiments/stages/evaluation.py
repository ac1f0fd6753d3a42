"""The end of every run: judge what is missing, figures, results.json, table.md, report.html."""

import pathlib
import sys
from collections.abc import Mapping, Sequence

import ml_collections

from experiments import run_config
from experiments.stages import reuse
from experiments.stages.inputs import refuse_changed_records
from experiments.stages.settings import NAME
from experiments.stages.workdir import Run, about_stages, system
from grm_jax import __version__
from grm_jax.benchmarks import Benchmark, load_benchmark
from grm_jax.data.world import describe as describe_world
from grm_jax.data.world import make_records
from grm_jax.evaluation.comparisons import compare_systems, without_judgments
from grm_jax.evaluation.judging import Planned, judge_all, plan
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.judgment.records import Record, write_records
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh
from grm_jax.report.headline import markdown
from grm_jax.report.report import write_report
from grm_jax.reward_models.grm import NO_PRINCIPLES, NO_RUBRIC
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.remote import Estimate, total_estimate
from grm_jax.reward_models.system import Asking, System
from grm_jax.whole_files import write_json

SCHEMA = 2
REQUEST_FAILED = "request_failed"
ASK_AGAIN = f"What failed on the way is asked for again with --config.eval.retry={REQUEST_FAILED}"


def evaluate(
    systems: Sequence[System],
    benchmarks: Sequence[Benchmark],
    workdir: pathlib.Path,
    settings: EvalConfig,
    config: ml_collections.ConfigDict,
    about: Mapping | None = None,
) -> dict:
    """Judge what is missing, write the three files, and return what results.json holds; {} in all
    processes but the first, which writes. docs/evaluation.md has the schema.

    about: "timings_s", "notes", "funnel" and "inputs" of a run that trained.
    """
    refuse_unseen(systems, benchmarks)
    if any(system.estimate is not None for system in systems):
        planned = plan(systems, benchmarks, workdir / "judgments", settings)
        say_plan(planned, everything=False)
        missing = {one.system for one in planned if one.missing}
        for one in systems:  # a key that is not there is said before others have judged for hours
            if one.ready is not None and one.name in missing:
                try:
                    one.ready()
                except ValueError as error:
                    raise ValueError(f"system {one.name!r}: {error}") from None
    judged = judge_all(systems, benchmarks, workdir / "judgments", settings)
    if not processes.is_main():
        return {}
    figures = compare_systems(
        benchmarks,
        judged,
        settings.shown_ks,
        draws=settings.bootstrap,
        seed=settings.seeds[0],
        min_coverage=settings.min_coverage,
    )
    inputs = {
        "benchmarks": {benchmark.name: benchmark.version for benchmark in benchmarks},
        "systems": {system.name: system.identity for system in systems},
    }
    about = {"timings_s": {}, "notes": [], "funnel": {}, "inputs": inputs} | dict(about or {})
    head = {"schema": SCHEMA, "version": __version__}
    head |= {"config": config.to_dict(), "seed": config.get("seed")}
    results = head | about | figures
    write_json(workdir / "results.json", results)
    (workdir / "table.md").write_text(markdown(results), encoding="utf-8", errors="replace")
    write_report(workdir, results, benchmarks, judged, settings.report_items)
    print(markdown(results))
    print(f"{workdir / 'results.json'}, {workdir / 'table.md'}, {workdir / 'report.html'}")
    return results


def refuse_unseen(systems: Sequence[System], benchmarks: Sequence[Benchmark]) -> None:
    """ValueError where a system that could judge by a record's rubric has no template for it, or
    where one cannot go on from a record's principles. A prompt that is too long is a failure of its
    record; kinds that know no rubric are asked without it, so that they can be compared.
    """
    rubric = f'{NO_RUBRIC}; name one, or leave rubrics out of its sight with "rubric": False'
    for field, why, said in (
        ("rubric", NO_RUBRIC, rubric),
        ("principles", NO_PRINCIPLES, NO_PRINCIPLES),
    ):
        for benchmark in benchmarks:
            asked = next((record for record in benchmark.records if getattr(record, field)), None)
            for one in systems if asked is not None else ():
                if one.refuses is not None and one.refuses(asked) == why:
                    raise ValueError(
                        f"system {one.name!r}, benchmark {benchmark.name!r}, record {asked.id!r}: "
                        f'field "{field}": {said}'
                    )


def say_plan(planned: Sequence[Planned], everything: bool) -> None:
    """Print what is to be judged, and what the requests to servers may cost, before it is asked.

    everything: of all systems; else only what is asked of servers.
    """
    for one in planned:
        if everything or (one.estimate is not None and one.missing):
            of_server = f"; {_estimate_words(one.estimate)}" if one.estimate is not None else ""
            on_file = one.judgments - one.missing
            most = "at most " if one.early and one.missing else ""
            print(
                f"{one.label}: {most}{one.missing} to judge, {on_file} on file{of_server}",
                flush=True,
            )
    for name in dict.fromkeys(one.system for one in planned if one.estimate is not None):
        of_system = [one for one in planned if one.system == name and one.estimate is not None]
        total = total_estimate([one.estimate for one in of_system if one.estimate is not None])
        if total.requests:
            known = [o.expected_cost for o in of_system if o.missing]
            words = _estimate_words(total)
            if None not in known:
                sums = sum(cost for cost in known if cost is not None)
                words += f"; by what is on file {sums:.2f}"
            print(f"{name} in all: {words}", flush=True)


def _estimate_words(estimate: Estimate) -> str:
    if not estimate.requests:
        return "no requests"
    cost = "" if estimate.cost is None else f", at most {estimate.cost:.2f} (price_per_million)"
    return (
        f"{estimate.requests:,} requests, about {estimate.prompt_tokens:,} tokens of prompts and "
        f"at most {estimate.completion_tokens:,} of replies"
        + (cost or "; price_per_million of the system would say what they cost")
    )


def exit_without_judgments(results: Mapping) -> None:
    """End the program with a message where a system has not one judgment on a benchmark."""
    if results and (silent := without_judgments(results)):
        again = any(REQUEST_FAILED in one for one in silent)
        sys.exit(
            f"not one judgment, so no figure: {'; '.join(silent)}"
            + (f". {ASK_AGAIN}" if again else "")
        )


def evaluate_run(run: Run, systems: Sequence[System], settings: EvalConfig) -> dict:
    """`evaluate` systems on the splits of a run; {} where --stages leaves it out. Judgments that a
    folder of --from has of one of the systems are taken over.
    """
    if not run.wants(reuse.EVALUATION):
        return {}

    def take() -> None:
        for one in systems:
            place = run.workdir / "judgments" / one.name
            reuse.take_judgments(place, one.name, one.identity, run.givers)

    processes.on_main("judgments", take)
    records = run.workdir / "records"
    benchmarks = [
        load_benchmark(
            {
                "kind": "records",
                "name": split,
                "path": str(records / f"{split}.jsonl"),
                "about": about_split(run.config.data.eval[split]),
                "left_out": run.left_out[split],
            }
        )
        for split in run.evaluation
    ]
    about = about_stages(run.workdir)
    note = run.config.get("note")
    about["notes"] = ([note] if note else []) + left_out_notes(run) + about["notes"]
    about["inputs"] = run.inputs
    return evaluate(systems, benchmarks, run.workdir, settings, run.config, about)


def left_out_notes(run: Run) -> list[str]:
    """A sentence on what was left out of the records that were trained on, if any was."""
    counts = run.left_out["train"]
    if not counts:
        return []
    reasons = ", ".join(f"{count} ({reason})" for reason, count in counts.items())
    read = len(run.train) + sum(counts.values())
    return [f"Of {read} training records {len(run.train)} are used; left out are {reasons}."]


def about_split(sources: Sequence[Mapping]) -> str | None:
    """Words on the records of a split, for readers of the page; None unless the world made them."""
    splits = {source.get("world") for source in sources}
    return describe_world(splits.pop()) if len(splits) == 1 and None not in splits else None


def policies(run: Run) -> list[System]:
    """The systems of config.eval.systems, guided by the run's Meta RM; without what --stages left
    out.
    """

    def done(stage: str) -> bool:
        def look() -> bool:
            there = reuse.done(run.workdir, stage) is not None
            if there and run.wants(reuse.EVALUATION):
                reuse.need_models(run.workdir, stage)
            return there

        return processes.on_main(f"{stage}?", look)

    meta, per_order = str(run.folder("meta")), run.config.eval.samples_per_order
    guided = {"meta": meta} if done("meta") else {}
    trained_by = {"rft": "rft", "grm": "rl"}
    there = []
    for name in run.config.eval.systems:
        if name not in trained_by or done(trained_by[name]):
            there.append(system(run, name, per_order, **guided))
        elif run.wants(reuse.EVALUATION):
            print(f"{name} is not evaluated: its stage {trained_by[name]} is not done", flush=True)
    return there


def asking_of(config: ml_collections.ConfigDict) -> Asking:
    """How a config of experiments.evaluate asks all of its systems."""
    return Asking(
        mesh=make_mesh(**config.mesh),
        numerics=run_config.section(config, "model"),
        lengths=run_config.section(config, "lengths"),
        sampling=run_config.section(config, "sampling"),
        templates=run_config.load_templates(config),
        samples_per_order=config.eval.samples_per_order,
    )


def systems(config: ml_collections.ConfigDict) -> list[System]:
    """The systems that a config of experiments.evaluate names. Nothing is loaded."""
    asking = asking_of(config)
    described = [describe(dict(spec), asking) for spec in config.systems]
    remote = [system.name for system in described if system.kind == "remote"]
    if remote and processes.count() > 1:
        raise ValueError(
            f"system {remote[0]!r}: a remote model is asked by one process; this job has "
            f"{processes.count()}, each of which would pay for it"
        )
    return described


def benchmarks(config: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Benchmark]:
    """The benchmarks that a config of experiments.evaluate names.

    Beside the kinds of `load_benchmark` there is {"kind": "world", "split", "items", "seed",
    "name", "limit"}: records of the checkable world, which are written to `folder`. Raises
    ValueError for two of one name, a name that is no folder, and fields that are missing or
    unknown.
    """
    loaded: list[Benchmark] = []
    for i, spec in enumerate(config.benchmarks):
        if not isinstance(spec, Mapping | ml_collections.ConfigDict):
            raise ValueError(
                f'benchmarks[{i}]: expected a description such as {{"kind": "rmb", "path": '
                f'"data/RMB_dataset"}}, got {spec!r}'
            )
        spec = dict(spec)
        if spec.get("kind") == "world":
            spec = _world_benchmark(spec, f"benchmarks[{i}]", folder)
        benchmark = load_benchmark(spec)
        names = [other.name for other in loaded]
        if benchmark.name in names or not NAME.fullmatch(benchmark.name):
            raise ValueError(
                f"benchmarks[{i}]: expected a name of its own that can be a folder, got "
                f"{benchmark.name!r}"
            )
        print(f"{benchmark.name} ({benchmark.version}): {len(benchmark.records)} items", flush=True)
        loaded.append(benchmark)
    return loaded


WORLD_FIELDS = ("kind", "split", "items", "seed", "name", "limit")


def _world_benchmark(spec: Mapping, where: str, folder: pathlib.Path) -> dict:
    """Writes the records of a split of the world, and returns the spec of a benchmark of them."""
    wrong = [field for field in spec if field not in WORLD_FIELDS]
    missing = [field for field in ("split", "items") if field not in spec]
    if wrong or missing:
        raise ValueError(
            f"{where}: expected the fields {', '.join(WORLD_FIELDS)} of a world, "
            + (f"got {wrong[0]!r}" if wrong else f"without {missing[0]!r}")
        )
    path = folder / f"{spec.get('name', spec['split'])}.jsonl"
    records = make_records(spec["split"], spec["items"], spec.get("seed", 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    processes.on_main(f"records {path.stem}", lambda: _write_world(path, records))
    about = describe_world(spec["split"])
    limit = {"limit": spec["limit"]} if "limit" in spec else {}
    return {"kind": "records", "path": str(path), "name": path.stem, "about": about} | limit


def _write_world(path: pathlib.Path, records: Sequence[Record]) -> None:
    """Write the records of a benchmark of the world; what was judged of them is not changed."""
    refuse_changed_records(path.parents[1], path.stem, records, f"benchmarks: {path.stem}")
    write_records(path, records)
