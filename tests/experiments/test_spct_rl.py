"""The whole command on the micro preset: what it leaves, what it does when it is run again, and
what it refuses.
"""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import run_config
from experiments.stages.workdir import load_policy, setup
from grm_jax.evaluation import store
from grm_jax.judgment.records import read_records
from grm_jax.reward_models.description import model_folder
from grm_jax.training.loop import begin, save_state
from grm_jax.training.metrics import read_metrics
from grm_jax.training.step import rft_loss
from tests.experiments import micro as micro_preset

SYSTEMS, SPLITS, STEPS = ("base", "rft", "grm"), ("test", "hard", "wide", "single"), 5
STAGES = ["rft_sample", "rft", "rl", "meta_sample", "meta"]
JUDGMENTS = {  # file -> judgments
    "trajectories/base/train/unhinted/sampled-seed0": 12 * 3,
    "trajectories/base/train/hinted/sampled-seed0": 12,
    "trajectories/rft/train/own/sampled-seed1": 12 * 3,
    "trajectories/grm/train/own/sampled-seed1": 12 * 3,
    "trajectories/rl": STEPS * 8,
    **{
        f"judgments/{system}/{split}/{kind}-seed0": 3 * samples
        for system in SYSTEMS
        for split in SPLITS
        for kind, samples in (("greedy", 1), ("sampled", 2))
    },
}


def judgment_files(workdir):
    """{path without suffix: judgments} of every file of the store."""
    return {
        path.relative_to(workdir).with_suffix("").as_posix(): store.read(path)
        for folder in ("judgments", "trajectories")
        for path in sorted((workdir / folder).rglob("*.jsonl"))
    }


def test_results_have_a_row_for_every_system_split_and_way_of_judging(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    keys = {
        (row["system"], row["benchmark"], row["aggregation"], row["k"], row["k_meta"])
        for row in results["rows"]
        if row["benchmark"] != "mean over benchmarks"
    }
    ways = {
        ("greedy", 1, None),
        ("vote", 1, None),
        ("meta", 1, 1),
        ("vote", 2, None),
        ("meta", 2, 1),
        ("meta", 2, 2),
    }
    assert keys == {(system, split, *way) for system in SYSTEMS for split in SPLITS for way in ways}
    for row in results["rows"]:
        if row["benchmark"] == "mean over benchmarks":
            assert row["items"] == 12
            continue
        assert row["items"] == 3 >= row["judged"] > 0
        assert 0 <= row["strict"] <= 1 and 0 <= row["value"] <= 1 and row["stderr"] >= 0
        assert 0 <= row["tie_rate"] <= 1 and 0 <= row["parse_failure_rate"] <= 1
        assert row["tokens_per_judgment"] > 1
    assert results["schema"] == 2 and results["seed"] == 0 and results["notes"] == []
    assert results["config"]["rl"]["loss"] == "grpo"
    assert list(results["timings_s"]) == STAGES
    assert sum(results["funnel"]["unhinted"].values()) == 36
    assert sum(results["funnel"]["hinted"].values()) == 12


def test_every_judgment_is_on_disk(finished):
    files = judgment_files(finished[0])
    assert {name: len(judgments) for name, judgments in files.items()} == JUDGMENTS
    for name, judgments in files.items():
        for judgment in judgments:
            assert (judgment["temperature"] == 0) == ("greedy" in name)
            assert (judgment["scores"] is None) == (judgment["failure"] is not None)
            assert (judgment["meta_logit"] is not None) == (
                name.startswith("judgments/")
                and judgment["temperature"] > 0
                and judgment["failure"] is None
            )
            assert judgment["hinted"] == ("/hinted/" in name)
    rollouts = files["trajectories/rl"]
    assert {judgment["reward"] for judgment in rollouts} <= {-1.0, 1.0}
    assert [judgment["step"] for judgment in rollouts] == [
        s for s in range(STEPS) for _ in range(8)
    ]
    for folder in ("judgments/base", "trajectories/base/train/unhinted"):
        identity = json.loads((finished[0] / folder / store.IDENTITY).read_text())
        assert identity["kind"] == "pointwise_grm"


def test_every_step_is_logged_once(finished):
    workdir = finished[0]
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [
        (stage, step) for stage in ("rft", "rl", "meta") for step in range(STEPS)
    ]
    assert all(
        {"loss", "grad_norm", "learning_rate", "step_s"} <= row.keys() and row["nonfinite"] == 0
        for row in rows
    )
    rl = [row for row in rows if row["stage"] == "rl"]
    assert {
        "reward/mean",
        "kl",
        "entropy",
        "frac_reward_zero_std",
        "completions/mean_length",
        "parse_failure_rate",
    } <= rl[0].keys()
    # the sampler's probabilities are the trainer's
    assert all(abs(row["ratio_max"] - 1) < 1e-3 and abs(row["ratio_min"] - 1) < 1e-3 for row in rl)
    for stage in ("rft", "rl", "meta"):
        assert list((workdir / "tensorboard" / stage).glob("events*"))
        assert [int(path.name) for path in sorted((workdir / "checkpoints" / stage).iterdir())] == [
            2,
            4,
        ]


def test_no_step_after_the_first_of_a_stage_compiles(finished):
    """Neither the step nor what is beside it: rollouts, log-probabilities, batches."""
    rows = read_metrics(finished[0] / "metrics.jsonl")
    compiled = {(row["stage"], row["step"]): row["seconds/compile"] for row in rows}
    assert all(compiled[stage, 0] > 0 for stage in ("rft", "rl", "meta"))
    assert not [at for at, seconds in compiled.items() if at[1] > 0 and seconds > 0]


def test_the_report_is_one_file_and_the_output_shows_judged_examples(finished):
    workdir, output = finished
    page = (workdir / "report.html").read_text()
    assert "<html" in page and 'src="http' not in page
    # steps 0, 2 and 4 of RL
    assert output.count("   judgment, responses shown as") == 3 and "gold 1" in output
    assert [
        line.split()[1].rstrip(":")
        for line in output.splitlines()
        if line.startswith("== ") and line.endswith(" s")
    ] == STAGES
    assert f"{workdir / 'report.html'}" in output


def test_models_are_folders_with_a_tokenizer_and_each_stage_moved_them(finished):
    before = load_file(model_folder("tiny_base") / "model.safetensors")
    for name in ("rft", "grm", "meta"):
        folder = finished[0] / "models" / name
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in folder.iterdir()
        }
        after = load_file(folder / "model.safetensors")
        assert after.keys() - before.keys() == ({"score.weight"} if name == "meta" else set())
        assert all((after[tensor] != before[tensor]).any() for tensor in before) and all(
            np.isfinite(value).all() for value in after.values()
        )
        before = after


