"""Which systems share their judgments, and which never do."""

import json
import random

import numpy as np
import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.evaluation.comparisons import compare_systems
from grm_jax.evaluation.judging import Pass, judge_all, judge_pass, plan
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.judgment.anytime import decided
from grm_jax.judgment.records import Record, Turn, write_records
from grm_jax.judgment.voting import default_k_meta, expected_credit, select_by_meta, vote
from grm_jax.report.headline import markdown
from grm_jax.reward_models.protocol import RewardModel, new_judgment
from grm_jax.reward_models.remote import Estimate
from grm_jax.reward_models.system import System

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


def test_no_samples_are_no_judgments(benchmarks, tmp_path):
    """As RFT asks for, where it wants no hinted ones; no model is loaded for them."""

    def load():
        raise AssertionError("nothing is to be judged")

    assert judge_pass(tmp_path / "f", load, benchmarks[0].records, Pass("none", (), 1.0), "") == {}


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


# ---- items that are left early


class Noisy:
    """A judge of mixed opinions on items of one to three responses, as a system; `asked` holds
    (id, sample) in the order of asking.
    """

    def __init__(self, guided=False, fails=0.1):
        self.asked, self.guided, self.fails, self.loads = [], guided, fails, 0
        self.breaks = None

    def judgment(self, record, sample, temperature):
        rng, n = random.Random(f"{record.id}{sample}"), len(record.responses)
        skill = int(record.id[1:]) % 5 / 4  # how clear an item is
        scores = [rng.randint(1, 4) + 5 * (i == 0 and rng.random() < skill) for i in range(n)]
        scores = [int(rng.random() < 0.5 + skill / 2)] if n == 1 else scores
        failed, logit = rng.random() < self.fails, rng.gauss(0, 1)
        return new_judgment(
            record,
            sample,
            range(n),
            temperature,
            None if failed else scores,
            failure="no_box" if failed else None,
            meta_logit=logit if self.guided and not failed else None,
            tokens=sample + 1,
        )

    def load(self, seed):
        self.loads += 1

        def judge(records, samples=(0,), temperature=0.0, swapped=False):
            for record in records:
                block = []
                for sample in samples:
                    if self.breaks is not None and len(self.asked) >= self.breaks:
                        raise KeyboardInterrupt
                    self.asked.append((record.id, sample))
                    block.append(self.judgment(record, sample, temperature))
                yield block

        return RewardModel("noisy", judge, True, lambda n: True)

    def system(self, span=lambda n: 1 if n == 1 else 9):
        return System(
            "noisy", "k", {}, self.load, lambda: None, None, lambda n: True, True, span=span
        )


@pytest.fixture
def mixed(tmp_path):
    records = [
        Record(
            f"r{i}",
            (Turn("user", f"q{i}"),),
            ("a", "b", "c")[: 1 + i % 3],
            (1.0, 0.0, 0.0)[: 1 + i % 3],
            "d",
        )
        for i in range(30)
    ]
    write_records(tmp_path / "m.jsonl", records)
    return load_benchmark({"kind": "records", "name": "m", "path": str(tmp_path / "m.jsonl")})


def settings_of(anytime, most=16, **more):
    ks = tuple(k for k in (1, 2, 4, 8, 16, 32) if k <= most)
    return EvalConfig(ks=ks, temperature=1.0, greedy=False, anytime=anytime, **more)


