"""python -m experiments.spct_rl --config=experiments/configs/real_smollm2_cold.py \\
    --workdir=runs/real/cold --stages=rft_sample,rft

The cold start of `real_smollm2.py`: SmolLM2-135M-Instruct writes judgments that cannot be parsed,
so it is first fine-tuned on some that are written by rule, of records whose gold is computed
(`experiments/build_real/records.py`), beside instruction data. Its own judgments of 64 training
records are drawn to say how many can be parsed; none is trained on.

Hardware: as real_smollm2.py.
"""

import ml_collections

from experiments.configs import real_smollm2 as real

BASE = "checkpoints/smollm2-135m-instruct"
RANK, ALPHA = 8, 16.0  # it has more to learn than the stages behind it
PROMPT = 448  # tokens: these are short


def get_config() -> ml_collections.ConfigDict:
    config = real.get_config()
    config.model.path = BASE
    config.lora.update(rank=RANK, alpha=ALPHA)
    config.lengths.update(prompt=PROMPT, buckets=(256, PROMPT))
    config.packing.rows = (1.0,)
    config.data.train = ({"path": f"{real.DATA}/train.jsonl", "limit": 64, "shuffle_seed": 0},)
    config.data.general = (
        {"path": f"{real.DATA}/judgments.jsonl"},
        {"path": f"{real.DATA}/general.jsonl", "limit": 150, "shuffle_seed": 0},
    )
    config.optimizer.schedule = "cosine"  # short, and nothing goes on from its optimizer
    config.rft.update(
        samples=1,
        hinted_samples=0,
        trajectories=(),
        general_fraction=0.99,  # all of it, as there are no trajectories
        learning_rate=real.COLD_RATE,
        batch_size=real.COLD_BATCH,
        micro_batch=real.COLD_BATCH,
        steps=real.COLD_STEPS,
    )
    return config
