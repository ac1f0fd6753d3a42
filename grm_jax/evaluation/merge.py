"""Merges the figures of several runs into one table: the mean over seeds, with its standard error.

The mean is that of each setting. Runs whose configs differ in anything but the seed and the fields
that were swept do not belong together, and are refused; so are runs that read other data, models or
templates under the same names, and those of another version.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.evaluation.comparisons import SCHEMA
from grm_jax.evaluation.store import differing
from grm_jax.json_files import NULL, check_fields, shown

# what changes no figure, but for rounding
IGNORED = (
    "note",
    "checkpoint",
    "log",
    "mesh",
    "sampling.rows",
    "sampling.sampler",
    "sampling.chunk",
    "sampling.cache_bytes",
    "eval.retry",
    "eval.report_items",
)
ROW_KEY = ("system", "benchmark", "aggregation", "k", "k_meta")
PAIR_KEY = tuple(
    f"{side}_{name}" for side in "ab" for name in ("system", "aggregation", "k", "k_meta")
) + ("benchmark",)
META_KEY = ("system", "benchmark", "pool")
# fields of these sections change what is read: runs that differ in one have inputs of their own
READING = (
    "answer",
    "benchmarks",
    "critic",
    "data",
    "eval",
    "lengths",
    "model",
    "systems",
    "templates",
    "tokenizer",
)
# made by the world for each seed, unless its sources say otherwise
SEEDED = ("data.train", "data.general", "data.critiques")
# of a row, beside its value: means over the runs
MEANS = (
    "strict",
    "tie_rate",
    "parse_failure_rate",
    "all_failed_rate",
    "coverage",
    "chance",
    "tokens_per_judgment",
)


def other_fields(a: Mapping, b: Mapping, but: Sequence[str] = ()) -> list[str]:
    """Names the fields in which two configs differ so that their figures may.

    All but IGNORED and `but`. A name stands for all that is below it too.
    """
    plain_a, plain_b = (json.loads(json.dumps(_answering(config))) for config in (a, b))
    left_out = (*IGNORED, *but)
    return [
        field
        for field in differing(plain_a, plain_b)
        if not any(field == name or field.startswith(f"{name}.") for name in left_out)
    ]


def _answering(config: Mapping) -> dict:
    """A config without what changes no answer of its remote systems, such as where they are."""
    if "systems" not in config:
        return dict(config)
    from grm_jax.reward_models.remote_config import NOT_ANSWERS

    systems = [
        {
            name: value
            for name, value in spec.items()
            if spec.get("kind") != "remote" or name not in NOT_ANSWERS
        }
        for spec in config["systems"]
    ]
    return {**config, "systems": systems}


def merge(runs: Mapping[str, Mapping], swept: Sequence[str] = ()) -> dict:
    """Merges runs, {name: what its results.json holds}; docs/evaluation.md has what comes out.

    Those that agree in all swept fields are seeds of one setting; one that lacks a field, such as a
    setting of another loss, agrees with others that do.

    Raises ValueError that names run and fields: where a config differs elsewhere, where two runs of
    a setting have the same seed, where one lacks rows that another has, and for another schema.
    """
    if not runs:
        raise ValueError("no runs to merge: expected at least one results.json")
    _check(runs, swept)
    settings: list[dict] = []
    for name, run in runs.items():
        values = {f: field_of(run["config"], f) for f in swept if has_field(run["config"], f)}
        setting = next((s for s in settings if s["values"] == values), None)
        if setting is None:
            setting = {"values": values, "runs": [], "seeds": []}
            settings.append(setting)
        if run["seed"] in setting["seeds"]:
            raise ValueError(
                f"{name}: seed {run['seed']} twice among the runs of {values or 'one setting'} "
                f"({', '.join(setting['runs'])}); expected seeds that differ"
            )
        setting["runs"].append(name)
        setting["seeds"].append(run["seed"])
    if not any(field.split(".")[0] in READING for field in swept):
        _check_inputs(runs, swept)
    tables: dict[str, list] = {"rows": [], "paired": [], "meta_rm": []}
    for setting in settings:
        own = {name: runs[name] for name in setting["runs"]}
        _check_inputs(own, swept)
        setting["same_items"] = len({_versions(run) for run in own.values()}) == 1
        for table, rows in _merged_tables(own).items():
            tables[table] += [{"setting": setting["values"]} | row for row in rows]
    first = next(iter(runs.values()))
    return {
        "schema": SCHEMA,
        "swept": list(swept),
        "settings": settings,
        "min_coverage": first["min_coverage"],
        "systems": list(dict.fromkeys(s for run in runs.values() for s in run["systems"])),
        "benchmarks": [benchmark["name"] for benchmark in first["benchmarks"]],
        **tables,
    }


def check_results(results: object, where: str) -> dict[str, Any]:
    """Returns what a results.json holds, once what is merged of it has its fields.

    Raises ValueError, which `where` opens, naming table, row and field.
    """
    number = (int, float, NULL)
    lists = dict.fromkeys(("systems", "benchmarks", "rows", "paired", "meta_rm"), list)
    top = check_fields(results, {}, where, ())
    if top.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: results.json has schema {shown(top.get('schema'))}, expected {SCHEMA}: run "
            "the evaluation again to make it anew"
        )
    kinds = {"config": dict, "seed": (int, NULL), "inputs": dict, **lists}
    kinds["min_coverage"] = (int, float)
    check_fields(top, kinds, where, ("config", "seed", "min_coverage", *lists))
    values = {
        "rows": ("value", "stderr", *MEANS),
        "paired": ("difference", "stderr"),
        "meta_rm": ("auc", "auc_within_item", "correct_rate"),
    }
    counts = {"rows": {"items": int, "judged": int, "flat_by_construction": bool}}
    counts["paired"] = {"items": int}
    keys = {"rows": ROW_KEY, "paired": PAIR_KEY, "meta_rm": META_KEY}
    for table, key in keys.items():
        texts = dict.fromkeys(key, (str, int, NULL))
        kinds = texts | dict.fromkeys(values[table], number) | counts.get(table, {})
        for i, row in enumerate(top[table]):
            check_fields(row, kinds, f"{where}: {table}[{i}]", kinds)
    for i, benchmark in enumerate(top["benchmarks"]):
        kinds = {"name": str, "version": str, "items": int}
        check_fields(benchmark, kinds, f"{where}: benchmarks[{i}]", kinds)
    for i, system in enumerate(top["systems"]):
        if not isinstance(system, str):
            raise ValueError(f"{where}: systems[{i}]: expected a text, got {shown(system)}")
    return top


def _check(runs: Mapping[str, Mapping], swept: Sequence[str]) -> None:
    for name, run in runs.items():
        check_results(run, name)
    first_name, first = next(iter(runs.items()))
    for field in swept:
        # a setting of one loss need not be one of the others
        if not any(has_field(run["config"], field) for run in runs.values()):
            raise ValueError(f"{', '.join(runs)}: no config has a field {field}")
    for name, run in runs.items():
        fields = other_fields(first["config"], run["config"], ("seed", *swept))
        if fields:
            raise ValueError(
                f"{name} and {first_name} are runs of different configs; they differ in "
                f"{', '.join(fields)}. Expected configs that differ in the seed alone"
                + (f" and in {', '.join(swept)}" if swept else "")
            )


def _check_inputs(runs: Mapping[str, Mapping], swept: Sequence[str]) -> None:
    """ValueError where runs of the same config read something else, by the digests that they keep.

    Those of older versions keep none, and are compared by the sizes of their benchmarks.
    """
    first_name, first = next(iter(runs.items()))
    for name, run in runs.items():
        fields = []
        if "inputs" in first and "inputs" in run:
            seeded = [field for field in SEEDED if run["seed"] != first["seed"]]
            fields = [
                field
                for field in differing(_with_functions(first), _with_functions(run))
                if not (field in seeded and _of_the_world(run["config"], field))
                and field.removeprefix("functions.") not in swept
            ]
            fields += ["version"] * (first.get("version") != run.get("version"))
        else:
            sizes, own = (
                {benchmark["name"]: benchmark["items"] for benchmark in of["benchmarks"]}
                for of in (first, run)
            )
            fields = [f"items of {field}" for field in differing(sizes, own)]
        if fields:
            raise ValueError(
                f"{name} and {first_name} are runs of one config that read different things under "
                f"the same names; they differ in {', '.join(fields)}. Expected runs of the same "
                "inputs and version"
            )


def _with_functions(results: Mapping) -> dict:
    """The inputs of a run; one that calls no function of the user's has digests of none."""
    return {"functions": {"rl": {}}} | results["inputs"]


