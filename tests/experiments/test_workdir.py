"""Whose a work folder is: of one run, by the content of all that it read, and of one process."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import config_flags
from experiments.stages.workdir import hold, setup
from grm_jax.judgment.prompts import TEMPLATES
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


def test_two_processes_never_share_a_folder(tmp_path):
    hold(tmp_path)
    hold(tmp_path)  # this process has it already
    code = "import pathlib, sys; from experiments.stages.workdir import hold; "
    code += "hold(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{tmp_path} is in use: process " in done.stderr.splitlines()[-1]
