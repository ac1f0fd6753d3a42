"""python -m experiments.spct_rl --config=experiments/configs/real_smollm2_rubric.py \\
    --workdir=runs/real/rubric --stages=rft_sample,rft

The GRM of real_smollm2.py learns to judge by criteria that a record names: a fine-tuning on
judgments by a rubric that are written by rule (`experiments/build_real/rubrics.py`), beside plain
ones. Its own judgments of 64 training records say what it keeps of these; none is trained on.

Hardware: as real_smollm2.py.
Result: docs/beyond.md.
"""

import ml_collections

from experiments.configs import real_smollm2 as real
from experiments.configs import real_smollm2_cold as cold

RANK, ALPHA = 4, 8.0
STEPS, RATE, PLAIN = 80, 1e-3, 400  # plain judgments beside 1,531
PROMPT, COMPLETION = 448, 384  # tokens: a line for each criterion and response


def get_config() -> ml_collections.ConfigDict:
    config = cold.get_config()
    config.model.path = f"{real.RUNS}/spct/models/grm"
    config.templates.rubric = str(real.HERE / "real_rubric.jinja")
    config.lora.update(rank=RANK, alpha=ALPHA)
    config.lengths.update(prompt=PROMPT, completion=COMPLETION)
    config.data.general = (
        {"path": f"{real.DATA}/rubrics.jsonl"},
        {"path": f"{real.DATA}/judgments.jsonl", "limit": PLAIN, "shuffle_seed": 0},
    )
    config.data.eval = ml_collections.ConfigDict(
        {split: ({"path": f"{real.DATA}/test/{split}.jsonl"},) for split in ("rubric",)}
    )
    config.rft.update(learning_rate=RATE, steps=STEPS)
    config.eval.update(splits=("rubric",), ks=(1,), swap=False, systems=("rft",))
    return config
