"""python -m experiments.reward_model --config=experiments/configs/real_smollm2_reward_model.py \\
    --workdir=runs/real/bradley_terry

A Bradley-Terry head on SmolLM2-135M-Instruct, with adapters, from all records for training: what a
scalar model of the same size makes of the same pairs.

Hardware: as real_smollm2.py.
"""

import ml_collections

from experiments.configs import real_smollm2 as real
from experiments.configs import real_smollm2_cold, tiny_reward_model

RANK, ALPHA = 4, 8.0


def get_config() -> ml_collections.ConfigDict:
    config = real.get_config()
    for stage in ("rft", "rl", "meta"):
        del config[stage]
    scalar = tiny_reward_model.get_config()
    for name in ("kind", "bradley_terry", "pair_rm", "critic", "cloud"):
        config[name] = scalar[name]
    config.model.path = real_smollm2_cold.BASE
    config.data.train = ({"path": f"{real.DATA}/train.jsonl"},)  # all of them
    config.lora.update(rank=RANK, alpha=ALPHA)
    config.data.critiques = ()
    config.bradley_terry.update(
        learning_rate=real.BT_RATE,
        batch_size=real.BT_BATCH,
        micro_batch=real.BT_BATCH,
        steps=real.BT_STEPS,
    )
    config.eval.update(ks=(1,), samples_per_order=1, swap=False)
    del config.eval.systems
    return config
