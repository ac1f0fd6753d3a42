"""python -m experiments.spct_rl --config=experiments/configs/tiny_full.py \\
    --workdir=runs/tiny_full_0 --config.seed=0

The quick start with a full evaluation: 1,000 records of each split, and votes of up to 32. One seed
a process; the reported figures are means over `--config.seed=0`, `1` and `2`, each with a work
folder of its own. The base model is the same in all.

Hardware: 2 CPU cores.
Time: about 80 core-minutes a seed; two seeds at once, one pinned to each core, draw 1.6 times what
    one process with both cores does.
Result: docs/tiny_full.md.
"""

import ml_collections

from experiments.configs import tiny

FRESH_SEED = 7


def get_config() -> ml_collections.ConfigDict:
    config = tiny.get_config()
    config.eval.records = 1000
    # fresh records: those of seed 0 and 77 were looked at while the settings were chosen
    for split in config.eval.splits:
        config.data.eval[split] = ({"world": split, "seed": FRESH_SEED},)
    config.eval.ks = (1, 2, 4, 8, 16, 32)
    return config
