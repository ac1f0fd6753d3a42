"""A job of several processes does what one process with as many devices does; it says who was lost,
and goes on, also with other processes.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from grm_jax.evaluation import store
from grm_jax.parallel.processes import STOPPED
from grm_jax.training.metrics import MEASURED, read_metrics

pytestmark = pytest.mark.slow
MESH = ("--config.mesh.replica=1", "--config.mesh.fsdp=-1")
OVERRIDES = (*MESH, '--config.eval.systems=("grm",)', '--config.eval.splits=("test",)')
# of a row of metrics: what depends on how many shares the rows are cut into
OF_MESH = ("computed_tokens", "engine/")
# of a row of judgments: what models give as real numbers
INEXACT = ("meta_logit", "scores", "preference", "preferences", "probability")
LIMIT_S = 500


def wait(job, limit_s=LIMIT_S) -> list[int]:
    """The exit statuses; kills what has not ended in time."""
    deadline = time.time() + limit_s
    for process in job:
        process.join(max(0.1, deadline - time.time()))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in job]


def logs(workdir: pathlib.Path) -> str:
    return "".join(
        f"---- {path.name}\n{path.read_text()[-5000:]}"
        for path in sorted(workdir.parent.glob(f"{workdir.name}.*log"))
    )


def until(job, workdir: pathlib.Path, reached) -> None:
    deadline = time.time() + LIMIT_S
    while not reached():
        assert all(process.is_alive() for process in job) and time.time() < deadline, logs(workdir)
        time.sleep(0.01)


def rows_of(workdir: pathlib.Path, stage: str) -> list[dict]:
    rows = read_metrics(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").is_file() else []
    return [
        {name: value for name, value in row.items() if not name.startswith((*MEASURED, *OF_MESH))}
        for row in rows
        if row["stage"] == stage
    ]


def assert_close(
    workdir: pathlib.Path,
    other: pathlib.Path,
    stages=("rft", "rl", "meta"),
    judgments=("judgments", "trajectories"),
    steps: int = 5,
) -> None:
    """Every number of every step, the parameters, and every judgment. Adam divides a gradient that
    is next to nothing by its own size, so single elements drift; each tensor is compared by the
    norm of the difference. The Meta RM, whose head begins at random, drifts most.
    """
    for stage in stages:
        mine, theirs = rows_of(workdir, stage), rows_of(other, stage)
        assert len(mine) == len(theirs) == steps
        for a, b in zip(mine, theirs):
            assert a.keys() == b.keys()
            for name in a.keys() - {"stage"}:
                rtol, atol = (
                    (1e-5, 1e-6)
                    if name in ("loss", "reward/mean", "learning_rate")
                    else (1e-3, 1e-5)
                )
                np.testing.assert_allclose(
                    a[name],
                    b[name],
                    rtol=rtol,
                    atol=atol,
                    err_msg=f"{stage}, step {a['step']}, {name}",
                )
        name = "grm" if stage == "rl" else stage
        mine, theirs = (
            load_file(folder / f"models/{name}/model.safetensors") for folder in (workdir, other)
        )
        differences = {
            tensor: np.linalg.norm(mine[tensor] - theirs[tensor]) / np.linalg.norm(theirs[tensor])
            for tensor in theirs
        }
        print(f"{stage}: {max(differences.values()):.2g}")
        for tensor, difference in differences.items():
            assert difference < (5e-4 if name == "meta" else 1e-5), (name, tensor, difference)
    assert_same_judgments(workdir, other, judgments)


def assert_same_judgments(
    workdir: pathlib.Path, other: pathlib.Path, judgments=("judgments",)
) -> None:
    """Those of these folders and files, one by one; the numbers in INEXACT to three decimals."""
    paths = [other / name for name in judgments if name.endswith(".jsonl")]
    paths += [path for name in judgments for path in sorted((other / name).rglob("*.jsonl"))]
    assert paths
    for path in paths:
        mine, theirs = (
            [rounded(judgment, False) for judgment in store.read(folder / path.relative_to(other))]
            for folder in (workdir, other)
        )
        assert mine == theirs, path.name


def rounded(value, inexact: bool = True):
    """`value` without times, and with three decimals in every float, or in those below a name in
    INEXACT.
    """
    if isinstance(value, dict):
        return {
            name: rounded(inner, inexact or name in INEXACT)
            for name, inner in value.items()
            if name != "seconds"
        }
    if isinstance(value, list):
        return [rounded(inner, inexact) for inner in value]
    return round(value, 3) if inexact and isinstance(value, float) else value


def before_rl(whole: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """A work folder as that of `whole` was when RL began."""
    for name in ("records", "models/rft", "checkpoints/rft", "trajectories/base"):
        shutil.copytree(whole / name, workdir / name)
    for name in ("config.json", "stages/rft_sample.json", "stages/rft.json"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(whole / name, workdir / name)
    (workdir / "metrics.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in read_metrics(whole / "metrics.jsonl")
            if row["stage"] == "rft"
        )
    )
    return workdir


def stop_behind_rl(processes, micro, workdir: pathlib.Path, count: int, devices: int) -> None:
    """Goes on until RL is done, and asks one of several processes to stop: all do, with the status
    that says so.
    """
    job = processes.start_job(micro, workdir, count, devices, *OVERRIDES)
    until(job, workdir, (workdir / "stages/rl.json").is_file)
    if count == 1:
        return processes.kill(job[0])
    os.kill(job[-1].pid, signal.SIGTERM)
    assert wait(job) == [STOPPED] * count, logs(workdir)
    assert "== stopped by SIGTERM: " in pathlib.Path(f"{workdir}.0.log").read_text()


@pytest.fixture(scope="module")
def one(processes, micro, tmp_path_factory):
    """One process with four devices."""
    workdir = tmp_path_factory.mktemp("job") / "one"
    job = processes.start_job(micro, workdir, 1, 4, *OVERRIDES)
    assert wait(job) == [0], logs(workdir)
    return workdir


@pytest.fixture(scope="module")
def two(processes, micro, tmp_path_factory):
    """Two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("job") / "two"
    job = processes.start_job(micro, workdir, 2, 2, *OVERRIDES)
    assert wait(job) == [0, 0], logs(workdir)
    return workdir


