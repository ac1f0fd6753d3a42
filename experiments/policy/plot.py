"""Draws what became of a policy: gold against score, by best of n and step by step of RL."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from grm_jax.report.plots import COLORS, STYLE

NAMES = {
    "base": "sloppy base as GRM",
    "grm": "GRM",
    "grm_meta": "GRM + Meta RM",
    "bt": "Bradley-Terry",
    "bt_9000": "Bradley-Terry, 10 x data",
    "trl": "GRM, by TRL",
}
WINDOW = 5  # steps that a curve is averaged over


def mean_and_error(values_SX: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds, and its standard error; 0 for a single seed."""
    x_SX = np.asarray(values_SX, float)
    seeds = len(x_SX)
    error = x_SX.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0 * x_SX[0]
    return x_SX.mean(axis=0), error


def smooth(x_T: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Means of up to `window` steps around each."""
    x_T = np.asarray(x_T, float)
    half = window // 2
    return np.array([x_T[max(0, t - half) : t + half + 1].mean() for t in range(len(x_T))])


def draw_plot(found: Mapping, path: pathlib.Path) -> None:
    """Above: gold (solid) and score (dashed) of the best of n, by judge; below: of each RL run,
    step by step, with the gap between them shaded.
    """
    seeds = list(found["seeds"].values())
    judges = list(seeds[0]["best_of_n"]["judges"])
    arms = [arm for arm in seeds[0]["rl"] if all(arm in seed["rl"] for seed in seeds)]
    columns = max(len(judges), len(arms), 1)
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
        figure = Figure(figsize=(2.9 * columns, 5.6), layout="constrained")
        axes = figure.subplots(2, columns, sharey=True, squeeze=False)
        best = [seed["best_of_n"] for seed in seeds]
        ns = best[0]["ns"]
        for ax, judge in zip(axes[0], judges):
            of_judge = [one["judges"][judge] for one in best]
            _pair(ax, ns, [x["gold"] for x in of_judge], [x["score"] for x in of_judge])
            ax.plot(ns, mean_and_error([one["oracle"] for one in best])[0], ":", color="#718096")
            ax.set_xscale("log", base=2)
            ax.set_xticks(ns, [str(n) for n in ns])
            ax.set(title=f"Best of n: {NAMES.get(judge, judge)}", xlabel="n")
        for ax, arm in zip(axes[1], arms):
            steps = [seed["rl"][arm]["steps"] for seed in seeds]
            gold, score = (
                [smooth([row[name] for row in rows]) for rows in steps]
                for name in ("gold", "reward")
            )
            _pair(ax, [row["step"] for row in steps[0]], gold, score)
            ax.set(title=f"RL: {NAMES.get(arm, arm)}", xlabel="step")
        for ax in [*axes[0][len(judges) :], *axes[1][len(arms) :]]:
            ax.remove()
        for row in axes:
            row[0].set_ylabel("share of right responses")
            row[0].set_ylim(0, 1.03)
        axes[0][0].legend(loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


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
