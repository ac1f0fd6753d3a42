"""Every Python snippet of docs/losses.md runs, in order, and its table of losses is complete."""

import pathlib
import re

import pytest

from grm_jax.losses import LOSSES

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "losses.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs(index):
    exec(compile(SNIPPETS[index], f"{GUIDE.name} snippet {index}", "exec"), {})


def test_the_table_of_losses_is_complete():
    section = GUIDE.read_text().split("## The losses\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(LOSSES)
