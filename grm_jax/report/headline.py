"""Makes the headline of an evaluation, and its Markdown.

Its lines are a system and a way to judge with it, its columns benchmarks.
"""

import math
from collections.abc import Mapping, Sequence

from grm_jax.evaluation.differences import ALL_BENCHMARKS, FOCUS_K
from grm_jax.evaluation.figures import Way
from grm_jax.judgment.voting import default_k_meta

LOW = "⚠"


def headline(results: Mapping) -> list[dict]:
    """Returns the lines of the headline, in the order in which they are shown.

        [{"system", "label",
          "cells": {benchmark: row},
          "unparsed": share of judgments, or None,
          "best": benchmarks where the line has the highest figure}]

    Greedy, one sample, and the votes of 8 and of the largest k, plain and guided; a system that
    does not sample has one line. A figure is no "best" where its interval does not lie above
    chance, where its coverage is low, and where the judge is a random one.
    """
    most = max(results["ks"])
    focus = [k for k in dict.fromkeys((FOCUS_K, most)) if k in results["ks"] and k > 1]
    ways: list[Way] = [("greedy", 1, None), ("vote", 1, None)]
    for k in focus:
        ways += [("vote", k, None), ("meta", k, default_k_meta(k))]
    rows = [row for row in results["rows"] if not row["flat_by_construction"]]
    of_place: dict[tuple, dict] = {
        (row["system"], row["aggregation"], row["k"], row["k_meta"], row["benchmark"]): row
        for row in rows
    }
    names = [benchmark["name"] for benchmark in results["benchmarks"]]
    sampled = {row["system"] for row in rows if row["aggregation"] == "vote"}
    lines = []
    for system in results["systems"]:
        for way in ways:
            places = {name: (system, *way, name) for name in names}
            cells = {name: of_place[at] for name, at in places.items() if at in of_place}
            if cells:
                label = way_text(way[0], way[1]) if system in sampled else "one judgment"
                unparsed = _unparsed(results, cells)
                lines.append(
                    {
                        "system": system,
                        "label": label,
                        "cells": cells,
                        "unparsed": unparsed,
                        "best": set(),
                    }
                )
    _mark_best(results, lines)
    return lines


def _unparsed(results: Mapping, cells: Mapping[str, Mapping]) -> float | None:
    """Returns the share of judgments without scores, over the items of all benchmarks."""
    own = [b["name"] for b in results["benchmarks"] if b["parts"] is None and b["name"] in cells]
    known = [cells[name] for name in own if cells[name]["parse_failure_rate"] is not None]
    items = sum(row["items"] for row in known)
    return sum(row["items"] * row["parse_failure_rate"] for row in known) / items if items else None


def _mark_best(results: Mapping, lines: list[dict]) -> None:
    specs = [s for s in results.get("config", {}).get("systems", ()) if isinstance(s, Mapping)]
    random = {spec.get("name") for spec in specs if spec.get("kind") == "random"}
    for benchmark in results["benchmarks"]:
        name = benchmark["name"]
        eligible = [
            (line["cells"][name]["value"], line)
            for line in lines
            if name in line["cells"]
            and line["system"] not in random
            and above_chance(line["cells"][name])
            and not is_low(line["cells"][name], results["min_coverage"])
        ]
        top = max((value for value, _ in eligible), default=None)
        for value, line in eligible:
            if value == top:
                line["best"].add(name)


def above_chance(row: Mapping) -> bool:
    """Says whether the row's interval lies above what a guess gets."""
    low = row["ci_low"]
    if row["value"] is None or low is None:
        return False
    if row["ci_high"] - low < 1e-9:  # no resample differs: the exact bound for one that is right
        low *= 0.025 ** (1 / max(1, row["judged"]))  # on all items (Clopper and Pearson)
    return low > (row["chance"] or 0)


def is_low(row: Mapping, min_coverage: float) -> bool:
    """Says whether a figure rests on too few items, so that it carries a mark."""
    return row["coverage"] is not None and row["coverage"] < min_coverage


