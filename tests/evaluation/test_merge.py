"""The merge of runs: means and errors over seeds counted by hand, and what is refused."""

import copy
import json
import re

import numpy as np
import pytest

from grm_jax.evaluation.merge import merge, other_fields, spread
from grm_jax.report import merged as report
from tests.evaluation import fabricated


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six runs: beta 0.0, 0.02 and 0.08, seeds 0 and 1, each with judgments of its own."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for i, (beta, seed) in enumerate([(b, s) for b in (0.0, 0.02, 0.08) for s in (0, 1)]):
        where = fabricated.evaluation(
            folder / str(i), ("test", "single"), items=6, samples=4, seed=i
        )
        results = fabricated.results_of(*where, (1, 4), draws=50)
        config = results["config"] | {"rl": {"beta": beta, "loss": "grpo"}, "seed": seed}
        found[f"beta={beta},seed={seed}"] = results | {"config": config, "seed": seed}
    return found


def find(rows, **wanted):
    (row,) = [r for r in rows if all(r[name] == value for name, value in wanted.items())]
    return row


KEY = {"system": "grm", "benchmark": "test", "aggregation": "vote", "k": 4}


def test_a_spread_is_counted_by_hand():
    assert spread([0.5, 0.7, 0.9], [0.1, 0.2, 0.3]) == {
        "mean": pytest.approx(0.7),
        "seed_stderr": pytest.approx(0.2 / np.sqrt(3)),
        "item_stderr": pytest.approx(0.2),
        "values": [0.5, 0.7, 0.9],
    }
    assert spread([0.5], [0.1])["seed_stderr"] is None
    lacking = spread([0.5, None], [0.1, None])
    assert (lacking["mean"], lacking["seed_stderr"], lacking["item_stderr"]) == (
        None,
        None,
        None,
    ), "a figure that one seed lacks is no mean over the others"


