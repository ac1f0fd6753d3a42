"""Every stage on real conversations, with the vocabulary of Gemma and a small random model: what is shown is that they go through."""

import json
import pathlib

import pytest

import run_process

REAL_TEXT = pathlib.Path(__file__).parents[2] / "experiments" / "configs" / "real_text.py"
SMALL = (
    "--config.eval.records=2", "--config.eval.ks=(1, 2)", "--config.eval.systems=('grm',)", "--config.rft.steps=1", "--config.rl.steps=1", "--config.meta.steps=1",
    "--config.lengths.completion=6", "--config.lengths.buckets=(4096,)", "--config.lengths.sequences=()", "--config.sampling.rows=4",
    "--config.rft.batch_size=2", "--config.rl.batch_size=4", "--config.meta.batch_size=2", "--config.meta.own_samples=1", "--config.rft.samples=1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in run_process.ENVIRONMENT.items():
            patch.setenv(name, value.replace("--xla_backend_optimization_level=0", "").strip())  # here running outweighs compiling
        yield


@pytest.mark.slow  # prompts of up to 4,096 tokens take minutes
@pytest.mark.parametrize("tokenizer", ["mistral_tokenizer/tokenizer.model.v1", "gemma_tokenizer/tokenizer.model"])
def test_real_conversations_go_through_every_stage(data_dir, tmp_path, tokenizer):
    bon = data_dir / "rmb" / "RMB_dataset" / "BoN_set" / "Helpfulness"
    train = bon / "Open QA" / "Hypothetical Scenarios.json"  # 8 lists of responses
    test = data_dir / "llmbar" / "LLMBar" / "Natural" / "dataset.json"
    output = run_process.run(
        REAL_TEXT, tmp_path / "run", f"--config.data.train={train}", f"--config.data.eval.test={test}",
        f"--config.tokenizer.path={data_dir / tokenizer}", *SMALL,
    )  # fmt: skip
    assert "data train: 8 records" in output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = results["rows"]
    assert {row["system"] for row in rows} == {"grm"} and all(row["items"] == 2 for row in rows)
    assert all(row["parse_failure_rate"] == 1.0 and row["accuracy"] == pytest.approx(0.5) for row in rows)  # chance of a pair: every vote fails
    assert any("No judgment of the base model was accepted" in note for note in results["notes"])
    assert "No judgment of the base model was accepted" in (tmp_path / "run" / "report.html").read_text()
