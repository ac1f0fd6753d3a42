"""Trains the packaged base for one step with TRL's GRPOTrainer, the server its reward.

python run_trl.py MODEL: prints what the trainer holds then, as a line of JSON.
"""

import json
import sys
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from grm_jax.adapters.trl import grm_reward, grm_reward_async

# the second is longer than the judge reads: its group fails as a whole
PROMPTS = ["Reverse the list: 1.fox 2.ant 3.hen", "Sort the list: " + "1.owl 2.bee " * 20]


def main(model: str) -> None:
    at_once = grm_reward_async(k=4, seed=3, scalar="mean")
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    columns = {"prompt": chats, "answer": ["", ""]}
    at_once.__name__ = "grm_async"  # TRL keeps its figures by this name
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            seed=1,
            save_strategy="no",
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[grm_reward(k=4, seed=3, scalar="wins"), at_once],
            args=settings,
            train_dataset=Dataset.from_dict(columns),
        )
        trainer.train()
        said = trainer.state.log_history[0]
    held = trainer._logs
    found = {
        "prompts": [prompt[-1]["content"] for prompt in held["prompt"]],
        "completions": [completion[-1]["content"] for completion in held["completion"]],
        "rewards": {name: list(values) for name, values in held["rewards"].items()},
        "advantages": list(held["advantages"]),
        "logged": {name: value for name, value in said.items() if name.startswith("reward")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
