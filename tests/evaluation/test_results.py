"""results.json from judgment rows, and the merge of seeds."""

import json

import numpy as np
import pytest

from grm_jax.evaluation import scaling
from grm_jax.evaluation.results import eval_pools, markdown, merge_seeds, summarize
from tests.evaluation import fabricated

KS = (1, 2, 4, 8)
ROW_FIELDS = {
    "system",
    "split",
    "aggregation",
    "k",
    "k_meta",
    "items",
    "accuracy",
    "stderr",
    "strict_accuracy",
    "tie_rate",
    "parse_failure_rate",
    "tokens_per_judgment",
}


@pytest.fixture(scope="module")
def rows():
    return fabricated.eval_rows(items=10, samples=8)


@pytest.fixture(scope="module")
def summary(rows):
    return summarize(rows, KS)


def find(table, **wanted):
    (row,) = [row for row in table if all(row[name] == value for name, value in wanted.items())]
    return row


def test_every_system_split_and_aggregation_has_its_rows(summary):
    assert len(summary["rows"]) == 3 * 4 * (1 + 2 * len(KS))
    assert all(ROW_FIELDS <= set(row) for row in summary["rows"])
    json.dumps(summary, allow_nan=False)
    at_one = [
        find(summary["rows"], system="grm", split="wide", aggregation=how, k=1)["accuracy"]
        for how in ("vote", "meta")
    ]
    assert at_one[0] == at_one[1], "the plain and the guided vote coincide at k = 1"
    assert (
        find(summary["rows"], system="rft", split="single", aggregation="meta", k=8)["k_meta"] == 4
    )
    assert (
        find(summary["rows"], system="base", split="single", aggregation="greedy")["chance"] == 0.5
    )


def test_greedy_row_is_the_mean_credit_of_the_greedy_judgments(rows, summary):
    correct = [
        row["correct"]
        for row in rows
        if row["temperature"] == 0 and (row["system"], row["split"]) == ("grm", "single")
    ]
    assert find(summary["rows"], system="grm", split="single", aggregation="greedy")[
        "strict_accuracy"
    ] == pytest.approx(np.mean(correct))


def test_k_meta_sweep_spans_one_to_all(summary):
    sweep = [
        row for row in summary["k_meta_sweep"] if (row["system"], row["split"]) == ("grm", "hard")
    ]
    assert [(row["k"], row["k_meta"]) for row in sweep] == [(8, 1), (8, 2), (8, 4), (8, 8)]
    assert (
        sweep[-1]["accuracy"]
        == find(summary["rows"], system="grm", split="hard", aggregation="vote", k=8)["accuracy"]
    )
    assert (
        sweep[2]["accuracy"]
        == find(summary["rows"], system="grm", split="hard", aggregation="meta", k=8)["accuracy"]
    )


def test_paired_differences_match_the_rows_and_cover_the_claims(rows, summary):
    names = {row["claim"] for row in summary["paired"]}
    assert {
        "rft greedy - base greedy",
        "grm greedy - rft greedy",
        "grm vote@8 - grm vote@1",
        "base vote@8 - base greedy",
        "rft meta@8 - rft vote@8",
        "grm vote@8 - rft vote@8",
        "grm meta@8 - grm greedy",
    } <= names
    for row in summary["paired"]:
        sides = [find(summary["rows"], **row[side])["accuracy"] for side in "ab"]
        assert row["difference"] == pytest.approx(sides[0] - sides[1])
    pools = eval_pools(rows)
    a, b = (
        scaling.estimate(pools[system, "hard"]["greedy"], system, "hard", 1, greedy=True)
        for system in ("grm", "rft")
    )
    assert (
        find(summary["paired"], claim="grm greedy - rft greedy", split="hard")["stderr"]
        == scaling.paired(a, b, "x")["stderr"]
    )


def test_without_logits_there_are_no_guided_rows():
    found = summarize(fabricated.eval_rows(("test",), items=4, samples=4, logits=False), (1, 4))
    assert {row["aggregation"] for row in found["rows"]} == {"greedy", "vote"}
    assert found["k_meta_sweep"] == [] and found["meta_rm"] == {"auc": []}


def write(path, seed, summary, **extra):
    path.write_text(json.dumps({"config": {}, "seed": seed, "timings_s": {}, **summary, **extra}))
    return path


def test_merge_gives_mean_spread_between_seeds_and_pooled_item_error(tmp_path):
    parts = [
        summarize(fabricated.eval_rows(("test",), items=10, samples=4, seed=seed), (1, 4))
        for seed in range(3)
    ]
    merged = merge_seeds(
        [write(tmp_path / f"{seed}.json", seed, part) for seed, part in enumerate(parts)]
    )
    key = {"system": "grm", "aggregation": "vote", "k": 4}
    found = find(merged["rows"], **key)
    sides = [find(part["rows"], **key) for part in parts]
    accuracies = np.array([row["accuracy"] for row in sides])
    assert merged["seeds"] == [0, 1, 2] and found["mean"] == pytest.approx(accuracies.mean())
    assert found["seed_stderr"] == pytest.approx(accuracies.std(ddof=1) / np.sqrt(3))
    assert found["item_stderr"] == pytest.approx(sum(row["stderr"] for row in sides) / 3)
    assert found["tie_rate"] == pytest.approx(np.mean([row["tie_rate"] for row in sides]))
    claim = find(merged["paired"], claim="grm greedy - rft greedy")
    assert claim["mean"] == pytest.approx(
        np.mean(
            [find(part["paired"], claim="grm greedy - rft greedy")["difference"] for part in parts]
        )
    )
    text = markdown(merged)
    assert (
        "| accuracy, % | test |" in text
        and (f"| grm vote@4 | {100 * found['mean']:.1f} ± {100 * found['seed_stderr']:.1f} (")
        in text
    )
    for title in (
        "paired difference, points",
        "AUC of the Meta RM",
        "accuracy of the guided vote of",
        "parse failures, %",
        "ties, %",
    ):
        assert f"| {title}" in text
    alone = merge_seeds([tmp_path / "0.json"])
    assert alone["rows"][0]["seed_stderr"] is None and "± standard" in markdown(alone)


def test_merge_refuses_a_repeated_seed_and_unequal_tables(tmp_path, summary):
    one = write(tmp_path / "one.json", 0, summary)
    with pytest.raises(ValueError, match="each must differ"):
        merge_seeds([one, one])
    less = write(tmp_path / "less.json", 1, {**summary, "rows": summary["rows"][1:]})
    with pytest.raises(ValueError, match="less.json: rows differ from those of"):
        merge_seeds([one, less])
    with pytest.raises(ValueError, match="no results.json given"):
        merge_seeds([])