def test_settings_are_told_apart_and_seeds_are_averaged(runs):
    merged = merge(runs, ("rl.beta",))
    assert [setting["values"] for setting in merged["settings"]] == [
        {"rl.beta": beta} for beta in (0.0, 0.02, 0.08)
    ]
    assert all(setting["seeds"] == [0, 1] for setting in merged["settings"])
    assert merged["settings"][1]["runs"] == ["beta=0.02,seed=0", "beta=0.02,seed=1"]
    row = find(merged["rows"], setting={"rl.beta": 0.02}, **KEY)
    sides = [find(runs[f"beta=0.02,seed={seed}"]["rows"], **KEY) for seed in (0, 1)]
    values = [side["value"] for side in sides]
    assert row["values"] == values and row["mean"] == pytest.approx(np.mean(values))
    assert row["seed_stderr"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    assert row["item_stderr"] == pytest.approx(np.mean([side["stderr"] for side in sides]))
    for name in ("strict", "tie_rate", "parse_failure_rate", "coverage", "chance"):
        assert row[name] == pytest.approx(np.mean([side[name] for side in sides]))
    assert row["items"] == row["judged"] == [6, 6]
    area = find(merged["meta_rm"], setting={"rl.beta": 0.0}, system="rft", benchmark="single")
    sides = [
        find(runs[f"beta=0.0,seed={s}"]["meta_rm"], system="rft", benchmark="single")
        for s in (0, 1)
    ]
    assert area["auc"] == pytest.approx(np.mean([side["auc"] for side in sides]))
    pair = {"a_system": "rft", "b_system": "grm", "a_aggregation": "greedy", "benchmark": "test"}
    row = find(merged["paired"], setting={"rl.beta": 0.08}, **pair)
    sides = [find(runs[f"beta=0.08,seed={seed}"]["paired"], **pair) for seed in (0, 1)]
    assert row["mean"] == pytest.approx(np.mean([side["difference"] for side in sides]))
    assert merged["benchmarks"] == ["test", "single", "mean over benchmarks"]
    json.dumps(merged, allow_nan=False)


def test_runs_that_differ_elsewhere_are_refused_by_field(runs):
    """beta 0.02 / grpo / seed 0 is no seed of beta 0.9 / dapo / seed 1."""
    a, b = copy.deepcopy(runs["beta=0.02,seed=0"]), copy.deepcopy(runs["beta=0.02,seed=1"])
    b["config"]["rl"] = {"beta": 0.9, "loss": "dapo"}
    with pytest.raises(ValueError, match="b and a are runs of different configs") as error:
        merge({"a": a, "b": b})
    assert "they differ in rl.beta, rl.loss. Expected" in str(error.value)
    with pytest.raises(ValueError, match="they differ in rl.loss. .* and in rl.beta"):
        merge({"a": a, "b": b}, ("rl.beta",))
    b["config"]["rl"] = dict(a["config"]["rl"])
    b["config"] |= {"note": "another", "log": {"example_every": 7}, "mesh": {"fsdp": 2}}
    assert len(merge({"a": a, "b": b})["settings"]) == 1, "what changes no figure may differ"
    b["config"]["eval"] = {"ks": [1, 4], "temperature": 0.5}
    with pytest.raises(ValueError, match="they differ in eval.temperature"):
        merge({"a": a, "b": b})


def test_other_fields_are_named_with_all_that_is_below_a_name():
    a = {"rl": {"beta": 0.1, "loss_args": {"x": 1}}, "sampling": {"rows": 4, "top_p": 1.0}}
    b = {"rl": {"beta": 0.2, "loss_args": {"x": 2}}, "sampling": {"rows": 8, "top_p": 0.9}}
    assert other_fields(a, b) == ["rl.beta", "rl.loss_args.x", "sampling.top_p"]
    assert other_fields(a, b, ("rl.loss_args", "rl.bet")) == ["rl.beta", "sampling.top_p"]
    assert other_fields({"ks": (1, 2)}, {"ks": [1, 2]}) == [], "as JSON has them"


def test_what_cannot_be_merged_is_refused(runs):
    one, two = runs["beta=0.02,seed=0"], runs["beta=0.02,seed=1"]
    with pytest.raises(ValueError, match="again: seed 0 twice among the runs of one setting"):
        merge({"once": one, "again": one})
    less = two | {"rows": two["rows"][1:]}
    with pytest.raises(ValueError, match="less: rows differ from those of one, for example"):
        merge({"one": one, "less": less})
    with pytest.raises(ValueError, match="no runs to merge"):
        merge({})
    with pytest.raises(ValueError, match="old: results.json has schema None, expected 2"):
        merge({"old": {"rows": []}})
    with pytest.raises(ValueError, match="one: no config has a field rl.gamma"):
        merge({"one": one}, ("rl.gamma",))


def test_a_setting_of_one_loss_need_not_be_one_of_the_others(runs):
    """A loss of one's own beside GRPO, in one table."""
    own = {
        name: run | {"config": run["config"] | {"rl": {"loss": "my:loss", "loss_args": {"a": a}}}}
        for name, (run, a) in {
            "own 1": (runs["beta=0.02,seed=0"], 1),
            "own 2": (runs["beta=0.02,seed=1"], 2),
        }.items()
    }
    grpo = runs["beta=0.0,seed=0"]
    grpo = {"grpo": grpo | {"config": grpo["config"] | {"rl": {"loss": "grpo", "loss_args": {}}}}}
    merged = merge(own | grpo, ("rl.loss", "rl.loss_args.a"))
    assert [setting["values"] for setting in merged["settings"]] == [
        {"rl.loss": "my:loss", "rl.loss_args.a": 1},
        {"rl.loss": "my:loss", "rl.loss_args.a": 2},
        {"rl.loss": "grpo"},
    ]
    # what is read is the same but for the module of the loss, which is no surprise
    read = {"data.train": "d"}
    inputs = {name: read | {"functions": {"rl": {"loss": "code"}}} for name in own} | {"grpo": read}
    kept = {name: run | {"inputs": inputs[name]} for name, run in (own | grpo).items()}
    merged_again = merge(kept, ("rl.loss", "rl.loss_args.a"))
    assert merged_again["settings"] == merged["settings"]
    inputs["own 2"] = read | {"functions": {"rl": {"loss": "code", "reward": "code"}}}
    kept = {name: run | {"inputs": inputs[name]} for name, run in (own | grpo).items()}
    with pytest.raises(ValueError, match=r"they differ in functions\.rl\.reward\."):
        merge(kept, ("rl.loss", "rl.loss_args.a"))
    text = report.markdown(merged)
    assert "| loss=my:loss, a=2 | " in text and "| loss=grpo | " in text


def test_the_table_has_a_line_for_each_setting_system_and_way(runs):
    merged = merge(runs, ("rl.beta",))
    text = report.markdown(merged)
    row = find(merged["rows"], setting={"rl.beta": 0.02}, **KEY)
    cell = (
        f"{100 * row['mean']:.1f} ± {100 * row['seed_stderr']:.1f} ({100 * row['item_stderr']:.1f})"
    )
    assert "| system | accuracy, % | setting | test | single | mean over benchmarks |" in text
    assert f"| grm | vote @4 | beta=0.02 | {cell} |" in text
    pair = find(
        merged["paired"],
        setting={"rl.beta": 0.08},
        a_system="rft",
        b_system="grm",
        a_aggregation="greedy",
        benchmark="test",
    )
    assert f"| grm − rft | greedy | beta=0.08 | {-100 * pair['mean']:.1f} ± " in text
    assert "Mean over 2 seeds, ± standard error over seeds" in text
    assert "Seeds judge items of their own" in text, "they do here"
    for title in (
        "paired difference, points",
        "guided vote of 4, %",
        "AUC of the Meta RM, all (within an item)",
        "coverage, % of items",
        "unparsed, % of judgments",
        "ties, % of verdicts",
    ):
        assert f"| {title} |" in text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0] == "# Means over seeds" and len(headings) == 8
    kept = [int(line) for line in re.findall(r"^\| grm \| k_meta = (\d+) \| beta=0.0 ", text, re.M)]
    assert kept == sorted(kept) and len(kept) > 2
    assert "n/a" not in text
    for word in ("vote @k:", "Coverage:", "k_meta", "multiple comparisons", "best of 3 settings"):
        assert word in text, f"{word} is not explained"
    chances = [
        next(r["chance"] for r in merged["rows"] if r["benchmark"] == b) for b in ("test", "single")
    ]
    assert "| chance | a guess |  | " + " | ".join(f"{100 * c:.1f}" for c in chances) in text


