"""The paper in miniature, report: tables, plots and claims, from every seed to Markdown.

Read from the results.json of every seed. Values are percentages: mean over seeds, with the standard
error over seeds where there are two or more.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import scipy.stats

OVERALL = "overall"  # mean over the splits


class Estimate(NamedTuple):
    """Mean over seeds and its standard error (None with one seed), in points."""

    mean: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.stderr is None else f" ± {self.stderr:.1f}")


class Way(NamedTuple):
    """One way of judging with one system. aggregation: "greedy", "vote" or "meta"; k_meta only in
    the last.
    """

    system: str
    aggregation: str = "greedy"
    k: int = 1
    k_meta: int | None = None


class Tables(NamedTuple):
    """The rows of results.json by seed. `value(way, split)` has one share a seed, and is None where
    a seed lacks it.
    """

    seeds: tuple[dict, ...]  # {(*Way, benchmark): row} of each seed
    splits: tuple[str, ...]

    def field(self, way: Way, split: str, name: str = "value") -> list[float] | None:
        found = [rows.get((*way, split), {}).get(name) for rows in self.seeds]
        return None if None in found else found

    def value(self, way: Way, split: str) -> list[float] | None:
        if split != OVERALL:
            return self.field(way, split)
        parts = [self.field(way, one) for one in self.splits]
        return None if None in parts else [sum(values) / len(values) for values in zip(*parts)]


def make_tables(seeds: Sequence[Sequence[Mapping]], splits: Sequence[str]) -> Tables:
    keyed = (
        {(r["system"], r["aggregation"], r["k"], r["k_meta"], r["benchmark"]): r for r in rows}
        for rows in seeds
    )
    return Tables(tuple(keyed), tuple(splits))


def estimate(values: Sequence[float]) -> Estimate:
    mean, seeds = 100 * sum(values) / len(values), len(values)
    if seeds == 1:
        return Estimate(mean, None)
    return Estimate(
        mean, math.sqrt(sum((100 * v - mean) ** 2 for v in values) / (seeds - 1) / seeds)
    )


def table(
    tables: Tables, ways: Mapping[str, Way], splits: Sequence[str], field: str = "value"
) -> list[str]:
    """A Markdown table of a field: a row for each way, by its label; empty cells where a system has
    no figure.
    """
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for label, way in ways.items():
        cells = [
            tables.value(way, split) if field == "value" else tables.field(way, split, field)
            for split in splits
        ]
        if any(cell is not None for cell in cells):
            lines.append(
                f"| {label} | "
                + " | ".join("" if cell is None else str(estimate(cell)) for cell in cells)
                + " |"
            )
    return [*lines, ""]


class Claim(NamedTuple):
    """A statement of the paper as a difference that should be above 0, in shares by seed. None: not
    to be had here.
    """

    text: str
    place: str
    difference: list[float] | None


def critical(seeds: int) -> float:
    """Standard errors that a mean over seeds has to lie above 0: the 95 % quantile of Student's
    t.
    """
    return float(scipy.stats.t.ppf(0.95, seeds - 1))


def verdict(claim: Claim) -> str:
    """shows: above 0 by a one-sided t-test over seeds at 5 %; the opposite shows: below 0 by the
    same test; else not resolved.
    """
    if claim.difference is None:
        return "no figure here"
    found = estimate(claim.difference)
    if found.stderr is None:
        return "one seed: no standard error"
    if abs(found.mean) <= critical(len(claim.difference)) * found.stderr:
        return "not resolved"
    return "shows" if found.mean > 0 else "**the opposite shows**"


def gap(tables: Tables, a: Way, b: Way, split: str = OVERALL) -> list[float] | None:
    """Value of a less value of b, by seed; over the splits that both have where `split` is the
    overall mean.
    """
    splits = tables.splits if split == OVERALL else (split,)
    pairs = [(tables.value(a, one), tables.value(b, one)) for one in splits]
    gaps = [
        [x - y for x, y in zip(left, right)]
        for left, right in pairs
        if left is not None and right is not None
    ]
    return [sum(values) / len(values) for values in zip(*gaps)] if gaps else None


def minus(a: list[float] | None, b: list[float] | None) -> list[float] | None:
    return None if a is None or b is None else [x - y for x, y in zip(a, b)]


def claims(tables: Tables, ks: Sequence[int], widths: Sequence[int]) -> list[Claim]:
    """The paper's statements (METHOD numbers its tables), each as one difference. widths: of the
    models beside the shipped one, which is the largest.
    """
    most, focus = max(ks), 8 if 8 in ks else max(ks)
    small = f"width_{min(widths, default=0)}"
    grm, rft, base = Way("grm"), Way("rft"), Way("base")

    def vote(system: str, k: int) -> Way:
        return Way(system, "vote", k)

    def gain(system: str, k: int) -> list[float] | None:
        return gap(tables, vote(system, k), vote(system, 1))

    def drop(system: str) -> list[float] | None:
        return (
            minus(tables.value(Way(system), "test"), tables.value(Way(system), "heldout"))
            if "heldout" in tables.splits
            else None
        )

    def spread(system: str) -> list[float] | None:
        return tables.field(Way(system), "test", "domain_std")

    return [
        Claim("RFT is better than the base (greedy)", "Tab 2", gap(tables, rft, base)),
        Claim("RL adds to RFT (greedy)", "Tab 2, 4", gap(tables, grm, rft)),
        Claim(
            f"the GRM's vote of {focus} is better than one sample",
            "Tab 2",
            gap(tables, vote("grm", focus), vote("grm", 1)),
        ),
        Claim(
            f"the GRM's vote of {most} is better than that of {focus}",
            "Tab 2",
            gap(tables, vote("grm", most), vote("grm", focus)) if most > focus else None,
        ),
        Claim(
            f"the GRM's vote of {most} is better than greedy",
            "Tab 2",
            gap(tables, vote("grm", most), grm),
        ),
        Claim(
            f"the Meta RM adds to the vote of {most}",
            "Tab 2",
            gap(tables, Way("grm", "meta", most, max(1, most // 2)), vote("grm", most)),
        ),
        Claim(
            "a larger GRM is better (largest less smallest, greedy)",
            "Fig 4",
            gap(tables, grm, Way(small)),
        ),
        Claim(
            f"the smallest GRM's vote of {most} is better than the largest, greedy",
            "Fig 4",
            gap(tables, vote(small, most), grm),
        ),
        Claim("principles help (greedy)", "Tab 4", gap(tables, grm, Way("no_principles"))),
        Claim(
            "RL needs the rejective cold start (greedy)",
            "Tab 4",
            gap(tables, grm, Way("no_rejection")),
        ),
        Claim(
            "RL lifts a policy that saw general data alone (greedy)",
            "Tab 4",
            gap(tables, Way("no_rejection"), Way("rft_general_only")),
        ),
        Claim("RFT: hinted samples help (greedy)", "Tab 4", gap(tables, rft, Way("rft_no_hinted"))),
        Claim(
            "RFT: unhinted samples help (greedy)", "Tab 4", gap(tables, rft, Way("rft_no_unhinted"))
        ),
        Claim(
            "RFT: unhinted samples matter more than hinted ones (greedy)",
            "Tab 4",
            gap(tables, Way("rft_no_hinted"), Way("rft_no_unhinted")),
        ),
        Claim(
            "RFT: general instruction data help (greedy)",
            "Tab 4",
            gap(tables, rft, Way("rft_no_general")),
        ),
        Claim(
            f"the GRM gains more from k = {most} than CLoud",
            "Tab 2",
            minus(gain("grm", most), gain("cloud", most)),
        ),
        Claim(
            f"the GRM gains more from k = {focus} than LLM-as-a-Judge",
            "Tab 2",
            minus(gain("grm", focus), gain("llm_judge", focus)),
        ),
        Claim(
            "the GRM is less uneven over domains than the Bradley-Terry model (standard "
            "deviation, test)",
            "5.1",
            minus(spread("bradley_terry"), spread("grm")),
        ),
        Claim(
            "the GRM loses less than the Bradley-Terry model on families held out from all "
            "reward data",
            "the generalist's case",
            minus(drop("bradley_terry"), drop("grm")),
        ),
        Claim(
            "the GRM is better than the Bradley-Terry model on held-out families (greedy)",
            "the generalist's case",
            gap(tables, grm, Way("bradley_terry"), "heldout")
            if "heldout" in tables.splits
            else None,
        ),
    ]


def claims_table(found: Sequence[Claim]) -> list[str]:
    lines = [
        "| claim | in the paper | difference here, points | at this scale |",
        "|---|---|---|---|",
    ]
    for claim in found:
        figure = "" if claim.difference is None else str(estimate(claim.difference))
        lines.append(f"| {claim.text} | {claim.place} | {figure} | {verdict(claim)} |")
    return [*lines, ""]


def curves(
    path: pathlib.Path,
    lines: Mapping[str, Sequence[tuple[float, list[float] | None]]],
    xlabel: str,
    title: str,
    log: bool = True,
) -> None:
    """One plot of accuracy: {label: [(x, shares by seed)]}, with standard errors as bars."""
    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines.items():
        shown = [(x, estimate(values)) for x, values in points if values is not None]
        if shown:
            axes.errorbar(
                [x for x, _ in shown],
                [e.mean for _, e in shown],
                yerr=[e.stderr or 0.0 for _, e in shown],
                marker="o",
                markersize=4,
                capsize=2,
                label=label,
            )
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=xlabel, ylabel="accuracy, %", title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def k_curve(
    value: Callable[[Way], list[float] | None],
    system: str,
    ks: Sequence[int],
    aggregation: str = "vote",
) -> list[tuple[float, list[float] | None]]:
    """[(k, shares by seed)] of a system's vote, plain or guided with k_meta = max(1, k // 2)."""
    return [
        (k, value(Way(system, aggregation, k, max(1, k // 2) if aggregation == "meta" else None)))
        for k in ks
    ]
