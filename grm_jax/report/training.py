"""Reads what training left for the report.

Curves of metrics.jsonl, the funnel of rejective sampling, and times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup

from grm_jax.report import plots
from grm_jax.training.metrics import read_metrics

STAGE_TITLES = {
    "rft": "Rejective fine-tuning (RFT)",
    "rl": "Online RL",
    "meta": "Meta RM",
    "bradley_terry": "Bradley-Terry model",
    "pair_rm": "PairRM",
    "critic": "Critic of CLoud",
    "cloud": "CLoud",
}
# shares that a step writes only where they are not 0: {how they begin: how the metrics begin that
# stand at every step where such shares were counted}
SHARES = {"parse_failure/": "parse_failure_rate", "score_share/": "score_share/"}
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(path: Path) -> dict[str, Curves]:
    """Reads {stage: {metric: (steps, values)}} of every finite number in a metrics.jsonl.

    Returns {} without one. A step written again after a resume counts once, the later row. A share
    that a step did not write because nothing of its kind occurred is 0 there (SHARES).
    """
    if not path.is_file():
        return {}
    stages: dict[str, dict[int, dict]] = {}
    for row in read_metrics(path):
        stages.setdefault(row["stage"], {}).setdefault(row["step"], {}).update(row)
    return {stage: _curves(rows) for stage, rows in stages.items()}


def _curves(rows: Mapping[int, Mapping]) -> Curves:
    names = dict.fromkeys(name for step in sorted(rows) for name in rows[step])
    curves = {}
    for name in names:
        if name in ("stage", "step", "time_s"):
            continue
        counted = next((mark for prefix, mark in SHARES.items() if name.startswith(prefix)), None)
        points = []
        for step in sorted(rows):
            row = rows[step]
            absent = counted is not None and any(other.startswith(counted) for other in row)
            value = row.get(name, 0.0 if absent else None)
            if isinstance(value, (int, float)) and np.isfinite(value):
                points.append((step, float(value)))
        if points:
            steps, values = zip(*points)
            curves[name] = (np.array(steps), np.array(values))
    return curves


def sections(curves: Mapping[str, Curves]) -> list[dict]:
    """Returns the sections of the stages, each with its curves.

    [{"title", "steps", "named": svg or None, "other": svg or None, "others"}]
    """
    shown = []
    for stage in sorted(curves, key=lambda s: (s not in STAGE_TITLES, [*STAGE_TITLES, s].index(s))):
        if curves[stage]:
            named, other = plots.split_metrics(curves[stage])
            draw = {"named": named, "other": other}
            shown.append(
                {
                    "title": STAGE_TITLES.get(stage, stage),
                    "steps": max(int(steps[-1]) for steps, _ in curves[stage].values()),
                    "others": len(other),
                }
                | {
                    kind: Markup(plots.training_curves(curves[stage], panels, f"{kind}-{stage}"))
                    if panels
                    else None
                    for kind, panels in draw.items()
                }
            )
    return shown


def bars(values: Mapping[str, float]) -> dict:
    """Returns {"total", "bars": [(name, value, share of the total, share of the largest)]}."""
    total, largest = sum(values.values()), max(values.values(), default=0)
    return {
        "total": total,
        "bars": [
            (name, value, value / total if total else 0, value / largest if largest else 0)
            for name, value in values.items()
        ],
    }


def funnel(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict]:
    """Makes `bars` of what became of each trajectory, by kind, the most frequent reason first."""
    return {
        kind: bars(dict(sorted(of.items(), key=lambda pair: -pair[1])))
        for kind, of in sorted(counts.items(), reverse=True)
        if of
    }
