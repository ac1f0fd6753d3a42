"""Scores for verl, which asks for one sample at a time: the server collects those of a prompt.

    reward.custom_reward_function.path=.../grm_jax/adapters/verl.py
    reward.custom_reward_function.name=compute_score

The prompt is read from `extra_info`: "prompt" (a text or messages), else "question". "uid", where a
dataset has one, names the group. Its size is "n" there or, for all datasets, of `reward_kwargs`.
"""

from typing import Any

from grm_jax.adapters.client import Unanswered, ask_async, turns_of


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Returns verl's {"score": ...} of one sample.

    asked: base_url, n (samples of a prompt), and k, seed, scalar, ... of the server, as
    reward_kwargs of the config. Raises Unanswered, with the reason, for a sample that could not be
    scored: verl has no word for it.
    """
    info = extra_info or {}
    prompt = info.get("prompt", info.get("question"))
    if prompt is None:
        raise ValueError("extra_info: expected the prompt, as 'prompt' or 'question'")
    ours = ("k", "seed", "temperature", "k_meta", "deadline_s", "scalar")
    body = {name: asked[name] for name in ours if name in asked}
    messages = [*turns_of(prompt), {"role": "assistant", "content": solution_str}]
    body |= {"messages": messages, "use_activation": False, "group": str(info.get("uid", ""))}
    if size := info.get("n", asked.get("n")):
        body["group_size"] = int(size)
    reply = await ask_async("/classify", body, asked.get("base_url"))
    found = reply["data"][-1]
    if found["probs"][-1] is None:
        raise Unanswered(f"no score: {found['failure']}")
    return {"score": found["probs"][-1], "grm_members": found["members"]}
