"""Judges as numbers for one response: what share of a GRM's judgments calls it right, and what a
scalar model says.

A judge here is `f(prompts, texts, seed) -> {name: numbers}`, NaN where it gave none.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

import grm_jax
from grm_jax.verdict import Judgment
from grm_jax.whole_files import write_json

Scores = dict[str, list[float]]
Scorer = Callable[[Sequence[str], Sequence[str], int], Scores]


def generative(name: str, k: int) -> Scorer:
    """Share of k judgments that call the response right: 0 to 1, the scale of the gold.

    name: "grm", the GRM in the package; "grm_meta", that and also the share of the half that its
    Meta RM keeps; "base", the sloppy judge that it was trained from.
    """
    judge = _judge(name)

    def scores(prompts, texts, seed):
        found: Scores = {"grm": [], name: []}
        for verdict in judge.many(_records(prompts, texts), k=k, seed=seed, progress=False):
            valid = [j for j in verdict.judgments if j.scores is not None]
            found[name].append(_share([j for j in valid if j.kept]))
            if name == "grm_meta":
                found["grm"].append(_share(valid))
        return {which: shares for which, shares in found.items() if shares}

    return scores


def scalar(folder: str, name: str) -> Scorer:
    """The number of a scalar model, on a scale of its own."""
    judge = _judge(name, folder)

    def scores(prompts, texts, seed):
        verdicts = judge.many(_records(prompts, texts), progress=False)
        return {name: [v.scores[0] if v.scores else math.nan for v in verdicts]}

    return scores


def digest(name: str, folder: str | None = None) -> str:
    """Digest all that a judge's text depends on, by content; folder: of a scalar model."""
    return _judge(name, folder).asked()["model"]


def with_judges(
    path: pathlib.Path, names: Sequence[str], figures: Callable[[Sequence[str]], dict]
) -> None:
    """Writes a file of figures by judge, or puts into it those of judges that it lacks.

    figures: names -> what the file holds of these judges, by name, or by name under "judges".
    What is there stays.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = [name for name in names if name not in found.get("judges", found)]
    if found and not missing:
        return
    new = figures(missing)
    merged = new | found
    if "judges" in merged:
        merged["judges"] = new["judges"] | found.get("judges", {})
    write_json(path, merged)


@functools.cache  # weights and programs serve the digest, every seed and every k
def _judge(name: str, folder: str | None = None) -> grm_jax.Judge:
    if folder is not None:
        return grm_jax.load(folder, kind="bradley_terry")
    of = "tiny_base" if name == "base" else "tiny"
    return grm_jax.load(of, meta=None if name == "grm_meta" else False)


def _records(prompts: Sequence[str], texts: Sequence[str]) -> list[dict]:
    return [{"conversation": p, "responses": [t]} for p, t in zip(prompts, texts, strict=True)]


def _share(judgments: Sequence[Judgment]) -> float:
    return (
        sum(j.scores[0] for j in judgments if j.scores) / len(judgments) if judgments else math.nan
    )


def chances(name: str, scores: Sequence[float], gold: Sequence[float]) -> Callable:
    """Fit the chance that a response is right to a scalar model's numbers (logistic, two
    parameters), so that its gap to the gold is 0 where it was fitted. Returns numbers -> chances.

    Responses without a finite number are left out; NaN stays NaN. Raises ValueError, naming the
    judge, where fewer than two have one.
    """
    x, y = np.asarray(scores, float), np.asarray(gold, float)
    known = np.isfinite(x)
    if known.sum() < 2:
        raise ValueError(
            f"judge {name!r}: expected finite scores of two responses or more, to fit chances to, "
            f"got {known.sum()} of {len(x)}"
        )
    x, y = x[known], y[known]
    mean, spread = float(x.mean()), float(x.std()) or 1.0

    def loss(w):
        z = w[0] + w[1] * (x - mean) / spread
        return np.mean(np.logaddexp(0, z) - y * z) + 1e-4 * w @ w

    a, b = minimize(loss, np.zeros(2)).x
    return lambda s: 1 / (1 + np.exp(-(a + b * (np.asarray(s, float) - mean) / spread)))
