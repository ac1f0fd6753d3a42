"""python -m experiments.evaluate --config=experiments/configs/real_smollm2_rubric_evaluate.py \\
    --workdir=runs/real/rubric_evaluate

Records of real text with a rubric each, every one of them twice, with the weights exchanged: judged
by the GRM of the package, which judges by none, and by that of real_smollm2_rubric.py, with its
rubric and without it; and records of which the request names what is required, without a rubric,
where these two are the same.

Hardware: as real_smollm2.py.
"""

import ml_collections

from experiments.configs import real_smollm2 as real
from experiments.configs import real_smollm2_evaluate, real_smollm2_rubric

TRAINED = f"{real.RUNS}/rubric/models/rft"


def get_config() -> ml_collections.ConfigDict:
    config = real_smollm2_evaluate.get_config()
    config.systems = (
        {"name": "plain GRM", "kind": "pointwise_grm", "path": "smollm2-grm", "rubric": False},
        {"name": "rubric hidden", "kind": "pointwise_grm", "path": TRAINED, "rubric": False},
        {"name": "by rubric", "kind": "pointwise_grm", "path": TRAINED},
    )
    config.benchmarks = tuple(
        {"kind": "records", "name": split, "path": f"{real.DATA}/test/{split}.jsonl"}
        for split in ("rubric", "constraints")
    )
    config.lengths.completion = real_smollm2_rubric.COMPLETION
    config.eval.update(ks=(1,), samples_per_order=1, swap=False)
    return config
