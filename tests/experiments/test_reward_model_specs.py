"""Every kind of reward model that a config can name is loaded from its folder, judges, and goes
through the evaluator.
"""

import json

import jax
import numpy as np
import pytest

from experiments import config_flags
from experiments.configs import tiny_evaluate
from experiments.stages import evaluation
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.models.config import load_config
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.table import SCALAR
from grm_jax.reward_models.description import model_folder
from grm_jax.reward_models.load import load_reward_model
from tests.experiments.test_evaluate import evaluate


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The tiny base with a scalar head that was never trained."""
    cfg = load_config(model_folder("tiny_base"))
    folder = tmp_path_factory.mktemp("models") / "head"
    params = init_scalar_params(cfg, load_params(model_folder("tiny_base"), cfg), jax.random.key(0))
    save_folder(
        folder, params, cfg, tokenizer_files_from=model_folder("tiny_base"), architecture=SCALAR
    )
    return str(folder)


def small(config):
    config.model.scan_layers = True
    config.mesh.update(replica=-1, fsdp=1)  # prompts are split over the devices
    config.lengths.update(prompt=80, completion=12, buckets=(80,), sequences=())
    config.sampling.rows = 8
    config.eval.update(ks=(1, 2), bootstrap=200, greedy=False, swap=False, samples_per_order=1)
    config.benchmarks = (
        {"kind": "world", "split": "test", "items": 3},
        {"kind": "world", "split": "single", "items": 2},
    )
    return config


def test_each_kind_that_lies_in_a_folder_judges_what_it_accepts(head, tmp_path):
    config = small(tiny_evaluate.get_config())
    config.systems = (
        {"name": "grm", "kind": "pointwise_grm", "path": "tiny_base", "meta": head},
        {"name": "judge", "kind": "llm_judge", "path": "tiny_base"},
        {"name": "judge by probability", "kind": "token_prob", "path": "tiny_base"},
        {"name": "scalar", "kind": "scalar", "path": head},
        {"name": "pairs", "kind": "pair_rm", "path": head, "swap_average": True},
        {"name": "cloud", "kind": "cloud", "path": head, "critic": "tiny_base"},
    )
    results = evaluate(config, tmp_path)
    can = {one["system"]: one for one in results["capabilities"]}
    assert [name for name, one in can.items() if one["one"]["accepted"]] == [
        "grm",
        "scalar",
        "cloud",
    ]
    assert all(one["two"]["accepted"] == one["two"]["items"] for one in can.values())
    assert [name for name, one in can.items() if not one["sampled"]] == ["scalar", "pairs"]
    rows = {
        name: [
            json.loads(line)
            for path in sorted((tmp_path / "judgments" / name).rglob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for name in can
    }
    # two readings of the same judgments, which lie in one folder
    assert rows["judge"] and not rows["judge by probability"]
    by_name = {(r["system"], r["aggregation"], r["k"]): r for r in results["rows"]}
    plain, weighted = (by_name[name, "vote", 1] for name in ("judge", "judge by probability"))
    assert plain["tokens_per_judgment"] == weighted["tokens_per_judgment"] > 0
    assert all(
        np.isfinite(row["meta_logit"])
        for row in rows["grm"]
        if row["temperature"] > 0 and row["failure"] is None
    )
    assert {row["failure"] for row in rows["scalar"] + rows["pairs"]} == {None} and all(
        row["critiques"] for row in rows["cloud"]
    )
    assert len({json.dumps(row["scores"]) for row in rows["scalar"]}) > 1
    # a model retrained in the same folder is another system
    cfg = load_config(model_folder("tiny_base"))
    save_folder(
        head,
        init_scalar_params(cfg, load_params(model_folder("tiny_base"), cfg), jax.random.key(1)),
        cfg,
        tokenizer_files_from=model_folder("tiny_base"),
        architecture=SCALAR,
    )
    with pytest.raises(ValueError, match="another system of this name; it differs in meta.weights"):
        evaluate(config, tmp_path)


def test_a_remote_judge_takes_its_templates_and_limits_from_the_config():
    asking = evaluation.asking_of(config_flags.finish(tiny_evaluate.get_config()))
    model = load_reward_model(
        {
            "name": "gpt",
            "kind": "remote",
            "base_url": "http://localhost:1/v1",
            "model": "m",
            "answer": "index",
            "retries": 0,
        },
        asking,
        3,
    )
    assert model.name == "gpt" and model.sampled and not model.accepts(1) and model.accepts(4)
    flexible = load_reward_model(
        {"name": "gpt", "kind": "remote", "base_url": "http://localhost:1/v1", "model": "m"}, asking
    )
    assert flexible.accepts(1)
    with pytest.raises(ValueError, match="system 'gpt': unknown field 'modle'"):
        load_reward_model(
            {
                "name": "gpt",
                "kind": "remote",
                "base_url": "http://localhost:1/v1",
                "model": "m",
                "modle": "x",
            },
            asking,
        )