def test_coverage_stands_beside_a_figure_and_what_was_not_judged_is_a_word(runs):
    merged = merge({"a": runs["beta=0.02,seed=0"]})
    row = find(merged["rows"], **KEY)
    row["coverage"] = 0.5
    assert "(" in (cell := report._covered(merged, row)) and cell.endswith(", coverage 50 % ⚠")
    row |= {"mean": None, "judged": 0, "coverage": 0.0}
    assert report._covered(merged, row) == "not judged"


def test_seeds_of_one_setting_have_a_table_without_settings(runs):
    merged = merge({name: run for name, run in runs.items() if "beta=0.02" in name})
    text = report.markdown(merged)
    assert "| system | accuracy, % |" in text and "setting" not in text
    alone = report.markdown(merge({"a": runs["beta=0.02,seed=0"]}))
    assert "Mean over 1 seed, ±" in alone and " ± " not in alone.split("brackets")[1]


def test_names_of_fields_are_short_where_that_tells_them_apart():
    assert report.short_names(["rl.beta", "seed"]) == {"rl.beta": "beta", "seed": "seed"}
    assert report.short_names(["rl.steps", "rft.steps"]) == {
        "rl.steps": "rl.steps",
        "rft.steps": "rft.steps",
    }
    assert report.setting_text({"rl.beta": 0.02, "rl.loss": "grpo"}) == "beta=0.02, loss=grpo"


