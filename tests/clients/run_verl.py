"""Computes rewards with verl's RewardLoopWorker: by compute_score, and by its reward-model route.

python run_verl.py MODEL: prints what came out of both, as a line of JSON. MODEL is a folder, and
the name of the server's model: verl asks for a reward model by its path.
"""

import asyncio
import json
import multiprocessing
import os
import pathlib
import socket
import sys
import time

import numpy as np
import torch
import verl
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.experimental.reward_loop.router.naive_router import run_router

from grm_jax.adapters import verl as adapter

TASKS = ["Reverse the list: 1.fox 2.ant 3.hen", "Sort the list: 1.owl 2.bee"]
RESPONSES = [
    ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant", "1.fox 2.hen 3.ant"],
    ["1.bee 2.owl", "1.owl 2.bee", "1.bee 2.bee"],
]
TOO_LONG = "1.owl 2.bee " * 40


def batch_of(tokenizer, tasks, responses) -> DataProto:
    """A batch as verl's rollout leaves it: prompts to the left, responses to the right."""
    prompts = [[{"role": "user", "content": task}] for task in tasks]
    ids = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        for turns in prompts
    ]
    out = [tokenizer(r, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
           for r in responses]  # fmt: skip
    P, C = max(map(len, ids)), max(map(len, out))
    pad = tokenizer.pad_token_id
    prompts_BP = torch.tensor([[pad] * (P - len(row)) + row for row in ids])
    responses_BC = torch.tensor([row + [pad] * (C - len(row)) for row in out])
    mask_BT = torch.tensor(
        [
            [0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (C - len(r))
            for p, r in zip(ids, out)
        ]
    )
    tensors = {"prompts": prompts_BP, "responses": responses_BC, "attention_mask": mask_BT}
    others = {
        "data_source": ["world"] * len(tasks),
        "reward_model": [{"style": "rule", "ground_truth": ""}] * len(tasks),
        "extra_info": [{"question": task} for task in tasks],
        "raw_prompt": prompts,
    }
    held = {name: np.empty(len(tasks), dtype=object) for name in others}
    for name, values in others.items():
        held[name][:] = values
    return DataProto(TensorDict(tensors, batch_size=len(tasks)), held)


def settings(model: str, **reward):
    """verl's own configuration of a PPO run, with the rewards of this one."""
    path = pathlib.Path(verl.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml"
    changes = {"actor_rollout_ref": {"model": {"path": model}}, "reward": reward}
    return OmegaConf.merge(OmegaConf.load(path), changes)


async def rewards(worker: RewardLoopWorker, batch: DataProto):
    """(rewards, per token as verl's trainer assembles them; what else the samples said)."""
    found = await worker.compute_score_batch(batch)
    scores = [one["reward_score"] for one in found]
    tokens_BC = worker.reward_manager.assemble_rm_scores(batch, scores)
    return tokens_BC.sum(1).tolist(), [one.get("reward_extra_info") for one in found]


async def main(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tasks = [task for task in TASKS for _ in range(3)]
    texts = [response for of in RESPONSES for response in of]
    batch, failing = batch_of(tokenizer, tasks, texts), batch_of(tokenizer, TASKS[:1], [TOO_LONG])

    by_function = settings(
        model,
        custom_reward_function={
            "path": adapter.__file__,
            "name": "compute_score",
            "reward_kwargs": {"k": 4, "seed": 3, "scalar": "wins", "n": 3},
        },
    )
    worker = RewardLoopWorker(by_function)
    found = {"manager": type(worker.reward_manager).__name__, "tasks": tasks, "responses": texts}
    found["scores"], found["extra"] = await rewards(worker, batch)
    alone = batch_of(tokenizer, TASKS[:1], [TOO_LONG])
    alone.non_tensor_batch["extra_info"][0]["n"] = 1
    try:
        found["failed"] = await worker.compute_score_batch(alone)
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"

    # its router stands before the server, as before the vLLM servers that verl starts itself
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    router = multiprocessing.Process(
        target=run_router, args=("127.0.0.1", port, [os.environ["GRM_SERVER"]]), daemon=True
    )
    router.start()
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    by_model = settings(
        model, reward_model={"enable": True, "model_path": model, "rollout": {"name": "vllm"}}
    )
    worker = RewardLoopWorker(by_model, f"127.0.0.1:{port}")
    found["route"], _ = await rewards(worker, batch)
    found["route_failed"] = await worker.compute_score_batch(failing)
    try:
        await rewards(worker, failing)
    except Exception as error:
        found["route_assembled"] = f"{type(error).__name__}: {error}"
    router.terminate()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