def _of_the_world(config: Mapping, field: str) -> bool:
    """Whether a data field is made of other records by each seed: not of files or of the hub."""
    sources = field_of(config, field) if has_field(config, field) else ()
    known = isinstance(sources, (list, tuple)) and all(isinstance(s, Mapping) for s in sources)
    return known and not any("path" in source or "hub" in source for source in sources)


def field_of(config: Mapping, field: str) -> Any:
    """Returns the value of a dotted field of a config."""
    return functools.reduce(lambda node, part: node[part], field.split("."), config)


def has_field(config: Mapping, field: str) -> bool:
    """Tells whether a config has a dotted field."""
    node: Any = config
    for part in field.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _versions(results: Mapping) -> tuple:
    return tuple((benchmark["name"], benchmark["version"]) for benchmark in results["benchmarks"])


def _merged_tables(runs: Mapping[str, Mapping]) -> dict[str, list[dict]]:
    """The rows of the runs of one setting, each with its mean over the runs."""
    keys = {"rows": ROW_KEY, "paired": PAIR_KEY, "meta_rm": META_KEY}
    return {
        table: [
            dict(zip(key, values)) | _merged(table, rows)
            for values, rows in _aligned(runs, table, key)
        ]
        for table, key in keys.items()
    }


def _merged(table: str, rows: Sequence[Mapping]) -> dict:
    if table == "meta_rm":
        names = ("auc", "auc_within_item", "correct_rate")
        return {name: _mean([row[name] for row in rows]) for name in names}
    value = {"rows": "value", "paired": "difference"}[table]
    merged = {
        "items": [row["items"] for row in rows],
        **spread([row[value] for row in rows], [row["stderr"] for row in rows]),
    }
    if table == "rows":
        merged |= {
            "flat_by_construction": all(row["flat_by_construction"] for row in rows),
            "judged": [row["judged"] for row in rows],
            **{name: _mean([row[name] for row in rows]) for name in MEANS},
        }
    return merged


