"""The headline of a comparison: lines of a system and a way to judge with it, columns of
benchmarks; and its Markdown.
"""

from collections.abc import Mapping

from grm_jax.evaluation.results import FOCUS_K
from grm_jax.judgment.voting import default_k_meta


def headline(results: Mapping) -> list[dict]:
    """[{"system", "label", "flat", "cells": {benchmark: row}, "mean": float or None, "best":
    benchmarks where no line is above it}].

    Greedy, one sample, and the votes of 8 and of the largest k, plain and guided; a system that
    does not sample has one line. "mean" is over the benchmarks, where the line has them all.
    """
    most = max(results["ks"])
    focus = [k for k in dict.fromkeys((FOCUS_K, most)) if k in results["ks"] and k > 1]
    ways = [("greedy", 1, None), ("vote", 1, None)] + [
        way for k in focus for way in (("vote", k, None), ("meta", k, default_k_meta(k)))
    ]
    rows = [row for row in results["rows"] if not row["flat_by_construction"]]
    found = {
        (row["system"], row["aggregation"], row["k"], row["k_meta"], row["benchmark"]): row
        for row in rows
    }
    names = [benchmark["name"] for benchmark in results["benchmarks"]]
    sampled = {row["system"] for row in rows if row["aggregation"] == "vote"}
    lines = []
    for system in results["systems"]:
        for aggregation, k, k_meta in ways:
            cells = {
                name: found[system, aggregation, k, k_meta, name]
                for name in names
                if (system, aggregation, k, k_meta, name) in found
            }
            if cells:
                label = way_text(aggregation, k) if system in sampled else ""
                values = [cell["value"] for cell in cells.values()]
                mean = (
                    sum(values) / len(values)
                    if len(values) == len(names) and None not in values
                    else None
                )
                lines.append(
                    {"system": system, "label": label, "cells": cells, "mean": mean, "best": set()}
                )
    for name in names:
        values = [
            line["cells"][name]["value"]
            for line in lines
            if name in line["cells"] and line["cells"][name]["value"] is not None
        ]
        for line in lines:
            if values and line["cells"].get(name, {}).get("value") == max(values):
                line["best"].add(name)
    return lines


def way_text(aggregation: str, k: int) -> str:
    return {"greedy": "greedy", "vote": f"vote @{k}", "meta": f"Meta RM @{k}"}[aggregation]


def markdown(results: Mapping) -> str:
    """The headline and the capabilities, in percent, as Markdown tables."""
    names = [benchmark["name"] for benchmark in results["benchmarks"]]
    lines = [
        "95 % intervals by bootstrap over prompts; a tie of t that includes the best response "
        "counts 1/t.",
        "",
    ]
    lines += [
        "| system | judgment | " + " | ".join(names) + " | mean |",
        "|---" * (len(names) + 3) + "|",
    ]
    for line in headline(results):
        cells = [_cell(line["cells"].get(name)) for name in names]
        lines.append(
            f"| {line['system']} | "
            f"{line['label']} | " + " | ".join(cells) + f" | {_percent(line['mean'])} |"
        )
    lines += [
        "",
        "| system | n = 1 | n = 2 | n > 2 | input-flexible | scalable with k | gain of k, points |",
        "|---" * 7 + "|",
    ]
    for one in results["capabilities"]:
        sizes = [size_text(one[size]) for size in ("one", "two", "many")]
        gain = (
            "–"
            if one["gain"] is None
            else (
                f"{100 * one['gain']:+.1f} [{100 * one['gain_low']:+.1f}, "
                f"{100 * one['gain_high']:+.1f}]"
            )
        )
        lines.append(
            "| "
            + " | ".join(
                [one["system"], *sizes, yes_no(one["input_flexible"]), scalable_text(one), gain]
            )
            + " |"
        )
    return "\n".join([*lines, ""])


def size_text(size: Mapping) -> str:
    """What a system did with items of one size."""
    if not size["items"]:
        return "not tried"
    return f"{size['verdicts']} of {size['items']}" if size["accepted"] else "does not accept"


def yes_no(value: bool | None) -> str:
    return "not shown here" if value is None else "yes" if value else "no"


def scalable_text(one: Mapping) -> str:
    """Whether more samples helped here, by the interval of the gain."""
    if not one["sampled"]:
        return "no, flat by construction"
    if one["gain"] is None:
        return "not shown here"
    return (
        "yes"
        if one["scalable"]
        else "no, worse"
        if one["gain_high"] < 0
        else "no, interval includes 0"
    )


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _cell(row: Mapping | None) -> str:
    if row is None or row["value"] is None:
        return "n/a"
    items = f" ({row['items']} items)" if row["not_applicable"] else ""
    return (
        f"{_percent(row['value'])} [{_percent(row['ci_low'])}, {_percent(row['ci_high'])}]{items}"
    )