def test_a_finished_run_is_only_reported_again(finished, processes, micro, tmp_path):
    shutil.copytree(finished[0], tmp_path / "again")
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*") if path.is_file()
    }
    (tmp_path / "again/report.html").unlink()
    output = processes.run(
        micro, tmp_path / "again", "--config.note=Run twice.", "--config.log.example_every=7"
    )
    assert [line.split()[1] for line in output.splitlines() if "done before" in line] == [
        f"{stage}:" for stage in STAGES
    ]
    after = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*") if path.is_file()
    }
    changed = {
        str(path.relative_to(tmp_path / "again"))
        for path in after
        if after[path] != before.get(path)
    }
    # what finished stages used stays as it was
    assert changed == {"results.json", "table.md", "report.html", "config.json", ".lock"}
    first, second = (
        json.loads((folder / "results.json").read_text())
        for folder in (finished[0], tmp_path / "again")
    )
    for name in ("rows", "paired", "meta_rm", "timings_s", "funnel"):
        assert first[name] == second[name]
    assert "Run twice." in (tmp_path / "again/report.html").read_text()


def config_with(**fields):
    config = micro_preset.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return run_config.finish(config)


def test_another_config_in_the_same_folder_is_refused_by_field(finished):
    with pytest.raises(
        ValueError,
        match=r"holds a run with another config; it differs in rl\.beta, seed\. Choose another "
        r"--workdir",
    ):
        setup(config_with(**{"rl.beta": 0.5, "seed": 1}), finished[0])


def test_a_micro_batch_that_the_mesh_cannot_cut_is_refused_before_data_is_read(tmp_path):
    with pytest.raises(
        ValueError, match="rft.micro_batch: expected a multiple of replica x fsdp = 8, .* got 4"
    ):
        setup(config_with(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_test_record_is_a_training_record(finished):
    def contents(name):
        return {
            (record.conversation, frozenset(record.responses))
            for record in read_records(finished[0] / f"records/{name}.jsonl")
        }

    assert len(contents("train")) == 12
    assert not contents("train") & set().union(*(contents(split) for split in SPLITS))


@pytest.fixture
def files(tmp_path):
    """Writes records to train.jsonl and test.jsonl and gives the config that reads them."""

    def write(train, test):
        for name, records in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text(
                "".join(json.dumps(record) + "\n" for record in records)
            )
        paths = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "test")}
        # 8 devices here, which micro-batches of 4 rows cannot be cut over
        mesh = {"mesh.replica": 1, "mesh.tensor": -1}
        return config_with(
            **{
                "data.train": (paths["train"],),
                "data.eval": {"test": paths["test"]},
                "eval.splits": ("test",),
            }
            | mesh
        )

    return write


def record(name, query, responses=("1.cat", "1.dog 2.cow"), **gold):
    return {
        "id": name,
        "conversation": [{"role": "user", "content": query}],
        "responses": list(responses),
        **(gold or {"best": 0}),
    }


