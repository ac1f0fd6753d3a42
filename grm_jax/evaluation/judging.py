"""Judges every benchmark with every system, and keeps every judgment.

    <folder>/<system>/identity.json                what the system is (`store.claim`)
    <folder>/<system>/<benchmark>/<pass>.jsonl     its judgments; <pass> is greedy-seed<s>,
                                                   swapped-seed<s> or sampled-seed<s>

A system is loaded only where something is missing, and each file is continued where it ends, so a
run that was killed, or one with another system, benchmark or larger k, does the new part alone. Two
systems of one identity, which read the same judgments in two ways, have them in one folder.

Where items may be left early (`EvalConfig.anytime`) samples come in rounds, each of the items whose
verdict is still open. What is open follows from the judgments on file and the rule alone, so that a
run with another rule or a larger k goes on from what is there, and one that finds more on file than
its rule asks for reads no more of it. <pass>.stopped.json says beside the judgments which items
were left, after how many samples, why, and by which rule.
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
from grm_jax.judgment.anytime import TEST, decided
from grm_jax.judgment.records import Record
from grm_jax.judgment.voting import default_k_meta
from grm_jax.parallel import processes
from grm_jax.reward_models.protocol import Judge, RewardModel
from grm_jax.reward_models.remote import Estimate, total_estimate
from grm_jax.reward_models.system import System
from grm_jax.whole_files import write_json


class Planned(NamedTuple):
    """Says what one way of asking a system about a benchmark needs.

    label: the system, the benchmark and the way.
    judgments: in all. missing: of them not on file, or asked for again; at most, where items may be
        left early (`early`).
    estimate: what these ask of a server; None for what runs here.
    expected_cost: of the missing ones, by the mean of those on file; None where no cost is.
    """

    system: str
    label: str
    judgments: int
    missing: int
    estimate: Estimate | None
    expected_cost: float | None
    early: bool = False


class Pass(NamedTuple):
    """Names one way of asking: a file {kind}-seed<s>.jsonl. temperature 0 is greedy."""

    kind: str
    samples: tuple[int, ...]
    temperature: float
    swapped: bool = False


class Stopping(NamedTuple):
    """Says when an item is left before all samples of a pass are drawn.

    error: as in `judgment.anytime.decided`. step: samples of a round.
    span: n -> the largest difference of two scores of a judgment (`System.span`).

    An item is left when the winner of the plain vote stands and, where its judgments have logits of
    a Meta RM, that of the guided vote too.
    """

    error: float
    step: int
    span: Callable[[int], float | None]


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
                stopping = _stopping(system, benchmark, ask.way, settings)
                absent, left = [], {}
                for end, samples in _rounds(ask.way, stopping):
                    going_on = [record for record in ask.records if record.id not in left]
                    absent += store.missing(rows, going_on, samples, settings.retry)
                    open_still = {record.id for _, group in absent for record in group}
                    settled = [record for record in going_on if record.id not in open_still]
                    left |= _decided(rows, settled, end, ask.way, stopping)
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
                        stopping is not None,
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
        system = system._replace(span=model.span)
    records = [record for record in benchmark.records if accepts(len(record.responses))]
    refused = len(benchmark.records) - len(records)
    if refused:
        print(
            f"{system.name} on {benchmark.name}: {refused} of {len(benchmark.records)} items are "
            "not applicable to it",
            flush=True,
        )
    rows, paths, least = {}, {}, None
    for ask in _asks(system, benchmark.name, records, sampled, settings):
        path = folder / ask.file
        load = functools.partial(system.load, ask.seed)
        stopping = _stopping(system, benchmark, ask.way, settings)
        judged = judge_pass(
            path,
            load,
            ask.records,
            ask.way,
            ask.label,
            settings.retry,
            system.view,
            served,
            stopping,
        )
        rows.setdefault(ask.way.kind, []).append(judged)
        paths.setdefault(ask.way.kind, []).append(path)
        if stopping is not None:
            least = min(stopping.step, len(ask.way.samples))
    accepted = frozenset(record.id for record in records)
    return Judged(system.name, sampled, accepted, rows, paths, least)


def _stopping(
    system: System, benchmark: Benchmark, way: Pass, settings: EvalConfig
) -> Stopping | None:
    """Says when items are left early; None where all samples are drawn.

    That is so where scores have no bound that is known, and where a figure is made of the scores
    themselves.
    """
    if (
        settings.anytime is None
        or system.span is None
        or way.kind != "sampled"
        or benchmark.metric == "roc_auc"
    ):
        return None
    return Stopping(settings.anytime, settings.round, system.span)


def _rounds(way: Pass, stopping: Stopping | None) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yields (number of samples that an item has then, the samples of the round)."""
    step = max(len(way.samples), 1) if stopping is None else stopping.step
    for start in range(0, len(way.samples), step):
        samples = way.samples[start : start + step]
        yield start + len(samples), samples


