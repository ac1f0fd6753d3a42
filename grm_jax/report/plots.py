"""The report's figures as inline SVG text. Each function takes plain data and returns one `<svg>`
element.
"""

from __future__ import annotations

import fnmatch
import io
import itertools
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

SYSTEM_COLORS = {"base": "#7f8894", "rft": "#2b6cb0", "grm": "#c2541b"}
MORE_COLORS = ("#2f855a", "#805ad5", "#b7791f", "#97266d", "#285e61")
INK, GRID = "#2d3748", "#e2e8f0"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#a0aec0",
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
CURVE_COLORS = (
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
    "Policy loss": ("policy_loss",),
    "Gradient norm": ("grad_norm",),
    "Learning rate": ("learning_rate",),
    "Tokens per second": ("tokens_per_s",),
}


def colors(systems: Sequence[str]) -> dict[str, str]:
    """A fixed color per known system; others take the next free one."""
    unknown = [system for system in systems if system not in SYSTEM_COLORS]
    return {
        **SYSTEM_COLORS,
        **{system: MORE_COLORS[i % len(MORE_COLORS)] for i, system in enumerate(unknown)},
    }


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element that scales with the page; ids are unique per `name`, bytes
    depend on the data alone.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
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
    """A figure with `panels` axes in rows of `columns`; sizes in inches per panel."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, list(axes[:panels])


def percent_axis(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g} %"))


def k_axis(axes, ks: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ks), [str(k) for k in ks])
    axes.set_xlabel(label)


def curve(axes, rows: list[dict], x: str, color: str, **style) -> None:
    """Accuracy against row[x] with a band of one standard error."""
    rows = sorted(rows, key=lambda row: row[x])
    xs, ys, errors = (
        np.array([row[name] for row in rows], float) for name in (x, "accuracy", "stderr")
    )
    axes.fill_between(xs, ys - errors, ys + errors, color=color, alpha=0.13, linewidth=0)
    axes.plot(xs, ys, color=color, markersize=4.5, **style)


def scaling_curves(rows: list[dict], splits: Sequence[str], systems: Sequence[str]) -> str:
    """Accuracy against k, one panel per split: votes, guided votes, greedy and chance."""
    color = colors(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(splits), 2, 5.6, 3.5)
        for panel, split in zip(axes, splits):
            mine = [row for row in rows if row["split"] == split]
            for system in systems:
                for aggregation, style in (
                    ("vote", {"marker": "o"}),
                    ("meta", {"marker": "^", "linestyle": (0, (4, 1.5))}),
                ):
                    chosen = [
                        row
                        for row in mine
                        if row["system"] == system and row["aggregation"] == aggregation
                    ]
                    if chosen:
                        curve(panel, chosen, "k", color[system], **style)
                for row in mine:
                    if row["system"] == system and row["aggregation"] == "greedy":
                        panel.axhline(
                            row["accuracy"],
                            color=color[system],
                            linestyle=(0, (1, 1.6)),
                            linewidth=1.4,
                        )
            chance = [row["chance"] for row in mine if row.get("chance") is not None]
            if chance:
                panel.axhline(chance[0], color="#a0aec0", linewidth=1)
                panel.annotate(
                    f"chance {100 * chance[0]:.0f} %",
                    (1, chance[0]),
                    xycoords=("axes fraction", "data"),
                    xytext=(-2, 2),
                    textcoords="offset points",
                    ha="right",
                    va="bottom",
                    fontsize=8,
                    color="#718096",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
                )
            panel.set_title(split)
            percent_axis(panel.yaxis)
            ks = sorted({row["k"] for row in mine if row["aggregation"] != "greedy"})
            if ks:
                k_axis(panel, ks, "k, judgments voted")
        shown = {row["aggregation"] for row in rows}
        kinds = {
            "vote": Line2D([], [], color=INK, marker="o", markersize=4.5, label="vote"),
            "meta": Line2D(
                [],
                [],
                color=INK,
                marker="^",
                markersize=4.5,
                linestyle=(0, (4, 1.5)),
                label="Meta RM guided vote",
            ),
            "greedy": Line2D(
                [],
                [],
                color=INK,
                linestyle=(0, (1, 1.6)),
                linewidth=1.4,
                label="greedy, one judgment",
            ),
        }
        handles = [
            Line2D([], [], color=color[system], linewidth=4, label=system) for system in systems
        ]
        handles += [handle for kind, handle in kinds.items() if kind in shown]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        return svg(figure, "scaling", "Accuracy against the number of judgments voted")


def k_meta_curves(sweep: list[dict], splits: Sequence[str], systems: Sequence[str]) -> str:
    """Accuracy of the guided vote at the largest k against k_meta."""
    color = colors(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(splits), 4, 2.8, 2.5)
        for panel, split in zip(axes, splits):
            for system in systems:
                chosen = [row for row in sweep if row["split"] == split and row["system"] == system]
                if chosen:
                    curve(panel, chosen, "k_meta", color[system], marker="^")
            panel.set_title(split)
            percent_axis(panel.yaxis)
            k_axis(
                panel,
                sorted({row["k_meta"] for row in sweep if row["split"] == split}),
                "k_meta, judgments kept",
            )
        figure.legend(
            handles=[
                Line2D([], [], color=color[system], linewidth=4, label=system) for system in systems
            ],
            loc="outside upper left",
            ncols=len(systems),
        )
        return svg(figure, "kmeta", "Accuracy of the guided vote against k_meta")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving mean over about a tenth of the curve, shorter at its ends."""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    right = np.minimum(np.arange(len(values)) + half + 1, len(values))
    left = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[right] - sums[left]) / (right - left)


