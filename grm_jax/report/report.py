"""Writes report.html, the one self-contained page of an evaluation.

Tables, curves, and single items with every system's judgments to read; also of its training, where
a run has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from grm_jax.benchmarks import Benchmark
from grm_jax.evaluation.comparisons import without_judgments
from grm_jax.evaluation.differences import ALL_BENCHMARKS
from grm_jax.evaluation.figures import Judged
from grm_jax.judgment.voting import default_k_meta
from grm_jax.report import page, plots, training
from grm_jax.report.examples import examples
from grm_jax.report.headline import (
    LOW,
    absent_text,
    coverage_text,
    early_text,
    headline,
    is_low,
    low_places,
    low_systems,
    reasons_text,
    scalable_text,
    size_text,
    way_text,
    yes_no,
)


def write_report(
    workdir: Path,
    results: Mapping,
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    items: int,
) -> Path:
    """Writes <workdir>/report.html and returns its path.

    results: what results.json holds; of "config", "seed", "timings_s", "notes" and "funnel" any may
        be absent.
    items: at most so many of each benchmark can be read in the page.

    Training curves come from <workdir>/metrics.jsonl, if it is there.
    """
    workdir = Path(workdir)
    curves = training.read_curves(workdir / "metrics.jsonl")
    name = workdir.resolve().name
    gaps = training.read_gaps(workdir / "metrics.jsonl")
    text = render(name, results, benchmarks, judged, items, curves, gaps)
    return page.write(workdir / "report.html", text)


def render(
    name: str,
    results: Mapping,
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, Mapping[str, Judged]],
    items: int,
    curves: Mapping[str, training.Curves],
    gaps: Mapping[str, Mapping[str, int]] = {},
) -> str:
    """Renders the page as text.

    curves, gaps: as `training.read_curves` and `training.read_gaps` give them.
    """
    names, systems, most = [b.name for b in benchmarks], results["systems"], max(results["ks"])
    shown = examples(benchmarks, judged, most, items)
    lines = headline(results)
    cells = [row for line in lines for row in line["cells"].values()]
    return page.render(
        "report.html.jinja",
        name=name,
        names=names,
        systems=systems,
        most=most,
        # head, and how to read
        seed=results.get("seed"),
        notes=_notes(results),
        silent=without_judgments(results),
        about_systems=_about_systems(results),
        least=results["min_coverage"],
        low=LOW,
        # results
        benchmarks=results["benchmarks"],
        headline=lines,
        some_items=any(row["not_applicable"] for row in cells),
        some_coverage=any(row["coverage"] not in (1, None) for row in cells),
        some_early=any(map(early_text, cells)),
        figures=_figures(results, systems),
        rows=results["rows"],
        main=_main_rows(results),
        capabilities=_capabilities(results),
        **_comparisons(results, names, systems),
        domains=_domains(results, names, systems),
        diagnostics=results["diagnostics"],
        failures=_failures(results),
        meta_rm=results["meta_rm"],
        **_plots(results, names, systems),
        # the run
        stages=training.sections(curves, gaps),
        curve_words=training.words(curves),
        funnel=training.funnel(results.get("funnel") or {}),
        timings=training.bars(results.get("timings_s") or {}),
        config=json.dumps(results.get("config"), indent=2, ensure_ascii=False, default=str),
        # how figures are written
        way_text=way_text,
        absent_text=absent_text,
        coverage_text=coverage_text,
        early_text=early_text,
        reasons_text=reasons_text,
        is_low=is_low,
        # items to read
        examples=shown,
        examples_json=page.script_json(shown["items"]),
    )


TRAINED = {  # what a run trains, where its config names no systems of its own
    "base": "the model that training began with",
    "rft": "the model after rejective fine-tuning",
    "grm": "the model after rejective fine-tuning and RL",
    "bradley_terry": "a scalar model: it gives each response a number, trained on pairs",
    "pair_rm": "a scalar model that reads two responses at once, trained on pairs",
    "cloud": "a critic, and a scalar model that reads a response with its critique",
}


def _about_systems(results: Mapping) -> list[tuple[str, str]]:
    """Returns (system, what it is) of those that the config tells something of."""
    config = results.get("config") or {}
    if not config.get("systems"):
        return [(name, TRAINED[name]) for name in results["systems"] if name in TRAINED]
    about = {}
    for spec in config["systems"]:
        if isinstance(spec, Mapping) and spec.get("kind"):
            parts = [spec["kind"].replace("_", " "), spec.get("model"), spec.get("path")]
            about[spec.get("name")] = ", ".join(str(part) for part in parts if part)
    return [(name, about[name]) for name in results["systems"] if name in about]


def _notes(results: Mapping) -> list[str]:
    note = (results.get("config") or {}).get("note")
    return list(dict.fromkeys([*([note] if note else []), *(results.get("notes") or [])]))


def _plots(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> dict:
    """Returns {name of a plot: svg, or None where nothing is to be drawn}."""
    rows, most = results["rows"], max(results["ks"])
    votes = [
        row
        for row in rows
        if row["aggregation"] != "greedy"
        and row["k_meta"] in (None, default_k_meta(row["k"]))
        and row["value"] is not None
        and most > 1
    ]
    gold = [name for name in names if any(row["benchmark"] == name for row in votes)]
    sweep = [row for row in rows if row["aggregation"] == "meta" and row["k"] == most > 1]
    scores = {
        (row["system"], row["benchmark"]): row["scores"]
        for row in results["diagnostics"]
        if row["scores"] is not None
    }
    swept = [name for name in gold if any(row["benchmark"] == name for row in sweep)]
    dotted = [name for name in names if any(r["benchmark"] == name for r in results["domains"])]
    k_label = "Accuracy against the number of judgments voted"
    token_label = "Accuracy against generated tokens"
    drawn = {
        "k_svg": votes and gold and plots.curves(votes, gold, systems, "k", "curves-k", k_label),
        "token_svg": votes
        and gold
        and any(row["tokens_per_item"] for row in votes)
        and plots.curves(votes, gold, systems, "tokens_per_item", "curves-tokens", token_label),
        "k_meta_svg": swept and plots.k_meta_curves(sweep, swept, systems),
        "calibration_svg": results["calibration"]
        and plots.calibration(results["calibration"], names, systems),
        "domains_svg": dotted and plots.domain_dots(results["domains"], dotted, systems),
        "scores_svg": scores and plots.score_histograms(scores, names, systems),
    }
    return {name: Markup(text) if text else None for name, text in drawn.items()}


def _main_rows(results: Mapping) -> dict[tuple[str, str], dict]:
    """Returns {(system, benchmark): row} of the vote of the largest k.

    Of greedy where nothing is sampled.
    """
    return {
        (row["system"], row["benchmark"]): row
        for row in results["rows"]
        if (row["aggregation"], row["k"]) == ("vote", max(results["ks"]))
    }


def _capabilities(results: Mapping) -> list[dict]:
    low = low_systems(results)
    return [
        can
        | {
            "sizes": [size_text(can[size]) for size in ("one", "two", "many")],
            "flexible": yes_no(can["input_flexible"]),
            "scales": scalable_text(can, can["system"] in low),
        }
        for can in results["capabilities"]
    ]


def _comparisons(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> dict:
    """Returns differences between systems as matrices, and those of ways of one system as lines.

    Also how many there are, "compared", and of how many the interval leaves out 0, "apart". One
    with a side of low coverage is "low".
    """
    thin = low_places(results)
    flat = {row["system"] for row in results["rows"] if row["flat_by_construction"]}
    # a system that does not sample differs from itself by 0, by construction
    told = [
        row | {"low": any(_side(row, side) in thin for side in "ab")}
        for row in results["paired"]
        if row["a_system"] != row["b_system"] or row["a_system"] not in flat
    ]
    apart = [row for row in told if row["ci_low"] > 0 or row["ci_high"] < 0]
    return {
        "compared": len(told),
        "apart": len(apart),
        "matrices": _matrices([r for r in told if r["a_system"] != r["b_system"]], names, systems),
        "gains": _gains([r for r in told if r["a_system"] == r["b_system"]], names, systems),
    }


def _side(row: Mapping, side: str) -> tuple:
    names = ("system", "aggregation", "k", "k_meta")
    return (*(row[f"{side}_{name}"] for name in names), row["benchmark"])


def _matrices(rows: Sequence[Mapping], names: Sequence[str], systems: Sequence[str]) -> list[dict]:
    """Returns the differences as matrices, the mean over benchmarks first.

    [{"benchmark", "how", "systems", "cells": {(a, b): difference row, a less b}}]
    """
    of_place: dict[tuple, dict] = {}
    for row in rows:
        how = way_text(row["a_aggregation"], row["a_k"])
        cells = of_place.setdefault((row["benchmark"], how), {})
        cells[row["a_system"], row["b_system"]] = row
        cells[row["b_system"], row["a_system"]] = {
            **row,
            "difference": -row["difference"],
            "ci_low": -row["ci_high"],
            "ci_high": -row["ci_low"],
        }
    order = [ALL_BENCHMARKS, *names]
    places = sorted(
        of_place, key=lambda place: (order.index(place[0]), place[1] != "greedy", place[1])
    )
    return [
        {
            "benchmark": place[0],
            "how": place[1],
            "cells": of_place[place],
            "systems": [s for s in systems if any(s == a for a, _ in of_place[place])],
        }
        for place in places
    ]


def _gains(rows: Sequence[Mapping], names: Sequence[str], systems: Sequence[str]) -> dict:
    """Returns what k and the Meta RM add to a system.

    {"columns": benchmarks,
     "lines": [{"system", "label", "cells": {benchmark: difference row}}]}
    """
    of_line: dict[tuple, dict] = {}
    for row in rows:
        label = (
            f"{way_text(row['a_aggregation'], row['a_k'])} − "
            f"{way_text(row['b_aggregation'], row['b_k'])}"
        )
        of_line.setdefault((row["a_system"], label), {})[row["benchmark"]] = row
    columns = [
        name
        for name in (ALL_BENCHMARKS, *names)
        if any(name in cells for cells in of_line.values())
    ]
    return {
        "columns": columns,
        "lines": [
            {"system": system, "label": label, "cells": cells}
            for system in systems
            for (of, label), cells in of_line.items()
            if of == system
        ],
    }


def _domains(results: Mapping, names: Sequence[str], systems: Sequence[str]) -> dict[str, dict]:
    """Returns accuracy by domain, of the largest vote, or of greedy without one.

    {benchmark: {"domains", "systems",
                 "items": {domain: count},
                 "cells": {(domain, system): row}}}
    """
    tables = {}
    for benchmark in names:
        cells, items = {}, {}
        # greedy comes before the vote of the same system, which then replaces it
        for row in results["domains"]:
            if row["benchmark"] == benchmark and row["aggregation"] != "meta":
                cells[row["domain"], row["system"]] = row
                items[row["domain"]] = max(items.get(row["domain"], 0), row["items"])
        if cells:
            tables[benchmark] = {
                "domains": sorted(items),
                "items": items,
                "cells": cells,
                "systems": [s for s in systems if any(s == system for _, system in cells)],
            }
    return tables


def _figures(results: Mapping, systems: Sequence[str]) -> dict[str, dict]:
    """Returns what the benchmark itself reports.

    {benchmark: {"systems",
                 "lines": [(figure, credit)],
                 "cells": {(figure, credit, system): row}}}
    """
    tables: dict[str, dict] = {}
    for row in results["figures"]:
        if row["aggregation"] != "meta":
            table = tables.setdefault(row["benchmark"], {"lines": {}, "cells": {}})
            line = (row["figure"], row["credit"])
            table["lines"][line] = None
            table["cells"][*line, row["system"]] = row
    return {
        name: {
            "lines": list(table["lines"]),
            "cells": table["cells"],
            "systems": [s for s in systems if any(key[2] == s for key in table["cells"])],
        }
        for name, table in tables.items()
    }


def _failures(results: Mapping) -> dict:
    """Returns {"reasons", "lines"}: why judgments failed, and how often.

    reasons: their names, the most frequent first.
    lines: [diagnostics row with its failures].
    """
    totals: dict[str, int] = {}
    for row in results["diagnostics"]:
        for reason, count in row["failures"].items():
            totals[reason] = totals.get(reason, 0) + count
    return {
        "reasons": sorted(totals, key=lambda reason: (-totals[reason], reason)),
        "lines": [row for row in results["diagnostics"] if row["judgments"]],
    }