def test_two_processes_do_what_one_does(one, two):
    assert_close(two, one)
    folders = (".", "records", "stages", "judgments/grm/test", "models/grm", "checkpoints/rl")
    for folder in folders:
        assert {path.name for path in (two / folder).iterdir()} == {
            path.name for path in (one / folder).iterdir()
        }
    said = [
        line
        for line in pathlib.Path(f"{two}.1.log").read_text().splitlines()
        if not line.startswith("[Gloo]")
    ]
    assert ": meeting the others at localhost:" in said[0] and said[1:] == [
        f"process 1 of 2 on {socket.gethostname()}, by environment"
    ]


def test_four_processes_do_what_one_does(processes, micro, one, tmp_path):
    job = processes.start_job(micro, tmp_path / "four", 4, 1, *OVERRIDES)
    assert wait(job) == [0] * 4, logs(tmp_path / "four")
    assert_close(tmp_path / "four", one)


def test_a_lost_process_is_named_and_the_job_goes_on(processes, micro, two, tmp_path):
    """Killed in RL, the run is ended by as many processes, and by one on another mesh, with the
    parameters of the run that was left alone.
    """
    workdir = before_rl(two, tmp_path / "lost")
    job = processes.start_job(micro, workdir, 2, 2, *OVERRIDES)
    until(job, workdir, lambda: len(rows_of(workdir, "rl")) >= 3)
    os.killpg(job[1].pid, signal.SIGKILL)
    began = time.time()
    assert wait(job, 120)[0] not in (0, -signal.SIGKILL), logs(workdir)
    assert time.time() - began < 60
    said = pathlib.Path(f"{workdir}.0.log").read_text()
    assert f"missing process 1 ({socket.gethostname()})" in said, said[-3000:]

    alone = shutil.copytree(workdir, tmp_path / "alone")
    stop_behind_rl(processes, micro, workdir, 2, 2)
    assert re.search(
        "rl: goes on from update [24] of 5", pathlib.Path(f"{workdir}.0.log").read_text()
    )
    assert (workdir / "models/grm/model.safetensors").read_bytes() == (
        two / "models/grm/model.safetensors"
    ).read_bytes()
    assert (workdir / "trajectories/rl.jsonl").read_bytes() == (
        two / "trajectories/rl.jsonl"
    ).read_bytes()
    stop_behind_rl(processes, micro, alone, 1, 2)
    assert_close(alone, two, ("rft", "rl"), ("trajectories/base", "trajectories/rl.jsonl"))


