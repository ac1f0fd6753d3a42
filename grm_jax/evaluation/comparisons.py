"""Tabulates the figures of several systems on several benchmarks.

This is everything in results.json that comes of judgments. docs/evaluation.md has the schema, field
by field.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation import diagnostics, differences, figures, result_rows, votes
from grm_jax.evaluation.differences import ALL_BENCHMARKS
from grm_jax.evaluation.figures import Field, Figure, Judged, Way
from grm_jax.judgment.voting import default_k_meta

SCHEMA = 2


def compare_systems(
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    ks: Sequence[int],
    *,
    draws: int,
    seed: int,
    min_coverage: float = 0.9,
) -> dict:
    """Makes the tables of results.json, flat lists of plain data.

    judged: {system: {benchmark: judgments}}.
    draws: resamples of the items.
    seed: draws the resamples and the votes of k.
    min_coverage: a figure of less coverage is marked where it is shown.

    Returns:
      "benchmarks": name, version, protocol, metric, counts, chance, and items by number of
        responses; behind them the figures that several benchmarks make together, with their
        "parts".
      "rows": one per system, benchmark, aggregation, k and k_meta (`result_rows.row_of`).
      "figures", "domains": greedy, and the votes of the largest k: every figure that the benchmark
        names, and accuracy by domain.
      "diagnostics", "calibration": see diagnostics.py.
      "meta_rm": see `votes.meta_auc`; a pool is a seed.
      "paired", "capabilities": see `differences.difference_row` and `differences.capability`.
    """
    tables = collections.defaultdict(list)
    gaps: list[differences.Difference] = []
    fields: dict[str, Field] = {}
    of_benchmark: dict[str, dict[str, dict[Way, Figure]]] = {}
    for benchmark in benchmarks:
        field = fields[benchmark.name] = figures.make_field(benchmark, draws, seed)
        tables["benchmarks"].append(_about(field))
        of_system = of_benchmark[benchmark.name] = {}
        # each system by itself
        for system in judged:
            judgments = judged[system][benchmark.name]
            of_system[system] = figures.figures(field, judgments, ks, seed)
            _add_system(tables, field, judgments, of_system[system], ks)
        # what two figures say together
        for (a, way_a), (b, way_b) in differences.wanted_pairs(of_system, ks):
            if way_a in of_system[a] and way_b in of_system[b]:
                gap = differences.difference(field, of_system[a][way_a], of_system[b][way_b])
                gaps += [] if gap is None else [gap]
    # over benchmarks
    _add_wholes(tables, fields, of_benchmark)
    tables["paired"] = [
        differences.difference_row(gap) for gap in [*gaps, *differences.over_benchmarks(gaps)]
    ]
    tables["capabilities"] = [
        differences.capability(
            system, {name: (fields[name], one) for name, one in of.items()}, gaps, ks
        )
        for system, of in judged.items()
    ]
    names = ("benchmarks", "rows", "figures", "domains", "diagnostics", "calibration", "meta_rm")
    return {
        "schema": SCHEMA,
        "systems": list(judged),
        "ks": list(ks),
        "min_coverage": min_coverage,
        **{name: tables[name] for name in (*names, "paired", "capabilities")},
    }


def without_judgments(results: Mapping) -> list[str]:
    """Names what was asked and never answered, and why: "<system> on <benchmark> (no_box 40)".

    No judgment of it gave scores, so it has no figure. A program that is to judge ends with another
    status than 0 then.
    """
    heard: dict[str, dict[str, bool]] = {}
    for row in results["rows"]:
        if row["metric"] != "parts" and row["items"]:
            of_system = heard.setdefault(row["system"], {})
            before = of_system.get(row["benchmark"], False)
            of_system[row["benchmark"]] = before or row["judged"] > 0
    why = {(one["system"], one["benchmark"]): one["failures"] for one in results["diagnostics"]}

    def reasons(system: str, benchmark: str) -> str:
        counts = ", ".join(f"{name} {n:,}" for name, n in why.get((system, benchmark), {}).items())
        return f"{benchmark} ({counts})" if counts else benchmark

    silent = {
        system: [reasons(system, benchmark) for benchmark, some in of_system.items() if not some]
        for system, of_system in heard.items()
    }
    return [f"{system} on {', '.join(names)}" for system, names in silent.items() if names]


def _about(field: Field) -> dict:
    benchmark = field.benchmark
    sizes = collections.Counter(len(record.responses) for record in benchmark.records)
    return {
        "name": benchmark.name,
        "version": benchmark.version,
        "protocol": benchmark.protocol,
        "metric": benchmark.metric,
        "items": len(benchmark.records),
        "counts": benchmark.counts,
        "responses": {str(n): count for n, count in sorted(sizes.items())},
        "chance": figures.chance_of(field, np.ones(len(field.ids), bool)),
        "parts": None,
    }


def _add_system(
    tables: dict[str, list],
    field: Field,
    judged: Judged,
    of_way: Mapping[Way, Figure],
    ks: Sequence[int],
) -> None:
    """Adds what one system's judgments of a benchmark say to each table."""
    benchmark, at = field.benchmark, {"system": judged.name, "benchmark": field.benchmark.name}
    official = figures.official_credit(benchmark, judged)
    rows = {way: result_rows.row_of(field, figure, official) for way, figure in of_way.items()}
    if (value := figures.both_orders(field, judged)) is not None:
        rows["greedy", 1, None] |= {
            "official_value": value,
            "official_credit": f"{official}, both orders: {benchmark.official.orders}",
        }
    tables["rows"] += rows.values()
    for figure in _headline(of_way, ks):
        way = at | dict(zip(("aggregation", "k", "k_meta"), figure.way))
        tables["figures"] += [way | row for row in result_rows.named_rows(field, figure, official)]
        tables["domains"] += [way | row for row in result_rows.domain_rows(field, figure)]
    tables["diagnostics"].append(
        at
        | {"position_swap": diagnostics.position_swap(field, judged)}
        | {"scores": diagnostics.score_counts(field, judged, ks)}
        | {"readings": diagnostics.readings(judged)}
        | diagnostics.costs(judged)
    )
    tables["calibration"] += [at | row for row in diagnostics.calibration(field, judged, ks)]
    if judged.sampled and benchmark.metric == "accuracy":
        pools = figures.make_pools(field, judged, "sampled", judged.even(max(ks)))
        tables["meta_rm"] += [
            at | {"pool": i} | votes.meta_auc(pool)
            for i, pool in enumerate(pools)
            if votes.has_logits(pool)
        ]


