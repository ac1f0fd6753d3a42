"""Follows docs/first_hour/preferences.md: preference files of one's own, a Bradley-Terry model and
a GRM from them, both asked by transformers.
"""

import json
import re

import pytest

from tests.first_hour import commands

SMALL = {  # the same commands, on presets that are done in seconds
    "TRAIN, TEST = 400, 100": "TRAIN, TEST = 12, 3",
    "from experiments.configs import tiny_reward_model": (
        "from tests.experiments import micro_reward_model as tiny_reward_model"
    ),
    "from experiments.configs import tiny\n": "from tests.experiments import micro as tiny\n",
    "STEPS, BATCH = 60, 32": "STEPS, BATCH = 3, 4",
    "RFT_STEPS, RL_STEPS, PROMPTS = 60, 20, 16": "RFT_STEPS, RL_STEPS, PROMPTS = 2, 2, 2",
    "ks=(1, 2, 4, 8)": "ks=(1, 2)",
}


@pytest.fixture
def folder(tmp_path):
    return commands.clone(tmp_path)


def follow_all(folder, replaced, skipped=()):
    """Follows the page, and returns what the commands printed, and their seconds."""
    shown, seconds = "", {}
    for block in commands.read("preferences"):
        if any(word in block.text for word in skipped):
            continue
        result = commands.follow(block, folder, replaced)
        assert result.returncode == 0, (block.line, result.stdout[-2000:] + result.stderr[-4000:])
        shown += result.stdout
        if block.file is None:
            seconds[block.line] = round(result.seconds)
    print(seconds)
    return shown


def check_run(folder, system, stages):
    """A page with curves, a figure for every pair, and the models as folders."""
    run = folder / "runs" / ("grm" if system == "grm" else "bt")
    page = (run / "report.html").read_text()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in logged} == stages
    for stage in stages:
        assert re.search(r"<(img|svg|figure)[^>]*", page) and stage in page
    rows = json.loads((run / "results.json").read_text())["rows"]
    own = [row for row in rows if row["system"] == system]
    assert own and all(row["benchmark"] == "test" for row in own)
    names = {path.name for path in (run / "models" / system).iterdir()}
    assert {"chat_template.jinja", "tokenizer_config.json", "grm.json"} <= names


@pytest.mark.torch
@pytest.mark.slow
def test_the_page_with_small_settings(folder):
    pytest.importorskip("torch")
    text = "".join(block.text for block in commands.read("preferences"))
    assert all(old in text for old in SMALL)
    shown = follow_all(folder, SMALL)
    assert re.search(r"of 3 right; largest difference of a reward \d", shown)
    assert "the same text, to the letter:" in shown
    check_run(folder, "bradley_terry", {"bradley_terry"})
    check_run(folder, "grm", {"rft", "rl"})


@pytest.mark.torch
@pytest.mark.slow
def test_the_whole_page(folder, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(commands, "TIMEOUT_S", 3600)
    shown = follow_all(folder, {})
    assert int(re.search(r"(\d+) of 20 right", shown)[1]) >= 12
    check_run(folder, "bradley_terry", {"bradley_terry"})
    check_run(folder, "grm", {"rft", "rl"})
