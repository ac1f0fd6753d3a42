"""The figures of several systems on several benchmarks: everything in results.json of `python -m
experiments.evaluate` but its config.
"""

import collections
from collections.abc import Mapping, Sequence

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation import compare, diagnostics, differences, scaling
from grm_jax.evaluation.compare import Field, Figure, Judged, Way
from grm_jax.evaluation.results import has_logits
from grm_jax.judgment.voting import default_k_meta


def compare_systems(
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    ks: Sequence[int],
    *,
    draws: int,
    seed: int,
) -> dict:
    """Flat lists of plain data. `judged`: {system: {benchmark: rows}}. `draws` resamples of the
    items; `seed` draws them and the votes of k.

    "benchmarks": name, version, protocol, metric, counts, and items by number of responses.
    "rows": one per system, benchmark, aggregation, k and k_meta (compare.row_of).
    "figures", "domains": greedy, and the votes of the largest k: every figure that the benchmark
        names, and accuracy by domain.
    "diagnostics", "calibration": see diagnostics.py. "meta_rm": see scaling.meta_auc; a pool is a
        seed.
    "paired", "capabilities": see differences.difference_row and .capability.
    """
    found = collections.defaultdict(list)
    gaps: list[differences.Difference] = []
    fields: dict[str, Field] = {}
    for benchmark in benchmarks:
        field = fields[benchmark.name] = compare.make_field(benchmark, draws, seed)
        found["benchmarks"].append(_about(benchmark))
        figures = {}
        for system in judged:
            one, at = (
                judged[system][benchmark.name],
                {"system": system, "benchmark": benchmark.name},
            )
            official = compare.official_credit(benchmark, one)
            figures[system] = compare.figures(field, one, ks, seed)
            found["rows"] += [
                compare.row_of(field, figure, official) for figure in figures[system].values()
            ]
            if (value := compare.both_orders(field, one)) is not None:
                found["rows"][-len(figures[system])] |= {
                    "official_value": value,
                    "official_credit": f"{official}, both orders: {benchmark.official.orders}",
                }
            for figure in _headline(figures[system], ks):
                way = at | dict(zip(("aggregation", "k", "k_meta"), figure.way))
                found["figures"] += [
                    way | row for row in compare.named_rows(field, figure, official)
                ]
                found["domains"] += [way | row for row in compare.domain_rows(field, figure)]
            found["diagnostics"].append(
                at
                | {"position_swap": diagnostics.position_swap(field, one)}
                | diagnostics.costs(one)
            )
            found["calibration"] += [at | row for row in diagnostics.calibration(field, one, ks)]
            pools = (
                compare.make_pools(field, one, "sampled", max(ks))
                if one.sampled and benchmark.metric == "accuracy"
                else []
            )
            found["meta_rm"] += [
                at | {"pool": i} | scaling.meta_auc(pool)
                for i, pool in enumerate(pools)
                if has_logits(pool)
            ]
        for (a, way_a), (b, way_b) in differences.wanted_pairs(figures, ks):
            if way_a in figures[a] and way_b in figures[b]:
                gap = differences.difference(field, figures[a][way_a], figures[b][way_b])
                gaps += [] if gap is None else [gap]
    found["paired"] = [
        differences.difference_row(gap) for gap in [*gaps, *differences.over_benchmarks(gaps)]
    ]
    found["capabilities"] = [
        differences.capability(
            system, {name: (fields[name], one) for name, one in of.items()}, gaps, ks
        )
        for system, of in judged.items()
    ]
    return {"systems": list(judged), "ks": list(ks), **found}


def _about(benchmark: Benchmark) -> dict:
    sizes = collections.Counter(len(record.responses) for record in benchmark.records)
    return {
        "name": benchmark.name,
        "version": benchmark.version,
        "protocol": benchmark.protocol,
        "metric": benchmark.metric,
        "items": len(benchmark.records),
        "counts": benchmark.counts,
        "responses": {str(n): count for n, count in sorted(sizes.items())},
    }


def _headline(figures: Mapping[Way, Figure], ks: Sequence[int]) -> list[Figure]:
    most = max(ks)
    shown = [("greedy", 1, None), ("vote", most, None), ("meta", most, default_k_meta(most))]
    return [figures[way] for way in shown if way in figures and not figures[way].flat]