def spread(values: Sequence[float | None], errors: Sequence[float | None]) -> dict:
    """Returns {"mean", "seed_stderr", "item_stderr", "values"} of one figure over runs.

    seed_stderr: standard deviation between the runs / sqrt(runs), None for one.
    item_stderr: the mean of the runs' own errors: right where all judge the same items and agree on
        them, too large where they do not.

    A figure that a run lacks leaves no mean.
    """
    seeds, mean = len(values), _mean(values)
    deviation = None
    if mean is not None and seeds > 1:
        squares = sum((value - mean) ** 2 for value in values if value is not None)
        deviation = math.sqrt(squares / (seeds - 1) / seeds)
    return {
        "mean": mean,
        "seed_stderr": deviation,
        "item_stderr": _mean(errors),
        "values": list(values),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _aligned(
    runs: Mapping[str, Mapping], table: str, key: Sequence[str]
) -> list[tuple[tuple, list[Mapping]]]:
    """[(key, the row of every run with that key)] in the order of the first run."""
    indexed = {
        name: {tuple(row[field] for field in key): row for row in run[table]}
        for name, run in runs.items()
    }
    first_name, first = next(iter(indexed.items()))
    for name, index in indexed.items():
        if different := set(index) ^ set(first):
            raise ValueError(
                f"{name}: {table} differ from those of {first_name}, for example "
                f"{sorted(different, key=str)[0]}"
            )
    return [(values, [index[values] for index in indexed.values()]) for values in first]
