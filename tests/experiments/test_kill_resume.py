"""A run that is killed with SIGKILL at random moments, and started again until it is through, ends
as the one that was left alone.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import time

import pytest

from grm_jax.evaluation import store
from grm_jax.parallel.processes import STOPPED
from grm_jax.training.metrics import MEASURED, read_metrics
from tests.experiments import run_process

TRAINING = ("rft", "rl", "meta")
STAGES = ("rft_sample", "rft", "rl", "meta_sample", "meta", "eval")


def lines(workdir: pathlib.Path, stage: str) -> int:
    """How far a stage is: judgments, or steps in metrics.jsonl."""
    if stage in TRAINING:
        path = workdir / "metrics.jsonl"
        return path.read_text().count(f'{{"stage": "{stage}"') if path.is_file() else 0
    return sum(path.read_bytes().count(b"\n") for path in judgment_files(workdir, stage))


def judgment_files(workdir: pathlib.Path, stage: str | None = None) -> list[pathlib.Path]:
    """The files of the store that a stage writes, or all of them."""
    folders = {
        "rft_sample": ("trajectories/base",),
        "meta_sample": ("trajectories/rft", "trajectories/grm"),
        "eval": ("judgments",),
        None: ("trajectories", "judgments"),
    }[stage]
    return sorted(path for folder in folders for path in (workdir / folder).rglob("*.jsonl"))


def begun(workdir: pathlib.Path) -> str:
    """The stage that the run is in; the evaluation is what comes after the last of them."""
    log = pathlib.Path(f"{workdir}.log").read_text()
    headings = [line for line in log.splitlines() if line.startswith("== ")]
    over = re.match(r"== meta: (\d+ s|done before)", headings[-1])
    return "eval" if over else headings[-1].split()[1].rstrip(":")


def at_line(stage: str, least: int):
    """Once the stage has begun and written `least` lines."""
    heading = re.compile(r"\n== meta: (\d+ s|done before)" if stage == "eval" else f"\n== {stage}")
    return lambda workdir: (
        heading.search(pathlib.Path(f"{workdir}.log").read_text()) is not None
        and lines(workdir, stage) >= least
    )


def at_checkpoint(stage: str, step: int):
    """As soon as a file of this checkpoint is there, under whatever name."""
    return lambda workdir: any((workdir / "checkpoints" / stage).glob(f"{step}*"))


def random_lines(rng: random.Random, whole: pathlib.Path, stage: str, count: int) -> list:
    """Conditions at random lines of the first three quarters of a stage, in their order."""
    return [
        at_line(stage, least)
        for least in sorted(rng.choices(range(3 * lines(whole, stage) // 4), k=count))
    ]


def run_killed(
    start, workdir: pathlib.Path, conditions: list, rng: random.Random
) -> collections.Counter:
    """Starts a run, kills it at each condition in turn and starts it again, then lets it end. How
    often each stage was struck, and under "torn" how often while a checkpoint was incomplete.
    """
    struck = collections.Counter()
    for reached in conditions:
        process = start(workdir)
        while process.is_alive() and not reached(workdir):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        assert process.is_alive(), pathlib.Path(f"{workdir}.log").read_text()[-6000:]
        run_process.kill(process)
        struck[begun(workdir)] += 1
        struck["torn"] += any((workdir / "checkpoints").glob("*/*tmp*"))
    assert run_process.finish(start(workdir)) == 0, pathlib.Path(f"{workdir}.log").read_text()[
        -6000:
    ]
    print(dict(struck))
    return struck


def assert_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Parameters bit by bit, every judgment but for its time, results but for the times, and every
    step logged once with the same numbers.
    """
    for name in TRAINING:
        model = "grm" if name == "rl" else name
        assert (workdir / f"models/{model}/model.safetensors").read_bytes() == (
            whole / f"models/{model}/model.safetensors"
        ).read_bytes(), model
    files = [path.relative_to(whole) for path in judgment_files(whole)]
    assert [path.relative_to(workdir) for path in judgment_files(workdir)] == files
    for name in files:
        assert evidence(workdir / name) == evidence(whole / name), name
    mine, theirs = (
        json.loads((folder / "results.json").read_text()) for folder in (workdir, whole)
    )
    assert mine.pop("timings_s").keys() == theirs.pop("timings_s").keys()
    for results in (mine, theirs):
        for diagnostics in results["diagnostics"]:
            diagnostics.pop("seconds_per_judgment")
    assert mine == theirs
    mine, theirs = (
        [
            {k: v for k, v in row.items() if not k.startswith(MEASURED)}
            for row in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (workdir, whole)
    )
    assert mine == theirs


def evidence(path: pathlib.Path) -> list[dict]:
    """The judgments of a file, whatever their order and the time they took."""
    judgments = [j | {"seconds": None} for j in store.read(path)]
    return sorted(judgments, key=lambda j: (j.get("step", 0), j["id"], j["sample"]))


def test_killed_in_every_stage(processes, micro, finished, tmp_path):
    rng, whole = random.Random(0), finished[0]
    conditions = [condition for stage in STAGES for condition in random_lines(rng, whole, stage, 1)]
    conditions[STAGES.index("rft_sample")] = at_line("rft_sample", 1)  # the last ones end it
    conditions[STAGES.index("rl")] = at_checkpoint("rl", 2)
    conditions[STAGES.index("meta")] = at_checkpoint("meta", 4)
    struck = run_killed(
        lambda workdir: processes.start(micro, workdir), tmp_path / "killed", conditions, rng
    )
    assert struck.total() - struck["torn"] == len(STAGES) and struck.keys() >= {
        "rft_sample",
        "rl",
        "eval",
    }
    assert_same(tmp_path / "killed", whole)


def test_a_signal_saves_and_the_run_goes_on(processes, micro, finished, tmp_path):
    workdir, whole = tmp_path / "stopped", finished[0]
    log = pathlib.Path(f"{workdir}.log")
    for reached, number, status, where in (
        (at_line("rft_sample", 1), signal.SIGINT, 130, "rft_sample, "),
        (at_line("rft", 1), signal.SIGINT, 130, "rft, saved behind update "),
        (at_line("rl", 1), signal.SIGTERM, STOPPED, "rl, saved behind update "),
    ):
        process = processes.start(micro, workdir)
        while process.is_alive() and not reached(workdir):
            time.sleep(0.002)
        os.kill(process.pid, number)
        assert processes.finish(process) == status, log.read_text()[-6000:]
        text = log.read_text()
        assert text.splitlines()[-1].startswith(f"== stopped by {number.name}: {where}")
        assert f"{number.name}: {where.split(',')[0]}" in text and "Traceback" not in text
    saved = int(log.read_text().rsplit("saved behind update ", 1)[1].split(".")[0])
    assert (
        lines(workdir, "rl") == saved
        and max(int(path.name) for path in (workdir / "checkpoints/rl").iterdir()) == saved
    )
    # twice: at once, wherever it is; what is on file stays
    process = processes.start(micro, workdir)
    while process.is_alive() and not at_line("meta_sample", 1)(workdir):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):  # one was enough, the block was just over
        os.kill(process.pid, signal.SIGINT)
    assert processes.finish(process) == 130 and "Traceback" not in log.read_text()
    assert f"rl: goes on from update {saved} of 5" in log.read_text()
    processes.run(micro, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_again_and_again(processes, micro, tmp_path, seed):
    """Three random moments in every stage, and one in a checkpoint of every training stage."""

    def start(workdir):
        return processes.start(
            micro,
            workdir,
            f"--config.seed={seed}",
            *(f"--config.{stage}.steps=12" for stage in TRAINING),
        )

    rng, whole = random.Random(seed), tmp_path / "whole"
    assert processes.finish(start(whole)) == 0, pathlib.Path(f"{whole}.log").read_text()[-6000:]
    conditions = []
    for stage in STAGES:
        conditions += random_lines(rng, whole, stage, 3)
        if stage in TRAINING:  # behind the kills before, which did not reach step 9
            conditions.append(at_checkpoint(stage, rng.choice((10, 12))))
    struck = run_killed(start, tmp_path / "killed", conditions, rng)
    assert all(struck[stage] >= 3 for stage in STAGES), struck
    assert_same(tmp_path / "killed", whole)
