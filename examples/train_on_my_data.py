"""python -m examples.train_on_my_data: a judge trained by SPCT on preference pairs of yours.

This file is a preset of `experiments.spct_rl`, with the command behind it. The pairs are of the
checkable world here; put the name of your file in PAIRS and a base of yours in `config.model.path`
(docs/train.md). Some minutes on 2 cores; a second call goes on where the first was stopped.
"""

import json
import pathlib
import subprocess
import sys

from experiments.configs import tiny
from grm_jax.data.world import make_records

PAIRS, WORKDIR = "runs/my_data/pairs.jsonl", "runs/my_data/run"
ITEMS, RFT_STEPS, RL_STEPS, BATCH = 200, 60, 20, 32


def get_config():
    config = tiny.get_config()  # which starts from the paper's preset
    config.data.train = ({"path": PAIRS, "format": "preference"},)
    config.data.eval = {"test": ({"world": "test"},)}
    config.rft.update(steps=RFT_STEPS, batch_size=BATCH, micro_batch=BATCH)
    config.rl.update(steps=RL_STEPS, batch_size=BATCH, micro_batch=BATCH)
    config.eval.update(splits=("test",), records=BATCH, ks=(1, 4))
    return config


def write_pairs():
    """{"prompt", "chosen", "rejected"}, a line each: the form that most data sets have."""
    pathlib.Path(PAIRS).parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for record in make_records("train", ITEMS):
        ranked = sorted(zip(record.rewards, record.responses))
        if ranked[0][0] < ranked[-1][0]:
            prompt = record.conversation[0].content
            pair = {"prompt": prompt, "chosen": ranked[-1][1], "rejected": ranked[0][1]}
            lines.append(json.dumps(pair) + "\n")
    pathlib.Path(PAIRS).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_pairs()
    command = [sys.executable, "-m", "experiments.spct_rl", f"--config={__file__}"]
    stages = "--stages=rft_sample,rft,rl,eval"  # without the Meta RM
    subprocess.run([*command, f"--workdir={WORKDIR}", stages], check=True)
    print((pathlib.Path(WORKDIR) / "table.md").read_text(encoding="utf-8"))
