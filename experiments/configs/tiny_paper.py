"""python -m experiments.paper --config=experiments/configs/tiny_paper.py --workdir=runs/paper \\
    --out=docs/results.md

The paper in miniature: every system of its tables, trained on the checkable world from one base,
its ablations, the beta sweep and three model sizes; 3 seeds. Everything is resumed by running the
command again; --config.seeds=1 --config.groups=main makes a part, and the document is made anew
from all parts that are there. --config.fast=True trains for a few steps and judges a few items, to
see the whole job run: 8 min.

Hardware: 2 CPU cores, of which a process uses one well: give each seed a core.
Time: 1.8 to 2.1 h a seed on one core, by group 0.66 to 0.81 (main), 0.21 to 0.30 (judges), 0.64 to
    0.67 (ablations) and 0.27 to 0.31 (sizes); the two bases of sizes before that, 15 and 22 min.
    Other work ran beside seeds 1 and 2.
Result: docs/results.md.
"""

import ml_collections

from experiments.configs import tiny_evaluate


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.fast = False
    # of records, order, sampling and initialization of heads; the base is the same
    config.seeds = (0, 1, 2)
    # of systems, each trained and judged by itself; the main table is the first
    config.groups = ("main", "judges", "ablations", "sizes")
    config.betas = (0.0, 0.02, 0.08, 0.3)  # KL coefficients; 0.02 is the tiny preset's
    config.widths = (64, 96)  # sizes beside that of the shipped base, 128
    # of their pretraining, as the shipped base's
    config.base = ml_collections.ConfigDict(dict(steps=4000, decay_steps=1000))
    config.splits = ("test", "hard", "wide", "heldout", "single")
    config.world_seed = 11  # of the judged records: no setting was chosen on them
    config.records = 200  # of each split
    config.ks = (1, 2, 4, 8, 16, 32)
    # how all systems are asked; what follows overrides it
    config.evaluate = tiny_evaluate.get_config()
    return config
