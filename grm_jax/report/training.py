"""Reads what training left for the report.

Curves of metrics.jsonl, the funnel of rejective sampling, and times.
"""

from __future__ import annotations

import fnmatch
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


def read_gaps(path: Path) -> dict[str, dict[str, int]]:
    """Counts {stage: {metric: steps}} where a metrics.jsonl has a metric without a finite number.

    It is written as null, and no point of a curve. Returns {} without a file.
    """
    if not path.is_file():
        return {}
    gaps: dict[str, dict[str, set[int]]] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            of_metric = gaps.setdefault(row["stage"], {}).setdefault(name, set())
            if value is None or isinstance(value, float) and not np.isfinite(value):
                of_metric.add(row["step"])
            else:
                of_metric.discard(row["step"])
    return {
        stage: {name: len(steps) for name, steps in of_metric.items() if steps}
        for stage, of_metric in gaps.items()
    }


WORDS = {  # a metric by name or pattern: what it is
    "loss": "Mean over the batch of what is minimized.",
    "reward/mean": "Mean reward of the judgments sampled at the step: by the paper's rule +1 for a "
    "right one, -1 for any other, one that does not parse included.",
    "correct@1": "Share of right judgments: the best response alone on top.",
    "oracle@*": "Share of prompts with a right judgment among those sampled for it.",
    "kl": "Estimate of the divergence from the policy that RL began with, for each token.",
    "entropy": "Of the policy's next token, mean over tokens, in nats; near 0 it no longer varies.",
    "frac_reward_zero_std": "Share of prompts whose judgments all got one reward, and so teach "
    "nothing.",
    "parse_failure_rate": "Share of judgments without readable scores; by reason beside it, 0 at "
    "steps where a reason did not occur.",
    "tie_rate": "Share of judged lists whose highest score is shared.",
    "completions/clipped_ratio": "Share of judgments cut at the limit of tokens.",
    "clip_ratio/*": "Share of tokens whose probability ratio lies beyond the clipping range.",
    "ratio_max": "Largest ratio of a token's probability to that under which it was sampled.",
    "auc*": "Area under the ROC curve of the model's logit on held-out examples; 0.5 is chance.",
    "accuracy": "Share of held-out pairs that the model puts in the right order.",
    "grad_norm": "Norm of the gradient before clipping.",
    "score_share/*": "Share of each score among those given to lists.",
    "tokens_per_s": "Real tokens of the updates a second; computed_tokens_per_s with padding.",
    "seconds/*": "Seconds of a step by what the devices, else the host, were at; and compiling.",
    "mfu*": "Model FLOPs over what the chips could do in that time: of the whole step, and of its "
    "update (mfu_update). On CPU the peak is a measured matrix product.",
    "goodput": "Share of the stage's wall time so far, over all its starts, in rollouts, "
    "log-probabilities and updates that count.",
    "lag": "Steps by which the policy that drew the judgments is older than the one they train.",
    "importance_weight_*": "What the policy loss of a token is multiplied by, its probability "
    "before the update over that under which it was sampled, up to a cap; and the share of tokens "
    "that the cap cuts.",
    "sampling/*": "How far the trainer's log-probabilities are from the sampler's.",
}


def words(curves: Mapping[str, Curves]) -> list[tuple[str, str]]:
    """Returns (metric or pattern, what it is) of the known ones among the curves."""
    names = {name for of_metric in curves.values() for name in of_metric}
    return [(known, text) for known, text in WORDS.items() if fnmatch.filter(names, known)]


def sections(
    curves: Mapping[str, Curves], gaps: Mapping[str, Mapping[str, int]] = {}
) -> list[dict]:
    """Returns the sections of the stages, each with its curves.

    title, steps: of the stage.
    named, other: SVG of the panels with a title, and of one for each other metric; None for none.
    others: how many these are.
    gaps: in words, which metrics lack a value, and at how many steps.
    """
    shown = []
    for stage in sorted(curves, key=lambda s: (s not in STAGE_TITLES, [*STAGE_TITLES, s].index(s))):
        counts = [f"{name} at {n} step{'s' * (n != 1)}" for name, n in gaps.get(stage, {}).items()]
        if curves[stage] or counts:
            named, other = plots.split_metrics(curves[stage])
            draw = {"named": named, "other": other}
            shown.append(
                {
                    "title": STAGE_TITLES.get(stage, stage),
                    "steps": max((int(s[-1]) for s, _ in curves[stage].values()), default=0),
                    "others": len(other),
                    "gaps": ", ".join(counts[:8])
                    + f" and {len(counts) - 8} more" * (len(counts) > 8),
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
