"""Every Python snippet of docs/losses.md runs, in order, and its tables of losses are complete."""

import pathlib
import re

import pytest

from grm_jax.losses import LOSSES

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "losses.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs(index):
    exec(compile(SNIPPETS[index], f"{GUIDE.name} snippet {index}", "exec"), {})


@pytest.mark.parametrize("title", ["The losses", "Loss by loss"])
def test_the_tables_of_losses_are_complete(title):
    section = GUIDE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(LOSSES)
