"""Which systems share their judgments, and which never do."""

import json

import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.evaluation.judging import judge_all
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.judgment.records import Record, Turn, write_records
from grm_jax.reward_models.load import System
from grm_jax.reward_models.protocol import RewardModel, new_judgment

SETTINGS = EvalConfig(ks=(1,), temperature=1.0)


@pytest.fixture
def benchmarks(tmp_path):
    records = [
        Record(f"r{i}", (Turn("user", f"q{i}"),), ("a", "b"), (1.0, 0.0), "d") for i in range(3)
    ]
    write_records(tmp_path / "b.jsonl", records)
    return [load_benchmark({"kind": "records", "name": "b", "path": str(tmp_path / "b.jsonl")})]


def system(name, asked, identity, view=None, score=2.0):
    def judge(records, samples=(0,), temperature=0.0, swapped=False):
        asked.append(name)
        for record in records:
            yield [new_judgment(record, s, (0, 1), temperature, [score, 1.0]) for s in samples]

    model = RewardModel(name, judge, sampled=False, accepts=lambda n: True)
    return System(
        name, "k", identity, lambda seed: model, lambda: None, view, lambda n: True, False
    )


def doubled(judgment):
    return judgment | {"scores": [2 * score for score in judgment["scores"]]}


def test_two_readings_share_their_judgments_whatever_their_order(benchmarks, tmp_path):
    asked, identity = [], {"kind": "judge"}
    plain, view = system("x", asked, identity), system("y", asked, identity, doubled)
    first = judge_all([plain, view], benchmarks, tmp_path / "run", SETTINGS)
    assert asked == ["x"]
    again = judge_all([view, plain], benchmarks, tmp_path / "run", SETTINGS)
    alone = judge_all([view], benchmarks, tmp_path / "run", SETTINGS)
    assert asked == ["x"], "what is on file is not asked again"
    for judged in (first, again, alone):
        (rows,) = judged["y"]["b"].rows["greedy"]
        assert {json.dumps(row["scores"]) for row in rows.values()} == {"[4.0, 2.0]"}


def test_two_servers_of_one_model_name_are_each_asked(benchmarks, tmp_path):
    asked, identity = [], {"kind": "remote", "model": "default"}
    both = [system("a", asked, identity), system("b", asked, identity, score=5.0)]
    judged = judge_all(both, benchmarks, tmp_path / "run", SETTINGS)
    assert asked == ["a", "b"]
    for name, expected in (("a", [2.0, 1.0]), ("b", [5.0, 1.0])):
        (rows,) = judged[name]["b"].rows["greedy"]
        assert all(row["scores"] == expected for row in rows.values())
