"""Shows the figures of several runs as Markdown tables and one plot.

They are means over seeds, a line for each setting, system and way to judge.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from grm_jax.judgment.voting import default_k_meta
from grm_jax.report.headline import LOW, cell_text, coverage_text, way_text
from grm_jax.report.plots import STYLE, chance_line, grid, k_axis, legend, looks, percent_axis


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Shortens dotted fields to their last part; all of it stays where two end alike."""
    ends = [field.rpartition(".")[2] for field in fields]
    return {f: end if ends.count(end) == 1 else f for f, end in zip(fields, ends)}


def setting_text(values: Mapping) -> str:
    """Writes a setting in words, "beta=0.02"; "" where nothing was swept."""
    names = short_names(list(values))
    return ", ".join(f"{names[field]}={value}" for field, value in values.items())


def markdown(merged: Mapping) -> str:
    """Writes the merged runs as Markdown tables by benchmark.

    Accuracies, paired differences, k_meta, the Meta RM's AUC, parse failures and ties.
    """
    counts = sorted({len(setting["runs"]) for setting in merged["settings"]})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"Mean over {seeds} seed{'s' if counts != [1] else ''}, ± standard error over seeds (in "
        "brackets: over items).",
        "",
        *_words(merged, counts[-1]),
    ]
    if not all(setting["same_items"] for setting in merged["settings"]):
        lines += ["Seeds judge items of their own: both errors hold what the items vary.", ""]
    rows = [row for row in merged["rows"] if not row["flat_by_construction"]]
    most = max((row["k"] for row in rows), default=1)
    half = [r for r in rows if r["k_meta"] in (None, default_k_meta(r["k"]))]
    sweep = [r for r in rows if r["aggregation"] == "meta" and r["k"] == most > 1]
    sweep.sort(key=lambda row: (merged["systems"].index(row["system"]), row["k_meta"]))
    ends = [
        r
        for r in rows
        if r["aggregation"] == "greedy"
        or (r["aggregation"], r["k"]) in (("vote", 1), ("vote", most))
    ]
    accuracy = _table(
        merged, "Accuracy", "accuracy, %", half, _way, lambda row: _covered(merged, row)
    )
    lines += [*accuracy[:-1], *_chance(merged, half), *accuracy[-1:]]
    # a system that does not sample differs from itself by 0, by construction
    flat = {row["system"] for row in merged["rows"] if row["flat_by_construction"]}
    told = [
        r for r in merged["paired"] if r["a_system"] != r["b_system"] or r["a_system"] not in flat
    ]
    told = [_later_first(row) for row in told]
    lines += _table(
        merged, "Paired differences", "paired difference, points", told, _claim, _figure
    )
    lines += _table(
        merged,
        "Guided votes by k_meta",
        f"guided vote of {most}, %",
        sweep,
        lambda row: (row["system"], f"k_meta = {row['k_meta']}"),
        _figure,
    )
    lines += _table(
        merged,
        "How well the Meta RM ranks",
        "AUC of the Meta RM, all (within an item)",
        merged["meta_rm"],
        lambda row: (row["system"], f"sampled, pool {row['pool']}"),
        lambda row: f"{_share(row['auc'])} ({_share(row['auc_within_item'])})",
    )
    for heading, title, name, digits in (
        ("Coverage", "coverage, % of items", "coverage", 1),
        ("Unparsed judgments", "unparsed, % of judgments", "parse_failure_rate", 2),
        ("Ties", "ties, % of verdicts", "tie_rate", 1),
    ):
        known = [row for row in ends if row[name] is not None]
        text = f"{{:.{digits}f}}"
        lines += _table(
            merged, heading, title, known, _way, lambda row, n=name, t=text: t.format(100 * row[n])
        )
    if any("n/a" in line for line in lines):
        lines[0] += " n/a: a run has no such figure."
    return "\n".join(["# Means over seeds", "", *lines])


