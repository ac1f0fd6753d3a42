"""Scores for verl, which asks for one sample at a time: the server collects those of a prompt.

    reward.custom_reward_function.path=.../grm_jax/adapters/verl.py
    reward.custom_reward_function.name=compute_score

The prompt is read from `extra_info`: "prompt" (a text or messages), else "question". "uid", where a
dataset has one, names the group. "n", its size, and "scalar" are read there or, for all datasets,
from `reward_kwargs`.
"""

from typing import Any

from grm_jax.adapters.client import HOW, Unanswered, ask_async, check_asked, turns_of

ALSO = ("base_url", "n")
VERLS_OWN = ("reward_router_address", "reward_model_tokenizer")  # given to every function


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Returns verl's {"score": ...} of one sample.

    asked: base_url, n (samples of a prompt; 1: each by itself), and those of
    `grm_jax.adapters.client.HOW`, as reward_kwargs of the config. Raises Unanswered, with the
    reason, for a sample that could not be scored: verl has no word for it.
    """
    check_asked(asked, (*ALSO, *VERLS_OWN))
    info = extra_info or {}
    prompt = info.get("prompt", info.get("question"))
    if prompt is None:
        raise ValueError("extra_info: expected the prompt, as 'prompt' or 'question'")
    size = info.get("n", asked.get("n"))
    if size is None:  # the server could not tell a group from its first samples
        raise ValueError("expected n, the samples of a prompt, in extra_info or in reward_kwargs")
    body = {name: asked[name] for name in HOW if name in asked}
    if "scalar" in info:
        body["scalar"] = info["scalar"]
    messages = [*turns_of(prompt), {"role": "assistant", "content": solution_str}]
    body |= {"messages": messages, "use_activation": False, "group": str(info.get("uid", ""))}
    body["group_size"] = int(size)
    reply = await ask_async("/classify", body, asked.get("base_url"))
    found = reply["data"][-1]
    if found["probs"][-1] is None:
        raise Unanswered(f"no score: {found['failure']}")
    return {"score": found["probs"][-1], "grm_members": found["members"]}
