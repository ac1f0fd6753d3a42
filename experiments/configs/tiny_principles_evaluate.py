"""python -m experiments.evaluate --config=experiments/configs/tiny_principles_evaluate.py \\
    --workdir=runs/tiny_principles_evaluate

The GRM of the package and its Meta RM, each sample with principles of its own, and all samples of a
record with those of its greedy judgment. docs/beyond.md has the figures.

Hardware: 2 CPU cores.
"""

import ml_collections

from experiments.configs import tiny_evaluate


def get_config() -> ml_collections.ConfigDict:
    config = tiny_evaluate.get_config()
    grm = {"kind": "pointwise_grm", "path": "tiny", "meta": "tiny"}
    config.systems = (grm | {"name": "each its own"}, grm | {"name": "once", "principles": "once"})
    config.benchmarks = tuple(
        {"kind": "world", "split": split, "items": 200} for split in ("test", "hard")
    )
    config.eval.update(ks=(1, 8, 32), samples_per_order=4, swap=False)
    return config
