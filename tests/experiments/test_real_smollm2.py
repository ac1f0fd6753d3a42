"""The presets of real text go through every stage with their own templates and adapters, on records
of fabricated answers and a tiny model.
"""

import json

import pytest

from experiments.configs import (
    real_smollm2,
    real_smollm2_cold,
    real_smollm2_evaluate,
    real_smollm2_reward_model,
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
