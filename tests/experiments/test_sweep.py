"""Sweeps: which runs they make, what they skip and survive, and their one table."""

import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import threading
import time

import pytest

from experiments import run_config, sweep
from experiments.stages import inputs
from grm_jax.reward_models.description import TINY_BASE
from tests.experiments import micro, run_process

REPO = pathlib.Path(__file__).resolve().parents[2]
TINY = "experiments/configs/tiny.py"


@pytest.mark.parametrize(
    "text, values",
    [
        ("0.0,0.02,0.08", ["0.0", "0.02", "0.08"]),
        ("grpo", ["grpo"]),
        ("(1,2),(1,4)", ["(1,2)", "(1,4)"]),
        ('[{"path": "a,b"}],{"world": "x"}', ['[{"path": "a,b"}]', '{"world": "x"}']),
        ("'a,b', c", ["'a,b'", "c"]),
    ],
)
def test_values_are_cut_at_commas_outside_of_brackets(text, values):
    assert sweep.split_values(text) == values


@pytest.mark.parametrize("text", ["0.1,,0.2", ",0.1", "0.1,", "'a,,b',"])
def test_a_value_that_is_not_there_is_no_value(tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        sweep.main([f"--config={TINY}", f"--workdir={tmp_path}", f"--sweep.rl.beta={text}"])
    expected = f"--sweep.rl.beta: expected a value at every comma, got {text}"
    assert expected in capsys.readouterr().err


def test_a_dry_run_prints_the_command_of_every_combination(tmp_path, capsys):
    arguments = [f"--config={TINY}", f"--workdir={tmp_path}", "--dry_run", "--config.rl.steps=9"]
    assert sweep.main([*arguments, "--sweep.rl.beta=0.0,0.02", "--sweep.seed=0,1"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[5:] for command in commands] == [
        [
            "--config.rl.steps=9",
            f"--config.rl.beta={beta}",
            f"--config.seed={seed}",
            f"--from={tmp_path}",
        ]
        for beta in ("0.0", "0.02")
        for seed in (0, 1)
    ]
    assert commands[1][:5] == [
        sys.executable,
        "-m",
        "experiments.spct_rl",
        f"--config={TINY}",
        f"--workdir={tmp_path / 'beta=0.0,seed=1'}",
    ]
    assert list(tmp_path.iterdir()) == []


def test_stages_and_givers_go_to_every_run(tmp_path, capsys):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/config.json").write_text("{}")
    given = ["--stages=rft_sample,rft,rl,eval", f"--from={tmp_path / 'earlier'}"]
    arguments = [f"--config={TINY}", f"--workdir={tmp_path}", "--dry_run", "--sweep.seed=0"]
    sweep.main([*arguments, *given])
    (command,) = capsys.readouterr().out.splitlines()
    assert shlex.split(command)[5:] == [*given, "--config.seed=0", f"--from={tmp_path}"]
    with pytest.raises(SystemExit):
        sweep.parse([f"--config={TINY}", "--workdir=w", "--sweep.seed=0", "--stages=rft"])
    assert "expected eval among them" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--stages: expected some of rft_sample, .*, got 'rlx'"):
        sweep.main([*arguments, "--stages=rlx,eval"])
    with pytest.raises(SystemExit, match="--from=nowhere: expected a work folder"):
        sweep.main([*arguments, "--from=nowhere"])


def test_the_script_is_that_of_the_preset(tmp_path):
    preset = "experiments/configs/tiny_reward_model.py"
    (run,) = sweep.plan(preset, tmp_path, {"bradley_terry.steps": ["7"]}, ("--config.seed=3",))
    assert run.command[2] == "experiments.reward_model" and run.folder.name == "steps=7"
    assert (run.config["bradley_terry"]["steps"], run.config["seed"]) == (7, 3)


def test_a_preset_that_no_sweep_can_run_is_refused(tmp_path):
    preset = "--config=experiments/configs/tiny_paper.py"
    with pytest.raises(SystemExit, match="this is a preset of experiments.paper, which has seeds"):
        sweep.main([preset, f"--workdir={tmp_path / 'w'}", "--sweep.fast=True"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sweep.rl.betta=0.1"], "no such field rl.betta; nearest: rl.beta"),
        (["--sweep.rl.beta=0.1,-1"], "expected a number >= 0, got -1"),
        (["--sweep.rl.beta=0.1,0.1"], "beta=0.1: expected values that differ"),
        (["--sweep.rl.beta=0.1,0.10"], r"beta=0.10: expected .* differ; beta=0.1 is the same"),
        (["--sweep.rl.beta=0,0.0"], r"beta=0.0: expected .* differ; beta=0 is the same config"),
        (["--sweep.seed=1,+1"], r"seed=\+1: expected .* differ; seed=1 is the same config"),
        ([f"--sweep.note={'x' * 300}"], "a name of 305 bytes, and at most 200 are possible"),
    ],
)
def test_a_sweep_that_cannot_be_right_is_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        sweep.main([f"--config={TINY}", f"--workdir={tmp_path}", *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([f"--config={TINY}", "--workdir=w"], "at least one --sweep.FIELD=VALUE"),
        ([f"--config={TINY}", "--workdir=w", "--sweep.seed=0", "--bogus"], "--bogus: expected"),
        (["--workdir=w", "--merge", "a", "--sweep.seed=0"], "expected work folders, --workdir"),
        (
            [f"--config={TINY}", "--workdir=w", "--sweep.seed=0", "--sweep.seed=1"],
            "--sweep.seed: expected once, with all of its values",
        ),
    ],
)
def test_a_wrong_command_line_says_what_is_expected(arguments, message, capsys):
    with pytest.raises(SystemExit):
        sweep.main(arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Sweeps of a run that trains nothing, from a preset of two fields."""
    preset = tmp_path / "preset.json"
    preset.write_text('{"beta": 0.02, "seed": 0, "steps": 3}')

    def resolve(preset, overrides):
        config = json.loads(open(preset).read())
        for override in overrides:
            field, _, value = override.removeprefix("--config.").partition("=")
            config[field] = json.loads(value)
        return "tests.experiments.fabricated_run", config

    monkeypatch.setattr(sweep, "resolve", resolve)
    return [f"--config={preset}", f"--workdir={tmp_path / 'sweep'}"]


def test_a_sweep_runs_what_is_missing_and_ends_in_one_table(fake, tmp_path, capsys):
    """And work folders that are there are merged as they are."""
    folder = tmp_path / "sweep"
    assert sweep.main([*fake, "--sweep.beta=0.0,0.08", "--sweep.seed=0"]) == 0
    before = (folder / "beta=0.0,seed=0/results.json").stat().st_mtime_ns
    capsys.readouterr()
    assert sweep.main([*fake, "--sweep.beta=0.0,0.08", "--sweep.seed=0,1"]) == 0
    output = capsys.readouterr().out
    assert (
        "[1/4] beta=0.0,seed=0: done before" in output and "[2/4] beta=0.0,seed=1: done" in output
    )
    assert (folder / "beta=0.0,seed=0/results.json").stat().st_mtime_ns == before
    merged = json.loads((folder / "sweep.json").read_text())
    assert [(s["values"], s["seeds"]) for s in merged["settings"]] == [
        ({"beta": beta}, [0, 1]) for beta in (0.0, 0.08)
    ]
    text = (folder / "sweep.md").read_text()
    assert "Mean over 2 seeds" in text and "| grm | greedy | beta=0.08 | " in text
    assert text.strip() in output and (folder / "sweep.png").is_file()
    folders = [
        str(folder / f"beta={beta},seed={seed}") for beta in ("0.0", "0.08") for seed in "01"
    ]
    out = tmp_path / "merged"
    assert sweep.main([f"--workdir={out}", "--merge", *folders[:2]]) == 0
    assert "| system | accuracy, % | test |" in (out / "sweep.md").read_text()
    with pytest.raises(SystemExit, match="are runs of different configs; they differ in beta"):
        sweep.main([f"--workdir={out}", "--merge", *folders])
    assert sweep.main([f"--workdir={out}", "--by=beta", "--merge", *folders]) == 0
    assert (out / "sweep.md").read_text() == text
    with pytest.raises(SystemExit, match="nowhere has no results.json"):
        sweep.main([f"--workdir={out}", "--merge", "nowhere"])


def test_a_run_that_fails_is_named_and_the_others_go_on(fake, tmp_path, capsys):
    assert sweep.main([*fake, "--sweep.seed=0,9,1"]) == 1
    output = capsys.readouterr().out
    assert "seed=9: failed after" in output and "ValueError: no luck with nine" in output
    assert f"failed: {tmp_path / 'sweep/seed=9'}; its output is in" in output
    merged = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert merged["settings"][0]["seeds"] == [0, 1]
    assert "seed 9" in (tmp_path / "sweep/seed=9.log").read_text()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_goes_to_the_run_under_way_and_no_further_one_begins(
    fake, tmp_path, capsys, number, status
):
    log = tmp_path / "sweep/seed=8.log"

    def interrupt():
        while not log.is_file() or "waits" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert sweep.main([*fake, "--sweep.seed=8,0"]) == status
    thread.join()
    said = capsys.readouterr()
    assert f"{number.name}: passed on to [1/2] seed=8" in said.err
    last = said.out.splitlines()[-1]
    assert last.startswith(f"== stopped by {number.name}: [1/2] seed=8 ended with status {status}")
    assert "[2/2]" not in said.out and not (tmp_path / "sweep/sweep.md").exists()
    assert f"== stopped by {number.name}: eight, saved" in log.read_text()


def test_a_folder_of_another_config_is_refused(fake, tmp_path):
    folder = tmp_path / "sweep/seed=0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"config": {"beta": 0.02, "seed": 0, "steps": 5}}')
    with pytest.raises(
        SystemExit, match="seed=0 holds a run of another config; it differs in steps"
    ):
        sweep.main([*fake, "--sweep.seed=0"])


@pytest.mark.parametrize(
    "edited, text",
    [
        ("train.jsonl", "{}\n"),
        ("test.jsonl", "{}\n"),
        ("data/part.jsonl", "{}\n"),
        ("mine.jinja", "Judge {{ responses | join }} again."),
        ("base/config.json", "{}"),
        ("base/tokenizer.json", "{}"),
        ("base/model.safetensors", ""),
    ],
)
def test_a_finished_run_is_started_again_where_a_file_that_it_read_is_another(
    tmp_path, monkeypatch, capsys, edited, text
):
    """Which says what is another now; the table is of no two worlds."""
    shutil.copytree(TINY_BASE, tmp_path / "base")
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "test.jsonl", "data/part.jsonl"):
        (tmp_path / name).write_text("\n")
    (tmp_path / "mine.jinja").write_text("Judge {{ responses | join }}")
    config = micro.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(
            {
                "model.path": str(tmp_path / "base"),
                "data.train": ({"path": str(tmp_path / "train.jsonl")},),
                "data.general": ({"path": str(tmp_path / "data")},),
                "data.eval": {"test": ({"path": str(tmp_path / "test.jsonl")},)},
                "eval.splits": ("test",),
                "templates.pointwise": str(tmp_path / "mine.jinja"),
            }
        )
    templates = run_config.load_templates(config)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    kept = {
        "inputs": inputs.models_and_templates(config, templates),
        "files": inputs.file_digests(config),
    }
    (folder / "config.json").write_text(json.dumps(kept))
    run = sweep.Run(folder, ["false"], json.loads(json.dumps(config.to_dict())))
    assert sweep.read_the_same(run)
    (tmp_path / edited).write_text(text)
    assert not sweep.read_the_same(run)
    monkeypatch.setattr(sweep, "read_results", lambda folder: {"schema": 2})
    assert sweep.run_all([run]) == ([folder], 0) and "failed after" in capsys.readouterr().out
    # a comparison is started again, and asks for nothing that is on file
    assert not sweep.read_the_same(sweep.Run(folder, [], {"systems": []}))


def documented():
    """The sweeps that README and docs name."""
    files = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in files)
    return re.findall(r"experiments\.sweep (--config=[^`\n]*--sweep[^`\n]*)", text)


@pytest.mark.parametrize("command", documented())
def test_documented_sweeps_are_right(command, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    command = command.replace("model.path=RFT", "model.path=tiny")  # a model of the reader's own
    options, swept, overrides = sweep.parse(shlex.split(command))
    runs = sweep.plan(options.config, tmp_path, swept, overrides)
    assert len(runs) == math.prod(map(len, swept.values())) > 1


def test_some_sweeps_are_documented():
    assert len(documented()) >= 3


@pytest.mark.slow
def test_a_sweep_of_whole_runs(tmp_path, capsys, monkeypatch):
    """Two seeds of the micro preset through every stage, and once more, when nothing is run."""
    for name, value in run_process.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    arguments = ["--config=tests/experiments/micro.py", f"--workdir={tmp_path}"]
    assert sweep.main([*arguments, "--sweep.seed=0,1", "--config.note=Swept."]) == 0
    merged = json.loads((tmp_path / "sweep.json").read_text())
    assert merged["settings"][0]["seeds"] == [0, 1]
    assert {row["system"] for row in merged["rows"]} == {"base", "rft", "grm"}
    capsys.readouterr()
    assert sweep.main([*arguments, "--sweep.seed=0,1"]) == 0
    assert capsys.readouterr().out.count("done before") == 2, "a note is no other run"
    # what is known is not done again: of the same config all, of another loss what lies before RL
    assert sweep.main([*arguments, "--sweep.seed=0", "--sweep.rl.beta=0.02,0.5"]) == 0
    same, other = ((tmp_path / f"seed=0,beta={b}.log").read_text() for b in ("0.02", "0.5"))
    for stage in ("rft_sample", "rft", "rl", "meta_sample", "meta"):
        assert f"== {stage}: taken over from {tmp_path / 'seed=0'} (" in same
    assert all(f"== judgments of {system}: taken over" in same for system in ("base", "rft", "grm"))
    taken = [line.split()[1] for line in other.splitlines() if ": taken over from" in line]
    assert taken == ["rft_sample:", "rft:"] and "== rl: not taken over; that of" in other
    assert other.count("differs in rl.beta") == 1 and "\n== rl\n" in other
