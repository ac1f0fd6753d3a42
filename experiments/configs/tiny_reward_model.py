"""python -m experiments.reward_model --config=experiments/configs/tiny_reward_model.py \\
    --config.kind=bradley_terry --workdir=runs/tiny_bt

Reward models with a scalar head on the checkable world, from the tiny base and the records that the
quick start trains on: --config.kind=bradley_terry, pair_rm or cloud. Anything Gemma-2 of Hugging
Face goes by --config.model.path.

Hardware: 2 CPU cores.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from experiments.configs import tiny

BATCH, STEPS, RATE = 128, 200, 5e-4
CLOUD_BATCH, CLOUD_STEPS, CLOUD_RATE = 64, 90, 7e-4


def get_config() -> ml_collections.ConfigDict:
    config = tiny.get_config()
    for stage in ("rft", "rl", "meta"):
        del config[stage]
    config.kind = "bradley_terry"  # or "pair_rm", "cloud"
    config.lengths.sequences = (24, 32, 40, 48, 64, 96, 128)
    # Critiques of single responses, for the critic of CLoud: records with one response and the text
    # under metadata "critique", or the world's
    config.data.critiques = ({"world": "critiques", "items": tiny.RFT_RECORDS},)
    config.bradley_terry = ml_collections.ConfigDict(
        dict(  # batch sizes count pairs
            center=0.0,  # weight of (r_better + r_worse)^2 (arXiv 2312.09244)
            learning_rate=RATE,
            batch_size=BATCH,
            micro_batch=BATCH,
            steps=STEPS,
        )
    )
    # batch sizes count pairs in one order of the two
    config.pair_rm = ml_collections.ConfigDict(
        dict(learning_rate=RATE, batch_size=BATCH, micro_batch=BATCH, steps=STEPS)
    )
    # App C.2: fine-tuned on general data and pointwise critiques, none rejected
    config.critic = ml_collections.ConfigDict(
        dict(
            path=placeholder(str),  # policy to start from; None: the model
            general_fraction=tiny.GENERAL_FRACTION,
            learning_rate=tiny.RFT_RATE,
            batch_size=tiny.RFT_BATCH,
            micro_batch=tiny.RFT_BATCH,
            steps=tiny.RFT_STEPS,
        )
    )
    # the head, on sampled critiques of the training records
    config.cloud = ml_collections.ConfigDict(
        dict(
            samples=1,  # critiques of each response
            temperature=tiny.TEMPERATURE,
            learning_rate=CLOUD_RATE,
            batch_size=CLOUD_BATCH,
            micro_batch=CLOUD_BATCH,
            steps=CLOUD_STEPS,
        )
    )
    # one sample, where the model samples at all; the one system is the trained model
    config.eval.update(ks=(1,), samples_per_order=1)
    del config.eval.systems
    return config
