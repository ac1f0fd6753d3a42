"""Puts measured lines into the tables of docs/performance.md, so that no figure is typed.

    python -m speed.tables [FILE.jsonl... | docs/performance.jsonl] [--page=docs/performance.md]

Lines are those of `speed.compare`, `speed.step` and `speed.gpu`, by default those that lie beside
the page; of a case that was measured several times the last counts. Between `<!-- table: NAME -->`
and `<!-- end -->` the page gets table NAME; what was never measured says so.
"""

import json
import pathlib
import re

from absl import app, flags

PAGE = flags.DEFINE_string("page", "docs/performance.md", "The page.")
NONE = "not measured yet"
SAMPLING = ("p512_k1", "p512_k8", "p512_k32", "p2048_k8", "queue")
TRAINING = ("sft", "grpo", "rl_real")


def read(paths) -> list[dict]:
    """Reads all lines of the files, in order."""
    texts = [pathlib.Path(path).read_text(encoding="utf-8") for path in paths]
    return [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]


def cell(value, digits=3) -> str:
    """Writes a number, to three digits; a missing one is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def spread(values) -> str:
    """Writes median and range of several values."""
    values = sorted(values or [])
    if not values:
        return "-"
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    if len(values) == 1:
        return cell(middle)
    return f"{cell(middle)} ({cell(values[0])} to {cell(values[-1])})"


def table(head, rows) -> str:
    """Writes a table of Markdown."""
    if not rows:
        return f"*{NONE}*"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def by_case(lines) -> dict[str, dict[str, dict]]:
    """{case: {contender: line}}, the last of each; "ratios" is the line of the case."""
    found: dict[str, dict[str, dict]] = {}
    for line in lines:
        if line.get("case") in (*SAMPLING, *TRAINING, "judge"):
            who = "ratios" if "times_as_fast_as" in line else line["contender"]
            # a run of the case begins with its first contender
            if who == "grm_jax":
                found[line["case"]] = {}
            found.setdefault(line["case"], {})[who] = line
    return found


def compared(lines, names, field, unit) -> str:
    """Rows of every contender: its figure, and how many times as fast we are."""
    found, rows = by_case(lines), []
    for name in names:
        of_case = found.get(name)
        if not of_case:
            rows.append([name, NONE, "", "", "", ""])
            continue
        ratios = of_case.get("ratios", {}).get("times_as_fast_as", {})
        for who, line in of_case.items():
            if who == "ratios":
                continue
            if "absent" in line:
                rows.append([name, who, "not installed", "", "", ""])
                continue
            ratio = spread(ratios.get(who, {}).get("all")) if who != "grm_jax" else ""
            rounds = line.get(f"{field}_rounds") or []
            more = [ratio, cell(line.get("peak_rss_gib")), len(rounds)]
            rows.append([name, who, spread(rounds), *more])
    head = ["case", "who", unit, "we are so many times as fast", "peak GiB", "rounds"]
    return table(head, rows)


def first_calls(lines) -> str:
    rows, found = [], by_case(lines)
    fields = "first_call_s second_process_first_call_s compile_s second_process_compile_s".split()
    for name in SAMPLING:
        for who in ("grm_jax", "before"):
            line = found.get(name, {}).get(who)
            if line and "first_call_s" in line:
                rows.append([name, who, *(cell(line.get(field)) for field in fields)])
    head = ["case", "who", "first call, s", "in a second process, s"]
    return table([*head, "more than a usual call, s", "in a second process, s"], rows)


def tokens(lines) -> str:
    """Computed and needed tokens of the lines of speed.step."""
    latest = {}
    for line in lines:
        if "needed_tokens" in line and "packed" in line and "time" not in line:
            latest[line["case"], line["packed"]] = line
    rows = []
    for (case, packed), line in sorted(latest.items()):
        computed, needed = line["computed_tokens"], line["needed_tokens"]
        ratio = f"{computed / needed:.3f}"
        rows.append([case, "packed" if packed else "padded", cell(computed), cell(needed), ratio])
    return table(["task", "rows", "computed", "needed", "computed / needed"], rows)


def judging(lines) -> str:
    rows = []
    for who, line in by_case(lines).get("judge", {}).items():
        if who == "ratios" or "absent" in line:
            continue
        prefill, decode = line["needed_prefill"], line["needed_decode"]
        rows.append(
            [
                who,
                spread(line["records_per_s_rounds"]),
                f"{cell(line['prefilled_tokens'])} / {cell(prefill)}",
                f"{cell(line['decoded_tokens'])} / {cell(decode)}",
                cell(line["peak_rss_gib"]),
            ]
        )
    ratios = by_case(lines).get("judge", {}).get("ratios", {}).get("times_as_fast_as", {})
    text = table(
        ["who", "records a second", "prefilled / needed", "decoded / needed", "peak GiB"], rows
    )
    for who, ratio in ratios.items():
        text += f"\n\n{spread(ratio['all'])} times as fast as {who}."
    return text


def gpu(lines) -> str:
    rows = []
    for line in lines:
        if str(line.get("case", "")).startswith("gpu "):
            rows.append(
                [line["case"][4:], line["device"], line["shape"], cell(line["seconds"])]
                + [cell(line.get("mfu")), cell(line.get("of_copy_bandwidth"))]
            )
    head = ["what", "device", "shape", "s", "share of the peak FLOP/s", "of the copy bandwidth"]
    return table(head, rows)


TABLES = {
    "sampling": lambda lines: compared(lines, SAMPLING, "tokens_per_s", "tokens/s"),
    "first calls": first_calls,
    "training": lambda lines: compared(lines, TRAINING, "seconds", "s a step"),
    "tokens": tokens,
    "judging": judging,
    "gpu": gpu,
}


def fill(page: str, lines: list[dict]) -> str:
    """Returns the page with its tables made anew.

    Raises ValueError for a table that there is none of.
    """

    def replace(match):
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n{TABLES[name](lines)}\n<!-- end -->"

    return re.sub(r"<!-- table: (.*?) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def main(argv):
    page = pathlib.Path(PAGE.value)
    files = argv[1:] or [page.with_suffix(".jsonl")]
    text = fill(page.read_text(encoding="utf-8"), read(files))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
