"""The plan of the smallest run, for four devices that are not there: what does not fit is mended,
and meshes are ranked.
"""

import json
import pathlib
import subprocess
import sys

import pytest

MICRO = pathlib.Path(__file__).with_name("micro.py")


def plan(out: pathlib.Path, topology: str, *flags: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "experiments.plan",
        f"--config={MICRO}",
        f"--topology={topology}",
        f"--out={out}",
        "--config.mesh.replica=1",
        *flags,
    ]
    done = subprocess.run(
        [*command, "--config.mesh.fsdp=-1"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "plan.json").read_text())


def test_files_hold_the_whole_plan(tmp_path):
    """Without compiling: programs, and the stages that they make up, also for texts of lengths."""
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps([{"prompt": 9, "responses": 2, "completion": 5}]))
    programs = ("--nocompile", "--programs=rft_step,meta_step", f"--lengths={lengths}")
    found = plan(tmp_path, "h100:4", *programs)
    assert set(found["programs"]) == {"rft_step", "meta_step"}
    hours = {one["stage"]: one["hours"] for one in found["stages"]}
    assert hours["rft"] > 0 and hours["meta"] > 0 and hours["rl"] is None
    drawn = {one["stage"]: one["hours"] for one in found["drawn"]}
    assert 0 < drawn["rft"] <= hours["rft"] and 0 < drawn["meta"] <= hours["meta"]
    assert found["loads"]["rft"][0] >= found["loads"]["rft"][1] > 0
    assert "| rft | 5 x rft_step of " in (tmp_path / "plan.md").read_text()


def test_shapes_of_a_tpu_slice_need_no_libtpu(tmp_path):
    """And what was left out of --programs is said, where a stage has no time for it."""
    found = plan(tmp_path, "v5e:2x2", "--nocompile", "--programs=rft_step")
    assert found["devices"] == 4 and not found["compiled"]
    assert {one["stage"]: one["hours"] for one in found["stages"]}["rft"] > 0
    text = (tmp_path / "plan.md").read_text()
    assert "rl: no time, rl_step, logprobs, prefill, decode left out of --programs" in text


def test_a_preset_of_which_no_program_can_be_is_an_error(tmp_path):
    command = [sys.executable, "-m", "experiments.plan", f"--config={MICRO}", "--nocompile"]
    command += ["--topology=h100:16", f"--out={tmp_path}", "--programs=rft_step"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: no program can be made of this preset here; rft_step: rft.micro_batch: expected a "
        "multiple of replica x fsdp = 16"
    )


@pytest.mark.tpu_aot
def test_a_change_that_makes_a_step_fit(tmp_path):
    """Remat is tried first; the second change halves the micro-batch."""
    rows = 2**15
    found = plan(
        tmp_path,
        "v5e:2x2",
        "--programs=rft_step",
        "--config.packing.rows=()",  # packing as many takes longer than compiling them
        f"--config.rft.batch_size={rows}",
        f"--config.rft.micro_batch={rows}",
    )
    assert found["programs"]["rft_step"]["fits"] is False
    tried = [(one["change"], one["fits"]) for one in found["changes"]]
    assert (
        tried[0][0] == "model.remat=full"
        and tried[-1][1] is True
        and not any(fits for _, fits in tried[:-1])
    )
    assert tried[-1][0] in (tmp_path / "plan.md").read_text()


@pytest.mark.tpu_aot
@pytest.mark.parametrize("rows, micro_batches", [("(1.0,)", (4,)), ("()", (4, 8))])
def test_search_ranks_meshes_by_time(tmp_path, rows, micro_batches):
    """Packed rows have one size of micro-batch, padded ones all that the batch can be cut into."""
    packing = f"--config.packing.rows={rows}"
    found = plan(tmp_path, "v5e:2x2", "--programs=rl_step", "--search", packing)["search"]
    meshes = {one["change"] for one in found}
    assert {
        *(f"fsdp=4 tensor=1 micro_batch={micro}" for micro in micro_batches),
        "fsdp=2 tensor=2 micro_batch=2",
        "fsdp=1 tensor=4 micro_batch=1",
    } <= meshes
    assert ("fsdp=4 tensor=1 micro_batch=8" in meshes) == (8 in micro_batches)
    assert all(one["fits"] for one in found) and [one["seconds"] for one in found] == sorted(
        one["seconds"] for one in found
    )
