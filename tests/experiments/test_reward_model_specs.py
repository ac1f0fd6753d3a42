"""Every kind of reward model that a config can name is loaded from its folder, judges, and goes
through the evaluator.
"""

import json

import jax
import numpy as np
import pytest

from experiments.config_flags import TINY_BASE
from experiments.configs import tiny_evaluate
from experiments.stages import comparison
from experiments.stages.reward_models import load_reward_model
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.models.config import load_config
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.table import SCALAR


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The tiny base with a scalar head that was never trained."""
    cfg = load_config(TINY_BASE)
    folder = tmp_path_factory.mktemp("models") / "head"
    params = init_scalar_params(cfg, load_params(TINY_BASE, cfg), jax.random.key(0))
    save_folder(folder, params, cfg, tokenizer_files_from=TINY_BASE, architecture=SCALAR)
    return str(folder)


def small(config):
    config.model.scan_layers = True
    config.mesh.update(replica=-1, fsdp=1)  # prompts are split over the devices
    config.lengths.update(prompt=80, completion=12, buckets=(80,), sequences=())
    config.sampling.update(rows=8, samples_per_order=1)
    config.ks, config.bootstrap, config.greedy, config.swap = (1, 2), 200, False, False
    config.benchmarks = (
        {"kind": "world", "split": "test", "items": 3},
        {"kind": "world", "split": "single", "items": 2},
    )
    return config


def test_each_kind_that_lies_in_a_folder_judges_what_it_accepts(head, tmp_path):
    config = small(tiny_evaluate.get_config())
    config.systems = (
        {"name": "grm", "kind": "pointwise_grm", "path": "tiny", "meta": head},
        {"name": "judge", "kind": "llm_judge", "path": "tiny"},
        {"name": "judge by probability", "kind": "token_prob", "path": "tiny"},
        {"name": "scalar", "kind": "scalar", "path": head},
        {"name": "pairs", "kind": "pair_rm", "path": head, "swap_average": True},
        {"name": "cloud", "kind": "cloud", "path": head, "critic": "tiny"},
    )
    results = comparison.run(config, tmp_path)
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
    cfg = load_config(TINY_BASE)
    save_folder(
        head,
        init_scalar_params(cfg, load_params(TINY_BASE, cfg), jax.random.key(1)),
        cfg,
        tokenizer_files_from=TINY_BASE,
        architecture=SCALAR,
    )
    with pytest.raises(ValueError, match="another system of this name; it differs in meta weights"):
        comparison.run(config, tmp_path)


def test_a_remote_judge_takes_its_templates_and_limits_from_the_config():
    config = tiny_evaluate.get_config()
    model = load_reward_model(
        {
            "name": "gpt",
            "kind": "remote",
            "base_url": "http://localhost:1/v1",
            "model": "m",
            "answer": "index",
            "retries": 0,
        },
        config,
        3,
    )
    assert model.name == "gpt" and model.sampled and not model.accepts(1) and model.accepts(4)
    flexible = load_reward_model(
        {"name": "gpt", "kind": "remote", "base_url": "http://localhost:1/v1", "model": "m"}, config
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
            config,
        )
