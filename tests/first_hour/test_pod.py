"""docs/first_hour/pod.md, followed from its own blocks."""

import json
import re

import pytest

from tests.first_hour import commands

RUN = "experiments/configs/tiny.py --workdir=runs/pod"
SMALL = """
from tests.experiments import micro

def get_config():
    config = micro.get_config()
    config.rl.steps = 12  # there is time to stop it
    config.meta.steps = 2
    config.eval.update(splits=("test",), systems=("grm",), ks=(1,))
    return config
"""
MISTAKES = {  # in a line's words: what is said
    "plan_64": "error: no program can be made of this preset here; rft_step: rft.micro_batch: expe",
    "v5e-8": "error: topology 'v5e-8': expected v5e, v5p, v6e, tpu7x with chips along each dimen",
    "--workdir=runs/27b": "tpu_pod.sh: --workdir=runs/27b: expected a folder in /mnt/grm_jax",
    "gs://BUCKET/runs/2b": "multi_gpu.sh: --workdir=gs://BUCKET/runs/2b: expected a folder",
    "rl.beta=-1": "1 wrong field in the config: rl.beta: expected a number >= 0, got -1.0",
    "rl.beta=0.5": "rl.beta",
}


def follow_page(folder, replaced) -> list[commands.Result]:
    """What came of each block, once what it says is as it has to be."""
    results = []
    for block in commands.read("pod"):
        result = commands.follow(block, folder, replaced)
        assert result.returncode == 0, (block.line, result.stdout + result.stderr)
        wrong = [line for line in block.text.splitlines() if line.startswith("! ")]
        said = [line for line in result.stderr.splitlines() if line]
        if wrong:  # each is one line, of which bash makes a status of 0
            assert len(said) == len(wrong), result.stderr
        for command, line in zip(wrong, said):
            (words,) = {text for key, text in MISTAKES.items() if command.endswith(key)} or {
                text for key, text in MISTAKES.items() if key in command
            }
            assert words in line, (command, line)
        assert "Traceback" not in result.stderr + result.stdout
        results.append(result)
        print(block.line, round(result.seconds, 1), "s")
    return results


def check(folder, results) -> None:
    plan, _, dry, _, stopped, resumed, _ = results
    page = (commands.REPO / "docs/first_hour/pod.md").read_text()
    memory = [line for line in plan.stdout.splitlines() if " | - | - | - | " in line[:30]]
    assert len(memory) == 2 and all(line in page for line in memory), plan.stdout
    assert "- rl: no time, rl_step, logprobs, prefill left out of --programs" in plan.stdout
    assert dry.stdout.count("\n+ ") > 8 and "kind: JobSet" in dry.stdout
    assert "on SIGUSR1, before the time limit" in dry.stdout
    running, progress, *_ = stopped.stdout.splitlines()
    assert re.fullmatch(r"running \d+", running)
    assert re.fullmatch(r"stages rft,rft_sample; (rft \d+; )?rl \d+; judged \d+", progress) or (
        progress.startswith("stages rft,rft_sample")
    )
    assert "ended 75\n" in stopped.stdout
    assert "== stopped by SIGTERM: rl, saved behind update " in stopped.stdout
    assert resumed.stdout.startswith("ended 0\n") and "== rft: done before" in resumed.stdout
    assert "| system | judgment | test |" in resumed.stdout
    metrics = [json.loads(line) for line in (folder / "runs/pod/metrics.jsonl").open()]
    steps = [line["step"] for line in metrics if line["stage"] == "rl"]
    assert steps == sorted(set(steps)), "every step once"


@pytest.fixture
def folder(tmp_path):
    return commands.clone(tmp_path)


@pytest.mark.slow
def test_the_page_on_a_run_of_a_minute(folder):
    (folder / "small.py").write_text(SMALL)
    results = follow_page(folder, {RUN: "small.py --workdir=runs/pod"})
    check(folder, results)


@pytest.mark.slow
def test_the_whole_page(folder, monkeypatch):
    monkeypatch.setattr(commands, "TIMEOUT_S", 3600)
    check(folder, follow_page(folder, {}))