@pytest.mark.parametrize("swept", [True, False])
def test_the_plot_is_written(runs, tmp_path, swept):
    chosen = runs if swept else {name: run for name, run in runs.items() if "beta=0.02" in name}
    report.plot(merge(chosen, ("rl.beta",) if swept else ()), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


INPUTS = {
    "data.train": "t0",
    "data.general": "g0",
    "data.eval.test": "e0",
    "templates": {"pointwise": "p0"},
    "model": {"weights": "w0", "config": "c0"},
    "tokenizer": {"tokenizer": "k0"},
    "benchmarks": {"test": "sha256:0"},
    "systems": {"grm": {"weights": "w0", "answer": "scores"}},
}


def reading(runs, **changes):
    """The runs with digests of what they read; changes: {name: {dotted field: digest}}."""
    found = {}
    for name, run in runs.items():
        inputs = copy.deepcopy(INPUTS)
        for field, value in changes.get(name, {}).items():
            section, _, part = field.partition("/")
            inputs[section] = inputs[section] | {part: value} if part else value
        files = {"train": [{"path": "a.jsonl"}], "general": [{"hub": "b/c"}]}
        config = run["config"] | {"data": files}
        found[name] = run | {"inputs": inputs, "config": config}
    return found


@pytest.mark.parametrize("other", ["beta=0.02,seed=1", "beta=0.08,seed=0"])
@pytest.mark.parametrize(
    "field, named",
    [
        ("data.train", "data.train"),
        ("data.general", "data.general"),
        ("data.eval.test", "data.eval.test"),
        ("templates/pointwise", "templates.pointwise"),
        ("model/config", "model.config"),
        ("model/weights", "model.weights"),
        ("tokenizer/tokenizer", "tokenizer.tokenizer"),
        ("benchmarks/test", "benchmarks.test"),
        ("systems/grm", "systems.grm.weights"),
    ],
)
def test_runs_that_read_other_things_under_the_same_names_are_refused(runs, other, field, named):
    """Seeds of one setting, and settings."""
    value = {"weights": "w1", "answer": "scores"} if field == "systems/grm" else "another"
    first = "beta=0.0,seed=0"
    merge(reading(runs), ("rl.beta",))
    with pytest.raises(ValueError) as error:
        merge(reading(runs, **{other: {field: value}}), ("rl.beta",))
    assert str(error.value) == (
        f"{other} and {first} are runs of one config that read different things under the same "
        f"names; they differ in {named}. Expected runs of the same inputs and version"
    )


def test_a_swept_field_may_change_what_is_read_and_seeds_of_a_setting_may_not(runs):
    of_beta = {
        f"beta={beta},seed={s}": {"data.train": f"t{beta}"} for beta in (0.08,) for s in "01"
    }
    swept = reading(runs, **of_beta)
    for name, run in swept.items():
        prompt = 100 if "0.08" in name else 50
        run["config"] = run["config"] | {"lengths": {"prompt": prompt}}
    merge(swept, ("rl.beta", "lengths.prompt"))
    swept["beta=0.08,seed=1"]["inputs"]["data.train"] = "t1"
    with pytest.raises(ValueError, match="beta=0.08,seed=1 and beta=0.08,seed=0 are runs of one"):
        merge(swept, ("rl.beta", "lengths.prompt"))


def test_seeds_of_the_world_have_records_of_their_own_and_files_do_not(runs):
    seeds = {name: run for name, run in runs.items() if "beta=0.02" in name}
    own = reading(seeds, **{"beta=0.02,seed=1": {"data.train": "t1", "data.general": "g1"}})
    with pytest.raises(ValueError, match="they differ in data.general, data.train. Expected"):
        merge(own)
    for run in own.values():
        world = {"train": [{"world": "train"}], "general": [{"records": "train"}]}
        run["config"] = run["config"] | {"data": world}
    merge(own)
    own["beta=0.02,seed=1"]["inputs"]["data.eval.test"] = "e1"
    with pytest.raises(ValueError, match="they differ in data.eval.test. Expected"):
        merge(own)


def test_runs_of_other_versions_and_sizes_are_refused(runs):
    seeds = {name: run for name, run in runs.items() if "beta=0.02" in name}
    one, two = seeds.values()
    with pytest.raises(ValueError, match="they differ in version. Expected"):
        merge({"one": one, "two": two | {"version": "2.0"}})
    # of a version that kept no digests
    old = {name: {k: v for k, v in run.items() if k != "inputs"} for name, run in seeds.items()}
    merge(old)
    fewer = copy.deepcopy(old)
    fewer["beta=0.02,seed=1"]["benchmarks"][0]["items"] = 5
    with pytest.raises(ValueError, match="they differ in items of test. Expected"):
        merge(fewer)


def test_where_a_remote_system_answers_is_no_other_config():
    def config(**fields):
        remote = {"name": "gpt", "kind": "remote", "base_url": "http://a:8000", "model": "m"}
        return {"systems": ({"name": "length", "kind": "length"}, remote | fields)}

    for field, value in (
        ("base_url", "http://a:9000"),
        ("api_key_env", "KEY"),
        ("concurrency", 7),
        ("timeout_s", 5.0),
        ("retries", 9),
    ):
        assert other_fields(config(), config(**{field: value})) == []
    assert other_fields(config(), config(model="n")) == ["systems"]
    mine = {"systems": ({"name": "mine", "kind": "a.b:c", "base_url": "x"},)}
    other = {"systems": ({"name": "mine", "kind": "a.b:c", "base_url": "y"},)}
    assert other_fields(mine, other) == ["systems"]
