"""Judges every benchmark with every system, and keeps every judgment.

    <folder>/<system>/identity.json                what the system is (`store.claim`)
    <folder>/<system>/<benchmark>/<pass>.jsonl     its judgments; <pass> is greedy-seed<s>,
                                                   swapped-seed<s> or sampled-seed<s>

A system is loaded only where something is missing, and each file is continued where it ends, so a
run that was killed, or one with another system, benchmark or larger k, does the new part alone. Two
systems of one identity, which read the same judgments in two ways, have them in one folder.
"""

import functools
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation import store
from grm_jax.evaluation.figures import Judged
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.evaluation.store import Rows, View
from grm_jax.judgment.records import Record
from grm_jax.parallel import processes
from grm_jax.reward_models.load import System
from grm_jax.reward_models.protocol import Judge, RewardModel
from grm_jax.reward_models.remote import Estimate, total_estimate


class Planned(NamedTuple):
    """Says what one way of asking a system about a benchmark needs.

    label: the system, the benchmark and the way.
    judgments: in all. missing: of them not on file, or asked for again.
    estimate: what these ask of a server; None for what runs here.
    expected_cost: of the missing ones, by the mean of those on file; None where no cost is.
    """

    system: str
    label: str
    judgments: int
    missing: int
    estimate: Estimate | None
    expected_cost: float | None


class Pass(NamedTuple):
    """Names one way of asking: a file {kind}-seed<s>.jsonl. temperature 0 is greedy."""

    kind: str
    samples: tuple[int, ...]
    temperature: float
    swapped: bool = False


def passes(settings: EvalConfig, sampled: bool) -> list[Pass]:
    """Lists the ways in which a system is asked.

    One that does not sample is asked once, and once more with the responses swapped, whatever k.
    """
    ways = []
    if settings.greedy or not sampled:
        ways.append(Pass("greedy", (0,), 0.0))
    if settings.swap:
        ways.append(Pass("swapped", (0,), 0.0, True))
    if sampled:
        ways.append(Pass("sampled", tuple(range(max(settings.ks))), float(settings.temperature)))
    return ways


def judge_all(
    systems: Sequence[System],
    benchmarks: Sequence[Benchmark],
    folder: pathlib.Path,
    settings: EvalConfig,
) -> dict[str, dict[str, Judged]]:
    """Returns {system: {benchmark: Judged}} with every judgment that the settings ask for.

    Of several processes all judge, and only process 0 has the judgments on file. Raises ValueError
    where a folder holds judgments of another system, or of other texts.
    """
    judged = {}
    for system in systems:
        place = folder / _owner(system, systems, folder)
        store.claim(place, system.identity)
        served = _served(place) if system.estimate is not None else frozenset()
        judged[system.name] = {
            benchmark.name: _judge(system, benchmark, place / benchmark.name, settings, served)
            for benchmark in benchmarks
        }
        system.release()  # the weights of one system at a time
    return judged


def plan(
    systems: Sequence[System],
    benchmarks: Sequence[Benchmark],
    folder: pathlib.Path,
    settings: EvalConfig,
) -> list[Planned]:
    """Says what `judge_all` would ask for. Nothing is loaded, asked or claimed.

    A kind of one's own says what it accepts once it is loaded: here it takes all, and samples.
    Raises ValueError as `judge_all` does.
    """
    planned = []
    for system in systems:
        place = folder / _owner(system, systems, folder)
        store.claim(place, system.identity, write=False)
        for benchmark in benchmarks:
            records = [
                record
                for record in benchmark.records
                if system.accepts is None or system.accepts(len(record.responses))
            ]
            for ask in _asks(
                system, benchmark.name, records, system.sampled is not False, settings
            ):
                path = place / benchmark.name / ask.file
                digests = {record.id: store.record_digest(record) for record in ask.records}
                rows = store.read_rows(path, digests, ask.way.temperature, system.view)
                absent = store.missing(rows, ask.records, ask.way.samples, settings.retry)
                missing = sum(len(samples) * len(group) for samples, group in absent)
                costs = [row["cost"] for row in rows.values() if row["cost"] is not None]
                estimates = []
                if system.estimate is not None:
                    estimates = [system.estimate(group, len(s)) for s, group in absent]
                planned.append(
                    Planned(
                        system.name,
                        ask.label,
                        len(ask.records) * len(ask.way.samples),
                        missing,
                        total_estimate(estimates) if system.estimate is not None else None,
                        missing * sum(costs) / len(costs) if costs else None,
                    )
                )
    return planned


