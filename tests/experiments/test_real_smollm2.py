"""The presets of real text go through every stage with their own templates and adapters, on records
of fabricated answers and a tiny model.
"""

import json

import jax
import numpy as np
import pytest

from experiments.build_real import judge as packing
from experiments.configs import (
    real_smollm2,
    real_smollm2_cold,
    real_smollm2_evaluate,
    real_smollm2_reward_model,
    real_smollm2_rubric,
    real_smollm2_rubric_evaluate,
)
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.checkpoint.peft import load_adapted, load_adapters, save_adapters
from grm_jax.judgment.prompts import load_template
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig, init_adapters, merge
from grm_jax.models.table import SCALAR
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import (
    TINY_BASE,
    Description,
    layers_of,
    read_description,
    write_description,
)
from tests.experiments.test_build_real import build_real, built, published  # noqa: F401


def test_all_presets_ask_alike():
    spct = real_smollm2.get_config()
    for other in (real_smollm2_cold, real_smollm2_reward_model, real_smollm2_evaluate):
        config = other.get_config()
        assert config.mesh == spct.mesh and config.lengths.completion == spct.lengths.completion
        if other is not real_smollm2_cold:  # which has short texts of its own
            assert config.lengths.prompt >= spct.lengths.prompt
        for role in ("pointwise", "single", "meta"):
            assert config.templates[role] == spct.templates[role]
    benchmarks = {spec["name"] for spec in real_smollm2_evaluate.get_config().benchmarks}
    assert set(spct.data.eval) < benchmarks == set(build_real.TESTS)
    # what is trained is where the others look for it
    systems = {spec["name"]: spec for spec in real_smollm2_evaluate.get_config().systems}
    assert systems["cold start"]["path"] == spct.model.path
    assert systems["base"]["path"] == real_smollm2_cold.get_config().model.path
    # with a rubric: upon the GRM, with the template whose judgments were written
    rubric, judged = real_smollm2_rubric.get_config(), real_smollm2_rubric_evaluate.get_config()
    assert rubric.model.path == systems["RFT"]["path"].replace("rft", "grm")
    assert rubric.templates.pointwise == spct.templates.pointwise
    assert rubric.templates.rubric == str(build_real.CONFIGS / "real_rubric.jinja")
    assert {spec["path"] for spec in judged.systems} == {
        "smollm2-grm",
        "runs/real/rubric/models/rft",
    }
    assert judged.lengths.completion == rubric.lengths.completion
    load_template(rubric.templates.rubric)


def test_what_is_packed_is_what_the_stages_trained(tmp_path, monkeypatch):
    """One set of adapters for three, and the Meta RM's upon it, rounded to bfloat16; a card."""
    cfg, mesh = load_config(TINY_BASE), make_mesh(devices=jax.devices()[:1])
    ranks = {"cold/adapters/rft": 4, "adapters/rft": 2, "adapters/grm": 3, "adapters/meta": 1}
    trained = {}
    for seed, (part, rank) in enumerate(ranks.items()):
        rng, lora = np.random.default_rng(seed), LoraConfig(rank, 2.0 * rank)
        adapters = init_adapters(cfg, lora, jax.random.key(seed))
        adapters = jax.tree.map(lambda x, r=rng: r.normal(0, 0.02, x.shape).astype("f"), adapters)
        trained[part] = adapters, lora
        if part.endswith("meta"):
            head = rng.normal(size=(cfg.d_model, 1)).astype("f")
            adapters = {"backbone": adapters, "score": head}
        save_adapters(
            tmp_path / part,
            adapters,
            cfg,
            lora,
            "x",
            None,
            SCALAR if "score" in adapters else "causal_lm",
        )
    for part, kind in (("grm", "pointwise_grm"), ("meta", "meta_rm")):
        (tmp_path / "models" / part).mkdir(parents=True)
        write_description(tmp_path / "models" / part, Description(kind, temperature=0.8))

    out = tmp_path / "out"
    monkeypatch.setattr(packing, "BASE", "tiny_base")
    monkeypatch.setattr(packing, "NAME", str(out / "grm"))
    packing.pack(tmp_path / "cold", tmp_path, out)
    wanted = load_params(TINY_BASE, cfg)
    for part in list(ranks)[:3]:
        wanted = merge(wanted, trained[part][0], 2.0)
    found = load_adapted(layers_of(out / "grm"), cfg, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)
    lora = load_adapters(out / "grm", cfg)[1]
    assert (lora.rank, lora.scale) == (9, 2.0)
    assert layers_of(out / "meta_rm") == (TINY_BASE, out / "grm", out / "meta_rm")
    said = read_description(out / "grm")
    assert said.meta is None and said.lengths == packing.LENGTHS and said.temperature == 0.8

    row = {"system": "GRM", "benchmark": "rmb", "k": 1, "k_meta": None, "items": 60, "chance": 0.46}
    row |= {"aggregation": "greedy", "value": 0.512, "ci_low": 0.4, "ci_high": 0.625}
    vote = row | {"aggregation": "vote", "k": 8, "value": 0.5}
    half, all_of_them = (
        vote | {"aggregation": "meta", "k_meta": k, "value": value}
        for k, value in ((4, 0.55), (8, 0.5))
    )
    other = row | {"benchmark": "llmbar"}
    results = {"rows": [row, vote, half, all_of_them, other], "config": {"eval": {}}}
    results["config"]["eval"]["temperature"] = 0.8
    text = packing.card(results, *packing.WHAT["grm"])
    figures = "51.2 [40.0, 62.5] | 50.0 [40.0, 62.5] | 55.0 [40.0, 62.5]"
    assert f"| rmb | 60 | 46.0 | {figures} |" in text
    assert "| llmbar | 60 | 46.0 | 51.2 [40.0, 62.5] | not drawn | not drawn |" in text
    with pytest.raises(ValueError, match="results: no row of a system 'GRM'"):
        packing.card({"rows": [row | {"system": "RFT"}]}, *packing.WHAT["grm"])


@pytest.mark.slow
def test_every_stage_runs_on_records_that_the_builder_made(processes, built, tmp_path):  # noqa: F811
    output = processes.run(
        processes.REPO / "tests/experiments/micro_real.py",
        tmp_path / "run",
        f"--config.data.train={json.dumps({'path': str(built / 'train.jsonl'), 'limit': 4})}",
        f"--config.data.general={json.dumps({'path': str(built / 'judgments.jsonl'), 'limit': 4})}",
        f"--config.data.eval.constraints={built / 'test/constraints.jsonl'}",
        status=1,  # so small a model writes no judgment
    )
    for stage in ("rft_sample", "rft", "rl", "meta_sample", "meta"):
        assert (tmp_path / "run/stages" / f"{stage}.json").is_file(), output[-2000:]
    assert (tmp_path / "run/adapters/grm/adapter_model.safetensors").is_file()
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["system"] for row in results["rows"]} == {"base", "rft", "grm"}
