"""docs/extend.md: every file on the page is short and works, and the commands that use them run."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.data.world import make_records
from grm_jax.judgment.records import record_to_dict
from grm_jax.losses import LossConfig, LossInputs, count, kl_penalty, policy_loss
from grm_jax.training.metrics import read_metrics
from tests.experiments.run_process import ENVIRONMENT

REPO = pathlib.Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs/extend.md").read_text()
FILES = dict(
    re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
)
COMMANDS = re.findall(r"^    (python -m .*)", PAGE.replace("\\\n", " "), flags=re.MULTILINE)
SMALL = (  # the micro preset at its smallest, and one system on one split
    "rft.steps=2 rl.steps=2 meta.steps=2 checkpoint.every=2 meta.policies=grm eval.records=2 "
    "eval.splits=test eval.systems=grm eval.bootstrap=100"
).split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a stranger: the files of the page, the data that they read."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    records = [record_to_dict(record) for record in make_records("train", 12)]
    graded = [
        {
            "question": record["conversation"][0]["content"],
            "answers": record["responses"],
            "grades": record["rewards"],
        }
        for record in records
    ]
    topics = ("history", "physics", "cooking")
    trivia = [
        {"topic": topic, "question": f"{topic} {i}?", "right": "x" * (18 + i), "wrong": "y" * 30}
        for topic in topics
        for i in range(3)
    ]
    for name, rows in (("graded", graded), ("trivia", trivia)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def module(name):
    return importlib.import_module(name)


def overrides(script):
    """Those of all commands of a script together."""
    words = [
        word for line in COMMANDS if f"experiments.{script} " in line for word in shlex.split(line)
    ]
    return [word for word in words if word.startswith("--config.")]


def run(script, preset, workdir, *arguments):
    """The command, from the stranger's folder; its output."""
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            f"experiments.{script}",
            f"--config={preset}",
            f"--workdir={workdir}",
            *arguments,
        ],
        cwd=workdir.parent,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-6000:]
    return process.stdout


def test_every_seam_has_a_section_a_file_and_a_command():
    rows = re.findall(r"^\| \[.*?\]\(#([\w-]+)\)", PAGE, flags=re.MULTILINE)
    sections = re.findall(r"^## (.*)", PAGE, flags=re.MULTILINE)
    assert rows == [title.lower().replace(" ", "-") for title in sections] and len(rows) == 10
    assert len(FILES) == len(COMMANDS) == len(rows)
    for name, command in zip(FILES, COMMANDS, strict=True):
        assert f"{name.removesuffix('.py')}:" in command


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_ten_lines(name):
    lines = [line for line in FILES[name].splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith(("import ", "from "))]
    assert len(code) <= 10 and max(map(len, lines)) <= 100