def test_a_training_record_among_the_test_records_is_refused(files, tmp_path):
    train, test = (
        [record("a", "Name 1 animal"), record("b", "Name 2 animals")],
        [record("c", "Name 3 animals")],
    )
    # another id, and the responses swapped
    leaked = record("d", "Name 2 animals", responses=("1.dog 2.cow", "1.cat"), best=1)
    with pytest.raises(ValueError, match="record 'd' of 'test' is also the training record 'b'"):
        setup(files(train, [*test, leaked]), tmp_path / "run")
    # nothing was computed: the folder takes the mended data
    run = setup(files(train, test), tmp_path / "run")
    assert [r.id for r in run.evaluation["test"]] == ["c"]


def test_a_stage_takes_over_what_it_starts_from(files, tmp_path):
    """A new state and one that is restored: the starting parameters are freed; a reference is
    not.
    """
    run = setup(
        files([record("a", "Name 1 animal")], [record("c", "Name 3 animals")]), tmp_path / "run"
    )
    for donate in (True, True, False):
        params = load_policy(run, "base")
        training = begin(
            run.setup, "rft", params, rft_loss(run.model_cfg), run.config.rft, 5, donate=donate
        )
        assert all(leaf.is_deleted() == donate for leaf in jax.tree.leaves(params))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(training.state))
        if not training.extra:
            save_state(
                run.setup,
                training,
                training.state.replace(step=training.state.step + 2),
                {"batches": {}},
            )
        else:
            assert int(training.state.step) == 2
        training.checkpoints.close()
    want = load_policy(run, "base")
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(training.state.params), jax.device_get(want)
    )


def test_overlong_records_are_reported_by_id_and_left_out(files, tmp_path, capsys):
    long = "Name animals " * 200
    run = setup(
        files(
            [record("a", "Name 1 animal"), record("long/1", long)],
            [record("long/2", long), record("c", "Name 3 animals")],
        ),
        tmp_path / "run",
    )
    assert ([r.id for r in run.train], [r.id for r in run.evaluation["test"]]) == (["a"], ["c"])
    left_out = json.loads((tmp_path / "run/records/left_out.json").read_text())
    ((first, tokens),), ((second, _),) = left_out["train"], left_out["test"]
    assert (first, second) == ("long/1", "long/2") and tokens > 80
    assert (
        f"data train: 1 records; 1 longer than 80 tokens are left out: long/1 ({tokens})"
    ) in capsys.readouterr().out
    assert [r.id for r in read_records(tmp_path / "run/records/train.jsonl")] == ["a"]


def test_a_split_without_a_record_or_without_gold_is_an_error(files, tmp_path):
    good = record("a", "Name 1 animal")
    with pytest.raises(
        ValueError,
        match="data for 'test': no record is left of the 1 .*: 1 prompts of the GRM are longer "
        r"than lengths\.prompt = 80 tokens; the shortest has",
    ):
        setup(files([good], [record("b", "Name animals " * 200)]), tmp_path / "run")
    ungraded = {"id": "b", "conversation": good["conversation"], "responses": ["1.cat", "1.emu"]}
    with pytest.raises(
        ValueError, match="data for 'train': record 'b' has no gold; expected rewards or best"
    ):
        setup(files([ungraded], [good]), tmp_path / "run")


def test_a_base_that_is_not_finite_is_said_before_anything_is_judged(processes, micro, tmp_path):
    base = shutil.copytree(model_folder("tiny_base"), tmp_path / "base")
    tensors = {name: x.copy() for name, x in load_file(base / "model.safetensors").items()}
    tensors["model.norm.weight"][7] = np.nan
    save_file(tensors, base / "model.safetensors")
    job = processes.start(micro, tmp_path / "run", f"--config.model.path={base}")
    assert processes.finish(job) == 1
    output = (tmp_path / "run.log").read_text()
    assert "Traceback" not in output
    assert output.splitlines()[-1] == (
        f"error: {base / 'model.safetensors'}: tensor model.norm.weight holds nan at [7]; expected "
        "finite numbers"
    )
    assert not list((tmp_path / "run").rglob("trajectories/**/*.jsonl"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_items(
    processes, micro, tmp_path
):
    # the second update meets weights that the first has thrown out of all bounds
    job = processes.start(micro, tmp_path / "run", "--config.rft.learning_rate=1e30")
    assert processes.finish(job) == 1
    output = (tmp_path / "run.log").read_text()
    assert re.search(
        r"step [12]: loss \S+, gradient norm nan; items of the batch: world/\S+, world/", output
    )
    assert (
        not (tmp_path / "run/models").exists() and not (tmp_path / "run/stages/rft.json").exists()
    )
    # the damaged state was not saved
    assert not [path for path in (tmp_path / "run/checkpoints/rft").iterdir()]