def split_metrics(curves: dict) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(named panels, one panel for each other metric) that these curves fill: {title: [metric]}."""
    named = {
        title: [name for pattern in patterns for name in fnmatch.filter(curves, pattern)]
        for title, patterns in PANELS.items()
    }
    taken = {name for names in named.values() for name in names}
    return {title: names for title, names in named.items() if names}, {
        name: [name] for name in curves if name not in taken
    }


def training_curves(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], panels: dict[str, list[str]], name: str
) -> str:
    """Small multiples against the step: each value faint, their moving mean strong."""
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(panels), 4, 2.8, 1.95)
        for panel, (title, metrics) in zip(axes, panels.items()):
            for metric, color in zip(metrics, itertools.cycle(CURVE_COLORS)):
                steps, values = curves[metric]
                if len(values) > 20:
                    panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.9)
                    values = _smooth(values)
                panel.plot(
                    steps,
                    values,
                    color=color,
                    marker="o" if len(values) == 1 else None,
                    label=metric,
                )
            panel.set_title(title, fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            panel.yaxis.set_major_locator(MaxNLocator(5))
            panel.yaxis.set_major_formatter(
                FuncFormatter(
                    lambda value, _: (
                        f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 12):.3g}"
                    )
                )
            )
            flat = {value for metric in metrics for value in curves[metric][1]}
            if max(flat) - min(flat) < 1e-6 * abs(max(flat)):
                panel.set_ylim(sorted((0.0, 2 * max(flat))))
            panel.tick_params(labelsize=8)
            if len(metrics) > 1:
                panel.legend(fontsize=7, handlelength=1.2, borderpad=0.1, labelspacing=0.2)
        return svg(figure, name, "Training curves against the step")


def domain_dots(
    domains: dict[tuple[str, str], dict[str, dict]], splits: Sequence[str], systems: Sequence[str]
) -> str:
    """Accuracy by domain: a filled dot for the vote over the pool (bar: one standard error), a ring
    for greedy.
    """
    color = colors(systems)
    names = {
        split: sorted(
            {name for (_, where), cells in domains.items() if where == split for name in cells}
        )
        for split in splits
    }
    longest = max(len(names[split]) for split in splits)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(splits), 2, 5.6, 0.8 + 0.3 * longest)
        lowest = min(
            (
                cell[kind]
                for cells in domains.values()
                for cell in cells.values()
                for kind in ("greedy", "vote")
                if cell[kind] is not None
            ),
            default=0,
        )
        for panel, split in zip(axes, splits):
            for y in range(0, len(names[split]), 2):
                panel.axhspan(y - 0.5, y + 0.5, color="#f4f6f9", linewidth=0, zorder=0)
            panel.grid(axis="y", visible=False)
            for i, system in enumerate(systems):
                cells = domains.get((system, split), {})
                for y, name in enumerate(names[split]):
                    at = y + 0.2 * (i - (len(systems) - 1) / 2)
                    cell = cells.get(name)
                    if cell and cell["vote"] is not None:
                        panel.errorbar(
                            cell["vote"],
                            at,
                            xerr=cell["stderr"],
                            fmt="o",
                            color=color[system],
                            markersize=5,
                            elinewidth=1,
                        )
                    if cell and cell["greedy"] is not None:
                        panel.plot(
                            cell["greedy"],
                            at,
                            "o",
                            color=color[system],
                            markersize=5,
                            markerfacecolor="white",
                            markeredgewidth=1.2,
                        )
            items = {
                name: next(
                    cells[name]["items"]
                    for (_, where), cells in domains.items()
                    if where == split and name in cells
                )
                for name in names[split]
            }
            panel.set_yticks(
                range(len(names[split])),
                [f"{name or '(none)'} ({items[name]})" for name in names[split]],
            )
            panel.set_ylim(len(names[split]) - 0.5, -0.5)
            panel.set_xlim(max(-0.02, np.floor(10 * lowest - 0.5) / 10), 1.02)
            percent_axis(panel.xaxis)
            panel.set_title(split)
        handles = [
            Line2D([], [], color=color[system], linewidth=4, label=system) for system in systems
        ]
        handles += [
            Line2D([], [], color=INK, marker="o", linestyle="", label="vote over the whole pool"),
            Line2D(
                [], [], color=INK, marker="o", linestyle="", markerfacecolor="white", label="greedy"
            ),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        return svg(figure, "domains", "Accuracy by domain")


def score_histograms(
    histograms: dict[tuple[str, str], dict[str, np.ndarray]],
    splits: Sequence[str],
    systems: Sequence[str],
) -> str:
    """Share of each score, for the best response and for the others; a row per split, a column per
    system.
    """
    color = colors(systems)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(3.7 * len(systems), 1.55 * len(splits) + 0.3), layout="constrained"
        )
        axes = figure.subplots(len(splits), len(systems), squeeze=False)
        for line, split in zip(axes, splits):
            for panel, system in zip(line, systems):
                counts = histograms.get((system, split))
                panel.set_title(f"{split}, {system}", fontsize=9)
                panel.grid(axis="x", visible=False)
                if counts is None:
                    panel.text(
                        0.5, 0.5, "not run", transform=panel.transAxes, ha="center", color="#718096"
                    )
                    continue
                scores = np.arange(len(counts["best"]))
                keep = scores >= (0 if len(scores) <= 2 else 1)
                for side, (name, fill) in enumerate(
                    (("best", color[system]), ("others", "#cbd5e0"))
                ):
                    share = counts[name] / max(1, counts[name].sum())
                    panel.bar(scores[keep] + 0.4 * side - 0.2, share[keep], width=0.4, color=fill)
                panel.set_xticks(scores[keep])
                percent_axis(panel.yaxis)
                panel.yaxis.set_major_locator(MaxNLocator(4))
                panel.tick_params(labelsize=8)
        return svg(figure, "scores", "Histogram of scores")
