"""python -m experiments.evaluate --config=experiments/configs/evaluate.py \\
    --workdir=runs/evaluate

The systems and benchmarks of the paper's Table 2. Edit `systems` and `benchmarks`: each is a plain
dict, described in grm_jax/reward_models/load.py and grm_jax/benchmarks. What is added later is
judged alone; the rest is on file.

Hardware: what the largest of the systems needs; 27B in bfloat16 takes 54 GB for its weights.
Result and time: not run here.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # what is compared: a name, a kind, and the fields of that kind
    config.systems = (
        {"name": "length-only", "kind": "length"},
        {"name": "random", "kind": "random"},
        {"name": "Bradley-Terry", "kind": "scalar", "path": "runs/bt_27b/models/bradley_terry"},
        {"name": "PairRM", "kind": "pair_rm", "path": "runs/pair_rm_27b/models/pair_rm"},
        {
            "name": "CLoud",
            "kind": "cloud",
            "path": "runs/cloud_27b/models/cloud",
            "critic": "runs/cloud_27b/models/critic",
        },
        {"name": "GRM-RFT", "kind": "pointwise_grm", "path": "runs/spct_27b/models/rft"},
        {
            "name": "GRM",
            "kind": "pointwise_grm",
            "path": "runs/spct_27b/models/grm",
            "meta": "runs/spct_27b/models/meta",
        },
        {
            "name": "GPT-4o",
            "kind": "remote",
            "base_url": "https://api.openai.com/v1",
            "model": "gpt-4o-2024-08-06",
            "api_key_env": "OPENAI_API_KEY",
        },
    )
    # what all systems judge: files as published; {"path": ...} in place of {"hub": True}, and
    # "limit": 40 for a first look at so many items
    config.benchmarks = (
        {"kind": "rewardbench", "hub": True},
        {"kind": "ppe_preference", "hub": True},
        {"kind": "ppe_correctness", "hub": True},
        {"kind": "rmb", "path": "data/RMB_dataset"},
        {"kind": "realmistake", "path": "data/realmistake"},
    )
    # how they are asked, and how figures are taken
    config.eval = ml_collections.ConfigDict(
        dict(
            ks=(1, 2, 4, 8, 16, 32),  # votes; figure axes of the paper
            temperature=0.5,  # D.1: of everything that is sampled
            # consecutive samples that share a response order, and so a prompt; 1 in the paper
            samples_per_order=1,
            # leave an item once its verdict stands: 0 where that is certain, 0.05 by a test that
            # errs with at most this probability; None draws the largest of ks for all
            anytime=placeholder(float),
            greedy=True,  # D.1: the default results, temperature 0
            swap=True,  # greedy once more, the responses in the reverse order
            seeds=(0,),  # of response orders and sampling; figures are means over them
            retry=(),  # names of failures to ask again, such as ("request_failed",)
            bootstrap=2000,  # resamples of each interval
            # of each benchmark that can be read in report.html; all judgments are on file
            report_items=100,
            # share of a benchmark that a system has to judge for its figures to stand unmarked
            min_coverage=0.9,
        )
    )
    # how the systems' models compute; where they lie is in `systems`
    config.model = ml_collections.ConfigDict(
        dict(dtype="bfloat16", scan_layers=True, remat="none", attention="auto")
    )
    # devices along each axis; -1: all that are left
    config.mesh = ml_collections.ConfigDict(dict(replica=1, fsdp=-1, tensor=4))
    # built-in names, paths of Jinja files, or package.module:function; a system may have its own
    config.templates = ml_collections.ConfigDict(
        dict(
            pointwise="pointwise",
            single="single",
            judge="judge",
            meta="meta",
            # "rubric" for records with criteria of their own, judged by folders without grm.json
            rubric=placeholder(str),
        )
    )
    # in tokens; a longer prompt is a failure by name, nothing is cut
    config.lengths = ml_collections.ConfigDict(
        dict(
            prompt=6144,
            completion=2048,
            buckets=(1024, 2048, 4096, 6144),
            sequences=(1024, 2048, 4096),
        )
    )
    config.sampling = ml_collections.ConfigDict(
        dict(
            top_p=1.0,
            top_k=0,
            kv_cache_dtype="auto",  # or "int8": about half of bfloat16's memory, rounded
            rows=64,
            chunk=32,
            cache_bytes=0,
            sampler="shard_map",
        )
    )
    return config
