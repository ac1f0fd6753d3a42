"""Judge every benchmark with every system, and keep every row:

    judgments/<system>/system.json                                             what the system is,
    and what it accepts judgments/<system>/<benchmark>/{greedy,swapped,sampled}-seed<s>.jsonl
    its rows (grm_jax/evaluation/store.py)

A system is loaded only where something is missing, and each file is continued where it ends, so a
run that was killed, or one with another system, benchmark or larger k, does the new part alone.
"""

import collections
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_collections

from experiments.stages.reward_models import KINDS, reward_model_maker, wrong_fields
from grm_jax.benchmarks import Benchmark, load_benchmark
from grm_jax.data.world import describe, make_records
from grm_jax.evaluation.figures import Judged
from grm_jax.evaluation.store import judge_missing, missing, read_rows, record_digest
from grm_jax.judgment.records import write_records
from grm_jax.parallel import processes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+@-]*")  # of a system or benchmark: it becomes a folder
# of a system: these do not change what it answers
NOT_RESULTS = ("concurrency", "timeout_s", "retries", "api_key_env", "price_per_million")
WEIGHTS = ("path", "meta", "critic")  # fields of a system that name a folder with weights


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, one line for each field that is wrong: its name, what was expected and
    what it is.
    """
    problems = list(_problems(config))
    if problems:
        raise ValueError(
            f"{len(problems)} wrong "
            f"field{'s' * (len(problems) > 1)} in the config\n  " + "\n  ".join(problems)
        )


def _problems(config) -> Iterator[str]:
    ks = tuple(config.ks)
    if not ks or list(ks) != sorted(set(ks)) or ks[0] != 1:
        yield f"ks: expected growing integers from 1, against which gains are measured, got {ks}"
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        yield f"seeds: expected different integers, got {tuple(config.seeds)}"
    if not config.temperature > 0:
        yield (
            "temperature: expected a number > 0 (greedy judgments have a switch of their own), "
            f"got {config.temperature}"
        )
    if config.bootstrap < 100:
        yield f"bootstrap: expected at least 100 resamples, got {config.bootstrap}"
    if config.swap and not config.greedy:
        yield "swap: compares with greedy judgments, so greedy = True is expected"
    if not config.systems or not config.benchmarks:
        yield (
            f"systems, benchmarks: expected at least one of each, got {len(config.systems)} and "
            f"{len(config.benchmarks)}"
        )
    names = [spec.get("name") for spec in config.systems]
    for i, (spec, name) in enumerate(zip(config.systems, names)):
        if not isinstance(name, str) or not NAME.fullmatch(name) or names.index(name) != i:
            yield (
                f'systems[{i}]: field "name": expected a name of its own that can be a folder '
                f'(letters, digits, " ._+@-"), got {name!r}'
            )
        if spec.get("kind") not in KINDS and ":" not in str(spec.get("kind")):
            yield (
                f'systems[{i}] ({name}): field "kind": expected one of {", ".join(KINDS)}, or '
                f"package.module:function, got {spec.get('kind')!r}"
            )
        elif problem := wrong_fields(spec):
            yield f"systems[{i}] ({name}): {problem}"
        if spec.get("kind") == "remote" and processes.count() > 1:
            yield (
                f"systems[{i}] ({name}): a remote model is asked by one process; this job has "
                f"{processes.count()}, each of which would pay for it"
            )
        for field in WEIGHTS:
            if (
                spec.get(field) is not None
                and not (pathlib.Path(spec[field]) / "config.json").is_file()
                and spec[field] != "tiny"
            ):
                yield (
                    f'systems[{i}] ({name}): field "{field}": expected a Hugging Face folder '
                    f"with config.json, got {spec[field]}"
                )


def load_benchmarks(config: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Benchmark]:
    """The config's benchmarks. Beside the kinds of `load_benchmark` there is {"kind": "world",
    "split", "items", "seed", "name"}: records of the checkable world, which are written to
    `folder`. Raises ValueError for two of one name and a name that is no folder.
    """
    benchmarks = []
    for i, spec in enumerate(config.benchmarks):
        spec = dict(spec)
        if spec["kind"] == "world":
            path = folder / f"{spec.get('name', spec['split'])}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = make_records(spec["split"], spec["items"], spec.get("seed", 0))
            processes.on_main(
                f"records {path.stem}",
                lambda path=path, records=records: write_records(path, records),
            )
            about = describe(spec["split"])
            spec = {"kind": "records", "path": str(path), "name": path.stem, "about": about}
        benchmark = load_benchmark(spec)
        if benchmark.name in [other.name for other in benchmarks] or not NAME.fullmatch(
            benchmark.name
        ):
            raise ValueError(
                f"benchmarks[{i}]: expected a name of its own that can be a folder, got "
                f"{benchmark.name!r}"
            )
        print(f"{benchmark.name} ({benchmark.version}): {len(benchmark.records)} items", flush=True)
        benchmarks.append(benchmark)
    return benchmarks


class Pass(NamedTuple):
    """One way of asking: {kind}-seed<s>.jsonl."""

    kind: str
    samples: tuple[int, ...]
    temperature: float
    swapped: bool


def passes(config: ml_collections.ConfigDict, sampled: bool) -> list[Pass]:
    """How a system is asked; one that does not sample once, and once more with the responses
    swapped, whatever k.
    """
    found = []
    if config.greedy or not sampled:
        found.append(Pass("greedy", (0,), 0.0, False))
    if config.swap:
        found.append(Pass("swapped", (0,), 0.0, True))
    if sampled:
        found.append(
            Pass("sampled", tuple(range(max(config.ks))), float(config.temperature), False)
        )
    return found


def judge_all(
    config: ml_collections.ConfigDict, benchmarks: Sequence[Benchmark], folder: pathlib.Path
) -> dict[str, dict[str, Judged]]:
    """{system: {benchmark: Judged}} with every row that the config asks for; of several processes
    only process 0 has those on file.
    """
    return {
        spec["name"]: _judge(config, dict(spec), benchmarks, folder / spec["name"])
        for spec in config.systems
    }


def _judge(config, spec, benchmarks, folder):
    # loaded when the first judgment is missing
    maker = functools.cache(lambda: reward_model_maker(spec, config))
    model = functools.cache(lambda seed: maker()(seed))
    sizes = sorted(
        {len(record.responses) for benchmark in benchmarks for record in benchmark.records}
    )
    facts = _facts(config, spec, sizes, folder / "system.json", model)
    judged = {}
    for benchmark in benchmarks:
        records = [
            record for record in benchmark.records if facts["accepts"][str(len(record.responses))]
        ]
        refused = len(benchmark.records) - len(records)
        if refused:
            print(
                f"{spec['name']} on {benchmark.name}: {refused} of {len(benchmark.records)} "
                "items are not applicable to it",
                flush=True,
            )
        digests = {record.id: record_digest(record) for record in records}
        rows, paths = collections.defaultdict(list), collections.defaultdict(list)
        for seed in config.seeds:
            for way in passes(config, facts["sampled"]):
                asked = (
                    [record for record in records if len(record.responses) > 1]
                    if way.swapped
                    else records
                )
                path = folder / benchmark.name / f"{way.kind}-seed{seed}.jsonl"
                found = read_rows(path, digests, way.temperature) if processes.is_main() else {}
                absent = _missing(path, found, asked, way.samples, config.retry)
                if absent:
                    label = (f"{spec['name']} on {benchmark.name}, {way.kind}") + (
                        f", seed {seed}" if len(config.seeds) > 1 else ""
                    )
                    count = sum(len(samples) * len(group) for samples, group in absent)
                    done = len(asked) * len(way.samples) - count
                    found |= judge_missing(
                        path, model(seed).judge, absent, way.temperature, way.swapped, label, done
                    )
                rows[way.kind].append(found)
                paths[way.kind].append(path)
        judged[benchmark.name] = Judged(
            spec["name"], facts["sampled"], frozenset(digests), dict(rows), dict(paths)
        )
    return judged


def _missing(path, found, asked, samples, retry):
    """`missing` as process 0 finds it, whose rows alone are on file and in the results."""
    ids = processes.on_main(
        f"missing in {path}",
        lambda: [
            (samples, [record.id for record in group])
            for samples, group in missing(found, asked, samples, retry)
        ],
    )
    by_id = {record.id: record for record in asked}
    return [(tuple(samples), [by_id[i] for i in group]) for samples, group in ids]


def _facts(
    config, spec: Mapping, sizes: Sequence[int], path: pathlib.Path, model: Callable
) -> dict:
    """{"sampled", "accepts": {n: bool}} of a system, from its file or, where that does not have
    them, from the loaded model.
    """
    identity = _identity(config, spec)
    on_file = processes.on_main(
        f"facts of {path.parent.name}",
        lambda: json.loads(path.read_text()) if path.is_file() else None,
    )
    facts = on_file or {"identity": identity, "sampled": None, "accepts": {}}
    if facts["identity"] != identity:
        changed = sorted(
            name
            for name in facts["identity"] | identity
            if facts["identity"].get(name) != identity.get(name)
        )
        raise ValueError(
            f"{path.parent} holds judgments of another system of this name; it differs in "
            f"{', '.join(changed)}. Choose another name or --workdir"
        )
    unknown = [n for n in sizes if str(n) not in facts["accepts"]]
    if unknown:
        one = model(config.seeds[0])
        facts |= {
            "sampled": bool(one.sampled),
            "accepts": facts["accepts"] | {str(n): bool(one.accepts(n)) for n in unknown},
        }
        if processes.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".partial").write_text(json.dumps(facts, indent=1) + "\n")
            path.with_suffix(".partial").rename(path)
    return facts


def _identity(config, spec) -> dict:
    """What must not change between two runs that share rows: the system's spec, the weights it
    names, and how texts are cut and sampled.
    """
    identity = {name: value for name, value in spec.items() if name not in NOT_RESULTS}
    for field in WEIGHTS:
        if spec.get(field) is not None and spec[field] != "tiny":
            identity[f"{field} weights"] = _fingerprint(pathlib.Path(spec[field]))
    return json.loads(
        json.dumps(
            identity | {"lengths": config.lengths.to_dict(), "sampling": config.sampling.to_dict()}
        )
    )


def _fingerprint(folder: pathlib.Path, edge: int = 1 << 20) -> str:
    """A digest of the weight files: their names and sizes, and the first and last MiB of each. A
    retrained model differs in them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(edge))
            file.seek(max(edge, size - edge))
            digest.update(file.read(edge))
    return digest.hexdigest()[:16]
