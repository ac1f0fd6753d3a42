"""Seconds by phase, traces of steps, goodput over restarts, and the work of a step."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models.config import ModelConfig, alternating
from grm_jax.models.flops import Passes, forward_flops
from grm_jax.parallel.hardware import GPUS, TPUS, chip_of, peak_flops
from grm_jax.sampling.engine import Counts
from grm_jax.training import goodput as goodput_module
from grm_jax.training.goodput import Goodput
from grm_jax.training.phases import Phases, Span, Trace, attribute, programs_compiled, trace_of
from grm_jax.training.speed import Speed, engine_metrics, fit_work, rl_work

CFG = ModelConfig(
    vocab_size=50,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(2),
    sliding_window=4,
)


def test_an_instant_belongs_to_what_the_devices_are_at():
    spans = [
        Span("host", 10.0, 11.0),
        Span("rollout", 11.0, 14.0),
        Span("host", 14.0, 15.0),
        Span("logprobs", 15.0, 15.5, 18.0, compiling=1.0),
        Span("update", 15.5, 15.6, 20.0),
        Span("host", 15.6, 16.0),
    ]
    # the update of the step before ran until 12.5
    row, end = attribute(spans, 12.5)
    assert end == 20.0 and row == {
        "step_s": 7.5,
        "seconds/rollout": 1.5,
        "seconds/logprobs": 2.0,
        "seconds/update": 2.0,
        "seconds/compile": 1.0,
        "seconds/host": 1.0,
    }
    # a step that was over before the one before it is none of its time
    assert attribute(spans, 30.0)[0]["step_s"] == 0.0


def test_the_devices_are_waited_for_by_another_thread():
    there, asked = threading.Event(), threading.Event()

    class Arrives:
        def block_until_ready(self):
            asked.set()
            there.wait()

    with Phases("rl") as phases:
        for _ in phases.steps(0, 1):
            phases.begin("update")
            phases.until(Arrives())  # type: ignore[arg-type]
            phases.begin("host")
            assert asked.wait(60) and not there.is_set()
            there.set()
        row = phases.seconds(0)
    parts = sum(value for name, value in row.items() if name.startswith("seconds/"))
    assert row["seconds/update"] > 0 and row["step_s"] == pytest.approx(parts)


def test_compiling_is_no_part_of_a_phase():
    before = programs_compiled()
    with Phases("rft") as phases:
        for _ in phases.steps(0, 1):
            phases.begin("update")
            x = jax.jit(lambda x: jnp.sin(x) * 17.25 + jnp.cos(x[::3]).sum())(jnp.arange(7.0))
            phases.until(x)
            phases.begin("host")
        row = phases.seconds(0)
    assert programs_compiled() > before and row["seconds/compile"] > 0
    assert row["seconds/update"] <= row["step_s"] - row["seconds/compile"] + 1e-6


def test_what_flush_asked_for_is_not_asked_for_again():
    with Phases("rft") as phases:
        for step in phases.steps(3, 5):
            phases.begin("update")
            phases.begin("host")
            phases.seconds(step)  # as a flush before a checkpoint
            phases.begin("checkpoint")


@pytest.mark.parametrize(
    "text, first, steps", [("10:13", 10, 3), ("3", None, 3), ("0:1", 0, 1), ("", 0, 0)]
)
def test_steps_to_trace(tmp_path, text, first, steps):
    found = trace_of(text, tmp_path)
    assert found == (None if not text else Trace(tmp_path, first, steps))
    if found:
        begins = 7 + 2 if first is None else first
        assert found.of("rl", 7) == (tmp_path / "rl", begins, begins + steps)


@pytest.mark.parametrize("text", ["13:10", "4:4", "0", "a", "1:", ":3", "-1", "1:2:3"])
def test_other_steps_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="expected"):
        trace_of(text, tmp_path)


def test_goodput_counts_restarts_and_steps_that_are_done_again(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(goodput_module.time, "time", lambda: now[0])
    first = Goodput(tmp_path, "rl", 0)
    row = {"seconds/rollout": 2.0, "seconds/update": 3.0, "seconds/host": 4.0}
    now[0] += 10
    assert first.add(row) == {"goodput": 0.5, "restarts": 0.0}
    first.mark(1)
    now[0] += 10
    assert first.add(row)["goodput"] == 0.5  # killed behind it: the checkpoint knows one step
    now[0] += 20
    again = Goodput(tmp_path, "rl", 1)
    now[0] += 10
    assert again.add(row) == {"goodput": 10 / 50, "restarts": 1.0}
    again.mark(2)
    Goodput(tmp_path, "meta", 0)
    kept = json.loads((tmp_path / "goodput.json").read_text())
    assert kept["rl"] == {"began": 1000.0, "starts": 2, "useful_s": {"1": 5.0, "2": 10.0}}
    assert kept["meta"]["starts"] == 1


def test_share_of_the_peak():
    class Known:
        def seconds(self, step):
            return {"step_s": 4.0, "seconds/update": 2.0}

        def add(self, row):
            return {"goodput": 0.5}

    work = rl_work(CFG, [5, 5, 3, 3], [2, 4, 1, 6], 2, np.array([[0, 1, -1]]), passes=1, updates=2)
    row = Speed(Known(), Known(), 1e6).row(0, work)  # type: ignore[arg-type]
    assert row["mfu"] == pytest.approx(work.flops / 4e6)
    assert row["mfu_update"] == pytest.approx(work.update_flops / 2e6)
    assert "mfu" not in Speed(Known(), Known(), None).row(0, work)  # type: ignore[arg-type]


def test_work_of_a_step():
    # prompts once a group; the vocabulary where a token is drawn or learned
    pos = np.array([[0, 1, 2, 3, 4, 5, 6, -1]])
    work = rl_work(CFG, [5, 5], [2, 4], 2, pos, passes=1, updates=2)
    drawn = 2.0 * CFG.d_model * CFG.vocab_size * 6
    rollout = forward_flops(CFG, 5) + forward_flops(CFG, 7, 5) + forward_flops(CFG, 9, 5) + drawn
    forward = forward_flops(CFG, 7) + drawn
    assert work.needed_tokens == 7 and work.computed_tokens == 8
    assert work.update_flops == 6 * forward and work.flops == rollout + 7 * forward
    fit = fit_work(CFG, [pos, pos[:, :3]], logits=3)
    assert (fit.needed_tokens, fit.computed_tokens) == (10, 11)
    assert fit.flops == 3 * (forward_flops(CFG, 7, logits=3) + forward_flops(CFG, 3))
    # frozen weights have no gradient; of a query and a key either has one
    adapted = fit_work(CFG, [pos, pos[:, :3]], 3, adapters=True)
    attention = [forward_flops(CFG, length, passes=Passes(0, 1)) for length in (7, 3)]
    assert adapted.flops == pytest.approx((2 * fit.flops + sum(3 * x for x in attention)) / 3)
    rl = rl_work(CFG, [5, 5], [2, 4], 2, pos, passes=1, updates=2, adapters=True)
    assert rl.update_flops == pytest.approx(2 * (2 * forward + attention[0]))
    assert rl.flops == rollout + forward + rl.update_flops


def test_chips_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite") is TPUS["v5e"] and chip_of("TPU v5p") is TPUS["v5p"]
    assert chip_of("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert chip_of("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert chip_of("cpu") is None
    peak = peak_flops(jax.devices("cpu"), "float32")
    assert peak is not None and peak > 1e8


def test_what_engines_drew():
    counts = [Counts(100, 60, 50, 30), Counts(20, 40, 10, 20)]
    assert engine_metrics(counts) == {
        "engine/prefilled_tokens": 120,
        "engine/decoded_tokens": 100,
        "engine/needed_tokens": 110,
        "engine/occupancy": 0.5,
    }
    assert engine_metrics([]) == {}