def low_places(results: Mapping) -> set[tuple]:
    """Finds (system, aggregation, k, k_meta, benchmark) of the figures that carry the mark."""
    names = ("system", "aggregation", "k", "k_meta", "benchmark")
    marked = (row for row in results["rows"] if is_low(row, results["min_coverage"]))
    return {tuple(row[name] for name in names) for row in marked}


def low_systems(results: Mapping) -> set[str]:
    """Finds systems whose vote of the largest k carries the mark, over all benchmarks together."""
    names = [b["name"] for b in results["benchmarks"]]
    whole = ALL_BENCHMARKS if ALL_BENCHMARKS in names else None
    return {
        system
        for system, kind, k, _, benchmark in low_places(results)
        if (kind, k) == ("vote", max(results["ks"])) and whole in (None, benchmark)
    }


def absent_text(row: Mapping | None) -> str:
    """Says why a cell has no figure."""
    if row is None:
        return "n/a"
    if row["judged"] == 0 and row["items"]:
        return "not judged"
    return (
        f"no gold, judged {row['judged']} of {row['items']}" if row["metric"] == "none" else "n/a"
    )


def coverage_text(row: Mapping) -> str:
    """Writes the coverage in percent, rounded down: what is not whole does not read 100 %."""
    return "n/a" if row["coverage"] is None else f"{math.floor(1000 * row['coverage']) / 10:g} %"


def early_text(row: Mapping) -> str:
    """Says how many judgments an item had on the mean, where it was left before it had k."""
    samples, k = row.get("samples_per_item"), row.get("k")
    if samples is None or samples >= k or row["flat_by_construction"]:
        return ""
    return f"{samples:.1f} judgments, {100 * (1 - samples / k):.0f} % saved"


def way_text(aggregation: str, k: int) -> str:
    """Names a way to judge, in tables."""
    return {"greedy": "greedy", "vote": f"vote @{k}", "meta": f"Meta RM @{k}"}[aggregation]


