"""python -m experiments.evaluate --config=experiments/configs/tiny_evaluate.py \\
    --workdir=runs/tiny_evaluate

The tiny base of the package, as a pointwise model, against length and chance on the checkable
world. After the quick start (launch/quickstart.sh) its models are systems too: {"name": "grm",
"kind": "pointwise_grm", "path": "runs/tiny/models/grm", "meta": "runs/tiny/models/meta"}.

Hardware: 2 CPU cores.
"""

import ml_collections

from experiments.configs import evaluate, tiny


def get_config() -> ml_collections.ConfigDict:
    config = evaluate.get_config()
    config.systems = (
        {"name": "length-only", "kind": "length"},
        {"name": "random", "kind": "random"},
        {"name": "tiny base", "kind": "pointwise_grm", "path": "tiny_base"},
    )
    config.benchmarks = tuple(
        {"kind": "world", "split": split, "items": 60}
        for split in ("test", "hard", "wide", "single")
    )
    config.eval.update(
        ks=(1, 2, 4, 8), temperature=tiny.TEMPERATURE, samples_per_order=4, bootstrap=1000
    )
    config.model.update(dtype="float32", scan_layers=False)
    config.mesh.update(replica=-1, fsdp=1, tensor=1)
    config.templates.update(
        pointwise="tiny_pointwise", single="tiny_single", judge="tiny_judge", meta="tiny_meta"
    )
    config.lengths.update(
        prompt=tiny.PROMPT,
        completion=tiny.COMPLETION,
        buckets=tiny.BUCKETS,
        sequences=tiny.SEQUENCES,
    )
    config.sampling.update(rows=256, sampler="shard_map")
    return config
