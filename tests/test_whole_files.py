"""A save that ends at any point leaves the old folder or the new one, and the next save works."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import huggingface
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.checkpoint.peft import load_adapters, save_adapters
from grm_jax.models.lora import LoraConfig, init_adapters
from grm_jax.whole_files import write_json, write_whole
from tests.checkpoint.test_huggingface import CFG, random_params

LORA = LoraConfig(rank=2, targets=("q",))


class Killed(BaseException):
    pass


def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"name": "é 你"})
    assert path.read_bytes() == '{\n "name": "é 你"\n}\n'.encode()

    def killed(*names):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        write_json(path, {"name": "new"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "é 你"}
    write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff" and [*tmp_path.iterdir()] == [path]


def save_weights(folder, number):
    save_folder(folder, jax.tree.map(lambda leaf: 0 * leaf + number, random_params()), CFG)


def save_lora(folder, number):
    adapters = init_adapters(CFG, LORA, jax.random.key(0))
    adapters = jax.tree.map(lambda leaf: 0 * leaf + number, adapters)
    save_adapters(folder, adapters, CFG, LORA, "somewhere")


def number_in(folder):
    """The one number that all of a folder's tensors hold."""
    if (folder / "config.json").exists():
        tree = load_params(folder, CFG)
    else:
        tree, _ = load_adapters(folder, CFG)
    (number,) = {float(x) for leaf in jax.tree.leaves(tree) for x in np.unique(leaf)}
    return number


def die_in(patch, point):
    """Lets a save end while it writes, or instead of one of its last three steps."""
    rename, rmtree = pathlib.Path.rename, shutil.rmtree

    def write(*args, **keywords):
        raise Killed

    def renamed(path, target):
        if pathlib.Path(target).name == {"old aside": ".model.replaced", "new in": "model"}[point]:
            raise Killed
        return rename(path, target)

    def removed(path, *args, **keywords):
        if path.name == ".model.replaced" and path.exists():
            raise Killed
        rmtree(path, *args, **keywords)

    if point == "write":
        patch.setattr(huggingface, "save_file", write)
    elif point == "remove old":
        patch.setattr(shutil, "rmtree", removed)
    else:
        patch.setattr(pathlib.Path, "rename", renamed)


@pytest.mark.parametrize("save", [save_weights, save_lora])
@pytest.mark.parametrize("point", ["write", "old aside", "new in", "remove old"])
def test_a_killed_save_loses_nothing(tmp_path, save, point):
    folder = tmp_path / "model"
    save(folder, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_in(patch, point)
        save(folder, 2)
    there = 2 if point == "remove old" else 1
    assert point == "new in" or number_in(folder) == there
    # the next one is killed too, before it has written anything of its own
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_in(patch, "write")
        save(folder, 3)
    assert number_in(folder) == there
    save(folder, 4)
    assert number_in(folder) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
