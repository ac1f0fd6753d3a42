"""The same policy tuned by TRL's GRPOTrainer, with the server as its reward: docs/policy.md.

    grm serve --model=tiny
    PYTHONPATH=. .cache/clients/trl/bin/python -m experiments.policy.with_trl \\
        runs/policy/seed_0/sft runs/policy/seed_0/rl_trl --seed=0

Runs in an environment that has TRL (tests/clients/make_envs.sh) and needs no JAX. Groups are judged
whole, and the reward is the share of comparisons that a response wins. The gold, and what share of
judgments calls a response right when it is judged alone, are written beside it and weigh nothing.
"""

import argparse
import asyncio
import json
import pathlib

from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from grm_jax.adapters.client import ask_async, group_body, text_of
from grm_jax.adapters.trl import grm_reward_async
from grm_jax.data.world.writing import gold, make_queries

K = 2  # judgments of a group, and of a response


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("model", type=pathlib.Path)
    flags.add_argument("out", type=pathlib.Path)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--steps", type=int, default=30)
    flags.add_argument("--prompts", type=int, default=16)
    flags.add_argument("--group", type=int, default=4)
    asked = flags.parse_args()

    queries = make_queries(asked.prompts * asked.steps, 500 + asked.seed)
    by_text = {query.text: query for query in queries}

    def of_gold(prompts, completions, **columns):
        return [
            gold(by_text[prompt[-1]["content"]], text_of(completion))
            for prompt, completion in zip(prompts, completions)
        ]

    async def alone(prompts, completions, **columns):
        """The first response of each group, judged alone: 0 to 1, the scale of the gold."""
        firsts = range(0, len(completions), asked.group)
        settings = {"k": K, "seed": asked.seed, "scalar": "mean"}
        bodies = [group_body(prompts, completions, [i], settings) for i in firsts]
        replies = await asyncio.gather(*(ask_async("/compare", body) for body in bodies))
        rewards = [None] * len(completions)
        for i, reply in zip(firsts, replies):
            rewards[i] = reply["rewards"][0]
        return rewards

    settings = GRPOConfig(
        output_dir=str(asked.out / "trainer"),
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.98,
        beta=0.02,
        loss_type="grpo",
        per_device_train_batch_size=asked.prompts * asked.group,
        num_generations=asked.group,
        max_completion_length=24,
        temperature=1.0,
        max_steps=asked.steps,
        reward_weights=[1.0, 0.0, 0.0],
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        seed=asked.seed,
        save_strategy="no",
    )
    prompts = [[{"role": "user", "content": query.text}] for query in queries]
    trainer = GRPOTrainer(
        model=str(asked.model),
        reward_funcs=[grm_reward_async(k=K, seed=asked.seed, scalar="wins"), of_gold, alone],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(asked.model),
    )
    trainer.train()
    names = {
        "gold": "rewards/of_gold/mean",
        "reward": "rewards/alone/mean",
        "wins": "rewards/grm/mean",
        "kl": "kl",
        "entropy": "entropy",
        "tokens": "completions/mean_length",
    }
    with open(asked.out / "steps.jsonl", "w", encoding="utf-8") as file:
        for step, row in enumerate(r for r in trainer.state.log_history if "reward" in r):
            found = {name: row.get(logged) for name, logged in names.items()}
            found["kl"] *= found["tokens"]  # of a response, not of a token
            file.write(json.dumps({"step": step, **found}) + "\n")
    trainer.save_model(str(asked.out / "model"))


if __name__ == "__main__":
    from experiments import ending
    from grm_jax import signals

    ending.install()
    with signals.ending():
        main()
