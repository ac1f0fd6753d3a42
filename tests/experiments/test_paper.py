"""The paper in miniature: what it trains on for judges of pairs, how figures become claims, and the
whole job in its fast form (slow).
"""

import json
import subprocess
import sys

import pytest

from experiments.configs import tiny_paper
from experiments.paper import document, miniature
from experiments.paper.systems import GROUPS
from experiments.paper.tables import (
    OVERALL,
    Claim,
    Way,
    claims,
    critical,
    estimate,
    gap,
    make_tables,
    table,
    verdict,
)
from grm_jax.judgment.records import Record, Turn


def record(rewards):
    responses = tuple(f"response {i}" for i in range(len(rewards)))
    return Record("r", (Turn("user", "q"),), responses, tuple(rewards))


def test_a_list_makes_the_pairs_of_its_best_response():
    assert miniature.pairs_of(record([1.0])) == []
    found = miniature.pairs_of(record([0.0, 2.0, 1.0]))
    assert [(pair.id, pair.responses, pair.rewards) for pair in found] == [
        ("r/0-1", ("response 0", "response 1"), (0.0, 2.0)),
        ("r/1-2", ("response 1", "response 2"), (2.0, 1.0)),
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_scores_become_the_index_of_the_better_response_as_shown(order):
    text = "Analysis: \\boxed{3} at first.\nScores: \\boxed{9, 4}"  # 9 for the response shown first
    scores = [9, 4] if order == (0, 1) else [4, 9]
    row = {
        "text": text,
        "scores": scores,
        "failure": None,
        "order": list(order),
        "rewards": [1.0, 0.0],
        "correct": order == (0, 1),
    }
    new = miniature.by_index(row)
    assert new["text"] == "Analysis: \\boxed{3} at first.\nScores: \\boxed{1}"
    assert (
        new["scores"] == ([1, 0] if order == (0, 1) else [0, 1])
        and new["failure"] is None
        and new["correct"] == (order == (0, 1))
    )
    tie = miniature.by_index(row | {"scores": [5, 5]})
    assert (tie["scores"], tie["failure"], tie["correct"]) == (None, "tie", False)
    failed = row | {"scores": None, "failure": "no_box"}
    assert miniature.by_index(failed) == failed


def rows(**values):
    """One seed's rows: {system: {split: value}} greedy."""
    return [
        {"system": s, "aggregation": "greedy", "k": 1, "k_meta": None, "benchmark": b, "value": v}
        for s, of in values.items()
        for b, v in of.items()
    ]


def test_estimates_are_means_over_seeds_with_their_standard_error():
    tables = make_tables(
        [
            rows(grm={"test": 0.8, "hard": 0.6}, rft={"test": 0.7}),
            rows(grm={"test": 0.9, "hard": 0.5}, rft={"test": 0.6}),
        ],
        ("test", "hard"),
    )
    assert str(estimate(tables.value(Way("grm"), "test"))) == "85.0 ± 5.0"
    assert tables.value(Way("grm"), OVERALL) == pytest.approx([0.7, 0.7])
    assert tables.value(Way("rft"), OVERALL) is None  # no figure on hard
    # over the splits that both have
    assert gap(tables, Way("grm"), Way("rft")) == pytest.approx([0.1, 0.3])
    assert table(
        tables, {"GRM": Way("grm"), "RFT": Way("rft"), "none": Way("cloud")}, ("test", "hard")
    )[2:] == ["| GRM | 85.0 ± 5.0 | 55.0 ± 5.0 |", "| RFT | 65.0 ± 5.0 |  |", ""]


def test_a_claim_shows_by_a_t_test_over_seeds():
    assert critical(3) == pytest.approx(2.920, abs=1e-3)
    assert verdict(Claim("", "", [0.10, 0.11, 0.30])) == "not resolved"  # 2.6 standard errors
    assert verdict(Claim("", "", [0.10, 0.11, 0.12])) == "shows"
    assert verdict(Claim("", "", [-0.10, -0.11, -0.12])) == "**the opposite shows**"
    assert verdict(Claim("", "", [0.10, -0.11, 0.12])) == "not resolved"
    assert verdict(Claim("", "", [0.10])) == "one seed: no standard error"
    assert verdict(Claim("", "", None)) == "no figure here"
    assert all(
        claim.difference is None
        for claim in claims(make_tables([[]], ("test", "heldout")), (1, 8, 32), (64, 96))
    )


def test_every_model_that_is_judged_is_trained(tmp_path):
    config = tiny_paper.get_config()
    of_group = miniature.trainings(config, tmp_path, 0)
    trained = {
        training.name: [name for name, _ in training.stages]
        for own in of_group.values()
        for training in own
    }
    stage_of = {"grm": "rl"}
    asked = []

    def models(training, model):
        asked.append((training, stage_of.get(model, model)))
        return ""

    assert tuple(GROUPS) == tuple(config.groups)
    for group in GROUPS.values():
        group(config, models)
    assert asked and all(stage in trained[training] for training, stage in asked)


def test_groups_of_a_seed_are_kept_beside_each_other(tmp_path):
    config, out = tiny_paper.get_config(), tmp_path / "results.md"
    result = {
        "rows": [],
        "capabilities": [],
        "diagnostics": [
            {"judgments": 4, "seconds_per_judgment": 0.5},
            {"judgments": 4, "seconds_per_judgment": None},
        ],
    }
    document.keep_figures(out, config, 1, {"main": result}, {"shared": 0.0, "main": 60.0})
    config.seeds, config.groups = (1,), ("ablations",)  # another call, which makes another part
    document.keep_figures(out, config, 1, {"ablations": result}, {"shared": 1.0, "ablations": 30.0})
    (found,) = document.read_figures(config, tmp_path / "results")
    assert {
        name: (group["training_s"], group["judging_s"]) for name, group in found["groups"].items()
    } == {"main": (60.0, 2.0), "ablations": (30.0, 2.0)}
    config.records = 7
    with pytest.raises(
        ValueError, match="seed_1.json was made with another config; it differs in records"
    ):
        document.read_figures(config, tmp_path / "results")


def test_figures_of_another_config_are_said_before_anything_is_trained(processes, tmp_path):
    config, out = tiny_paper.get_config(), tmp_path / "paper.md"
    figures = document.figures_folder(out)
    document.keep_figures(out, config, 3, {}, {})
    (figures / "seed_3.json").write_text(
        (figures / "seed_3.json").read_text().replace('"world_seed": 11', '"world_seed": 7')
    )
    preset = processes.REPO / "experiments/configs/tiny_paper.py"
    job = processes.start(preset, tmp_path / "run", f"--out={out}", script="paper")
    assert processes.finish(job) == 1
    assert (tmp_path / "run.log").read_text().splitlines()[-1] == (
        f"error: {figures}/seed_3.json was made with another config; it differs in world_seed. "
        "Remove it, or choose another --out"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_reader_of_the_document_alone_finds_what_its_words_mean(tmp_path):
    config, out = tiny_paper.get_config(), tmp_path / "results.md"
    for seed in (0, 1):
        of_system = {"grm": 0.9 + 0.01 * seed, "rft": 0.7}
        places = [(s, v, split) for s, v in of_system.items() for split in config.splits]
        result = {
            "rows": [
                dict.fromkeys(document.KEPT, 0.0)
                | {"system": system, "benchmark": split, "value": value, "parse_failure_rate": 0.02}
                | {"aggregation": "greedy", "k": 1, "k_meta": None}
                for system, value, split in places
            ],
            "capabilities": [],
            "diagnostics": [],
        }
        document.keep_figures(out, config, seed, {"main": result}, {"main": 60.0})
    document.write(out, config)
    text = out.read_text()
    for word in ("greedy", "@8", "Meta RM @8", "k_meta", "random", *config.splits):
        assert f"**{word}**" in text, f"{word} is not explained"
    assert "1 claim is tested and nothing is corrected for multiple comparisons" in text
    assert "avoid: name animals, but never a certain one" in text, "domains are in words"
    assert "| GRM, greedy | " + " | ".join(["2.0 ± 0.0"] * len(config.splits)) + " |" in text


@pytest.mark.slow
def test_the_fast_form_writes_every_table(tmp_path):
    out = tmp_path / "results.md"
    command = [
        sys.executable,
        "-m",
        "experiments.paper",
        "--config=experiments/configs/tiny_paper.py",
        "--config.fast=True",
        f"--workdir={tmp_path / 'run'}",
        f"--out={out}",
    ]
    subprocess.run(command, check=True)
    text = out.read_text()
    for heading in (
        "Claims",
        "Main table",
        "What a system can do",
        "Ablations",
        "k_meta",
        "KL coefficient",
    ):
        assert f"\n## {heading}" in text
    assert "fast run" in text and (tmp_path / "results" / "k.png").is_file()
    results = json.loads((tmp_path / "run/seed_0/judged/main/results.json").read_text())
    assert {row["system"] for row in results["rows"]} >= {
        "bradley_terry",
        "pair_rm",
        "cloud",
        "base",
        "rft",
        "grm",
        "length",
        "random",
    }
    subprocess.run(command, check=True)  # once more: nothing is trained or judged again
    assert (
        json.loads((tmp_path / "run/seed_0/judged/main/results.json").read_text())["rows"]
        == results["rows"]
    )
