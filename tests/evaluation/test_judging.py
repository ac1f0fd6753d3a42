"""Which systems share their judgments, and which never do."""

import json

import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.evaluation.judging import judge_all, plan
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.judgment.records import Record, Turn, write_records
from grm_jax.reward_models.load import System
from grm_jax.reward_models.protocol import RewardModel, new_judgment
from grm_jax.reward_models.remote import Estimate

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


# ---- what would be asked


def served(name, asked, model, **fields):
    """A system behind a server that says which model it serves."""
    plain = system(name, asked, {"kind": "remote", "model": "default"})

    def judge(records, samples=(0,), temperature=0.0, swapped=False):
        for block in plain.load(0).judge(records, samples, temperature, swapped):
            yield [judgment | {"served_model": model, "cost": 0.5} for judgment in block]

    loaded = plain.load(0)._replace(judge=judge)

    def estimate(records, samples):
        requests = samples * len(records)
        return Estimate(requests, 100 * requests, 10 * requests, 2.0 * requests)

    return plain._replace(load=lambda seed: loaded, estimate=estimate, **fields)


def test_a_plan_says_what_is_missing_and_asks_and_claims_nothing(benchmarks, tmp_path):
    asked, settings = [], EvalConfig(ks=(1, 4), temperature=1.0, swap=True, seeds=(0, 1))
    systems = [system("a", asked, {}), served("b", asked, "m", sampled=True)]
    planned = plan(systems, benchmarks, tmp_path / "run", settings)
    assert not asked and not (tmp_path / "run").exists()
    assert [(one.label, one.judgments, one.missing) for one in planned] == [
        (f"{name} on b, {way}, seed {seed}", count, count)
        for name, ways in (("a", ("greedy", "swapped")), ("b", ("greedy", "swapped", "sampled")))
        for way in ways
        for seed in (0, 1)
        for count in [12 if way == "sampled" else 3]
    ]
    assert [one.estimate for one in planned[:4]] == [None] * 4
    assert planned[-1].estimate == Estimate(12, 1200, 120, 24.0)
    assert {one.expected_cost for one in planned} == {None}


def test_a_plan_counts_what_is_on_file_and_tells_what_that_cost(benchmarks, tmp_path):
    asked, settings = [], EvalConfig(ks=(1,), temperature=1.0)
    (few,) = benchmarks
    few = few._replace(records=few.records[:1])
    judge_all([served("b", asked, "m")], [few], tmp_path / "run", settings)
    (one,) = plan([served("b", asked, "m")], benchmarks, tmp_path / "run", settings)
    assert (one.judgments, one.missing, one.expected_cost) == (3, 2, 1.0)
    assert one.estimate == Estimate(2, 200, 20, 4.0)
    (one,) = plan([served("b", asked, "m")], [few], tmp_path / "run", settings)
    assert one.missing == 0 and one.estimate.requests == 0
    other = served("b", asked, "m")._replace(identity={"kind": "length"})
    with pytest.raises(ValueError, match="judgments of another system of this name"):
        plan([other], benchmarks, tmp_path / "run", settings)


def test_servers_of_two_models_never_share_judgments_under_one_name(benchmarks, tmp_path):
    asked = []
    (few,) = benchmarks
    few = few._replace(records=few.records[:1])
    judge_all([served("b", asked, "llama")], [few], tmp_path / "run", SETTINGS)
    path = tmp_path / "run" / "b" / "b" / "greedy-seed0.jsonl"
    before = path.read_bytes()
    other = few._replace(name="another benchmark")
    for benchmark in (*benchmarks, other):
        with pytest.raises(ValueError, match="are of llama, and the server says now .* qwen"):
            judge_all([served("b", asked, "qwen")], [benchmark], tmp_path / "run", SETTINGS)
    assert path.read_bytes() == before
    # the same model at another address, and one that says nothing, go on
    judge_all([served("b", asked, "llama")], benchmarks, tmp_path / "run", SETTINGS)
    judge_all([served("b", asked, None)], [other], tmp_path / "run", SETTINGS)
