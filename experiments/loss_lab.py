"""Draws the figures of docs/losses.md, and the table of a sweep over losses.

    python -m experiments.loss_lab --out=docs/losses_gradients.svg
    python -m experiments.loss_lab --out=docs/losses_curves.svg --sweep=runs/losses

The first is of the gradients of every loss in LOSSES, by jax.grad of the losses themselves. The
second is of the work folders of a sweep over rl.loss and seed, and prints its table as Markdown.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.policy.plot import mean_and_error
from grm_jax.losses import LOSSES, LossConfig, LossInputs
from grm_jax.report.plots import COLORS, INK, STYLE
from grm_jax.training.metrics import read_metrics

ADVANTAGES = {2.0: COLORS[0], 1.0: "#90b4d8", -1.0: "#e0a98f", -2.0: COLORS[1]}
RATIOS = (2.0**-2.5, 2.0**2.8)
GSPO_RATIOS = (1 - 8e-4, 1 + 8e-4)  # its bounds are three orders of magnitude nearer
LENGTHS, OTHER, MAX_LENGTH = range(1, 65), 32, 64
CURVES = {
    "reward/mean": "Reward",
    "kl": "KL to the reference",
    "entropy": "Entropy, nats",
    "completions/mean_length": "Tokens of a judgment",
}
LAST = 4  # batches of rollouts that a figure of the table is the mean of
COLUMNS = {  # metric: (its column, scale)
    "reward/mean": ("reward", 1),
    "kl": ("KL", 1),
    "entropy": ("entropy", 1),
    "completions/mean_length": ("tokens", 1),
    "clip_ratio/region": ("clipped, %", 100),
}
WAYS = {"greedy": "greedy, %", "vote": "sampled, %"}
DIGITS = {"reward": 3, "KL": 4, "entropy": 3, "tokens": 1, "clipped, %": 2}
DIGITS |= dict.fromkeys(WAYS.values(), 1)


def push(name: str, ratios: np.ndarray, advantage: float) -> np.ndarray:
    """Returns by how much a step raises log pi of a token, per unit of rate, at each ratio.

    It is minus the gradient of the loss, times what the loss divides by: each ratio is the only
    token of a completion of its own, so that is the number of ratios whatever the aggregation.
    """
    rows = len(ratios)
    zeros_BC = jnp.zeros((rows, 1))
    inputs = LossInputs(
        zeros_BC, zeros_BC, None, None, jnp.full(rows, advantage), jnp.ones((rows, 1))
    )
    cfg = LossConfig(beta=0.0, max_length=1)

    def loss(logp_BC):
        return LOSSES[name](inputs._replace(logp=logp_BC), cfg)[0]

    return (
        -rows * np.asarray(jax.grad(loss)(jnp.log(jnp.asarray(ratios, jnp.float32))[:, None]))[:, 0]
    )


def share(name: str, lengths: Sequence[int]) -> list[float]:
    """Returns the push on one token of a completion of each length, A = 1 and on-policy, in a batch
    of two whose other completion has OTHER tokens.
    """
    cfg = LossConfig(beta=0.0, max_length=MAX_LENGTH)

    def loss(logp_BC, mask_BC):
        inputs = LossInputs(logp_BC, jnp.zeros_like(logp_BC), None, None, jnp.ones(2), mask_BC)
        return LOSSES[name](inputs, cfg)[0]

    lengths_LB1 = jnp.array([[[length], [OTHER]] for length in lengths])
    mask_LBC = (jnp.arange(MAX_LENGTH) < lengths_LB1).astype(jnp.float32)
    grad_LBC = jax.vmap(jax.grad(loss))(jnp.zeros_like(mask_LBC), mask_LBC)
    return [-float(x) for x in grad_LBC[:, 0, 0]]


def gradients() -> Figure:
    """Draws a panel for each loss, and one of the weight of a token by the length of its text."""
    figure = Figure(figsize=(6.2, 8.8), layout="constrained", facecolor="white")
    panels = figure.subplots(-(-(len(LOSSES) + 1) // 2), 2, squeeze=False).ravel()
    for axes, name in zip(panels, LOSSES):
        near = name == "gspo"
        low, high = GSPO_RATIOS if near else RATIOS
        ratios = np.geomspace(low, high, 250)
        for advantage, color in ADVANTAGES.items():
            axes.plot(ratios, push(name, ratios, advantage), color=color, label=f"{advantage:+g}")
        axes.axvline(1.0, color=INK, linewidth=0.6, linestyle=(0, (1, 2)))
        axes.set_title("gspo (ratio of the sequence)" if near else name)
        if near:
            ticks = {1 - 3e-4: "1 - 3e-4", 1 + 4e-4: "1 + 4e-4"}
        else:
            axes.set_xscale("log")
            ticks = {0.25: "1/4", 0.5: "1/2", 1: "1", 2: "2", 5: "5"}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set(ylim=(-5.6, 5.6), yticks=(-5, -2, -1, 0, 1, 2, 5))
    figure.legend(
        *panels[0].get_legend_handles_labels(), title="advantage", loc="outside upper left", ncols=4
    )
    axes, of = panels[len(LOSSES)], collections.defaultdict(list)
    for name in LOSSES:
        of[tuple(np.round(share(name, LENGTHS), 6))].append(name)
    for shares, color in zip(of, COLORS[2:]):
        axes.plot(LENGTHS, shares, color=color, label=", ".join(of[shares]))
    axes.set(title="weight of a token, by length", yscale="log", xticks=(1, 16, 32, 48, 64))
    axes.set_yticks((0.01, 0.1), ("0.01", "0.1"))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    for axes in panels[len(LOSSES) + 1 :]:
        axes.set_axis_off()
    figure.supxlabel("pi / pi_old of the token; in the last panel: tokens", fontsize=9)
    figure.supylabel("push on log pi: minus the gradient", fontsize=9)
    return figure


def runs(folder: pathlib.Path) -> dict[str, list[dict]]:
    """Returns {loss: [{metrics: by name, accuracy: by way} of each seed]} of a sweep."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        config = results["config"]
        rows = [r for r in read_metrics(path.with_name("metrics.jsonl")) if r["stage"] == "rl"]
        ways = {
            row["aggregation"]: row
            for row in results["rows"]
            if (row["system"], row["k"]) == ("grm", 1)
        }
        run = {"seed": config["seed"], "rl": rows, "ways": ways}
        found.setdefault(config["rl"]["loss"], []).append(run)
    return {name: found[name] for name in LOSSES if name in found}