def cell_text(text: str) -> str:
    """Writes a name so that it stays text in a cell of a Markdown table."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")


def markdown(results: Mapping) -> str:
    """Writes the headline and the capabilities, in percent, as Markdown tables."""
    benchmarks = results["benchmarks"]
    least, thin = 100 * results["min_coverage"], low_systems(results)
    early = any(map(early_text, results["rows"]))
    lines = [
        "In %, with 95 % intervals by bootstrap over prompts. A tie of t responses that includes "
        "the best counts 1/t. @k: a vote of k judgments; Meta RM @k: of the half of them that it "
        "ranks highest. An item without any parsed judgment counts as a guess; the share of items "
        f"with one, the coverage, stands in a cell where it is not 100 %, with {LOW} below "
        f"{least:g} %. not judged: no judgment gave scores, so there is no figure. n/a: the system "
        "does not accept such items, or has no right or wrong answer there, or a first look is too "
        "small for the figure. unparsed: judgments "
        "without scores. Bold: the highest of those in its column whose interval lies above chance "
        f"and that have no {LOW}; the highest of many lines is in part luck, and no interval is "
        "corrected for multiple comparisons. no interval: the items share one prompt."
        + early
        * " saved: of k judgments an item, as it is left once its verdict stands.",
        *first_looks(benchmarks),
        "",
        "| system | judgment | "
        + " | ".join(cell_text(benchmark["name"]) for benchmark in benchmarks)
        + " | unparsed |",
        "|---" * (len(benchmarks) + 3) + "|",
    ]
    for line in headline(results):
        cells = [
            _cell(line["cells"].get(b["name"]), b["name"] in line["best"], results["min_coverage"])
            for b in benchmarks
        ]
        texts = [cell_text(line["system"]), line["label"], *cells, _percent(line["unparsed"], 2)]
        lines.append("| " + " | ".join(texts) + " |")
    chances = [_percent(b["chance"]) for b in benchmarks]
    lines.append("| chance | | " + " | ".join(chances) + " | |")
    lines += [
        "",
        "| system | n = 1 | n = 2 | n > 2 | input-flexible | scalable with k | gain of k, points |",
        "|---" * 7 + "|",
    ]
    for can in results["capabilities"]:
        sizes = [size_text(can[size]) for size in ("one", "two", "many")]
        gain = (
            "n/a"
            if can["gain"] is None
            else (
                f"{100 * can['gain']:+.1f} [{100 * can['gain_low']:+.1f}, "
                f"{100 * can['gain_high']:+.1f}]"
            )
        )
        flexible = yes_no(can["input_flexible"])
        scalable = scalable_text(can, can["system"] in thin)
        lines.append(
            "| " + " | ".join([cell_text(can["system"]), *sizes, flexible, scalable, gain]) + " |"
        )
    return "\n".join([*lines, ""])


def first_looks(benchmarks: Sequence[Mapping]) -> list[str]:
    """Says, as lines, which benchmarks are not whole, because their `limit` left items out."""
    parts = [
        f"{b['name']} {b['items']:,} of {b['items'] + left:,} items"
        + (
            " (too few for its figure: a part of it has no item)"
            if b.get("chance", 0) is None and b.get("metric") != "none"
            else ""
        )
        for b in benchmarks
        if (left := (b.get("counts") or {}).get("items left out by limit", 0))
    ]
    return ["", f"A first look, not the whole benchmark: {', '.join(parts)}."] if parts else []


def size_text(size: Mapping) -> str:
    """Says what a system did with items of one size."""
    if not size["items"]:
        return "not tried"
    return f"{size['verdicts']} of {size['items']}" if size["accepted"] else "does not accept"


REASONS = {  # what the names of failures mean, by how they begin
    "no_box": "no boxed scores, or no verdict",
    "only_reasoning": "a box in the reasoning before the answer alone",
    "empty_box": "an empty box",
    "wrong_count": "another number of scores than responses",
    "not_a_number": "a score that is no number",
    "not_an_integer": "a number that is no whole one",
    "out_of_range": "a score outside the range that was asked for",
    "not_a_letter": "a verdict that is neither a letter nor a tie",
    "truncated": "the limit of tokens was hit",
    "too_long": "the prompt does not fit",
    "request_failed": "no answer of the server, with its status or what went wrong",
    "refused": "a filter, or the model, declined",
    "pair_failed": "one of the pairs of a list failed",
}


def reasons_text(reasons: Sequence[str]) -> str:
    """Explains the names of failures that are shown; those of one's own stay without words."""
    of_begin = dict.fromkeys(reason.partition(":")[0] for reason in reasons)
    known = [f"{name.replace('_', ' ')}: {REASONS[name]}" for name in of_begin if name in REASONS]
    return "; ".join(known) + "." if known else ""


def yes_no(value: bool | None) -> str:
    """Gives a word for what was shown here, or not."""
    return "not shown here" if value is None else "yes" if value else "no"


def scalable_text(capability: Mapping, low: bool = False) -> str:
    """Says whether more samples helped here, by the interval of the gain.

    low: the coverage is, so that nothing is shown.
    """
    if not capability["sampled"]:
        return "no, flat by construction"
    if capability["gain"] is None:
        return "not shown here"
    if low:
        return f"not shown here {LOW} low coverage"
    return (
        "yes"
        if capability["scalable"]
        else "no, worse"
        if capability["gain_high"] < 0
        else "no, interval includes 0"
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def _cell(row: Mapping | None, best: bool, min_coverage: float) -> str:
    if row is None or row["value"] is None:
        return absent_text(row)
    value = f"**{_percent(row['value'])}**" if best else _percent(row["value"])
    notes = [f"{row['items']} items"] if row["not_applicable"] else []
    if row["coverage"] is not None and row["coverage"] < 1:
        mark = f" {LOW}" if is_low(row, min_coverage) else ""
        notes.append(f"coverage {coverage_text(row)}{mark}")
    notes += [text] if (text := early_text(row)) else []
    within = f"[{_percent(row['ci_low'])}, {_percent(row['ci_high'])}]"
    if row["ci_low"] is None:
        within = "[no interval]"
    return f"{value} {within}" + f" ({', '.join(notes)})" * bool(notes)
