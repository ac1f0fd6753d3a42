"""Draws the plots of a report as inline SVG text.

k-curves, accuracy against tokens, k_meta, calibration of margins, domains, scores, training curves.
Each function takes plain data and returns one `<svg>` element.
"""

from __future__ import annotations

import fnmatch
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

INK, GRID, SOFT = "#2d3748", "#e2e8f0", "#718096"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#a0aec0",
    "axes.facecolor": "none",  # the page's shadow says that a plot goes on to the right
    "figure.facecolor": "none",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names come from data: a "$" is a dollar
}
BANDS = 8  # curves of a panel that have bands: more of them cover each other
COLORS = (
    "#2b6cb0",
    "#c2541b",
    "#2f855a",
    "#805ad5",
    "#b7791f",
    "#97266d",
    "#0987a0",
    "#4a5568",
    "#d53f8c",
    "#68a982",
)
MARKERS = "osDv^<>pP*Xh"
META_DASH, FLAT_DASH = (0, (4, 1.5)), (0, (1, 1.6))
# panels of the training curves in reading order, metrics by name or pattern; a metric no panel
# names gets one of its own, below
PANELS = {
    "Reward": ("reward/mean", "reward"),
    "Accuracy": ("accuracy", "correct@1", "oracle@*"),
    "Loss": ("loss",),
    "AUC": ("auc", "auc_within_item"),
    "KL to the reference": ("kl",),
    "Entropy": ("entropy",),
    "Tokens per completion": (
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
    ),
    "Groups without reward variance": ("frac_reward_zero_std",),
    "Parse failures, ties, truncation": (
        "parse_failure_rate",
        "tie_rate",
        "completions/clipped_ratio",
    ),
    "Parse failures by reason": ("parse_failure/*",),
    "Clipped tokens": ("clip_ratio/low", "clip_ratio/high", "clip_ratio/region"),
    "Largest probability ratio": ("ratio_max",),
    "Importance weights": ("importance_weight_mean", "importance_weight_max"),
    "Policy loss": ("policy_loss",),
    "Gradient norm": ("grad_norm",),
    "Learning rate": ("learning_rate",),
    "Tokens per second": ("tokens_per_s", "computed_tokens_per_s"),
    "Seconds of a step, by phase": ("seconds/*",),
    "Share of the peak FLOPs": ("mfu", "mfu_update"),
    "Share of wall time in useful steps": ("goodput",),
}


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns (color, marker) of each system; together they stay apart beyond the ten colors."""
    return {
        name: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }


def svg(figure: Figure, name: str, label: str) -> str:
    """Writes the figure as an `<svg>` element that scales with the page.

    Ids are unique per `name`; bytes depend on the data alone.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # texts are drawn by the reader's browser, in fonts of its own
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    width = float(re.search(r'<svg[^>]*? width="([\d.]+)pt"', text).group(1))
    return re.sub(
        r'<svg([^>]*?) width="[\d.]+pt"',
        rf'<svg\1 role="img" aria-label="{label}" '
        rf'style="width:100%;max-width:{width * 4 / 3:.0f}px;min-width:{width * 0.9:.0f}px"',
        re.sub(r' height="[\d.]+pt"', "", text, count=1),
        count=1,
    )


def grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list]:
    """Makes a figure with `panels` axes in rows of `columns`; sizes in inches per panel."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, list(axes[:panels])


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Writes the legend above the panels, in as many columns as the width has room for."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    room = int(figure.get_figwidth() / (0.6 + 0.075 * longest))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(1, min(6, room, len(handles)))
    )


def system_handles(systems: Sequence[str], shown: Iterable[str]) -> list[Line2D]:
    """Makes legend entries of those of the systems that are shown; looks are those among all."""
    shown = set(shown)
    return [
        Line2D([], [], color=color, marker=marker, linewidth=2.5, markersize=5, label=name)
        for name, (color, marker) in looks(systems).items()
        if name in shown
    ]


def percent_axis(axis: Axis) -> None:
    """Labels shares in percent, and nothing beyond 0 and 100 %."""
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{round(100 * v, 6):g} %" if -1e-9 <= v <= 1 + 1e-9 else "")
    )


def number_axis(axis: Axis, ticks: int) -> None:
    """Labels numbers with as many digits as tell them apart: no offset, no mathematics."""
    axis.set_major_locator(MaxNLocator(ticks))
    formatter = ScalarFormatter(useOffset=False, useMathText=False)
    formatter.set_powerlimits((-5, 6))
    axis.set_major_formatter(formatter)


def log_axis(axis: Axis, ticks: Sequence[float]) -> None:
    """Labels the ticks of a logarithmic axis with plain numbers, and no others."""
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(list(ticks), [f"{tick:,g}" if tick < 1e6 else f"{tick:.0e}" for tick in ticks])


def k_axis(axes: Axes, ks: Sequence[int], label: str) -> None:
    """Makes a logarithmic axis of votes with a tick at every k."""
    axes.set_xscale("log", base=2)
    log_axis(axes.xaxis, ks)
    axes.set_xlabel(label)


def log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers between two positive ones, at most 7.

    1, 2, 5 of a decade, fewer where the range is long, and evenly spaced ones where it is short.
    """
    low_end, high_end = low / 1.05, high * 1.05
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{part}e{e}") for e in decades for part in parts]
        ticks = [tick for tick in ticks if low_end <= tick <= high_end]
        if len(ticks) <= 7:
            break
    if len(ticks) < 2 and high > 1.01 * low:
        spaced = MaxNLocator(5, integer=high - low >= 3).tick_values(low, high)
        ticks = [float(f"{tick:.6g}") for tick in spaced if low_end <= tick <= high_end]
    return ticks[:: -(-len(ticks) // 7)] if ticks else [float(f"{low:.4g}")]


def curves(
    rows: list[dict],
    benchmarks: Sequence[str],
    systems: Sequence[str],
    x: str,
    name: str,
    label: str,
) -> str:
    """Plots the figure's value against `x`, a panel for each benchmark; bands are 95 % intervals.

    A panel of more than BANDS curves has none.

    x: "k" or "tokens_per_item".
    rows: of votes and, of guided votes, one for each k.

    A system that does not sample is a level line over k, one point over tokens, and left out of the
    latter where it generates nothing.
    """
    look = looks(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(benchmarks), 2, 5.6, 3.5)
        for panel, benchmark in zip(axes, benchmarks):
            mine = [r for r in rows if r["benchmark"] == benchmark and r["value"] is not None]
            drawn = []
            for system, aggregation in itertools.product(systems, ("vote", "meta")):
                key = (system, aggregation)
                chosen = [r for r in mine if (r["system"], r["aggregation"]) == key and r[x]]
                if chosen:
                    drawn.append((sorted(chosen, key=lambda row: row[x]), look[system]))
            for chosen, of_system in drawn:
                _curve(panel, chosen, x, of_system, band=len(drawn) <= BANDS)
            chance_line(panel, mine)
            area = bool(mine) and mine[0]["metric"] == "roc_auc"
            panel.set_title(benchmark + " (ROC area)" * area)
            percent_axis(panel.yaxis)
            if x == "k":
                k_axis(panel, sorted({row["k"] for row in mine} or {1}), "k, judgments voted")
            else:
                panel.set_xlabel("generated tokens for an item")
                if shown := [row[x] for row in mine if row[x]]:
                    panel.set_xscale("log")
                    log_axis(panel.xaxis, log_ticks(min(shown), max(shown)))
        kinds = {"flat" if row["flat_by_construction"] else row["aggregation"] for row in rows} - (
            set() if x == "k" else {"flat"}
        )
        named = {
            "vote": Line2D([], [], color=INK, label="vote"),
            "meta": Line2D([], [], color=INK, linestyle=META_DASH, label="Meta RM guided vote"),
            "flat": Line2D([], [], color=INK, linestyle=FLAT_DASH, label="flat by construction"),
        }
        handles = [handle for kind, handle in named.items() if kind in kinds]
        shown = {row["system"] for row in rows if row["value"] is not None and row[x]}
        legend(figure, system_handles(systems, shown) + handles)
        return svg(figure, name, label)


def _curve(
    panel, rows: Sequence[Mapping], x: str, look: tuple[str, str], band: bool = True
) -> None:
    color, marker = look
    xs, ys, low, high = (
        np.array([row[field] for row in rows], float) for field in (x, "value", "ci_low", "ci_high")
    )
    flat, meta = rows[0]["flat_by_construction"], rows[0]["aggregation"] == "meta"
    if band and not flat:
        panel.fill_between(xs, low, high, color=color, alpha=0.1, linewidth=0)
    panel.plot(
        xs,
        ys,
        color=color,
        marker="" if flat and x == "k" else marker,
        markersize=4.5,
        linestyle=FLAT_DASH if flat else META_DASH if meta else "-",
    )


def chance_line(panel: Axes, rows: Sequence[Mapping]) -> None:
    """Draws what a guess gets, where a row tells it."""
    chance = next((row["chance"] for row in rows if row["chance"] is not None), None)
    if chance is None:
        return
    panel.axhline(chance, color="#a0aec0", linewidth=1)
    panel.annotate(
        f"chance\n{100 * chance:.0f} %",
        (1, chance),  # beside the panel, where no curve runs
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=SOFT,
    )


def k_meta_curves(rows: list[dict], benchmarks: Sequence[str], systems: Sequence[str]) -> str:
    """Plots the guided vote of one k against k_meta, a panel for each benchmark."""
    look = looks(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(benchmarks), 4 if len(benchmarks) == 4 else 3, 3.0, 2.5)
        for panel, benchmark in zip(axes, benchmarks):
            mine = [r for r in rows if r["benchmark"] == benchmark and r["value"] is not None]
            for system in systems:
                chosen = [row for row in mine if row["system"] == system]
                if chosen:
                    chosen.sort(key=lambda row: row["k_meta"])
                    _curve(panel, chosen, "k_meta", look[system], band=len(systems) <= BANDS)
            panel.set_title(benchmark)
            percent_axis(panel.yaxis)
            kept = sorted({row["k_meta"] for row in mine} or {1})
            k_axis(panel, kept, "k_meta, judgments kept")
        legend(figure, system_handles(systems, [row["system"] for row in rows]))
        return svg(figure, "kmeta", "Accuracy of the guided vote against k_meta")


def calibration(rows: list[dict], benchmarks: Sequence[str], systems: Sequence[str]) -> str:
    """Plots accuracy against the margin of the verdict.

    A panel for each system, a line for each benchmark; bars are one standard error.
    """
    benchmarks = [name for name in benchmarks if any(row["benchmark"] == name for row in rows)]
    systems = [name for name in systems if any(row["system"] == name for row in rows)]
    look = looks(benchmarks)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(systems), 3, 3.8, 2.9)
        for panel, system in zip(axes, systems):
            for benchmark, (color, marker) in look.items():
                place = (system, benchmark)
                mine = [row for row in rows if (row["system"], row["benchmark"]) == place]
                if not mine:
                    continue
                xs, ys, errors = (
                    np.array([row[field] for row in mine], float)
                    for field in ("margin", "accuracy", "stderr")
                )
                style = {"color": color, "marker": marker, "markersize": 4, "elinewidth": 1}
                panel.errorbar(xs, ys, yerr=errors, **style)
            panel.set_title(system, fontsize=9)
            panel.set_ylim(-0.04, 1.06)
            percent_axis(panel.yaxis)
            number_axis(panel.xaxis, 5)
            panel.set_xlabel("margin for each judgment", fontsize=8)
            panel.tick_params(labelsize=8)
        legend(figure, system_handles(benchmarks, benchmarks))
        return svg(figure, "calibration", "Accuracy against the margin of the verdict")


def domain_dots(rows: list[dict], benchmarks: Sequence[str], systems: Sequence[str]) -> str:
    """Plots accuracy by domain, a panel for each benchmark.

    A filled dot for the vote of the largest k (bar: 95 % interval), a ring for greedy.
    """
    look = looks(systems)
    names = {b: sorted({r["domain"] for r in rows if r["benchmark"] == b}) for b in benchmarks}
    longest = max(len(names[benchmark]) for benchmark in benchmarks)
    step = 0.16 + 0.06 * len(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(benchmarks), 2, 5.6, max(1.7, 0.8 + step * longest))
        lowest = min((row["value"] for row in rows), default=0.0)
        for panel, benchmark in zip(axes, benchmarks):
            domains = names[benchmark]
            for y in range(0, len(domains), 2):
                panel.axhspan(y - 0.5, y + 0.5, color="#f4f6f9", linewidth=0, zorder=0)
            panel.grid(axis="y", visible=False)
            items = dict.fromkeys(domains, 0)
            for row in rows:
                if row["benchmark"] != benchmark or row["aggregation"] == "meta":
                    continue
                i, y = systems.index(row["system"]), domains.index(row["domain"])
                items[row["domain"]] = max(items[row["domain"]], row["items"])
                at = y + 0.7 * ((i + 0.5) / len(systems) - 0.5)
                color = look[row["system"]][0]
                if row["aggregation"] == "vote":
                    low, high = row["ci_low"], row["ci_high"]
                    known = low is not None
                    ends = np.array(
                        [[row["value"] - low], [high - row["value"]]] if known else [[0], [0]]
                    )
                    bars = {"xerr": np.maximum(ends, 0), "elinewidth": 1, "markersize": 4.5}
                    panel.errorbar(row["value"], at, fmt="o", color=color, **bars)
                else:
                    ring = {"markerfacecolor": "white", "markeredgewidth": 1.2, "markersize": 4.5}
                    panel.plot(row["value"], at, "o", color=color, **ring)
            labels = [f"{name or '(none)'} ({items[name]})" for name in domains]
            panel.set_yticks(range(len(domains)), labels)
            panel.set_ylim(len(domains) - 0.5, -0.5)
            panel.set_xlim(max(-0.02, np.floor(10 * lowest - 0.5) / 10), 1.02)
            percent_axis(panel.xaxis)
            panel.set_title(benchmark)
        handles = [
            Line2D([], [], color=look[system][0], linewidth=4, label=system)
            for system in systems
            if any(row["system"] == system for row in rows)
        ]
        dot: dict[str, Any] = {"color": INK, "marker": "o", "linestyle": ""}
        handles += [
            Line2D([], [], label="vote of the largest k", **dot),
            Line2D([], [], label="greedy", markerfacecolor="white", **dot),
        ]
        legend(figure, handles)
        return svg(figure, "domains-svg", "Accuracy by domain")


def score_histograms(
    counts: Mapping[tuple[str, str], Mapping[str, Mapping[str, int]]],
    benchmarks: Sequence[str],
    systems: Sequence[str],
) -> str:
    """Plots the share of each score, for the best response and for the others.

    A row per benchmark, a column per system.

    counts: {(system, benchmark): as diagnostics.score_counts}.
    """
    look = looks(systems)
    systems = [name for name in systems if any(system == name for system, _ in counts)]
    benchmarks = [name for name in benchmarks if any(of == name for _, of in counts)]
    with matplotlib.rc_context(STYLE):
        size = (3.7 * len(systems), 1.55 * len(benchmarks) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(benchmarks), len(systems), squeeze=False)
        for line, benchmark in zip(axes, benchmarks):
            for panel, system in zip(line, systems):
                sides = counts.get((system, benchmark))
                panel.set_title(f"{benchmark}, {system}", fontsize=9)
                panel.grid(axis="x", visible=False)
                if sides is None:
                    place = {"transform": panel.transAxes, "ha": "center", "color": SOFT}
                    panel.text(0.5, 0.5, "no whole scores", **place)
                    panel.set_axis_off()
                    continue
                given = sorted({int(score) for of in sides.values() for score in of})
                scores = np.arange(given[0], given[-1] + 1)
                fills = {"best": look[system][0], "others": "#cbd5e0"}
                for at, (side, fill) in zip((-0.2, 0.2), fills.items()):
                    numbers = np.array([sides.get(side, {}).get(str(s), 0) for s in scores])
                    share = numbers / max(1, numbers.sum())
                    panel.bar(scores + at, share, width=0.4, color=fill)
                panel.set_xticks(scores)
                percent_axis(panel.yaxis)
                panel.yaxis.set_major_locator(MaxNLocator(4))
                panel.tick_params(labelsize=8)
        return svg(figure, "scores-svg", "Histogram of scores")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the centered moving mean over about a tenth of the curve, shorter at its ends."""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    right = np.minimum(np.arange(len(values)) + half + 1, len(values))
    left = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[right] - sums[left]) / (right - left)


def split_metrics(of_metric: Mapping) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns (named panels, one panel for each other metric) that these curves fill.

    Each is {title: [metric]}.
    """
    named = {
        title: [name for pattern in patterns for name in fnmatch.filter(of_metric, pattern)]
        for title, patterns in PANELS.items()
    }
    taken = {name for names in named.values() for name in names}
    return {title: names for title, names in named.items() if names}, {
        name: [name] for name in of_metric if name not in taken
    }


def training_curves(
    of_metric: Mapping[str, tuple[np.ndarray, np.ndarray]],
    panels: Mapping[str, Sequence[str]],
    name: str,
) -> str:
    """Plots small multiples against the step: each value faint, their moving mean strong."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(panels), 4, 2.8, 1.95)
        for panel, (title, metrics) in zip(axes, panels.items()):
            groups = {metric.rpartition("/")[0] for metric in metrics}
            prefix = f"{groups.pop()}/" if len(metrics) > 1 and len(groups) == 1 else ""
            for metric, color in zip(metrics, itertools.cycle(COLORS)):
                steps, values = of_metric[metric]
                if len(values) > 20:
                    panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.9)
                    values = _smooth(values)
                marker = "o" if len(values) == 1 else None
                label = metric.removeprefix(prefix)
                panel.plot(steps, values, color=color, marker=marker, label=label)
            panel.set_title(title, fontsize=9)
            ends = {int(step) for metric in metrics for step in of_metric[metric][0]}
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(ends) == 1:  # a lone step, with room on both sides
                panel.set_xlim(min(ends) - 1, min(ends) + 1)
                panel.set_xticks([*ends])
            number_axis(panel.yaxis, 5)
            flat = {value for metric in metrics for value in of_metric[metric][1]}
            if max(flat) - min(flat) <= 1e-6 * abs(max(flat)):
                panel.set_ylim(sorted((0.0, 2 * max(flat) or 1.0)))
            panel.tick_params(labelsize=8)
            panel.yaxis.get_offset_text().set_fontsize(8)
            if len(metrics) > 1:  # above the curves
                low, high = panel.get_ylim()
                panel.set_ylim(low, high + 0.13 * len(metrics) * (high - low))
                look = {"fontsize": 7, "handlelength": 1.2, "borderpad": 0.1, "labelspacing": 0.2}
                panel.legend(loc="upper left", **look)
        return svg(figure, name, "Training curves against the step")
