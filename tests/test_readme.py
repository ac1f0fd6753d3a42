"""The Python snippets of README run, and the files that it names are there.
tests/experiments/test_configs.py has its commands.
"""

import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_links_and_launchers_exist():
    named = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"bash ([\w./]+)", README)
    assert len(named) >= 8
    assert [path for path in named if not (REPO / path.partition("#")[0]).exists()] == []
    for path, _, anchor in (name.partition("#") for name in named if "#" in name):
        headings = re.findall(r"^#+ (.*)$", (REPO / path).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_every_preset_is_in_the_table():
    presets = {path.name for path in (REPO / "experiments/configs").glob("[a-z]*.py")}
    page = (REPO / "docs/presets.md").read_text()
    assert presets == set(
        re.findall(r"`((?:spct_gemma2_\w+|tiny\w*|real\w*|evaluate\w*)\.py)`", page)
    )
