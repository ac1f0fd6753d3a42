"""python -m experiments.spct_rl --config=experiments/configs/real_smollm2_rubric.py \\
    --workdir=runs/real/rubric --stages=rft_sample,rft

The GRM of real_smollm2.py learns to judge by criteria that a record names: a fine-tuning on
judgments by a rubric that are written by rule (`experiments/build_real/rubrics.py`), beside its own
right judgments of plain records, so that it keeps what it can.

Hardware: as real_smollm2.py.
Result: docs/beyond.md.
"""

import ml_collections

from experiments.configs import real_smollm2 as real

RANK, ALPHA = 4, 8.0
STEPS, RATE, RUBRIC = 80, 1e-3, 0.85  # share of judgments by a rubric
RECORDS = 128  # plain ones, of which it draws a judgment each
PROMPT, COMPLETION = 448, 384  # tokens: a line for each criterion and response


def get_config() -> ml_collections.ConfigDict:
    config = real.get_config()
    config.model.path = f"{real.RUNS}/spct/models/grm"
    config.templates.rubric = str(real.HERE / "real_rubric.jinja")
    config.lora.update(rank=RANK, alpha=ALPHA)
    config.lengths.update(prompt=PROMPT, completion=COMPLETION, buckets=(256, PROMPT))
    config.packing.rows = (1.0,)
    config.data.train = ({"path": f"{real.DATA}/train.jsonl", "limit": RECORDS, "shuffle_seed": 0},)
    config.data.general = ({"path": f"{real.DATA}/rubrics.jsonl"},)
    config.optimizer.schedule = "cosine"
    config.data.eval = ml_collections.ConfigDict(
        {split: ({"path": f"{real.DATA}/test/{split}.jsonl"},) for split in ("rubric",)}
    )
    config.rft.update(
        samples=1,
        hinted_samples=0,
        drop_too_easy=False,
        general_fraction=RUBRIC,
        learning_rate=RATE,
        steps=STEPS,
    )
    config.eval.update(splits=("rubric",), ks=(1,), swap=False, systems=("rft",))
    return config
