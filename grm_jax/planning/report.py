"""Prints a plan as tables: on the terminal with rich, and as markdown."""

from rich.console import Console
from rich.table import Table

from grm_jax.parallel.hardware import GIB

Cells = tuple[str, list[str], list[list[str]]]  # title, columns, rows

_PARTS = ("params", "optimizer", "kv cache", "batch", "temporaries", "code")


def tables(plan: dict) -> list[Cells]:
    """Makes the tables of a plan as experiments/plan.py writes it to plan.json."""
    made = [_memory(plan), _time(plan), _collectives(plan), _stages(plan)]
    made += [_drawn(plan)] if plan.get("drawn") else []
    made.append(_loads(plan))
    if plan["changes"]:
        made.append(_changes(plan))
    if plan["search"]:
        made.append(_search(plan))
    return [table for table in made if table[2]]


def markdown(plan: dict) -> str:
    """Writes all tables under one heading, with what was not counted."""
    lines = [f"## {plan['title']}", ""]
    for title, columns, rows in tables(plan):
        lines += [f"{title}.", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    lines += [f"- {note}" for note in notes(plan)]
    return "\n".join(lines) + "\n"


def show(plan: dict, console: Console) -> None:
    """Prints all tables and notes to a terminal."""
    console.rule(plan["title"])
    for title, columns, rows in tables(plan):
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes(plan):
        console.print(f"- {note}", highlight=False)


def notes(plan: dict) -> list[str]:
    """Lists what a reader must know: errors, what was not counted, what a figure leaves out."""
    found = []
    for name, figures in plan["programs"].items():
        found += [f"{name}: {figures['error']}"] if figures.get("error") else []
        found += [f"{name}: {what}" for what in figures.get("unknown", ())]
    for stage in [*plan["stages"], *plan.get("drawn", ())]:
        lacking = stage.get("lacking", ())
        left_out = [name for name in lacking if name not in plan["programs"]]
        untimed = [name for name in lacking if name in plan["programs"]]
        words = [f"{', '.join(left_out)} left out of --programs"] if left_out else []
        words += [f"{', '.join(untimed)} without a time (above)"] if untimed else []
        found += [f"{stage['stage'].strip()}: no time, {'; '.join(words)}"] if words else []
    if not plan["compiled"]:
        found.append(
            "Nothing was compiled: memory is that of arguments alone, HBM traffic reads parameters "
            "and optimizer state once, links are not counted, and a time is the larger of compute "
            "and that traffic: compiled programs take longer."
        )
    return found


def _memory(plan) -> Cells:
    columns = [
        "program",
        "fits",
        "compiles",
        "seconds to compile",
        "host GiB",
        *_PARTS,
        "peak + code",
        "beside it",
        "limit",
    ]
    rows = []
    for name, f in plan["programs"].items():
        memory = f.get("memory", {})
        peak = None if f.get("peak_bytes") is None else f["peak_bytes"] + f["code_bytes"]
        rows.append(
            [
                name,
                _word(f.get("fits")),
                _word(f.get("compiles")),
                _number(f.get("compile_seconds"), ".0f"),
                _gib(f.get("host_rss_bytes")),
                *(_gib(memory.get(part)) for part in _PARTS),
                _gib(peak),
                _gib(sum(f["resident"].values()) if "resident" in f else None),
                _gib(f.get("limit_bytes")),
            ]
        )
    return "Memory of one device in GiB", columns, rows


def _time(plan) -> Cells:
    columns = [
        "program",
        "tokens",
        "model PFLOP",
        "hardware PFLOP",
        "HBM GB",
        "links GB",
        "seconds of compute",
        "seconds of HBM",
        "seconds of links",
        "bound by",
        "tokens/s",
        "of peak",
    ]
    rows = []
    for name, f in plan["programs"].items():
        if "seconds" not in f:
            continue
        links = sum(one[3] for one in f["collectives"]) if "collectives" in f else None
        useful = f["model_flops"] / f["devices"] / f["seconds"] / plan["peak_per_device"]
        tokens_per_second = f["tokens"] / f["seconds"] * plan["devices"] / f["devices"]
        rows.append(
            [
                name,
                f"{f['tokens']:,}",
                _number(f["model_flops"] / 1e15),
                _number(f["hardware_flops"] / 1e15),
                _number(f["hbm_bytes"] / 1e9),
                _number(None if links is None else links / 1e9),
                *(_number(f["times"][k]) for k in ("compute", "hbm", "ici")),
                f["bound"],
                f"{tokens_per_second:,.0f}",
                f"{100 * useful:.0f} %",
            ]
        )
    return (
        (
            "One call: FLOPs on all devices, traffic of one, and the time at the peak of each "
            "resource"
        ),
        columns,
        rows,
    )


def _collectives(plan) -> Cells:
    rows = []
    for name, f in plan["programs"].items():
        for kind, axes, count, size in f.get("collectives", ()):
            if size >= 1e6:
                rows.append([name, kind, " x ".join(axes), f"{count:,.0f}", _number(size / 1e9)])
    return (
        ("Collectives of one call, those of 1 MB and more"),
        ["program", "kind", "mesh axes", "times", "GB a device"],
        rows,
    )


def _stages(plan) -> Cells:
    return _stage_table("The whole preset, at the widest shapes", plan["stages"])


def _drawn(plan) -> Cells:
    text = plan["lengths"]
    title = (
        f"The whole preset, at the lengths of {text['name']}: {text['records']:,} prompts of "
        f"{text['mean_prompt']:,.0f} tokens in the mean, completions of "
        f"{text['mean_completion']:,.0f}"
    )
    return _stage_table(title, plan["drawn"])


def _stage_table(title, stages) -> Cells:
    rows = [
        [
            _stage_name(s["stage"], stages[:i]),
            s["what"],
            _number(s["seconds"]),
            _number(s["per_day"], ",.0f"),
            _number(s["hours"]),
            _number(s["chip_hours"], ",.0f"),
        ]
        for i, s in enumerate(stages)
    ]
    columns = ["stage", "made of", "seconds a step", "steps/day", "hours", "chip-hours"]
    return title, columns, rows


def _stage_name(name: str, before: list[dict]) -> str:
    """A part, whose name is indented, has that of its stage in front; Markdown drops an indent."""
    if not name.startswith(" "):
        return name
    return f"{[s['stage'] for s in before if not s['stage'].startswith(' ')][-1]}: {name.strip()}"


def _loads(plan) -> Cells:
    loads = {f"{name}, widest": load for name, load in plan.get("widest_loads", {}).items()}
    loads |= plan.get("loads", {})
    rows = [
        [name, f"{load[0]:,.0f}", f"{load[1]:,.0f}", f"{load[0] / load[1]:.2f}"]
        for name, load in loads.items()
    ]
    return "Tokens of one batch, or one record", ["of", "computed", "needed", "ratio"], rows


def _changes(plan) -> Cells:
    rows = [
        [
            one["program"],
            one["change"],
            {True: "fits", None: "arguments fit", False: one["error"] or "does not fit"}[
                one["fits"]
            ],
            _gib(one["peak_bytes"]),
        ]
        for one in plan["changes"]
    ]
    return (
        ("Single changes tried for what does not fit"),
        ["program", "change", "result", "peak GiB"],
        rows,
    )


def _search(plan) -> Cells:
    rows = [
        [
            one["change"],
            _word(one["fits"]),
            _gib(one["peak_bytes"]),
            _number(one["seconds"]),
            one["bound"] or "-",
            _number(one["tokens_per_second"], ",.0f"),
            one["error"] or "",
        ]
        for one in plan["search"]
    ]
    return (
        (f"Search over {plan['searched']}"),
        ["mesh and micro-batch", "fits", "peak GiB", "seconds a step", "bound by", "tokens/s", ""],
        rows,
    )


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:.2f}"


def _number(value: float | None, form: str = ".3g") -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if form == ".3g" and abs(value) >= 999.5 else format(value, form)
