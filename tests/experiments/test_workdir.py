"""Whose a work folder is: of one run, by the content of all that it read, and of one process."""

import json
import os
import pathlib
import shutil
import socket

import pytest

from experiments import config_flags
from experiments.stages.workdir import hold, setup
from grm_jax.judgment.prompts import TEMPLATES
from grm_jax.reward_models.description import model_folder
from tests.experiments import micro

REPO = pathlib.Path(__file__).resolve().parents[2]


def record(name, query, best=0, responses=("1.cat", "1.dog 2.cow")):
    return {
        "id": name,
        "conversation": [{"role": "user", "content": query}],
        "responses": list(responses),
        "best": best,
    }


@pytest.fixture
def start(tmp_path):
    """start(train, template=text, **fields) sets up a run of these records in one work folder."""

    def start(train, template=None, **fields):
        test = [record("t", "Name 3 animals")]
        for name, records in (("train", train), ("test", test)):
            lines = "".join(json.dumps(one) + "\n" for one in records)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / "mine.jinja").write_text(
            template or (TEMPLATES / "tiny_pointwise.jinja").read_text()
        )
        config = micro.get_config()
        with config.ignore_type():
            config.update_from_flattened_dict(
                {
                    "data.train": ({"path": str(tmp_path / "train.jsonl")},),
                    "data.eval": {"test": {"path": str(tmp_path / "test.jsonl")}},
                    "eval.splits": ("test",),
                    "templates.pointwise": str(tmp_path / "mine.jinja"),
                    # 8 devices here, which micro-batches of 4 rows cannot be cut over
                    "mesh.replica": 1,
                    "mesh.tensor": -1,
                }
                | fields
            )
        return setup(config_flags.finish(config), tmp_path / "run")

    return start


def test_a_run_goes_on_with_the_records_that_it_began_with(start, tmp_path):
    train = [record("a", "Name 1 animal"), record("b", "Name 2 animals")]
    start(train)
    on_file = tmp_path / "run/records/train.jsonl"
    before = on_file.stat().st_mtime_ns
    # the gold is another, all else is the same
    changed = [record("a", "Name 1 animal", best=1), train[1]]
    with pytest.raises(ValueError, match=r"other inputs; what was read then for data\.train had"):
        start(changed)
    with pytest.raises(ValueError, match=r"data\.train"):
        start(train[::-1])
    start(train)
    assert on_file.stat().st_mtime_ns == before, "what a run used is not written again"


def test_a_run_goes_on_with_the_templates_that_it_began_with(start):
    train = [record("a", "Name 1 animal")]
    start(train)
    text = (TEMPLATES / "tiny_pointwise.jinja").read_text()
    with pytest.raises(ValueError, match=r"what was read then for templates\.pointwise had"):
        start(train, template=text.replace("Judge from", "Rate from"))
    start(train)


def test_a_run_goes_on_wherever_what_it_reads_lies(start, tmp_path):
    """A copied or moved folder: the paths are others, the content is not."""
    train = [record("a", "Name 1 animal")]
    before = start(train)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("run", "moved"))
    shutil.copytree(model_folder("tiny_base"), moved / "base")
    fields = {
        "data.train": ({"path": str(moved / "train.jsonl")},),
        "templates.pointwise": str(moved / "mine.jinja"),
        "model.path": str(moved / "base"),
    }
    assert start(train, **fields).setup.digest == before.setup.digest  # of its checkpoints
    with pytest.raises(ValueError, match=r"differs in rl\.beta\. Choose another .* --from=.*run"):
        start(train, **fields, **{"rl.beta": 0.5})


def test_a_run_goes_on_with_the_code_of_its_own_loss(start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "a_loss_of_mine.py"
    code.write_text("def loss(inputs, cfg, width=1.0):\n    return width * inputs.logp.sum(), {}\n")
    train, fields = [record("a", "Name 1 animal")], {"rl.loss": "a_loss_of_mine:loss"}
    start(train, **fields)
    code.write_text(
        "# a word\n" + code.read_text().replace("inputs.logp.sum()", "(inputs.logp.sum())")
    )
    start(train, **fields)
    code.write_text(code.read_text().replace("width * ", "-width * "))
    with pytest.raises(ValueError, match=r"what was read then for functions\.rl\.loss had another"):
        start(train, **fields)


@pytest.mark.parametrize(
    "field, value", [("sampling.rows", 16), ("eval.ks", (1, 2, 4)), ("log.example_every", 9)]
)
def test_what_changes_no_result_may_change(start, field, value):
    train = [record("a", "Name 1 animal")]
    start(train)
    start(train, **{field: value})


def test_too_many_records_left_out_are_an_error_before_compute(start):
    long = [record(f"long {i}", "Name animals " * 200) for i in range(3)]
    with pytest.raises(
        ValueError, match=r"3 of 4 records are longer than lengths\.prompt = 80 tokens, more than"
    ):
        start([record("a", "Name 1 animal"), *long])


@pytest.mark.parametrize(
    "script, preset, more",
    [
        ("spct_rl", "tests/experiments/micro.py", ()),
        ("reward_model", "tests/experiments/micro_reward_model.py", ()),
        ("evaluate", "experiments/configs/tiny_evaluate.py", ()),
        ("sweep", "tests/experiments/micro.py", ("--sweep.seed=0,1",)),
        ("paper", "experiments/configs/tiny_paper.py", ("--out=paper.md",)),
    ],
)
def test_no_script_shares_its_folder_with_another_process(
    processes, tmp_path, script, preset, more
):
    folder = tmp_path / "run"
    hold(folder)
    hold(folder)  # this process has it already
    job = processes.start(REPO / preset, folder, *more, script=script)
    assert processes.finish(job) == 1
    last = pathlib.Path(f"{folder}.log").read_text().splitlines()[-1]
    assert f"{folder} is in use by process {os.getpid()} on {socket.gethostname()}, for " in last
    assert last.rstrip(".").endswith("Wait for it, or choose another --workdir")
    assert [path.name for path in folder.iterdir()] == [".lock"], "nothing is written"
