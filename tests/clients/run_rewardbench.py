"""Runs RewardBench's generative runner on a few pairs, as it is and with verdicts of the server.

python run_rewardbench.py MODEL PROMPT: prints what it counted, and the reply to PROMPT, as a line
of JSON. Its data set is on a hub, so that pairs from here stand in for it.
"""

import json
import os
import pathlib
import runpy
import sys

import rewardbench
import rewardbench.generative as generative
from datasets import Dataset
from fastchat.conversation import get_conv_template

from grm_jax.adapters.rewardbench import grm_judge

REVERSE, SORT = "Reverse the list: 1.fox 2.ant 3.hen", "Sort the list: 1.owl 2.bee"
PAIRS = [
    (REVERSE, "1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"),
    (REVERSE, "1.hen 2.ant 3.fox", "1.fox 2.hen 3.ant"),
    (REVERSE, "1.fox 2.hen 3.ant", "1.hen 2.ant 3.fox"),
    (SORT, "1.bee 2.owl", "1.owl 2.bee"),
    (SORT, "1.bee 2.owl", "1.owl 2.bee " * 40),  # longer than the judge reads
]


def dataset(**_):
    """What RewardBench's load_eval_dataset returns, for these pairs."""

    def chat(task, answer):
        return [{"role": "user", "content": task}, {"role": "assistant", "content": answer}]

    rows = {
        "text_chosen": [chat(task, chosen) for task, chosen, _ in PAIRS],
        "text_rejected": [chat(task, rejected) for task, _, rejected in PAIRS],
        "id": list(range(len(PAIRS))),
    }
    return Dataset.from_dict(rows), ["alpacaeval-easy"] * len(PAIRS)


def counted(model: str) -> list[float]:
    """The results that the runner writes, of its own main()."""
    sys.argv = ["run_generative", f"--model={model}", "--do_not_save", "--disable_beaker_save"]
    runpy.run_module("scripts.run_generative", run_name="__main__")
    file = pathlib.Path(f"results/eval-set-scores/openai/{model}.json")
    return json.loads(file.read_text())["results"]


def main(model: str, text: str) -> None:
    os.environ |= {
        "OPENAI_BASE_URL": os.environ["GRM_SERVER"] + "/v1",
        "OPENAI_API_KEY": "none",
        "WANDB_MODE": "disabled",
    }
    rewardbench.load_eval_dataset = dataset
    generative.API_RETRY_SLEEP, generative.API_MAX_RETRY = 0, 2  # of 10 s, and 25
    # its own chat client, with a prompt that this judge was trained on
    conversation = get_conv_template("chatgpt")
    conversation.set_system_message("")
    conversation.append_message("user", text)
    conversation.append_message("assistant", None)
    found = {"pairs": PAIRS}
    found["text"] = generative.chat_completion_openai(model, conversation, 0, 2048)
    found["as_it_is"] = counted(model)
    generative.run_judge_pair = grm_judge(k=4, seed=3)
    found["by_verdicts"] = counted(model)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
