"""The whole job, in small: what it leaves behind, that it resumes after SIGKILL with the same bits, and that it refuses what cannot be right."""

import json
import pathlib
import random
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import run_process

MICRO = pathlib.Path(__file__).parent / "micro.py"
SYSTEMS, SPLITS = ("base", "rft", "grm"), ("test", "hard", "wide", "single")
STAGES = ["rft_sample", "rft", "rl", "meta_sample", "meta", *(f"eval_{system}_{split}" for system in SYSTEMS for split in SPLITS)]


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in run_process.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(work folder, output) of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("spct") / "whole"
    return workdir, run_process.run(MICRO, workdir)


def contents(workdir):
    """What must not depend on interruptions: parameters, judgments, results (but for times)."""
    results = json.loads((workdir / "results.json").read_text())
    results.pop("timings_s")
    found = {"results": results}
    for path in sorted((workdir / "judgments").glob("*.jsonl")):
        found[path.name] = path.read_text()
    for name in ("rft", "grm", "meta"):
        for tensor, value in load_file(workdir / "models" / name / "model.safetensors").items():
            found[f"{name}/{tensor}"] = value.tobytes()
    return found


def test_it_leaves_what_it_promises(finished):
    workdir, output = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["seed"] == 0 and list(results["timings_s"]) == STAGES and results["config"]["rl"]["beta"] > 0
    rows = {(r["system"], r["split"], r["aggregation"], r["k"]): r for r in results["rows"]}
    wanted = [("greedy", 1), ("vote", 1), ("vote", 2), ("meta", 1), ("meta", 2)]
    assert rows.keys() == {(system, split, *how) for system in SYSTEMS for split in SPLITS for how in wanted}
    for row in rows.values():
        assert row["items"] == 3 and 0 <= row["strict_accuracy"] <= row["accuracy"] <= 1 and row["tokens_per_judgment"] > 0
        assert {"stderr", "tie_rate", "parse_failure_rate"} <= row.keys()
    assert (workdir / "report.html").read_text().startswith("<!doctype html>")
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in metrics] == [(stage, step) for stage in ("rft", "rl", "meta") for step in range(6)]
    on_policy = [row for row in metrics if row["stage"] == "rl"]
    assert all(abs(row["ratio_max"] - 1) < 1e-3 and abs(row["ratio_min"] - 1) < 1e-3 for row in on_policy)  # sampler = trainer
    assert {"kl", "entropy", "reward/mean", "frac_reward_zero_std", "completions/mean_length", "parse_failure_rate"} <= on_policy[0].keys()
    assert all(list((workdir / "tensorboard" / stage).glob("events*")) for stage in ("rft", "rl", "meta"))
    assert "judgment, responses shown as" in output  # a judged example, now and then

    def judgments(name):
        return [json.loads(line) for line in (workdir / "judgments" / f"{name}.jsonl").read_text().splitlines()]

    sampled = judgments("rft_sample")
    assert len(sampled) == 16 * 4 and all({"accepted", "reason", "text", "order"} <= row.keys() for row in sampled)
    assert len(judgments("rl")) == 6 * 8 and {row["reward"] for row in judgments("rl")} <= {-1.0, 1.0}
    scored = judgments("eval_grm_test")
    assert len(scored) == 3 * 2 and all((row["meta_logit"] is None) == (row["failure"] is not None) for row in scored)


def test_it_learns_something_at_every_stage(finished):
    workdir, _ = finished
    base = load_file(pathlib.Path(__file__).parents[2] / "grm_jax" / "assets" / "tiny_base" / "model.safetensors")
    before = base
    for name in ("rft", "grm"):
        after = load_file(workdir / "models" / name / "model.safetensors")
        assert before.keys() == after.keys() and any(np.any(before[key] != after[key]) for key in after)
        before = after


def test_run_again_it_only_reports(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for folder in ("judgments", "models", "stages") for path in (workdir / folder).rglob("*.*")}
    (workdir / "report.html").unlink()
    output = run_process.run(MICRO, workdir)
    assert output.count("done before") == len(STAGES) and (workdir / "report.html").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_config_in_the_same_folder_is_refused(finished):
    workdir, _ = finished
    assert run_process.finish(run_process.start(MICRO, workdir, "--config.rl.beta=0.5")) != 0
    assert "rl.beta" in pathlib.Path(f"{workdir}.log").read_text()


def kill_and_resume(workdir, moments):
    """Start the run, wait for each condition in turn, kill it there and start it again; then let it finish."""
    process = run_process.start(MICRO, workdir)
    for reached, delay in moments:
        while not reached(workdir) and process.is_alive():
            time.sleep(0.005)
        time.sleep(delay)
        if process.is_alive():
            run_process.kill(process)
        process = run_process.start(MICRO, workdir)
    assert run_process.finish(process) == 0, pathlib.Path(f"{workdir}.log").read_text()[-6000:]


def exists(name):
    return lambda workdir: (workdir / name).exists()


def has_lines(name, count):
    return lambda workdir: (workdir / name).exists() and (workdir / name).read_bytes().count(b"\n") >= count


MOMENTS = {  # one in every kind of stage; checkpoints are written at steps 2, 4 and 6
    "rft_sample": has_lines("judgments/rft_sample.jsonl", 8),
    "rft": exists("checkpoints/rft/2"),
    "rl": exists("checkpoints/rl/2"),
    "meta_sample": has_lines("judgments/meta_sample_rft.jsonl", 8),
    "meta": exists("checkpoints/meta/4"),
    "eval": has_lines("judgments/eval_rft_test.jsonl", 1),
}


def test_killed_in_training_and_in_sampling_it_ends_with_the_same_bits(finished, tmp_path):
    rng = random.Random(0)
    kill_and_resume(tmp_path / "killed", [(MOMENTS[name], rng.uniform(0, 0.3)) for name in ("rft_sample", "rl", "eval")])
    assert contents(tmp_path / "killed") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_in_every_stage_it_ends_with_the_same_bits(finished, tmp_path, seed):
    rng = random.Random(seed)
    kill_and_resume(tmp_path / "killed", [(reached, rng.uniform(0, 1.0)) for reached in MOMENTS.values()])
    assert contents(tmp_path / "killed") == contents(finished[0])