def _decided(
    rows: Rows, records: Sequence[Record], drawn: int, way: Pass, stopping: Stopping | None
) -> dict[str, tuple[int, str]]:
    """Finds the items whose verdict stands after `drawn` samples: {id: (drawn, why)}."""
    left: dict[str, tuple[int, str]] = {}
    if stopping is None:
        return left
    k, first = len(way.samples), way.samples[:drawn]
    for record in records:
        if any((record.id, sample) not in rows for sample in first):
            continue
        of_item = [rows[record.id, sample] for sample in first]
        scores = [row["scores"] for row in of_item]
        how = (scores, k, stopping.span(len(record.responses)), stopping.error)
        why = decided(*how)
        if why is not None and any(row["meta_logit"] is not None for row in of_item):
            guided = decided(*how, [row["meta_logit"] for row in of_item], default_k_meta(k))
            why = TEST if guided == TEST else guided and why
        if why is not None:
            left[record.id] = (drawn, why)
    return left


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
    stopping: Stopping | None = None,
) -> Rows:
    """Returns the slim rows of the records by one way of asking, judging first what the file lacks.

    load: the model, called only where something is missing. retry: see `store.missing`. served: by
    what servers say, the models that gave the system's judgments on file; another one is an error.
    stopping: when items are left early; the rows are then those up to there, whatever the file
    holds beyond.

    Of several processes those but the first have no rows from the file.
    """
    digests = {record.id: store.record_digest(record) for record in records}
    by_id = {record.id: record for record in records}

    rows = store.read_rows(path, digests, way.temperature, view) if processes.is_main() else Rows()
    load = functools.cache(load)
    left: dict[str, tuple[int, str]] = {}
    for end, samples in _rounds(way, stopping):
        going_on = [record for record in records if record.id not in left]
        # as process 0 finds it, whose rows alone are on file and in the results
        absent = processes.on_main(
            f"missing in {path}",
            lambda going_on=going_on, samples=samples: [
                (part, [record.id for record in group])
                for part, group in store.missing(rows, going_on, samples, retry)
            ],
        )
        if absent:
            asked = [(tuple(part), [by_id[name] for name in names]) for part, names in absent]
            here = len(going_on) * len(samples)
            done = here - sum(len(part) * len(group) for part, group in asked)
            judge = _of_one_model(load().judge, served, path) if served else load().judge
            words = label if stopping is None else f"{label}, samples {samples[0]} to {samples[-1]}"
            rows.update(
                store.judge_missing(
                    path, judge, asked, way.temperature, way.swapped, words, done, view
                )
            )
        if stopping is not None:
            left |= processes.on_main(
                f"decided in {path}",
                lambda going_on=going_on, end=end: _decided(rows, going_on, end, way, stopping),
            )
    if processes.is_main():
        _say_stopped(path, left, way, stopping)
    if stopping is None:
        return rows
    return {
        (name, sample): row
        for (name, sample), row in rows.items()
        if sample in way.samples[: left[name][0] if name in left else None]
    }


def _say_stopped(
    path: pathlib.Path, left: dict[str, tuple[int, str]], way: Pass, stopping: Stopping | None
) -> None:
    """Writes beside a file of judgments which items were left early; no file says of none."""
    beside = path.with_suffix(".stopped.json")
    if stopping is None:
        beside.unlink(missing_ok=True)
        return
    rule = {"k": len(way.samples), "error": stopping.error, "round": stopping.step}
    items = {name: {"samples": drawn, "why": why} for name, (drawn, why) in left.items()}
    write_json(beside, {"rule": rule, "items": items})
