"""metrics.jsonl over kills and resumes, other sinks, and late fetching."""

import importlib.util
import json
import sys

import jax.numpy as jnp
import pytest

from grm_jax.training.metrics import LateMetrics, MetricsLog, Work, check_sinks, read_metrics


def write(folder, stage, steps, resumed_step=0):
    with MetricsLog(folder, stage, resumed_step) as log:
        for step in steps:
            log.write(step, {"loss": 1.0 / (step + 1)})


def steps_of(folder):
    return [(row["stage"], row["step"]) for row in read_metrics(folder / "metrics.jsonl")]


def test_resume_drops_the_rows_that_will_be_written_again(tmp_path):
    write(tmp_path, "rft", range(3))
    write(tmp_path, "rl", range(5))
    write(tmp_path, "rl", range(3, 6), resumed_step=3)
    assert steps_of(tmp_path) == [("rft", 0), ("rft", 1), ("rft", 2)] + [
        ("rl", step) for step in range(6)
    ]
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"stage": "rft", "step": 1, "loss": 0.5}
    assert {path.parent.name for path in (tmp_path / "tensorboard").rglob("events.*")} == {
        "rft",
        "rl",
    }


def test_a_torn_last_line_is_dropped_and_a_broken_one_before_it_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, "rft", range(3))
    path.write_bytes(path.read_bytes() + b'{"stage": "rft", "st')
    assert len(read_metrics(path)) == 3
    write(tmp_path, "rft", range(3, 4), resumed_step=3)
    assert steps_of(tmp_path) == [("rft", step) for step in range(4)]
    path.write_text('{"stage": "rft", "step": 0}\noops\n{"stage": "rft", "step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not UTF-8 JSON: Expecting value"):
        MetricsLog(tmp_path, "rft")


def test_values_that_are_not_finite_become_null(tmp_path):
    with MetricsLog(tmp_path, "rl") as log:
        log.write(0, {"ratio_min": float("inf"), "loss": 0.25})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "stage": "rl",
        "step": 0,
        "ratio_min": None,
        "loss": 0.25,
    }


def test_metrics_come_one_step_late_and_are_checked():
    late = LateMetrics()

    def metrics(loss):
        return {
            "loss": jnp.float32(loss),
            "grad_norm": jnp.float32(1.0),
            "nonfinite": jnp.float32(loss != loss),
        }

    assert list(late.push(0, metrics(3.0), work=Work(100, 400))) == []
    ((step, row),) = late.push(1, metrics(2.0))
    assert (
        step == 0
        and row["loss"] == 3.0
        and row["tokens_per_s"] == pytest.approx(100 / row["step_s"])
        and row["computed_tokens_per_s"] == pytest.approx(400 / row["step_s"])
        and (row["needed_tokens"], row["computed_tokens"]) == (100, 400)
    )
    ((step, row),) = late.push(2, metrics(float("nan")), ["id-1", "id-2"])
    assert step == 1 and row["loss"] == 2.0 and "tokens_per_s" not in row
    with pytest.raises(FloatingPointError, match="step 2: loss nan.*id-1, id-2"):
        late.flush()
    assert list(late.flush()) == []


WANDB = """
import pathlib
CALLS = []

class Run:
    def log(self, row, step):
        CALLS.append(("log", step, row))

    def finish(self):
        CALLS.append(("finish",))

def init(**settings):
    CALLS.append(("init", settings))
    return Run()
"""


def test_weights_and_biases(tmp_path, monkeypatch):
    """A stand-in for the package: one run a stage, resumed under its id, without what is not
    finite.
    """
    (tmp_path / "path").mkdir()
    (tmp_path / "path/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that it is out again after the test
    del sys.modules["wandb"]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    check_sinks(["jsonl", "wandb"])
    for first in (0, 1):
        with MetricsLog(tmp_path / "run", "rl", first, ("wandb",)) as log:
            log.write(first, {"loss": 0.5, "ratio_min": float("inf")})
    calls = sys.modules["wandb"].CALLS
    assert calls[:3] == [calls[0], ("log", 0, {"loss": 0.5}), ("finish",)]
    assert calls[3:] == [calls[0], ("log", 1, {"loss": 0.5}), ("finish",)]
    settings = calls[0][1]
    assert {settings[name] for name in ("project", "group", "name", "resume")} == {
        "mine",
        "run",
        "run/rl",
        "allow",
    }
    assert settings["dir"] == str(tmp_path / "run") and len(settings["id"]) == 8
    assert not (tmp_path / "run/metrics.jsonl").exists()
    with MetricsLog(tmp_path / "run", "meta", 0, ("wandb",)):
        assert calls[-1][1]["id"] != settings["id"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_sink_that_cannot_be_is_named_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'wandb' is not installed"):
        check_sinks(["jsonl", "wandb"])
    # the folder that a run of wandb leaves where it was started is no package
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'wandb' is not installed"):
        check_sinks(["wandb"])
    with pytest.raises(ValueError, match="unknown name 'tensorbord'; did you mean tensorboard"):
        check_sinks(["tensorbord"])
    check_sinks(["jsonl", "tensorboard"])
