"""Draws what became of a policy: gold against score, by best of n and step by step of RL."""

import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from grm_jax.report.plots import COLORS, STYLE

NAMES = {  # in the order of panels and rows
    "grm": "GRM",
    "grm_meta": "GRM + Meta RM",
    "trl": "GRM, by TRL",
    "base": "sloppy base as GRM",
    "bt": "Bradley-Terry",
    "bt_9000": "Bradley-Terry, 10x data",
}
COLUMNS = 3
WINDOW = 5  # steps that a curve is averaged over


def mean_and_error(values_SX: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over seeds, and its standard error; nan for a single seed."""
    x_SX = np.asarray(values_SX, float)
    seeds = len(x_SX)
    error = x_SX.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan * x_SX[0]
    return x_SX.mean(axis=0), error


def smooth(x_T: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Means of up to `window` steps around each."""
    x_T = np.asarray(x_T, float)
    half = window // 2
    return np.array([x_T[max(0, t - half) : t + half + 1].mean() for t in range(len(x_T))])


def in_order(names: Iterable[str]) -> list[str]:
    """Known names first, in the order of NAMES, then the others."""
    known = list(NAMES)
    return sorted(set(names), key=lambda x: (known.index(x) if x in known else len(known), x))


def arms_of(seeds: Sequence[Mapping]) -> list[str]:
    """RL runs that any seed has."""
    return in_order(arm for seed in seeds for arm in seed["rl"])


def draw_plot(found: Mapping, path: pathlib.Path) -> None:
    """A panel for the best of n by each judge, then one for each RL run, step by step: gold (solid)
    and score (dashed), the gap between them shaded; dotted, the best of n by the gold itself.
    """
    seeds = list(found["seeds"].values())
    best = [seed["best_of_n"] for seed in seeds]
    judges, arms = in_order(best[0]["judges"]), arms_of(seeds)
    rows = -(-(len(judges) + len(arms)) // COLUMNS)
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white", "svg.hashsalt": "policy"}):
        figure = Figure(figsize=(9, 2.3 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
        axes = list(grid.flat)
        for ax, judge in zip(axes, judges):
            ns, of_judge = best[0]["ns"], [one["judges"][judge] for one in best]
            oracle, _ = mean_and_error([one["oracle"] for one in best])
            ax.plot(ns, oracle, ":", color="#718096", label="best by gold")
            _pair(ax, ns, [x["gold"] for x in of_judge], [x["score"] for x in of_judge])
            ax.set_xscale("log", base=2)
            ax.set_xticks(ns, [str(n) for n in ns])
            ax.set(title=f"Best of n: {NAMES.get(judge, judge)}", xlabel="n")
        for ax, arm in zip(axes[len(judges) :], arms):
            steps = [seed["rl"][arm]["steps"] for seed in seeds if arm in seed["rl"]]
            gold, score = (
                [smooth([row[name] for row in rows]) for rows in steps]
                for name in ("gold", "reward")
            )
            _pair(ax, [row["step"] for row in steps[0]], gold, score)
            few = "" if len(steps) == len(seeds) else f" (seeds: {len(steps)})"
            ax.set(title=f"RL: {NAMES.get(arm, arm)}{few}", xlabel="step")
        for ax in axes[len(judges) + len(arms) :]:
            ax.remove()
        for row in grid:
            row[0].set(ylabel="share right", ylim=(0, 1.03))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    # two decimals of a point are enough
    short = re.sub(r"(\.\d\d)\d+", r"\1", text.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"^ +| +$", "", short, flags=re.MULTILINE), encoding="utf-8")


def _pair(ax, x, gold_SX: list, score_SX: list) -> None:
    """Gold and score against x, with bands of one standard error and the gap between them."""
    means = []
    for values_SX, label, color, style in (
        (gold_SX, "gold", COLORS[0], "-"),
        (score_SX, "judge's score", COLORS[1], "--"),
    ):
        mean, error = mean_and_error(values_SX)
        ax.plot(x, mean, style, color=color, label=label)
        ax.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        means.append(mean)
    ax.fill_between(x, *means, color="#718096", alpha=0.12, linewidth=0)