def _owner(system: System, systems: Sequence[System], folder: pathlib.Path) -> str:
    """Names the folder of a system: its own, but for two readings of the same judgments.

    These (`System.view`) lie in the first that is there.
    """
    readings = [one for one in systems if one.identity == system.identity]
    if all(one.view is None for one in readings):
        return system.name

    def first() -> str:
        on_file = [path.parent for path in sorted(folder.glob(f"*/{store.IDENTITY}"))]
        owners = [place.name for place in on_file if store.holds(place, system.identity)]
        return [*owners, *(one.name for one in readings)][0]

    return processes.on_main(f"owner of {system.name}", first)


def _served(place: pathlib.Path) -> frozenset[str]:
    """Names the models that gave the judgments of a system, as their servers call them."""
    said = (j.get("served_model") for path in place.rglob("*.jsonl") for j in store.read(path))
    return frozenset(name for name in said if name is not None)


def _of_one_model(judge: Judge, served: Collection[str], path: pathlib.Path) -> Judge:
    """Ends before judgments of another model are mixed with those on file."""

    def judge_alike(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        known = False
        for block in judge(records, samples, temperature, swapped):
            models = {str(j["served_model"]) for j in block if j.get("served_model") is not None}
            if models and not known and not models & set(served):
                raise ValueError(
                    f"{path.parent.parent}: its judgments are of {', '.join(sorted(served))}, and "
                    f"the server says now that it serves {', '.join(sorted(models))}. Choose "
                    "another name for this system, or another --workdir"
                )
            known = known or bool(models)
            yield block

    return judge_alike


def _judge(
    system: System,
    benchmark: Benchmark,
    folder: pathlib.Path,
    settings: EvalConfig,
    served: Collection[str],
) -> Judged:
    accepts, sampled = system.accepts, system.sampled
    if accepts is None or sampled is None:  # a kind of one's own says it once it is loaded
        model = system.load(settings.seeds[0])
        accepts, sampled = model.accepts, model.sampled
    records = [record for record in benchmark.records if accepts(len(record.responses))]
    refused = len(benchmark.records) - len(records)
    if refused:
        print(
            f"{system.name} on {benchmark.name}: {refused} of {len(benchmark.records)} items are "
            "not applicable to it",
            flush=True,
        )
    rows, paths = {}, {}
    for ask in _asks(system, benchmark.name, records, sampled, settings):
        path = folder / ask.file
        load = functools.partial(system.load, ask.seed)
        judged = judge_pass(
            path, load, ask.records, ask.way, ask.label, settings.retry, system.view, served
        )
        rows.setdefault(ask.way.kind, []).append(judged)
        paths.setdefault(ask.way.kind, []).append(path)
    accepted = frozenset(record.id for record in records)
    return Judged(system.name, sampled, accepted, rows, paths)


class _Ask(NamedTuple):
    """One file of judgments: which records, how, by which seed, and what it is called."""

    way: Pass
    seed: int
    records: list[Record]
    file: str
    label: str


def _asks(
    system: System, benchmark: str, records: Sequence[Record], sampled: bool, settings: EvalConfig
) -> Iterator[_Ask]:
    for way in passes(settings, sampled):
        asked = [record for record in records if not way.swapped or len(record.responses) > 1]
        for seed in settings.seeds:
            label = f"{system.name} on {benchmark}, {way.kind}"
            label += f", seed {seed}" if len(settings.seeds) > 1 else ""
            yield _Ask(way, seed, asked, f"{way.kind}-seed{seed}.jsonl", label)


def judge_pass(
    path: pathlib.Path,
    load: Callable[[], RewardModel],
    records: Sequence[Record],
    way: Pass,
    label: str,
    retry: Collection[str] = (),
    view: View | None = None,
    served: Collection[str] = (),
) -> Rows:
    """Returns the slim rows of the records by one way of asking, judging first what the file lacks.

    load: the model, called only where something is missing. retry: see `store.missing`. served: by
    what servers say, the models that gave the system's judgments on file; another one is an error.
    Of several processes those but the first have no rows from the file.
    """
    digests = {record.id: store.record_digest(record) for record in records}
    by_id = {record.id: record for record in records}

    rows = store.read_rows(path, digests, way.temperature, view) if processes.is_main() else Rows()
    # as process 0 finds it, whose rows alone are on file and in the results
    absent = processes.on_main(
        f"missing in {path}",
        lambda: [
            (samples, [record.id for record in group])
            for samples, group in store.missing(rows, records, way.samples, retry)
        ],
    )
    if not absent:
        return rows
    asked = [(tuple(samples), [by_id[name] for name in names]) for samples, names in absent]
    done = len(records) * len(way.samples) - sum(len(s) * len(group) for s, group in asked)
    judge = _of_one_model(load().judge, served, path) if served else load().judge
    return rows | store.judge_missing(
        path, judge, asked, way.temperature, way.swapped, label, done, view
    )