def _words(merged: Mapping, seeds: int) -> list[str]:
    """Says what the words of the tables mean to a reader who has only them."""
    few = f" With {seeds} seeds it is itself a rough guess." if 1 < seeds < 5 else ""
    settings = len(merged["settings"])
    best = (
        f"the best of {settings} settings is so in part by luck"
        if settings > 1
        else ("the highest of many lines is so in part by luck")
    )
    return [
        "greedy: one judgment at temperature 0. vote @k: the scores of k sampled judgments are "
        "added up. Meta RM @k: a second model ranks the k judgments and the better half votes, or "
        "the k_meta best. A tie of t responses that includes the best counts 1/t. Coverage: the "
        "share of items with a judgment that gave scores, the others count as a guess; it stands "
        f"beside a figure where it is not 100 %, with {LOW} below "
        f"{100 * merged['min_coverage']:g} %. unparsed: judgments without scores. Paired "
        "difference: on the same items, the first less the second. AUC: how often the Meta RM "
        "ranks a right judgment above a wrong one; 0.5 is chance.",
        "",
        "The standard error over seeds is what another training seed changes, that over items what "
        f"other items would.{few} Nothing is corrected for multiple comparisons: {best}.",
        "",
    ]


def _covered(merged: Mapping, row: Mapping) -> str:
    """Writes a figure with its coverage, where some items had no judgment with scores."""
    share = row["coverage"]
    if row["mean"] is None and row["judged"] == 0 and row["items"]:
        return "not judged"
    if row["mean"] is None or share is None or share >= 1:
        return _figure(row)
    mark = f" {LOW}" if share < merged["min_coverage"] else ""
    return f"{_figure(row)}, coverage {coverage_text(row)}{mark}"


def _chance(merged: Mapping, rows: Sequence[Mapping]) -> list[str]:
    """Writes the line of what a guess gets; [] without a figure of it."""
    of_benchmark = {
        row["benchmark"]: row["chance"] for row in reversed(rows) if row["chance"] is not None
    }
    columns = [b for b in merged["benchmarks"] if any(row["benchmark"] == b for row in rows)]
    if not of_benchmark:
        return []
    cells = [f"{100 * of_benchmark[b]:.1f}" if b in of_benchmark else "n/a" for b in columns]
    return [
        "| " + " | ".join(["chance", "a guess", *([""] * bool(merged["swept"])), *cells]) + " |"
    ]


def _way(row: Mapping) -> tuple[str, str]:
    return row["system"], way_text(row["aggregation"], row["k"])


def _claim(row: Mapping) -> tuple[str, str]:
    a, b = (way_text(row[f"{side}_aggregation"], row[f"{side}_k"]) for side in "ab")
    if row["a_system"] == row["b_system"]:
        return row["a_system"], f"{a} − {b}"
    return f"{row['a_system']} − {row['b_system']}", a


def _later_first(row: Mapping) -> Mapping:
    """Turns the difference of two systems into the later less the earlier one.

    Later is meant in the order of systems: what a stage of training adds to the one before.
    """
    if row["a_system"] == row["b_system"] or row["mean"] is None:
        return row
    sides = {"a_system": row["b_system"], "b_system": row["a_system"]}
    return {**row, **sides, "mean": -row["mean"]}