def _headline(of_way: Mapping[Way, Figure], ks: Sequence[int]) -> list[Figure]:
    most = max(ks)
    shown = [("greedy", 1, None), ("vote", most, None), ("meta", most, default_k_meta(most))]
    return [of_way[way] for way in shown if way in of_way and not of_way[way].flat]


def _add_wholes(
    tables: dict[str, list],
    fields: Mapping[str, Field],
    of_benchmark: Mapping[str, Mapping[str, Mapping[Way, Figure]]],
) -> None:
    """Adds the figures that several benchmarks make together, where all of their parts are here.

    They go to "benchmarks", and a row for each system and way that has all parts.
    """
    rows = {
        (r["system"], r["benchmark"], r["aggregation"], r["k"], r["k_meta"]): r
        for r in tables["rows"]
    }
    for whole, weights in wholes([field.benchmark for field in fields.values()]).items():
        abouts = {
            about["name"]: about for about in tables["benchmarks"] if about["name"] in weights
        }
        chances = [abouts[name]["chance"] for name in weights]
        tables["benchmarks"].append(
            {
                "name": whole,
                "version": ", ".join(dict.fromkeys(about["version"] for about in abouts.values())),
                "protocol": "Of several benchmarks: the sum of "
                + ", ".join(f"{weight:.3g} x {name}" for name, weight in weights.items())
                + ". They are resampled apart for its interval.",
                "metric": "parts",
                "items": sum(about["items"] for about in abouts.values()),
                "counts": {},
                "responses": {},
                "chance": None
                if None in chances
                else sum(weight * chance for weight, chance in zip(weights.values(), chances)),
                "parts": weights,
            }
        )
        first, *others = weights
        for system, of_way in of_benchmark[first].items():
            for way in of_way:
                if all(way in of_benchmark[name].get(system, ()) for name in others):
                    parts = [
                        (weight, fields[name], of_benchmark[name][system][way])
                        for name, weight in weights.items()
                    ]
                    part_rows = [rows[system, name, *way] for name in weights]
                    tables["rows"].append(result_rows.whole_row(whole, parts, part_rows))


def wholes(benchmarks: Sequence[Benchmark]) -> dict[str, dict[str, float]]:
    """Finds what benchmarks make together, {whole: {benchmark: weight}}.

    A leaderboard's figure whose parts are all here, their weights adding up to 1; behind it the
    plain mean over the benchmarks with gold, if there are two.
    """
    weights: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        if benchmark.part is not None:
            weights.setdefault(benchmark.part.whole, {})[benchmark.name] = benchmark.part.weight
    complete = {whole: of for whole, of in weights.items() if np.isclose(sum(of.values()), 1)}
    gold = [benchmark.name for benchmark in benchmarks if benchmark.metric != "none"]
    mean = {ALL_BENCHMARKS: dict.fromkeys(gold, 1 / len(gold))} if len(gold) > 1 else {}
    return complete | mean