def stops(noisy, records, k, error, step=4):
    """Slow twin: each item by itself, sample by sample as the judge would give them."""
    found = {}
    for record in records:
        n = len(record.responses)
        judgments = [noisy.judgment(record, sample, 1.0) for sample in range(k)]
        for drawn in range(step, k + 1, step):
            first = judgments[:drawn]
            how = ([j["scores"] for j in first], k, 1 if n == 1 else 9, error)
            logits = [j["meta_logit"] for j in first]
            if (
                drawn == k
                or decided(*how)
                and (not noisy.guided or decided(*how, logits, default_k_meta(k)))
            ):
                found[record.id] = drawn
                break
    return found


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("error", [0.0, 0.2])
def test_items_are_left_where_their_own_samples_say_so(guided, error, mixed, tmp_path):
    noisy = Noisy(guided)
    judged = judge_all([noisy.system()], [mixed], tmp_path / "run", settings_of(error))
    expected = stops(noisy, mixed.records, 16, error)
    assert max(expected.values()) == 16 and len(expected) == 30
    assert min(expected.values()) < 16 or (guided and error == 0)
    wanted = {(name, sample) for name, drawn in expected.items() for sample in range(drawn)}
    assert sorted(noisy.asked) == sorted(wanted), "each once, and no other"
    (rows,) = judged["noisy"]["m"].rows["sampled"]
    assert set(rows) == wanted and judged["noisy"]["m"].least == 4
    said = json.loads((tmp_path / "run/noisy/m/sampled-seed0.stopped.json").read_text())
    assert said["rule"] == {"k": 16, "error": error, "round": 4}
    assert {name: item["samples"] for name, item in said["items"].items()} == {
        name: drawn for name, drawn in expected.items() if drawn < 16
    }
    whys = {item["why"] for item in said["items"].values()}
    assert whys <= {"certain"} if error == 0 else "test" in whys
    # again nothing is asked, and nothing loaded
    again = judge_all([noisy.system()], [mixed], tmp_path / "run", settings_of(error))
    assert again == judged and len(noisy.asked) == len(wanted) and noisy.loads == 1


def test_another_rule_goes_on_from_what_is_there_and_reads_no_more_than_it_would_draw(
    mixed, tmp_path
):
    noisy, place = Noisy(), tmp_path / "run"

    def run(settings):
        before = len(noisy.asked)
        judged = judge_all([noisy.system()], [mixed], place, settings)
        return judged["noisy"]["m"].rows["sampled"][0], noisy.asked[before:]

    said = place / "noisy/m/sampled-seed0.stopped.json"
    loose, asked_loose = run(settings_of(0.2))
    certain, asked_certain = run(settings_of(0.0))
    assert set(loose) < set(certain) and set(asked_certain) == set(certain) - set(loose)
    everything, asked_rest = run(settings_of(None))
    assert len(everything) == 30 * 16 and len(asked_rest) == 30 * 16 - len(certain)
    assert not said.exists(), "nothing was left early"
    back, nothing = run(settings_of(0.2))
    assert (back, nothing) == (loose, []) and said.exists()
    longer, asked_longer = run(settings_of(0.2, 32))
    expected = stops(noisy, mixed.records, 32, 0.2)
    assert {name for name, _ in asked_longer} == {n for n, drawn in expected.items() if drawn > 16}
    assert len(longer) == sum(expected.values())
    assert len(noisy.asked) == len(set(noisy.asked)), "no judgment is asked for twice"


def test_a_run_that_was_killed_goes_on_to_the_same_items_and_samples(mixed, tmp_path):
    whole = Noisy(True)
    judged = judge_all([whole.system()], [mixed], tmp_path / "a", settings_of(0.1))
    cut = Noisy(True)
    for breaks in (7, 40, 130, 200, None):
        cut.breaks = breaks
        if breaks is None:
            again = judge_all([cut.system()], [mixed], tmp_path / "b", settings_of(0.1))
        else:
            with pytest.raises(KeyboardInterrupt):
                judge_all([cut.system()], [mixed], tmp_path / "b", settings_of(0.1))
    plain = [
        {key: row["scores"] for key, row in one["noisy"]["m"].rows["sampled"][0].items()}
        for one in (judged, again)
    ]
    assert plain[0] == plain[1]
    name = "noisy/m/sampled-seed0.stopped.json"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failure_that_is_asked_again_may_open_an_item(mixed, tmp_path):
    noisy = Noisy(fails=0.4)
    judge_all([noisy.system()], [mixed], tmp_path / "run", settings_of(0.2))
    noisy.fails = 0.0
    first = len(noisy.asked)
    more = settings_of(0.2, retry=("no_box",))
    judged = judge_all([noisy.system()], [mixed], tmp_path / "run", more)
    (rows,) = judged["noisy"]["m"].rows["sampled"]
    expected = stops(noisy, mixed.records, 16, 0.2)
    assert set(rows) == {(name, s) for name, drawn in expected.items() for s in range(drawn)}
    assert len(noisy.asked) > first and not [r for r in rows.values() if r["failure"]]