def _table(
    merged: Mapping, heading: str, title: str, rows: Sequence[Mapping], label, cell
) -> list[str]:
    """Writes a heading and a table: a line for each label and setting, a column a benchmark.

    title: what the cells hold; it stands above the labels. Only benchmarks that have any of the
    rows; [] without rows.
    """
    if not rows:
        return []
    columns = [b for b in merged["benchmarks"] if any(row["benchmark"] == b for row in rows)]
    swept = bool(merged["swept"])
    head = ["system", title, *(["setting"] * swept), *map(cell_text, columns)]
    cells: dict[tuple, dict[str, dict[str, str]]] = {}  # the settings of a label side by side
    for row in rows:
        of_setting = cells.setdefault(label(row), {})
        of_setting.setdefault(setting_text(row["setting"]), {})[row["benchmark"]] = cell(row)
    lines = [f"## {heading}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for names, of_setting in cells.items():
        for setting, of_benchmark in of_setting.items():
            shown = [of_benchmark.get(benchmark, "") for benchmark in columns]
            told = [*names, *([setting] * swept)]
            lines.append("| " + " | ".join([*map(cell_text, told), *shown]) + " |")
    return [*lines, ""]


def _figure(row: Mapping) -> str:
    if row["mean"] is None:
        return "n/a"
    seeds = "" if row["seed_stderr"] is None else f" ± {100 * row['seed_stderr']:.1f}"
    items = "" if row["item_stderr"] is None else f" ({100 * row['item_stderr']:.1f})"
    return f"{round(100 * row['mean'], 1) + 0.0:.1f}{seeds}{items}"  # + 0.0: no -0.0


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def plot(merged: Mapping, path: pathlib.Path) -> None:
    """Writes a PNG, a panel for each benchmark: means with standard errors over seeds as bars.

    Against the settings, where there are several: of every system greedy and the vote of the
    largest k. Else against k: every system's votes, plain and guided.
    """
    rows = [row for row in merged["rows"] if row["mean"] is not None]
    names = [b for b in merged["benchmarks"] if any(row["benchmark"] == b for row in rows)]
    systems = [s for s in merged["systems"] if any(row["system"] == s for row in rows)]
    draw = _against_settings if len(merged["settings"]) > 1 else _against_k
    with matplotlib.rc_context(STYLE):
        figure, panels = grid(max(1, len(names)), 2, 5.6, 3.6)
        for panel, name in zip(panels, names):
            draw(panel, merged, [row for row in rows if row["benchmark"] == name], systems)
            chance_line(panel, [row for row in rows if row["benchmark"] == name])
            panel.set_title(name)
            panel.set_ylabel("accuracy, bars ± 1 SE over seeds", fontsize=8)
            percent_axis(panel.yaxis)
        handles = [
            Line2D([], [], color=color, marker=marker, label=system)
            for system, (color, marker) in looks(systems).items()
        ]
        legend(figure, handles + _kinds(merged, rows))
        figure.savefig(path, dpi=120, facecolor="white")


def _kinds(merged: Mapping, rows: Sequence[Mapping]) -> list[Line2D]:
    most = max((row["k"] for row in rows), default=1)
    styles: dict[str, Any] = {"vote": "-", "greedy": ":", "meta": "--"}
    texts = {"vote": f"vote @{most}", "greedy": "greedy", "meta": "Meta RM guided vote"}
    if len(merged["settings"]) > 1:
        shown = ("greedy", "vote")
    else:
        shown, texts["vote"] = ("vote", "meta"), "vote"
    there = {row["aggregation"] for row in rows if not row["flat_by_construction"]}
    return [
        Line2D([], [], color="#2d3748", linestyle=styles[kind], label=texts[kind])
        for kind in shown
        if kind in there
    ]


def _against_settings(panel, merged, rows, systems) -> None:
    settings = [setting["values"] for setting in merged["settings"]]
    most = max((row["k"] for row in rows), default=1)
    for i, (system, (color, marker)) in enumerate(looks(systems).items()):
        for way, style in ((("greedy", 1), ":"), (("vote", most), "-")):
            aside = 0.06 * (i - (len(systems) - 1) / 2) + 0.015 * (1 if style == "-" else -1)
            chosen = {
                settings.index(row["setting"]) + aside: row
                for row in rows
                if row["system"] == system and (row["aggregation"], row["k"]) == way
            }
            _bars(panel, sorted(chosen.items()), color, marker, style)
    names = [setting_text(values) for values in settings]
    turned = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 12 else {}
    panel.set_xticks(range(len(names)), names, **turned)
    panel.set_xlim(-0.4, len(names) - 0.6)


def _against_k(panel, merged, rows, systems) -> None:
    for system, (color, marker) in looks(systems).items():
        for kind, style in (("vote", "-"), ("meta", "--")):
            chosen = {
                row["k"]: row
                for row in rows
                if (row["system"], row["aggregation"]) == (system, kind)
                and row["k_meta"] in (None, default_k_meta(row["k"]))
            }
            _bars(panel, sorted(chosen.items()), color, marker, style)
    k_axis(panel, sorted({row["k"] for row in rows}), "k, judgments voted")


def _bars(panel, points: Sequence[tuple[float, Mapping]], color, marker, style) -> None:
    if points:
        xs = [x for x, _ in points]
        means = np.array([row["mean"] for _, row in points])
        errors = np.array([row["seed_stderr"] or 0.0 for _, row in points])
        look = {"color": color, "marker": marker, "linestyle": style, "markersize": 4}
        panel.errorbar(xs, means, yerr=errors, capsize=2, elinewidth=1, **look)
