"""The tiny preset is at its smallest here: every stage, a few steps of a few records.

With the shipped base model, in programs that compile fast.
"""

from experiments.configs import tiny


def get_config():
    config = tiny.get_config()
    config.model.scan_layers = True
    config.lengths.update(buckets=(80,), sequences=())
    config.packing.rows = (2.4,)
    config.data.train = ({"world": "train", "items": 12},)
    config.data.general = ({"world": "instructions", "items": 8},)
    config.sampling.rows = 8
    config.optimizer.warmup_steps = 1
    config.rft.update(batch_size=4, micro_batch=4, steps=5)
    config.rl.update(batch_size=8, micro_batch=4, steps=5)
    config.meta.update(batch_size=4, micro_batch=4, steps=5)
    config.eval.update(records=3, ks=(1, 2), samples_per_order=1)
    config.checkpoint.every = 2  # of 5 steps: the last one is behind the last checkpoint
    config.log.example_every = 2
    return config
