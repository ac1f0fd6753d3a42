"""report.html of a comparison: one self-contained page with the tables, the curves, and single
items with every system's judgments to read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from markupsafe import Markup

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation.compare import Judged
from grm_jax.evaluation.differences import ALL_BENCHMARKS
from grm_jax.evaluation.store import read_line
from grm_jax.judgment.records import Record, record_to_dict
from grm_jax.judgment.voting import default_k_meta, expected_credit, select_by_meta, vote
from grm_jax.report import comparison_plots, page
from grm_jax.report.comparison_table import headline, scalable_text, size_text, way_text, yes_no

SAMPLES_SHOWN = 8  # of one system on one item, greedy ones included
CHARACTERS = 12_000_000  # of JSON in the page
SHOWN = (
    "sample",
    "temperature",
    "scores",
    "failure",
    "principles",
    "critique",
    "text",
    "meta_logit",
    "tokens",
    "order",
    "preference",
    "error",
)
PAIR_SHOWN = ("pair", "chosen", "probability", "text", "failure")


def write_report(
    workdir: Path,
    results: Mapping,
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    items: int,
) -> Path:
    """Writes <workdir>/report.html and returns its path. `items`: at most so many of each benchmark
    can be read in the page.
    """
    return page.write(
        Path(workdir) / "report.html",
        render(Path(workdir).resolve().name, results, benchmarks, judged, items),
    )


def render(
    name: str,
    results: Mapping,
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    items: int,
) -> str:
    """The page as text. results: as `comparison.compare_systems` gives them, with "config"."""
    names, systems, most = [b.name for b in benchmarks], results["systems"], max(results["ks"])
    shown = examples(benchmarks, judged, most, items)
    half = [
        row
        for row in results["rows"]
        if row["aggregation"] != "greedy" and row["k_meta"] in (None, default_k_meta(row["k"]))
    ]
    return page.render(
        "comparison.html.jinja",
        name=name,
        benchmarks=results["benchmarks"],
        names=names,
        systems=systems,
        most=most,
        headline=headline(results),
        rows=results["rows"],
        domains=_domains(results, names, systems),
        figures=_figures(results, systems),
        k_svg=Markup(
            comparison_plots.curves(
                half,
                names,
                systems,
                "k",
                "curves-k",
                "Accuracy against the number of judgments voted",
            )
        ),
        token_svg=Markup(
            comparison_plots.curves(
                half,
                names,
                systems,
                "tokens_per_item",
                "curves-tokens",
                "Accuracy against generated tokens",
            )
        ),
        calibration_svg=Markup(comparison_plots.calibration(results["calibration"], names, systems))
        if results["calibration"]
        else None,
        capabilities=[
            one
            | {
                "sizes": [size_text(one[size]) for size in ("one", "two", "many")],
                "flexible": yes_no(one["input_flexible"]),
                "scales": scalable_text(one),
            }
            for one in results["capabilities"]
        ],
        matrices=_matrices(results, names, systems),
        gains=_gains(results, names, systems),
        way_text=way_text,
        diagnostics=results["diagnostics"],
        main=_main_rows(results),
        meta_rm=results["meta_rm"],
        config=json.dumps(results["config"], indent=2, ensure_ascii=False, default=str),
        examples=shown,
        examples_json=page.script_json(shown["items"]),
    )


def _main_rows(results: Mapping) -> dict[tuple[str, str], dict]:
    """{(system, benchmark): row} of the vote of the largest k, or of greedy where nothing is
    sampled.
    """
    return {
        (row["system"], row["benchmark"]): row
        for row in results["rows"]
        if (row["aggregation"], row["k"]) == ("vote", max(results["ks"]))
    }


def _matrices(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> list[dict]:
    """[{"benchmark", "how", "systems", "cells": {(a, b): difference row, a less b}}]; the mean over
    benchmarks first.
    """
    found: dict[tuple, dict] = {}
    for row in results["paired"]:
        if row["a_system"] != row["b_system"]:
            how = way_text(row["a_aggregation"], row["a_k"])
            cells = found.setdefault((row["benchmark"], how), {})
            cells[row["a_system"], row["b_system"]] = row
            cells[row["b_system"], row["a_system"]] = row | {
                "difference": -row["difference"],
                "ci_low": -row["ci_high"],
                "ci_high": -row["ci_low"],
            }
    order = [ALL_BENCHMARKS, *names]
    places = sorted(
        found, key=lambda place: (order.index(place[0]), place[1] != "greedy", place[1])
    )
    return [
        {
            "benchmark": place[0],
            "how": place[1],
            "cells": found[place],
            "systems": [s for s in systems if any(s == a for a, _ in found[place])],
        }
        for place in places
    ]


def _gains(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> dict:
    """{"columns": benchmarks, "lines": [{"system", "label", "cells": {benchmark: difference
    row}}]}: what k and the Meta RM add to a system.
    """
    found: dict[tuple, dict] = {}
    for row in results["paired"]:
        if row["a_system"] == row["b_system"]:
            label = (
                f"{way_text(row['a_aggregation'], row['a_k'])} − "
                f"{way_text(row['b_aggregation'], row['b_k'])}"
            )
            found.setdefault((row["a_system"], label), {})[row["benchmark"]] = row
    flat = {row["system"] for row in results["rows"] if row["flat_by_construction"]}
    columns = [
        name for name in (ALL_BENCHMARKS, *names) if any(name in cells for cells in found.values())
    ]
    return {
        "columns": columns,
        "lines": [
            {"system": system, "label": label, "cells": cells}
            for system in systems
            if system not in flat
            for (of, label), cells in found.items()
            if of == system
        ],
    }


def _domains(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> dict[str, dict]:
    """{benchmark: {"domains", "items": {domain: count}, "cells": {(domain, system): row},
    "systems"}}, by the largest vote, or greedy without one.
    """
    found = {}
    for benchmark in names:
        cells, items = {}, {}
        # greedy comes before the vote of the same system, which then replaces it
        for row in results["domains"]:
            if row["benchmark"] == benchmark and row["aggregation"] != "meta":
                cells[row["domain"], row["system"]] = row
                items[row["domain"]] = max(items.get(row["domain"], 0), row["items"])
        if cells:
            found[benchmark] = {
                "domains": sorted(items),
                "items": items,
                "cells": cells,
                "systems": [s for s in systems if any(s == system for _, system in cells)],
            }
    return found


def _figures(results: Mapping, systems: Sequence[str]) -> dict[str, dict]:
    """{benchmark: {"lines": [(figure, credit)], "cells": {(figure, credit, system): row}}}: what
    the benchmark itself reports.
    """
    found: dict[str, dict] = {}
    for row in results["figures"]:
        if row["aggregation"] != "meta":
            one = found.setdefault(row["benchmark"], {"lines": {}, "cells": {}})
            line = (row["figure"], row["credit"])
            one["lines"][line] = None
            one["cells"][*line, row["system"]] = row
    return {
        name: {
            "lines": list(one["lines"]),
            "cells": one["cells"],
            "systems": [s for s in systems if any(key[2] == s for key in one["cells"])],
        }
        for name, one in found.items()
    }


def examples(
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    most: int,
    items: int,
) -> dict:
    """{"items": [...], "total": items of all benchmarks} for the browser: up to `items` of each
    benchmark, as far as CHARACTERS go.

    Chosen by a hash of the id; half of them, as far as there are any, are items on which the
    systems' verdicts are not all right or all wrong.
    """
    queues = [
        [(benchmark, record) for record in _chosen(benchmark, judged, most)[:items]]
        for benchmark in benchmarks
    ]
    found, used = [], 0
    for benchmark, record in (
        place for turn in zip_longest(*queues) for place in turn if place is not None
    ):
        one = _example(benchmark, record, judged, most)
        used += len(json.dumps(one))
        if used > CHARACTERS:
            break
        found.append(one)
    order = {benchmark.name: i for i, benchmark in enumerate(benchmarks)}
    found.sort(key=lambda one: (order[one["benchmark"]], one["id"]))
    return {"items": found, "total": sum(len(benchmark.records) for benchmark in benchmarks)}


def _chosen(
    benchmark: Benchmark, judged: Mapping[str, Mapping[str, Judged]], most: int
) -> list[Record]:
    hashed = sorted(
        benchmark.records, key=lambda record: hashlib.sha256(record.id.encode()).digest()
    )
    split, agreed = [], []
    for record in hashed:
        credits = {
            verdict["credit"]
            for of in judged.values()
            if (verdict := _verdict(record, of[benchmark.name], most)[0]) is not None
        }
        (split if len(credits) > 1 else agreed).append(record)
    return [record for pair in zip_longest(split, agreed) for record in pair if record is not None]


def _verdict(record: Record, one: Judged, most: int) -> tuple[dict | None, dict | None, set[int]]:
    """(the vote of the first seed, its guided vote, the samples that this keeps); None where the
    system has no rows of the record.
    """
    kind, k = ("sampled", most) if one.sampled else ("greedy", 1)
    rows = [one.rows[kind][0].get((record.id, s)) for s in range(k)] if kind in one.rows else [None]
    if None in rows:
        return None, None, set()
    scores, logits = [row["scores"] for row in rows], [row["meta_logit"] for row in rows]
    kept = select_by_meta(scores, logits) if any(logit is not None for logit in logits) else ()
    guided = (
        _shown_vote(record, [scores[i] for i in kept]) | {"k": k, "k_meta": len(kept)}
        if kept
        else None
    )
    return _shown_vote(record, scores), guided, {rows[i]["sample"] for i in kept}


def _shown_vote(record: Record, scores: Sequence) -> dict:
    """The vote as the page shows it; "credit" is that of `expected_credit`, None for a single
    response with scores other than 0 and 1.
    """
    verdict = vote(scores)
    threshold = len(record.responses) > 1 or all(one is None or one[0] in (0, 1) for one in scores)
    credit = expected_credit(verdict, record.rewards) if threshold else None
    return {
        "totals": verdict.totals,
        "winners": verdict.winners,
        "valid": verdict.valid,
        "k": len(scores),
        "credit": credit,
    }


def _example(
    benchmark: Benchmark, record: Record, judged: Mapping[str, Mapping[str, Judged]], most: int
) -> dict:
    systems = {}
    for name, of in judged.items():
        one = of[benchmark.name]
        if record.id not in one.accepted:
            systems[name] = {"not_applicable": len(record.responses)}
            continue
        plain, guided, kept = _verdict(record, one, most)
        samples = []
        for kind in ("greedy", "swapped", "sampled"):
            for row in _rows_of(record.id, one, kind, SAMPLES_SHOWN - len(samples)):
                shown = {name: row[name] for name in SHOWN if row.get(name) is not None} | {
                    "scores": row["scores"],
                    "kind": kind,
                }
                if row.get("pairs") and len(record.responses) > 2:
                    shown["pairs"] = [
                        {name: pair.get(name) for name in PAIR_SHOWN} for pair in row["pairs"]
                    ]
                if guided is not None and kind == "sampled":
                    shown["kept"] = row["sample"] in kept
                samples.append(shown)
        systems[name] = {"vote": plain, "meta": guided, "samples": samples}
    texts = {
        name: value
        for name, value in record_to_dict(record).items()
        if name in ("conversation", "responses", "reference")
    }
    return {
        "id": record.id,
        "benchmark": benchmark.name,
        "domain": record.domain,
        "rewards": list(record.rewards),
        "systems": systems,
        **texts,
    }


def _rows_of(item: str, one: Judged, kind: str, count: int) -> list[dict]:
    """The first `count` whole rows of the item, of the first seed."""
    if kind not in one.rows:
        return []
    rows = (one.rows[kind][0].get((item, sample)) for sample in range(count))
    return [read_line(one.paths[kind][0], row["offset"]) for row in rows if row is not None]
