"""report.html: one self-contained page of a work folder, for a reader who has only the file. No
network, no server, no framework.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from markupsafe import Markup

from grm_jax.evaluation.results import FOCUS_K
from grm_jax.report import page, plots, report_data

REASONS = (
    "no_box",
    "empty_box",
    "wrong_count",
    "not_a_number",
    "not_an_integer",
    "out_of_range",
    "truncated",
)
STAGE_TITLES = {"rft": "Rejective fine-tuning (RFT)", "rl": "Online RL", "meta": "Meta RM"}


def write_report(workdir: str | os.PathLike) -> Path:
    """Writes <workdir>/report.html from what the folder holds and returns its path; a part whose
    data are absent says "not run".

    Raises ValueError (naming file and line) where a file is there but broken.
    """
    folder = Path(workdir)
    return page.write(folder / "report.html", render(folder))


def render(folder: Path) -> str:
    """The page as text."""
    results_path = folder / "results.json"
    results = json.loads(results_path.read_text(encoding="utf-8")) if results_path.is_file() else {}
    judgments = report_data.read_judgments(folder / "judgments")
    shown = report_data.examples(judgments, folder / "records")

    config = results.get("config") or {}
    notes = [*([config["note"]] if config.get("note") else []), *results.get("notes", [])]
    return page.render(
        "report.html.jinja",
        name=folder.resolve().name,
        seed=results.get("seed"),
        notes=notes,
        config=json.dumps(config, indent=2, ensure_ascii=False, default=str) if config else None,
        timings=_bars(results.get("timings_s") or {}),
        stages=_training(report_data.read_metrics(folder / "metrics.jsonl")),
        funnel={
            hinted: _bars(dict(counter.most_common()))
            for hinted, counter in sorted(judgments.funnel.items())
        },
        **_results(results),
        **_diagnostics(judgments, results),
        examples=shown,
        examples_json=page.script_json(shown["items"]),
    )


def _bars(values: dict[str, float]) -> dict:
    """{"total", "bars": [(name, value, share of the total, share of the largest)]}."""
    total, largest = sum(values.values()), max(values.values(), default=0)
    return {
        "total": total,
        "bars": [
            (name, value, value / total if total else 0, value / largest if largest else 0)
            for name, value in values.items()
        ],
    }


def _results(results: dict) -> dict:
    """Everything that is drawn from results.json alone."""
    rows = results.get("rows") or []
    splits = list(dict.fromkeys(row["split"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    sweep = results.get("k_meta_sweep") or []
    sweep_splits = [split for split in splits if any(row["split"] == split for row in sweep)]
    paired = results.get("paired") or []
    meta_gains = [
        row
        for row in paired
        if row["a"]["aggregation"] == "meta" and row["b"]["aggregation"] == "vote"
    ]
    return {
        "splits": splits,
        "systems": systems,
        "rows": rows,
        "items": {
            split: max(row["items"] for row in rows if row["split"] == split) for split in splits
        },
        "chance": {
            split: next(
                (row["chance"] for row in rows if row["split"] == split and "chance" in row), None
            )
            for split in splits
        },
        "headline": _headline(rows, splits, systems),
        "summary": _summary(rows, splits, systems),
        "claims": _by_claim([row for row in paired if row not in meta_gains]),
        "meta_gains": {
            (row["split"], row["a"]["system"], row["a"]["k"]): row for row in meta_gains
        },
        "meta_ks": sorted({row["a"]["k"] for row in meta_gains}),
        "auc": (results.get("meta_rm") or {}).get("auc") or [],
        "scaling_svg": Markup(plots.scaling_curves(rows, splits, systems)) if rows else None,
        "k_meta_svg": Markup(plots.k_meta_curves(sweep, sweep_splits, systems)) if sweep else None,
        "sweep_k": max((row["k"] for row in sweep), default=None),
    }


def _headline(rows: list[dict], splits: list[str], systems: list[str]) -> list[dict]:
    """[{"system", "label", "cells": {split: row}, "best": splits where no line is above it}] in
    reading order.
    """
    ks = sorted({row["k"] for row in rows if row["aggregation"] != "greedy"})
    wanted = [("greedy", 1), ("vote", 1)]
    for k in sorted({FOCUS_K if FOCUS_K in ks else ks[-1], ks[-1]} - {1}) if ks else []:
        wanted += [("vote", k), ("meta", k)]
    found = {(row["system"], row["aggregation"], row["k"], row["split"]): row for row in rows}
    lines = []
    for system in systems:
        for how, k in wanted:
            cells = {
                split: found[system, how, k, split]
                for split in splits
                if (system, how, k, split) in found
            }
            if cells:
                label = {"greedy": "greedy", "vote": f"vote @{k}", "meta": f"Meta RM @{k}"}[how]
                lines.append({"system": system, "label": label, "cells": cells})
    for split in splits:
        top = max(line["cells"][split]["accuracy"] for line in lines if split in line["cells"])
        for line in lines:
            line.setdefault("best", set())
            if split in line["cells"] and line["cells"][split]["accuracy"] == top:
                line["best"].add(split)
    return lines


def _summary(rows: list[dict], splits: list[str], systems: list[str]) -> list[dict]:
    """One tile per split: greedy through the stages, then the last system's best-known ways of
    voting.
    """
    tiles = []
    for split in splits:
        mine = [row for row in rows if row["split"] == split]
        steps = [
            (f"{row['system']} greedy", row["accuracy"])
            for system in systems
            for row in mine
            if row["system"] == system and row["aggregation"] == "greedy"
        ]
        for how, label in (("vote", "vote"), ("meta", "Meta RM")):
            voted = [
                row for row in mine if row["system"] == systems[-1] and row["aggregation"] == how
            ]
            if voted:
                most = max(voted, key=lambda row: row["k"])
                steps.append((f"{systems[-1]} {label} @{most['k']}", most["accuracy"]))
        tiles.append({"split": split, "steps": steps})
    return tiles


def _by_claim(paired: list[dict]) -> dict[str, dict[str, dict]]:
    """{claim: {split: row}} in order."""
    found: dict[str, dict[str, dict]] = {}
    for row in paired:
        found.setdefault(row["claim"], {})[row["split"]] = row
    return found


def _training(curves: dict) -> dict[str, dict]:
    """{stage: {"title", "steps", "named": svg or None, "other": svg or None, "others"}}; where a
    stage has no metrics "steps" is None.
    """
    found: dict[str, dict] = {}
    for stage in (*STAGE_TITLES, *(stage for stage in curves if stage not in STAGE_TITLES)):
        if not curves.get(stage):
            found[stage] = {"title": STAGE_TITLES[stage], "steps": None}
            continue
        named, other = plots.split_metrics(curves[stage])
        found[stage] = {
            "title": STAGE_TITLES.get(stage, stage),
            "steps": max(int(steps[-1]) for steps, _ in curves[stage].values()),
            "named": Markup(plots.training_curves(curves[stage], named, f"train-{stage}"))
            if named
            else None,
            "other": Markup(plots.training_curves(curves[stage], other, f"other-{stage}"))
            if other
            else None,
            "others": len(other),
        }
    return found


def _diagnostics(judgments: report_data.Judgments, results: dict) -> dict:
    """Domains, scores and failures, from the judgments."""
    where = list(judgments.pools)
    systems, splits = (list(dict.fromkeys(names)) for names in (zip(*where) if where else ((), ())))
    histograms = {
        place: report_data.score_histogram(kinds.get("sampled", kinds.get("greedy")))
        for place, kinds in judgments.pools.items()
    }
    ties = {
        (row["system"], row["split"], row["k"]): row
        for row in results.get("rows") or []
        if row["aggregation"] == "vote"
    }
    most = max((k for _, _, k in ties), default=None)
    failures = []
    for split in splits:
        for system in systems:
            counter = judgments.failures.get((system, split))
            if counter:
                failures.append(
                    {
                        "split": split,
                        "system": system,
                        "judgments": counter.total(),
                        "failed": counter.total() - counter[""],
                        "reasons": counter,
                        "one": ties.get((system, split, 1)),
                        "most": ties.get((system, split, most)),
                    }
                )
    seen = {reason for line in failures for reason in line["reasons"] if reason}
    return {
        "counts": judgments.counts,
        "failures": failures,
        "reasons": [reason for reason in REASONS if reason in seen] + sorted(seen - set(REASONS)),
        "most_k": most,
        "domains_svg": Markup(
            plots.domain_dots(report_data.by_domain(judgments.pools), splits, systems)
        )
        if where
        else None,
        "scores_svg": Markup(plots.score_histograms(histograms, splits, systems))
        if where
        else None,
    }
