"""Every file of examples/ is short and runs, from a folder of its reader's."""

import os
import pathlib
import runpy
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


def written(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the example with small settings, as its reader would change it."""
    text = path.read_text()
    for old, new in SMALL.get(path.name, {}).items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / path.name).write_text(text)
    return folder / path.name


def fast_or_slow(name: str):
    return pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_is_short_and_says_how_it_is_run(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].startswith(f'"""python examples/{path.name}: ')


@pytest.mark.parametrize("name", [fast_or_slow(path.name) for path in EXAMPLES])
def test_it_runs(name, tmp_path, monkeypatch, capfd):
    path = written(REPO / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    if name in SLOW:
        path_too = {"PYTHONPATH": str(REPO)}
        environment = os.environ | ENVIRONMENT | path_too
        subprocess.run([sys.executable, path], env=environment, check=True)
    else:
        runpy.run_path(str(path), run_name="__main__")
    assert capfd.readouterr().out
