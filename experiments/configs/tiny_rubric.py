"""python -m experiments.spct_rl --config=experiments/configs/tiny_rubric.py \\
    --workdir=runs/tiny_rubric

The trained GRM of the package learns to judge by criteria that a record names: fine-tuning on
instruction data in the form of a rubric, which it has never seen, and on its own plain judgments.
--config.rl.steps=40, say, goes on with RL on both kinds of records.

Hardware: 2 CPU cores.
Result (seed 0): greedy 92.9 % on 400 records of `rubric`, where the GRM of the package has 48.6 %,
    and 92.5 % on 200 of `test`, where that has 92.0 %: docs/beyond.md.
"""

import ml_collections

from experiments.configs import tiny

PLAIN_RECORDS, RUBRIC_RECORDS, JUDGMENTS, GENERAL_FRACTION = 64, 300, 8000, 0.85
RFT_STEPS, RFT_RATE, RL_STEPS = 400, 1e-3, 0


def get_config() -> ml_collections.ConfigDict:
    config = tiny.get_config()
    config.model.path = "tiny"
    config.templates.rubric = "tiny_rubric"
    config.data.train = (
        {"world": "train", "items": PLAIN_RECORDS},
        {"world": "rubric_train", "items": RUBRIC_RECORDS},
    )
    config.data.general = ({"world": "rubric_judgments", "items": JUDGMENTS},)
    config.data.eval = ml_collections.ConfigDict(
        {split: ({"world": split},) for split in ("test", "rubric")}
    )
    # of a record with a rubric it writes nothing that could be kept at first
    config.rft.update(
        samples=1,
        hinted_samples=0,
        drop_too_easy=False,
        general_fraction=GENERAL_FRACTION,
        steps=RFT_STEPS,
        learning_rate=RFT_RATE,
    )
    config.rl.steps = RL_STEPS
    config.eval.update(splits=("test", "rubric"), systems=("rft", "grm"))
    return config
