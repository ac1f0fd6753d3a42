"""Writes files and folders so that at every moment the old or the new one is on disk, whole."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8; until it is whole it lies beside `path` as <name>.partial."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes a value as a file of JSON, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder to write, which then takes the place of `folder`, if that is there.

    What is written lies beside it as .<name>.partial, and goes in once it is whole. The old one is
    renamed to .<name>.replaced and removed last. A process that is killed between these two renames
    leaves no `folder`: the next call puts the old one back before it begins.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in (partial, replaced):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
