"""Every stage on real conversations with a small random model: what is shown is that they go
through, and that the report says what they are worth.
"""

import json

import pytest

CONFIG = "experiments/configs/real_text.py"
FEW = (
    "--config.eval.records=2",
    "--config.eval.ks=(1, 2)",
    "--config.eval.systems=('grm',)",
    "--config.rft.steps=1",
    "--config.rl.steps=1",
    "--config.meta.steps=1",
    "--config.lengths.completion=6",
    "--config.lengths.sequences=()",
    "--config.sampling.rows=4",
    "--config.rft.batch_size=2",
    "--config.rl.batch_size=4",
    "--config.meta.batch_size=2",
    "--config.meta.own_samples=1",
    "--config.rft.samples=1",
)


def shortest(source, target, count):
    """The `count` items of an official file (a JSON list) with the least text, as a file of the
    same format.
    """
    items = sorted(json.loads(source.read_text()), key=lambda item: len(json.dumps(item)))
    target.write_text(json.dumps(items[:count]))
    return target


def check(processes, workdir, train, test, tokenizer, records, *more):
    output = processes.run(
        processes.REPO / CONFIG,
        workdir,
        f"--config.data.train={train}",
        f"--config.data.eval.test={test}",
        f"--config.tokenizer.path={tokenizer}",
        *FEW,
        *more,
        status=1,
    )
    assert output.endswith("not one judgment, so no figure: grm on test (truncated 6)\n")
    assert f"data train: {records} records" in output
    results = json.loads((workdir / "results.json").read_text())
    rows = results["rows"]
    assert {row["system"] for row in rows} == {"grm"} and all(row["items"] == 2 for row in rows)
    # every judgment fails, so there is no figure
    assert all(row["parse_failure_rate"] == 1.0 and row["judged"] == 0 for row in rows)
    assert all(row["value"] is None and row["strict"] is None for row in rows)
    assert any("No judgment of the base model was accepted" in note for note in results["notes"])
    page = (workdir / "report.html").read_text()
    assert (
        "No judgment of the base model was accepted" in page
        and "none of its judgments can be parsed" in page
    )


@pytest.mark.slow
def test_a_few_short_items_go_through_every_stage(processes, data_dir, tmp_path):
    train = shortest(
        data_dir / "rmb/RMB_dataset/BoN_set/Helpfulness/Rewrite/Paraphrasing.json",
        tmp_path / "train.json",
        5,
    )
    test = shortest(data_dir / "llmbar/LLMBar/Natural/dataset.json", tmp_path / "test.json", 2)
    tokenizer = data_dir / "mistral_tokenizer/tokenizer.model.v1"
    check(
        processes,
        tmp_path / "run",
        train,
        test,
        tokenizer,
        5,
        "--config.lengths.prompt=1024",
        "--config.lengths.buckets=(1024,)",
    )


@pytest.mark.slow  # prompts of up to 4,096 tokens and a vocabulary of 256,000
@pytest.mark.parametrize(
    "tokenizer, fitting",
    [("mistral_tokenizer/tokenizer.model.v1", 7), ("gemma_tokenizer/tokenizer.model", 8)],
)
def test_long_lists_go_through_every_stage(processes, data_dir, tmp_path, tokenizer, fitting):
    # 8 lists; one has 4,223 tokens of Mistral's
    train = data_dir / "rmb/RMB_dataset/BoN_set/Helpfulness/Open QA/Hypothetical Scenarios.json"
    test = data_dir / "llmbar/LLMBar/Natural/dataset.json"
    check(
        processes,
        tmp_path / "run",
        train,
        test,
        data_dir / tokenizer,
        fitting,
        "--config.lengths.buckets=(4096,)",
    )
