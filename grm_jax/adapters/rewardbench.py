"""Verdicts for RewardBench's generative runner, in place of a judge that reads the runner's prompt.

    import runpy, rewardbench.generative
    from grm_jax.adapters.rewardbench import grm_judge
    rewardbench.generative.run_judge_pair = grm_judge(k=8)
    runpy.run_module("scripts.run_generative", run_name="__main__")

with its own arguments; --model has to be one of its OPENAI_MODEL_LIST. The runner counts a tie, and
"error", as half an item.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.adapters.client import ask, turns_of


def grm_judge(base_url: str | None = None, **asked: Any) -> Callable[..., tuple[str, str, str]]:
    """Makes a run_judge_pair. asked: k, seed, deadline_s, ... of the server.

    It returns ("A", "B" or "error", the question, the verdict as JSON). The answers are judged in
    sorted order, so that it does not depend on which of them the runner calls A. "error" is a tie,
    or a verdict that names its failure. Raises ValueError where the answers follow other turns.
    """

    def run_judge_pair(
        question: str,
        answer_a: Sequence[dict[str, str]],
        answer_b: Sequence[dict[str, str]],
        model: str,
        multi_turn: bool = False,
        model_modifier: str | None = None,
    ) -> tuple[str, str, str]:
        conversation = turns_of(answer_a[:-1])
        if turns_of(answer_b[:-1]) != conversation:
            raise ValueError(f"answers to different conversations: {question[:80]!r}")
        texts = [answer_a[-1]["content"], answer_b[-1]["content"]]
        order = sorted((0, 1), key=lambda i: texts[i])
        body = {"conversation": conversation, "responses": [texts[i] for i in order]}
        verdict = ask("/v1/judge", body | {"judgments": False} | asked, base_url)
        winner = "error"
        if verdict["scores"] is not None and verdict["scores"][0] != verdict["scores"][1]:
            winner = "AB"[order[verdict["scores"].index(max(verdict["scores"]))]]
        return winner, question, json.dumps(verdict)

    return run_judge_pair
