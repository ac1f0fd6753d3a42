"""Figures of the comparison of systems, as inline SVG text: k-curves, accuracy against tokens,
calibration of margins.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from grm_jax.report.plots import CURVE_COLORS, INK, STYLE, grid, k_axis, percent_axis, svg

MARKERS = "osDv^<>pP*Xh"
META_DASH, FLAT_DASH = (0, (4, 1.5)), (0, (1, 1.6))


def looks(systems: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(color, marker) of each system; together they stay apart beyond the ten colors."""
    return {
        name: (CURVE_COLORS[i % len(CURVE_COLORS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(systems)
    }


def _legend(figure, systems, kinds) -> None:
    look = looks(systems)
    handles = [
        Line2D(
            [],
            [],
            color=look[name][0],
            marker=look[name][1],
            linewidth=2.5,
            markersize=5,
            label=name,
        )
        for name in systems
    ]
    named = {
        "vote": Line2D([], [], color=INK, label="vote"),
        "meta": Line2D([], [], color=INK, linestyle=META_DASH, label="Meta RM guided vote"),
        "flat": Line2D([], [], color=INK, linestyle=FLAT_DASH, label="flat by construction"),
    }
    handles += [handle for kind, handle in named.items() if kind in kinds]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))


def curves(
    rows: list[dict],
    benchmarks: Sequence[str],
    systems: Sequence[str],
    x: str,
    name: str,
    label: str,
) -> str:
    """The figure's value against `x`, "k" or "tokens_per_item", a panel for each benchmark; bands
    are 95 % intervals.

    rows: of votes and, of guided votes, one for each k. A system that does not sample is a level
    line over k, one point over tokens, and left out of the latter where it generates nothing.
    """
    look = looks(systems)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(benchmarks), 2, 5.6, 3.5)
        for panel, benchmark in zip(axes, benchmarks):
            mine = [
                row for row in rows if row["benchmark"] == benchmark and row["value"] is not None
            ]
            for system in systems:
                color, marker = look[system]
                for aggregation in ("vote", "meta"):
                    chosen = [
                        row
                        for row in mine
                        if (row["system"], row["aggregation"]) == (system, aggregation) and row[x]
                    ]
                    chosen.sort(key=lambda row: row[x])
                    if not chosen:
                        continue
                    xs, ys, low, high = (
                        np.array([row[field] for row in chosen], float)
                        for field in (x, "value", "ci_low", "ci_high")
                    )
                    flat = chosen[0]["flat_by_construction"]
                    if not flat:
                        panel.fill_between(xs, low, high, color=color, alpha=0.1, linewidth=0)
                    panel.plot(
                        xs,
                        ys,
                        color=color,
                        marker="" if flat and x == "k" else marker,
                        markersize=4.5,
                        linestyle=FLAT_DASH
                        if flat
                        else META_DASH
                        if aggregation == "meta"
                        else "-",
                    )
            chance = [row["chance"] for row in mine if row["chance"] is not None]
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
            panel.set_title(
                benchmark + (" (ROC area)" if mine and mine[0]["metric"] == "roc_auc" else "")
            )
            percent_axis(panel.yaxis)
            if x == "k":
                k_axis(panel, sorted({row["k"] for row in mine} or {1}), "k, judgments voted")
            else:
                panel.set_xlabel("generated tokens for an item")
                if any(row[x] for row in mine):
                    panel.set_xscale("log")
                    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        kinds = {"flat" if row["flat_by_construction"] else row["aggregation"] for row in rows} - (
            set() if x == "k" else {"flat"}
        )
        _legend(figure, systems, kinds)
        return svg(figure, name, label)


def calibration(rows: list[dict], benchmarks: Sequence[str], systems: Sequence[str]) -> str:
    """Accuracy against the margin of the verdict, a panel for each system, a line for each
    benchmark; numbers are items, bars one standard error.
    """
    benchmarks = [name for name in benchmarks if any(row["benchmark"] == name for row in rows)]
    systems = [name for name in systems if any(row["system"] == name for row in rows)]
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(systems), 3, 3.8, 2.9)
        for panel, system in zip(axes, systems):
            for i, benchmark in enumerate(benchmarks):
                mine = [
                    row for row in rows if (row["system"], row["benchmark"]) == (system, benchmark)
                ]
                if not mine:
                    continue
                color = CURVE_COLORS[i % len(CURVE_COLORS)]
                xs, ys, errors = (
                    np.array([row[field] for row in mine], float)
                    for field in ("margin", "accuracy", "stderr")
                )
                panel.errorbar(
                    xs,
                    ys,
                    yerr=errors,
                    color=color,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=4,
                    elinewidth=1,
                )
                for row in mine:
                    panel.annotate(
                        str(row["items"]),
                        (row["margin"], row["accuracy"]),
                        xytext=(0, 5),
                        textcoords="offset points",
                        ha="center",
                        fontsize=6.5,
                        color=color,
                    )
            panel.set_title(system, fontsize=9)
            panel.set_ylim(-0.04, 1.12)
            percent_axis(panel.yaxis)
            panel.set_xlabel("margin for each judgment", fontsize=8)
            panel.tick_params(labelsize=8)
        handles = [
            Line2D([], [], color=color, marker=marker, label=name)
            for name, (color, marker) in looks(benchmarks).items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))
        return svg(figure, "calibration", "Accuracy against the margin of the verdict")
