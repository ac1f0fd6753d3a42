"""Says what replies have in common: the weights that made them, tokens, verdicts."""

from typing import Any

from grm_jax.serving.service import Judged
from grm_jax.serving.worker import Lane


def weights_of(lane: Lane) -> dict[str, Any]:
    """Names the weights that made a reply."""
    return {"model": lane.name, "weights": lane.digest, "loaded": round(lane.since, 3)}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts tokens, as OpenAI's clients read them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def verdict_of_reply(judged: Judged, how: dict[str, Any], judgments: bool) -> dict[str, Any]:
    """Returns the JSON of a verdict: every judgment, failures by name, null for what is not."""
    verdict = judged.verdict
    failures: dict[str, int] = {}
    for judgment in verdict.judgments:
        if judgment.failure is not None:
            failures[judgment.failure] = failures.get(judgment.failure, 0) + 1
    reply = {
        name: getattr(verdict, name)
        for name in ("id", "scores", "best", "margin", "k", "valid", "failed", "failure", "stopped")
    }
    reply["criteria"] = verdict.criteria
    reply |= {"failures": failures, "seed": how["seed"], "temperature": how["temperature"]}
    if judgments:
        reply["judgments"] = [vars(judgment) for judgment in verdict.judgments]
    usage = usage_of(judged.prompt_tokens, judged.completion_tokens)
    return reply | weights_of(judged.lane) | {"usage": usage, "cached": judged.cached}