def test_who_cannot_be_left_early_gets_all(mixed, tmp_path):
    noisy = Noisy()
    judged = judge_all([noisy.system(None)], [mixed], tmp_path / "run", settings_of(0.2))
    assert len(noisy.asked) == 30 * 16 and judged["noisy"]["m"].least is None
    scores = mixed._replace(metric="roc_auc", name="scores")
    judge_all([noisy.system()], [scores], tmp_path / "run", settings_of(0.2))
    assert len(noisy.asked) == 2 * 30 * 16, "a ROC area is made of the scores"
    unbounded = Noisy()
    judge_all([unbounded.system(lambda n: None)], [mixed], tmp_path / "c", settings_of(0.2))
    assert len(unbounded.asked) == 30 * 16


def test_a_plan_of_items_that_may_be_left_early_counts_at_most(mixed, tmp_path):
    noisy, settings = Noisy(), settings_of(0.2)
    (one,) = plan([noisy.system()], [mixed], tmp_path / "run", settings)
    assert (one.missing, one.early) == (30 * 16, True)
    few = mixed._replace(records=mixed.records[:10])
    judge_all([noisy.system()], [few], tmp_path / "run", settings)
    (one,) = plan([noisy.system()], [mixed], tmp_path / "run", settings)
    assert one.missing == 20 * 16
    (one,) = plan([noisy.system()], [mixed], tmp_path / "run", settings_of(None))
    assert one.missing == 30 * 16 - len(noisy.asked) and not one.early


@pytest.mark.parametrize("guided", [False, True])
def test_figures_of_items_that_were_left_early(guided, mixed, tmp_path):
    """By hand: the vote over what was drawn, of which the Meta RM keeps the half."""
    noisy, settings = Noisy(guided), settings_of(0.2)
    judged = judge_all([noisy.system()], [mixed], tmp_path / "run", settings)
    found = compare_systems([mixed], judged, settings.shown_ks, draws=100, seed=0)
    rows = {(row["aggregation"], row["k"]): row for row in found["rows"]}
    meta = {("meta", k) for k in (1, 2, 4, 16)} if guided else set()
    assert set(rows) == {("vote", k) for k in (1, 2, 4, 16)} | meta and found["ks"] == [1, 2, 4, 16]
    drawn = stops(noisy, mixed.records, 16, 0.2)
    credits, failures = {"vote": [], "meta": []}, []
    for record in mixed.records:
        judgments = [noisy.judgment(record, s, 1.0) for s in range(drawn[record.id])]
        scores = [j["scores"] for j in judgments]
        credits["vote"].append(expected_credit(vote(scores), record.rewards))
        failures.append(scores.count(None) / len(scores))
        if guided:
            kept = select_by_meta(scores, [j["meta_logit"] for j in judgments], len(scores) // 2)
            verdict = vote([scores[i] for i in kept])
            credits["meta"].append(expected_credit(verdict, record.rewards))
    spent = [d * (d + 1) / 2 for d in drawn.values()]
    for aggregation, values in credits.items():
        if values:
            row = rows[aggregation, 16]
            assert row["value"] == pytest.approx(np.mean(values))
            assert row["samples_per_item"] == pytest.approx(np.mean(list(drawn.values())))
            assert row["samples_per_item"] < 16
            assert row["tokens_per_item"] == pytest.approx(np.mean(spent))
            assert row["parse_failure_rate"] == pytest.approx(np.mean(failures))
            assert f"{row['samples_per_item']:.1f} judgments, " in markdown(found)
    # the first round is that of a run in which all items get four
    four = judge_all([noisy.system()], [mixed], tmp_path / "run", settings_of(None, 4))
    same = compare_systems([mixed], four, (1, 2, 4), draws=100, seed=0)
    for row in same["rows"]:
        if row["k_meta"] in (None, default_k_meta(row["k"])):
            assert rows[row["aggregation"], row["k"]] == row
    assert found["meta_rm"] == same["meta_rm"], "over as many judgments of each item"
    assert found["diagnostics"][0]["scores"] == same["diagnostics"][0]["scores"]
