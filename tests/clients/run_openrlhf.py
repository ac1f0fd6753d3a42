"""Fetches rewards with OpenRLHF's SingleTurnAgentExecutor: from the URL, and by a file's function.

python run_openrlhf.py MODEL: prints what its samples hold then, as a line of JSON. OpenRLHF cannot
be installed on a CPU (flash-attn, deepspeed, vLLM), so that its source files run here without them:
texts stand in for those that vLLM would have written, and the modules of vLLM and Ray are empty.
"""

import asyncio
import json
import os
import pathlib
import sys
import types
from unittest import mock

import torch
from transformers import AutoTokenizer

for name in ("vllm", "ray", "openrlhf.trainer.ray", "openrlhf.trainer.ray.vllm_engine"):
    sys.modules[name] = mock.MagicMock()

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.utils.agent import SingleTurnAgentExecutor  # noqa: E402

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RESPONSES = ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant", "1.fox 2.hen 3.ant"]
FUNCTION = """
from grm_jax.adapters.openrlhf import grm_reward
reward_func = grm_reward(k=4, seed=3, scalar="wins", group_size={size})
"""


class Engine:
    """Writes a text that is known, some time later than the others of its prompt."""

    def __init__(self, ids: list[int], late_s: float):
        self.ids, self.late_s = ids, late_s

    async def generate(self, prompt_ids, settings, multi_modal_data=None):
        await asyncio.sleep(self.late_s)
        output = types.SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


async def samples(executor, tokenizer, responses) -> list[dict]:
    """What OpenRLHF's executor returns for the samples of one prompt, drawn side by side."""
    turns = [{"role": "user", "content": TASK}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    settings = types.SimpleNamespace(max_tokens=64, logprobs=None)
    ids = [
        tokenizer(r, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        for r in responses
    ]
    # further apart than the server waits for more of a group whose size it does not know
    engines = [Engine(row, 0.5 * i) for i, row in enumerate(ids)]
    return await asyncio.gather(
        *(executor.execute(prompt, "", settings, 512, tokenizer, engine) for engine in engines)
    )


def held(sample: dict) -> dict:
    """What a sample's Experience holds, which the trainer learns from."""
    experience = SamplesGenerator._process_response_into_experience(None, sample)
    tensors = {"reward": experience.rewards, "score": experience.scores}
    tensors |= {name: experience.info.get(name) for name in ("grm_valid", "grm_members")}
    return {n: None if x is None else torch.flatten(x).tolist() for n, x in tensors.items()}


async def main(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = {"task": TASK, "responses": RESPONSES}
    url = os.environ["GRM_SERVER"] + "/get_reward?k=4&seed=3&scalar=wins&group_size="
    for size in (1, 3):
        pathlib.Path(f"reward_{size}.py").write_text(FUNCTION.format(size=size))
    for name, endpoint in (("url", url + "{}"), ("file", "reward_{}.py")):
        executor = SingleTurnAgentExecutor(endpoint.format(3))
        found[name] = [held(sample) for sample in await samples(executor, tokenizer, RESPONSES)]
        executor = SingleTurnAgentExecutor(endpoint.format(1))
        (failed,) = await samples(executor, tokenizer, ["1.owl 2.bee " * 40])
        found[f"{name}_failed"] = failed["reward"]
        try:
            found[f"{name}_held"] = held(failed)
        except Exception as error:
            found[f"{name}_held"] = type(error).__name__
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
