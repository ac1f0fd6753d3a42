"""The preset of a released judge, whole, on a small folder of the same structure."""

import json

import pytest

from experiments import run_config
from experiments.configs import evaluate_deepseek_grm
from experiments.stages import evaluation
from tests.evaluation import schema
from tests.reward_models.released import released_folders, released_templates


@pytest.fixture
def config(tmp_path):
    grm, meta = released_folders(tmp_path / "models")
    config = evaluate_deepseek_grm.get_config()
    (system,) = config.systems
    config.systems = (dict(system) | {"path": str(grm), "meta": str(meta)},)
    config.benchmarks = ({"kind": "world", "split": "test", "items": 4},)
    config.templates.update(released_templates(tmp_path / "templates"))
    config.eval.update(ks=(1, 8), bootstrap=100)
    config.model.update(dtype="float32", scan_layers=False)
    config.mesh.update(replica=1, fsdp=8, tensor=1)
    config.lengths.update(prompt=96, completion=128, buckets=(96,), sequences=(192,))
    config.sampling.update(rows=32, sampler="jit")
    return config


def test_the_preset_says_what_is_missing_before_anything_is_computed(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    released = evaluate_deepseek_grm.get_config()
    assert (released.eval.ks, released.eval.temperature) == ((1, 8, 32), 1.0)
    assert released.eval.samples_per_order == 1  # every sample in an order of its own
    released.mesh.update(replica=1, fsdp=8, tensor=1)
    with pytest.raises(ValueError, match="no file templates/deepseek_grm/"):
        evaluation.systems(released)
    released.templates.update(config.templates.to_dict())
    with pytest.raises(
        (ValueError, FileNotFoundError), match="models/deepseek_grm/grm.: no such folder"
    ):
        evaluation.systems(released)


def test_the_preset_judges_and_counts_both_readings(config, tmp_path, monkeypatch):
    config = run_config.finish(config)
    systems = evaluation.systems(config)
    benchmarks = evaluation.benchmarks(config, tmp_path / "run" / "records")
    settings = run_config.section(config, "eval")
    results = evaluation.evaluate(systems, benchmarks, tmp_path / "run", settings, config)
    schema.check(results)
    ways = {(row["aggregation"], row["k"], row["k_meta"]) for row in results["rows"]}
    assert {("vote", 1, None), ("vote", 8, None), ("meta", 8, 4), ("greedy", 1, None)} <= ways
    (of,) = results["diagnostics"]
    judgments = [
        json.loads(line)
        for path in (tmp_path / "run/judgments").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    differ = sum(row["strict"]["scores"] != row["scores"] for row in judgments)
    assert of["readings"]["judgments"] == len(judgments) == of["judgments"] == 40
    assert of["readings"]["judgments_differ"] == differ
    assert of["readings"]["verdicts"] == 12
    page = (tmp_path / "run/report.html").read_text()
    assert "Two readings of one text" in page
