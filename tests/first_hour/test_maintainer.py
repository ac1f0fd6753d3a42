"""docs/first_hour/maintainer.md, followed from its own blocks, in a copy of the repository."""

import json
import os
import pathlib
import shutil
import sys

import pytest

from tests.first_hour import commands

LEFT_OUT = ".git .venv .*cache .hypothesis runs build dist __pycache__ *.egg-info"


@pytest.fixture
def folder(tmp_path):
    """A copy of the repository, as building writes into its tree, with `python` on the path."""
    copy = tmp_path / "clone"
    shutil.copytree(commands.REPO, copy, ignore=shutil.ignore_patterns(*LEFT_OUT.split()))
    (copy / ".venv").symlink_to(sys.prefix)  # where pyright looks for packages
    (tmp_path / "path").mkdir()
    bin = commands.clone(tmp_path / "path") / ".bin"
    (copy / ".bin").symlink_to(bin)
    return copy


def files(folder: pathlib.Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "__pycache__" not in str(path)
    }


@pytest.mark.slow
def test_the_page(folder):
    for tool in ("ruff", "pyright", "build"):
        pytest.importorskip(tool, reason="requirements-dev.txt and requirements-test.txt have it")
    page, results = commands.read("maintainer"), []
    before, temporary = files(folder), folder.parent / "temporary"
    temporary.mkdir()
    for block in page:
        result = commands.follow(block, folder, environment={"TMPDIR": str(temporary)})
        assert result.returncode == 0, (block.line, result.stdout + result.stderr)
        print(block.line, round(result.seconds, 1), "s")
        results.append(result)
        if len(results) == 1:  # tests leave nothing behind
            new = files(folder) - before
            assert {name.split("/")[0] for name in new} <= {".cache", ".pytest_cache"}, new
            left = [name for name in os.listdir(temporary) if not name.startswith("pytest-of-")]
            assert left == []
    tests, checks, built, judged = results
    assert tests.stdout.count(" passed") == 2
    assert "All checks passed!" in checks.stdout and "0 errors" in checks.stdout
    assert int(built.stdout.splitlines()[-1]) >= 9
    place, verdict = judged.stdout.splitlines()[-2:]
    assert "dist/env/lib" in place
    assert len(json.loads(verdict)["scores"]) == 2