def test_the_loss_trains_and_splits(folder):
    rng = np.random.default_rng(0)
    logp, old = -rng.exponential(size=(2, 4, 3)).astype(np.float32)
    mask = jnp.array([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    inputs = LossInputs(logp, old, None, None, jnp.array([1.0, -1.0, 2.0, -2.0]), mask)
    loss = policy_loss("my_loss:soft_clip", {"width": 0.5})
    cfg = LossConfig(beta=0.0)
    whole, grad = jax.value_and_grad(lambda x: loss(inputs._replace(logp=x), cfg)[0])(logp)
    r = np.exp(logp - old)
    slope = r / np.cosh((r - 1) / 0.5) ** 2
    want = -inputs.advantages[:, None] * mask * slope / mask.sum()
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-7)
    cfg = cfg.replace(normalizer=count(mask))
    parts = [
        loss(jax.tree.map(lambda x, rows=rows: x[rows], inputs), cfg)[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    with pytest.raises(
        ValueError, match="my_loss:soft_clip has no setting 'widht'; did you mean width"
    ):
        policy_loss("my_loss:soft_clip", {"widht": 0.5})


def test_the_advantage_the_kl_and_the_aggregation(folder):
    rewards = jnp.array([1.0, -1.0, -1.0, 0.0, 2.0, 2.0, 2.0, 2.0])
    advantages = module("my_advantage").over_median(rewards, 4, penalty_B=jnp.arange(8.0) / 10)
    np.testing.assert_allclose(
        advantages, [1.7, -0.4, -0.5, 0.4, 0.15, 0.05, -0.05, -0.15], atol=1e-6
    )
    logp, ref = jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[-1.5, -4.0, 9.0]])
    mask = jnp.array([[1.0, 1.0, 0.0]])
    cfg = LossConfig(beta=0.1, kl="my_kl:huber", kl_in="reward")
    np.testing.assert_allclose(kl_penalty(logp, ref, mask, cfg), [0.1 * (0.125 + 2.5)], rtol=1e-6)
    x, mask = jnp.array([[1.0, 2, 4, 7], [3, 9, 9, 9]]), jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    aggregate = module("my_aggregation").by_root_length
    assert aggregate(x, mask, LossConfig()) == (14 / 2 + 3) / 2
    cfg = LossConfig(normalizer=count(mask))
    assert sum(aggregate(x[i : i + 1], mask[i : i + 1], cfg) for i in range(2)) == 5


def test_commands_of_training_in_one_run(folder):
    """Every file of the page that a training run reads, in one: its loss, advantage, KL,
    aggregation, reward, sink, format and template.
    """
    small = [f"--config.{field}" for field in SMALL]
    preset = REPO / "tests/experiments/micro.py"
    run("spct_rl", preset, folder / "run", *overrides("spct_rl"), *small)

    records = {
        record.id: record
        for record in map(dict_to_record, lines(folder / "run/records/train.jsonl"))
    }
    assert set(records) == {f"{folder.name}/graded/{i}" for i in range(12)}
    rollouts = lines(folder / "run/trajectories/rl.jsonl")
    margin = module("my_reward").margin
    assert len(rollouts) == 2 * 8
    assert [j["reward"] for j in rollouts] == [margin(j, records[j["id"]]) for j in rollouts]
    assert {j["reward"] for j in rollouts} - {1.0, -1.0}
    steps = [row for row in read_metrics(folder / "run/metrics.jsonl") if row["stage"] == "rl"]
    for step, row in enumerate(steps):
        rewards = [j["reward"] for j in rollouts if j["step"] == step]
        assert row["reward/mean"] == pytest.approx(np.mean(rewards))
        assert row["loss"] == pytest.approx(row["policy_loss"] + row["kl_loss"], rel=1e-5, abs=1e-7)
    # the first step starts at the reference, the second has moved away from it
    assert steps[0]["kl_loss"] < 1e-9 < steps[1]["kl_loss"]
    logged = (folder / "run/rl_rewards.txt").read_text().split()
    assert logged == [str(x) for row in steps for x in (row["step"], row["reward/mean"])]
    assert not (folder / "run/tensorboard").exists()
    said = json.loads((folder / "run/models/grm/grm.json").read_text())
    assert said["templates"]["pointwise"] == {"my_template:terse": module("my_template").terse()}


def test_commands_of_evaluation_in_one_run(folder):
    preset = REPO / "experiments/configs/tiny_evaluate.py"
    run("evaluate", preset, folder / "run", *overrides("evaluate"), "--config.eval.bootstrap=100")
    results = json.loads((folder / "run/results.json").read_text())
    (row,) = [row for row in results["rows"] if row["aggregation"] == "greedy"]
    assert (row["system"], row["benchmark"], row["items"]) == ("near 20", "trivia", 3)
    # right answers have 18 to 20 characters, wrong ones 30
    assert row["value"] == 1.0


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def dict_to_record(d):
    from grm_jax.judgment.records import record_from_dict

    return record_from_dict(d, "records")
