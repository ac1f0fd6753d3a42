"""Replaces a folder by another one: at every moment the old or the new one is on disk, whole."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator


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