def figures(run: Mapping) -> dict[str, float]:
    """Returns the columns of a run: means of the last batches, and the accuracies behind them."""
    last = run["rl"][-LAST:]
    found = {
        title: scale * statistics.fmean(row[metric] for row in last)
        for metric, (title, scale) in COLUMNS.items()
        if metric in last[0]
    }
    return found | {title: 100 * run["ways"][way]["value"] for way, title in WAYS.items()}


def table(found: Mapping[str, Sequence[Mapping]], against: str | None = None) -> str:
    """Returns a line for each loss: means over seeds, each with its standard error over seeds.

    against: of the differences to this loss at the same seed, where both have a run of it.
    """
    titles = [title for title, _ in COLUMNS.values()] + list(WAYS.values())
    lines = ["| " + " | ".join(["loss", "seeds", *titles]) + " |", "|---" * (2 + len(titles)) + "|"]
    base = {run["seed"]: figures(run) for run in found.get(against or "", ())}
    for name, runs_of in found.items():
        by_seed = {run["seed"]: figures(run) for run in runs_of}
        if against is not None:
            if name == against:
                continue
            by_seed = {
                seed: {t: x - base[seed][t] for t, x in of.items() if t in base[seed]}
                for seed, of in by_seed.items()
                if seed in base
            }
        cells = [f"`{name}`", str(len(by_seed))]
        for title in titles:
            values = [of[title] for of in by_seed.values() if title in of]
            digits, sign = DIGITS[title], "+" if against is not None else ""
            if values:
                mean, error = mean_and_error(values)
                cells.append(f"{mean:{sign}.{digits}f} ± {error:.{digits}f}")
            else:
                cells.append("")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(found: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Draws reward, KL, entropy and length against batches of rollouts, means over seeds."""
    figure = Figure(figsize=(6.2, 5.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2).ravel()
    colors = dict(zip(LOSSES, (*COLORS[:6], *COLORS[8:])))
    for axes, (metric, title) in zip(panels, CURVES.items()):
        for name, seeds in found.items():
            of_seeds = [[row[metric] for row in run["rl"]] for run in seeds]
            mean = np.mean(of_seeds, axis=0)
            smooth = [mean[max(0, i - LAST + 1) : i + 1].mean() for i in range(len(mean))]
            axes.plot(range(1, len(mean) + 1), smooth, color=colors[name], label=name)
        axes.set_title(title)
        axes.set_xticks((1, *range(LAST, len(mean) + 1, LAST)))
    for axes in panels[2:]:
        axes.set_xlabel("batches of rollouts")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def save(figure: Figure, path: str) -> None:
    """Writes an SVG whose bytes depend on what is drawn alone."""
    metadata = {"Date": None, "Creator": None}
    figure.savefig(path, format="svg", metadata=metadata)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.loss_lab", description=__doc__)
    parser.add_argument("--out", required=True, help="the SVG to write")
    parser.add_argument("--sweep", help="work folder of a sweep over rl.loss and seed")
    options = parser.parse_args(arguments)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "losses", "axes.facecolor": "white"}):
        if options.sweep:
            found = runs(pathlib.Path(options.sweep))
            print(table(found), table(found, "grpo"), sep="\n\n")
            save(curves(found), options.out)
        else:
            save(gradients(), options.out)


if __name__ == "__main__":
    from experiments import ending
    from grm_jax import signals

    ending.install()
    with signals.ending():
        main(sys.argv[1:])
