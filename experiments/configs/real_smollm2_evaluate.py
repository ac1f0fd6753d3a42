"""python -m experiments.evaluate --config=experiments/configs/real_smollm2_evaluate.py \\
    --workdir=runs/real/evaluate

What the runs of `real_smollm2.py` and its neighbors have made, on text that none of them saw: the
base, the cold start, RFT, the GRM with its Meta RM, Bradley-Terry, length and chance.

Hardware: as real_smollm2.py.
Result: docs/real_text.md.
"""

import ml_collections

from experiments.configs import evaluate, real_smollm2_cold
from experiments.configs import real_smollm2 as real

CACHE = 2**30  # bytes of prompts on each device; one of 2,048 tokens takes 94 MB


def get_config() -> ml_collections.ConfigDict:
    config, trained = evaluate.get_config(), real.get_config()
    spct = f"{real.RUNS}/spct/models"
    grm = {"kind": "pointwise_grm"}
    config.systems = (
        {"name": "length-only", "kind": "length"},
        {"name": "random", "kind": "random"},
        {
            "name": "Bradley-Terry",
            "kind": "bradley_terry",
            "path": f"{real.RUNS}/bradley_terry/models/bradley_terry",
        },
        # what experiments.build_real.judge has put into the package, of SPCT's GRM and Meta RM
        grm | {"name": "GRM", "path": "smollm2-grm", "meta": "smollm2-meta"},
        grm | {"name": "RFT", "path": f"{spct}/rft"},
        grm | {"name": "cold start", "path": f"{real.RUNS}/cold/models/rft"},
        grm | {"name": "base", "path": real_smollm2_cold.BASE},
    )
    config.benchmarks = tuple(
        {"kind": "records", "name": split, "path": f"{real.DATA}/test/{split}.jsonl"}
        for split in real.TESTS
    )
    for field in ("ks", "temperature", "swap", "samples_per_order"):
        config.eval[field] = trained.eval[field]
    for field in ("dtype", "scan_layers", "attention"):
        config.model[field] = trained.model[field]
    for section in ("mesh", "lengths", "sampling"):
        config[section] = trained[section]
    config.lengths.update(
        prompt=real.TEST_PROMPT, buckets=real.TEST_BUCKETS, sequences=real.TEST_SEQUENCES
    )
    config.sampling.cache_bytes = CACHE
    for role in ("pointwise", "single", "meta"):
        config.templates[role] = trained.templates[role]
    return config
