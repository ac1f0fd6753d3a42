"""Every file of examples/ is short and runs by the command it states, with nothing installed."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.experiments.run_process import ENVIRONMENT

REPO = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = sorted((REPO / "examples").glob("*.py"))
SLOW = {"best_of_n.py", "better_policy.py", "serve_and_ask.py", "train_on_my_data.py"}
SMALL = {  # what is put in place of what, so that a test takes seconds
    "best_of_n.py": {"ITEMS = 40": "ITEMS = 8"},
    "better_policy.py": {"= 60, 30, 16, 48, 8, 4": "= 5, 2, 2, 4, 4, 2", "(2, 4, N)": "(2, N)"},
    "train_on_my_data.py": {
        "ITEMS, RFT_STEPS, RL_STEPS, BATCH = 200, 60, 20, 32": (
            "ITEMS, RFT_STEPS, RL_STEPS, BATCH = 16, 5, 5, 8"
        )
    },
}


def write(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes a clone whose copy of the example has small settings, as its reader would change it."""
    for name in ("grm_jax", "experiments"):
        (folder / name).symlink_to(REPO / name)
    (folder / "examples").mkdir()
    text = path.read_text()
    for old, new in SMALL.get(path.name, {}).items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "examples" / path.name).write_text(text)


def fast_or_slow(name: str):
    return pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_is_short_and_says_how_it_is_run(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].startswith(f'"""python -m examples.{path.stem}: ')


@pytest.mark.parametrize("name", [fast_or_slow(path.name) for path in EXAMPLES])
def test_it_runs(name, tmp_path):
    path = REPO / "examples" / name
    write(path, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", f"examples.{path.stem}"]
    done = subprocess.run(
        command, env=environment | ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout
