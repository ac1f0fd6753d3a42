"""Follows a page of docs/first_hour as its reader would: its own blocks, in their order.

A page has three kinds of blocks. Fenced with ```bash: commands, run by bash in the folder of a
clone (`clone`). Fenced with another name, with a first line `# NAME` or `// NAME`: a file of the
reader's, written there under that name. All others, such as ```text, show what comes out.

    page = commands.read("evaluator")
    folder = commands.clone(tmp_path)
    for block in page:
        result = commands.follow(block, folder)
        assert result.returncode == 0, result.stderr

`follow` takes texts to put in place of others, such as a local server's address for that of a paid
one. A text that the block does not hold is no error: check `block.text` where it has to be there.
"""

import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from tests.experiments.run_process import ENVIRONMENT

REPO = pathlib.Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\n")
# what commands of a page read of a clone; tests for the presets that stand in for longer ones
CLONED = ("experiments", "grm_jax", "launch", "docs", "tests")
TIMEOUT_S = 900


class Block(NamedTuple):
    """A block that is followed. file: the name of the file that it is; None: commands.

    line: of the page, where its text begins.
    """

    text: str
    file: str | None
    line: int


class Result(NamedTuple):
    """What came of a block: of a file that was written, status 0 and no words."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def read(page: str) -> list[Block]:
    """The blocks of docs/first_hour/<page>.md that are followed."""
    text, blocks = (REPO / "docs/first_hour" / f"{page}.md").read_text(encoding="utf-8"), []
    for match in FENCED.finditer(text):
        language, body = match.groups()
        named = FILE.match(body)
        line = text.count("\n", 0, match.start(2)) + 1
        if language == "bash":
            blocks.append(Block(body, None, line))
        elif named:
            blocks.append(Block(body[named.end() :], named[1], line))
    assert any(block.file is None for block in blocks), f"{page}.md has no commands"
    return blocks


def clone(folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder that is a clone of this repository to the commands of a page: the package, its
    scripts, docs and tests by links, `python` on the path of `follow`, `runs` of its own.
    """
    for name in CLONED:
        (folder / name).symlink_to(REPO / name)
    (folder / ".bin").mkdir()
    path = folder / ".bin/python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return folder


def follow(
    block: Block,
    folder: pathlib.Path,
    replaced: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Writes the file, or runs the commands; the first that fails ends them with its status."""
    text = block.text
    for old, new in (replaced or {}).items():
        text = text.replace(old, new)
    if block.file is not None:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return Result(0, "", "", 0.0)
    path = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(folder), "NO_PROXY": "127.0.0.1,localhost"}
    began = time.monotonic()
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=os.environ | ENVIRONMENT | own | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Result(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)
