"""The tiny preset of reward models is at its smallest here: a few steps of a few records.

In programs that compile fast.
"""

from experiments.configs import tiny_reward_model


def get_config():
    config = tiny_reward_model.get_config()
    config.model.scan_layers = True
    config.lengths.update(buckets=(80,), sequences=())
    config.packing.rows = (2.4,)
    config.data.train = ({"world": "train", "items": 12},)
    config.data.general = ({"world": "instructions", "items": 8},)
    config.data.critiques = ({"world": "critiques", "items": 6},)
    config.sampling.rows = 8
    config.optimizer.warmup_steps = 1
    for stage in ("bradley_terry", "pair_rm", "critic", "cloud"):
        config[stage].update(batch_size=4, micro_batch=2, steps=3)
    config.eval.update(records=3, splits=("test", "single"))
    config.checkpoint.every = 2  # of 3 steps: the last one is behind the last checkpoint
    return config
