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
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation import store
from grm_jax.evaluation.figures import Judged
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.evaluation.store import Rows, View
from grm_jax.judgment.records import Record
from grm_jax.parallel import processes
from grm_jax.reward_models.load import System
from grm_jax.reward_models.protocol import RewardModel


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
        judged[system.name] = {
            benchmark.name: _judge(system, benchmark, place / benchmark.name, settings)
            for benchmark in benchmarks
        }
        system.release()  # the weights of one system at a time
    return judged


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


def _judge(
    system: System, benchmark: Benchmark, folder: pathlib.Path, settings: EvalConfig
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
    for way in passes(settings, sampled):
        asked = [record for record in records if not way.swapped or len(record.responses) > 1]
        for seed in settings.seeds:
            path = folder / f"{way.kind}-seed{seed}.jsonl"
            label = f"{system.name} on {benchmark.name}, {way.kind}"
            label += f", seed {seed}" if len(settings.seeds) > 1 else ""
            load = functools.partial(system.load, seed)
            judged = judge_pass(path, load, asked, way, label, settings.retry, system.view)
            rows.setdefault(way.kind, []).append(judged)
            paths.setdefault(way.kind, []).append(path)
    accepted = frozenset(record.id for record in records)
    return Judged(system.name, sampled, accepted, rows, paths)


def judge_pass(
    path: pathlib.Path,
    load: Callable[[], RewardModel],
    records: Sequence[Record],
    way: Pass,
    label: str,
    retry: Collection[str] = (),
    view: View | None = None,
) -> Rows:
    """Returns the slim rows of the records by one way of asking, judging first what the file lacks.

    load: the model, called only where something is missing. retry: see `store.missing`. Of several
    processes those but the first have no rows from the file.
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
    judge = load().judge
    return rows | store.judge_missing(
        path, judge, asked, way.temperature, way.swapped, label, done, view
    )
