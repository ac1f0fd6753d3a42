"""python -m experiments.evaluate --config=experiments/configs/tiny_rubric_evaluate.py \\
    --workdir=runs/tiny_rubric_evaluate

Records of the checkable world with a rubric each, judged by the GRM of the package, which judges by
none, and by that of the preset tiny_rubric (runs/tiny_rubric), with its rubric and without it.

Hardware: 2 CPU cores.
"""

import ml_collections

from experiments.configs import tiny_evaluate

TRAINED = "runs/tiny_rubric/models/grm"


def get_config() -> ml_collections.ConfigDict:
    config = tiny_evaluate.get_config()
    config.systems = (
        {"name": "plain GRM", "kind": "pointwise_grm", "path": "tiny", "rubric": False},
        {"name": "rubric hidden", "kind": "pointwise_grm", "path": TRAINED, "rubric": False},
        {"name": "by rubric", "kind": "pointwise_grm", "path": TRAINED},
    )
    config.benchmarks = (
        {"kind": "world", "split": "rubric", "items": 400},
        {"kind": "world", "split": "test", "items": 200},
    )
    config.eval.update(ks=(1,), samples_per_order=1)
    return config
