"""The whole command on its micro preset: what each kind leaves, and that an interrupted run ends as
one that was not.
"""

import json
import shutil

import numpy as np
import pytest

from experiments import run_config
from experiments.configs import tiny, tiny_reward_model
from grm_jax.data.world import make_critiques, make_records
from grm_jax.evaluation import store
from grm_jax.reward_models.description import read_description
from grm_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def train(processes):
    config = processes.REPO / "tests/experiments/micro_reward_model.py"
    return lambda kind, workdir: processes.run(
        config, workdir, f"--config.kind={kind}", script="reward_model"
    )


def weights(workdir, name):
    return (workdir / "models" / name / "model.safetensors").read_bytes()


def undo(workdir, *stages):
    """As if the run had been killed in the first of these stages, behind its first checkpoint."""
    for stage in stages:
        (workdir / "stages" / f"{stage}.json").unlink()
        shutil.rmtree(workdir / "models" / stage, ignore_errors=True)


def judgments(workdir, kind):
    return store.read(workdir / "judgments" / kind / "test" / "greedy-seed0.jsonl")


def check(workdir, kind):
    folder = workdir / "models" / kind
    assert (
        json.loads((folder / "config.json").read_text())["architectures"]
        == ["Gemma2ForSequenceClassification"]
        and (folder / "tokenizer.json").is_file()
    )
    logged = [row for row in read_metrics(workdir / "metrics.jsonl") if row["stage"] == kind]
    assert [row["step"] for row in logged] == [0, 1, 2] and all(
        np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in logged
    )
    assert read_description(folder).kind == kind
    (row,) = [
        row
        for row in json.loads((workdir / "results.json").read_text())["rows"]
        if (row["aggregation"], row["benchmark"]) == ("greedy", "test")
    ]
    assert row["system"] == kind and row["judged"] > 0
    for judgment in judgments(workdir, kind):
        assert (judgment["scores"] is None) == (judgment["failure"] is not None)
    assert json.loads((workdir / "config.json").read_text())["config"]["kind"] == kind


def test_bradley_terry_goes_on_from_its_checkpoint_to_the_same_bits(train, tmp_path):
    train("bradley_terry", tmp_path)
    check(tmp_path, "bradley_terry")
    before = weights(tmp_path, "bradley_terry")
    undo(tmp_path, "bradley_terry")
    assert "bradley_terry: goes on from update 2 of 3" in train("bradley_terry", tmp_path)
    assert weights(tmp_path, "bradley_terry") == before
    check(tmp_path, "bradley_terry")


def test_pair_rm(train, tmp_path):
    train("pair_rm", tmp_path)
    check(tmp_path, "pair_rm")
    for row in judgments(tmp_path, "pair_rm"):
        n = len(row["order"])
        assert sum(row["scores"]) == (1 if n == 2 else n * (n - 1)) and ("preference" in row) == (
            n == 2
        )


@pytest.mark.slow
def test_cloud_goes_on_where_each_stage_was(train, tmp_path):
    train("cloud", tmp_path)
    check(tmp_path, "cloud")
    path = tmp_path / "trajectories/critic/train/sampled-seed0.jsonl"
    before, written = weights(tmp_path, "cloud"), path.read_bytes()
    drawn = store.read(path)
    records = {record.id: record for record in make_records("train", 12)}
    assert {judgment["id"] for judgment in drawn} == {
        name for name, record in records.items() if len(record.responses) > 1
    }
    for judgment in drawn:
        assert judgment["failure"] in (None, "truncated") and judgment["scores"] is None
        assert len(judgment["critiques"]) == len(records[judgment["id"]].responses)
    undo(tmp_path, "critiques", "cloud")
    shutil.rmtree(tmp_path / "checkpoints/cloud")
    path.write_bytes(written[: len(written) // 2])  # ends in the middle of a line
    output = train("cloud", tmp_path)
    assert "critic: done before" in output and "critiques: done before" not in output
    again = {judgment["id"]: judgment["critiques"] for judgment in store.read(path)}
    assert again == {judgment["id"]: judgment["critiques"] for judgment in drawn}
    assert weights(tmp_path, "cloud") == before


def test_world_critiques_hold_no_score_and_no_gold():
    critiques = make_critiques(40)
    items = make_records("train", 40)
    assert [c.responses[0] for c in critiques] == [
        response for item in items for response in item.responses
    ]
    assert all(
        c.rewards is None
        and "boxed" not in c.metadata["critique"]
        and "Scores" not in c.metadata["critique"]
        for c in critiques
    )
    gold = [reward for item in items for reward in item.rewards]
    says_good = [not c.metadata["critique"].rstrip().endswith("bad") for c in critiques]
    agree = np.mean([good == bool(reward) for good, reward in zip(says_good, gold)])
    assert 0.3 < agree < 0.9  # a sloppy judge's opinion, not the gold


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("kind", "bt", "kind: expected one of bradley_terry, pair_rm, cloud, got 'bt'"),
        ("bradley_terry.center", -1.0, "bradley_terry.center: expected a number >= 0, got -1.0"),
        (
            "cloud.batch_size",
            65,
            "cloud.batch_size: expected a multiple of micro_batch = 64, got 65",
        ),
        ("critic.path", "nowhere", "critic.path: model 'nowhere': no such folder; expected 'tiny'"),
        (
            "data.critiques",
            ({"world": "critiques"},),
            "data.critiques: expected items, how many, got {'world': 'critiques'}",
        ),
        ("data.critiques", ("nowhere.jsonl",), "data.critiques: no such file: nowhere.jsonl"),
        (
            "data.general",
            (),
            "data.general: critic.general_fraction is 0.35, so at least one source is "
            "expected, got "
            "none",
        ),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    config = tiny_reward_model.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as error:
        run_config.finish(config)
    assert str(error.value).startswith(f"1 wrong field in the config: {message}")


def test_records_and_model_are_those_of_the_quick_start():
    quick, ours = tiny.get_config(), tiny_reward_model.get_config()
    assert (
        ours.data.train == quick.data.train
        and ours.model == quick.model
        and ours.seed == quick.seed
    )
