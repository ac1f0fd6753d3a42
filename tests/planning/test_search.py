"""Changes that make a program fit, and the search over meshes, with programs that are made up."""

import dataclasses

import pytest

from grm_jax.models.config import GEMMA2_2B
from grm_jax.models.lora import LoraConfig
from grm_jax.parallel.mesh import MeshConfig
from grm_jax.planning.programs import Job, stage_times
from grm_jax.planning.search import rank, search, single_changes, what_fits
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.settings import FitConfig, RlConfig

FIT = {"learning_rate": 1e-5, "batch_size": 32, "micro_batch": 16, "steps": 10}
JOB = Job(
    GEMMA2_2B,
    MeshConfig(replica=1, fsdp=-1, tensor=1),
    Lengths(64, 32, (64,)),
    Sampling(rows=32, sampler="shard_map", chunk=8),
    OptimizerConfig(),
    LoraConfig(0),
    FitConfig(**FIT),
    RlConfig(**FIT, group_size=4),
    FitConfig(**FIT),
)


def test_single_changes_go_down_to_one_row_a_share():
    assert list(single_changes(JOB, 4, "rft_step")) == [
        {"model.remat": "full"},
        {"rft.micro_batch": 8},
        {"rft.micro_batch": 4},
        {"mesh.replica": 1, "mesh.fsdp": -1, "mesh.tensor": 2},
        {"mesh.replica": 1, "mesh.fsdp": -1, "mesh.tensor": 4},
        {"optimizer.mu_dtype": "bfloat16"},
        {"lora.rank": 16},
    ]
    rows = [c["sampling.rows"] for c in single_changes(JOB, 4, "decode") if "sampling.rows" in c]
    assert rows == [16, 8, 4]  # a group stays together
    assert {"sampling.sampler": "jit"} in single_changes(JOB, 4, "judge_prefill")


def test_changes_are_tried_until_one_fits():
    tried = []

    def attempt(changes, words):
        tried.append(words)
        return {"fits": words == "rft.micro_batch=8"}

    assert [t["fits"] for t in what_fits(JOB, 4, "rft_step", attempt)] == [False, True]
    assert tried == ["model.remat=full", "rft.micro_batch=8"]


def test_packed_rows_become_shorter_and_have_no_micro_batches():
    packed = dataclasses.replace(JOB, row_lengths=(128, 256))
    changes = list(single_changes(packed, 4, "rl_step"))
    assert changes[:2] == [{"model.remat": "full"}, {"packing.rows": (1.0,)}]
    assert not any("rl.micro_batch" in change for change in changes)
    tried = list(search(packed, 4, lambda changes, words: changes | {"fits": True}))
    meshes = [(one["mesh.fsdp"], one["mesh.tensor"]) for one in tried]
    assert meshes == [(4, 1), (2, 2), (1, 4)]


def test_the_search_leaves_out_what_needs_more_than_what_did_not_fit():
    def attempt(changes, words):
        return {"fits": changes["rl.micro_batch"] <= 8, "words": words, "times": None}

    words = [tried["words"] for tried in search(JOB, 4, attempt)]
    assert words[:3] == [f"fsdp=4 tensor=1 micro_batch={rows}" for rows in (4, 8, 16)]
    assert words[3] == "fsdp=2 tensor=2 micro_batch=2" and "micro_batch=32" not in " ".join(words)


def test_what_fits_comes_first_by_its_longest_time():
    figures = [
        {"fits": False, "times": {"compute": 1.0, "hbm": 0.1}},
        {"fits": True, "times": {"compute": 2.0, "hbm": 1.5}},
        {"fits": True, "times": {"compute": 2.0, "hbm": 1.0}},
        {"fits": False, "times": None},
    ]
    order = sorted(range(4), key=lambda i: rank(figures[i]))
    assert order == [2, 1, 0, 3]


def test_times_of_the_stages_add_up():
    trained = {"seconds": 2.0, "tokens": 32 * 96}
    seconds = dict.fromkeys(("rft_step", "rl_step", "logprobs", "meta_step"), trained)
    seconds |= dict.fromkeys(("prefill", "decode"), {"seconds": 1, "tokens": 8 * 64})
    seconds |= dict.fromkeys(("judge_prefill", "judge_decode"), {"seconds": 1, "tokens": 32 * 64})
    rows = {row["stage"]: row for row in stage_times(JOB, seconds, 4, 2)}
    # 8 prompts at once are all of a batch: prefill, 4 chunks of decode, 2 x logprobs, rl_step
    assert rows["rl"]["seconds"] == 1 + 4 + 4 + 2
    assert rows["rl"]["chip_hours"] == pytest.approx(2 * rows["rl"]["hours"])
    # without a KL there is no reference to run
    free = dataclasses.replace(JOB, rl=dataclasses.replace(JOB.rl, beta=0.0))
    rows = {row["stage"]: row for row in stage_times(free, seconds, 4, 2)}
    assert rows["rl"]["seconds"] == 1 + 4 + 2 + 2
    del seconds["decode"]
    assert {row["stage"]: row["hours"] for row in stage_times(JOB, seconds, 4, 2)}["rl"] is None