@pytest.mark.parametrize(
    "kind, stages",
    [
        ("bradley_terry", ["bradley_terry"]),
        ("pair_rm", ["pair_rm"]),
        ("cloud", ["critic", "cloud"]),
    ],
)
def test_reward_models_of_two_processes_are_those_of_one(processes, tmp_path, kind, stages):
    config = processes.REPO / "tests/experiments/micro_reward_model.py"
    rows = [
        f"--config.{stage}.micro_batch=4"
        for stage in ("bradley_terry", "pair_rm", "critic", "cloud")
    ]
    for name, count, devices in (("one", 1, 4), ("two", 2, 2)):
        job = processes.start_job(
            config,
            tmp_path / name,
            count,
            devices,
            *MESH,
            *rows,
            f"--config.kind={kind}",
            script="reward_model",
        )
        assert wait(job) == [0] * count, logs(tmp_path / name)
    judgments = ("judgments", "trajectories") if kind == "cloud" else ("judgments",)
    assert_close(tmp_path / "two", tmp_path / "one", stages, judgments, steps=3)
    two, one = (
        json.loads((tmp_path / name / "results.json").read_text())["rows"]
        for name in ("two", "one")
    )
    assert rounded(two) == rounded(one)


def test_adapters_of_two_processes_are_those_of_one(processes, micro, tmp_path):
    adapters = (
        "--config.lora.rank=2",
        "--config.lora.alpha=4",
        "--config.lora.targets=('q', 'o', 'down')",
    )
    for name, count, devices in (("one", 1, 4), ("two", 2, 2)):
        job = processes.start_job(micro, tmp_path / name, count, devices, *OVERRIDES, *adapters)
        assert wait(job) == [0] * count, logs(tmp_path / name)
    assert_close(tmp_path / "two", tmp_path / "one")


def test_evaluate_of_two_and_four_processes_says_what_one_says(processes, one, tmp_path):
    """Models that generate, with a Meta RM and by token probabilities, and one that scores."""
    # without the grm.json that says what it is for
    scalar = shutil.copytree(one / "models/meta", tmp_path / "scalar")
    (scalar / "grm.json").unlink()
    systems = (
        {
            "name": "grm",
            "kind": "pointwise_grm",
            "path": str(one / "models/grm"),
            "meta": str(one / "models/meta"),
        },
        {"name": "token_prob", "kind": "token_prob", "path": str(one / "models/rft")},
        {"name": "scalar", "kind": "scalar", "path": str(scalar)},
    )
    config = tmp_path / "config.py"
    config.write_text(
        "from experiments.configs import tiny_evaluate\n\n\ndef get_config():\n    config = "
        "tiny_evaluate.get_config()\n"
        f"    config.systems = {systems}\n    config.benchmarks = ({{'kind': 'world', "
        f"'split': 'test', 'items': 6}},)\n"
        "    config.eval.update(ks=(1, 2), bootstrap=200, report_items=3, samples_per_order=1)\n"
        "    config.model.scan_layers = True\n"
        "    config.lengths.update(buckets=(80,), sequences=())\n    "
        "config.sampling.rows = 8\n    return config\n"
    )
    for name, count, devices in (("alone", 1, 4), ("pair", 2, 2), ("quad", 4, 1)):
        job = processes.start_job(config, tmp_path / name, count, devices, *MESH, script="evaluate")
        assert wait(job) == [0] * count, logs(tmp_path / name)
    alone = json.loads((tmp_path / "alone/results.json").read_text())
    for name in ("pair", "quad"):
        assert_same_judgments(tmp_path / name, tmp_path / "alone")
        assert rounded(
            json.loads((tmp_path / name / "results.json").read_text())["rows"]
        ) == rounded(alone["rows"])
        assert (tmp_path / name / "report.html").is_file()
