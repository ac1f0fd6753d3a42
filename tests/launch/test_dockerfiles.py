"""Dockerfiles, line by line: known instructions, pinned versions, files that are there and reach
the build.
"""

import importlib.metadata
import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(REPO.glob("launch/docker/*.Dockerfile"))
EXTRAS = {"tpu": "requirements-tpu.txt", "cuda": "requirements-cuda12.txt"}


def instructions(path: pathlib.Path) -> list[tuple[str, str]]:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [
        tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")
    ]


def test_there_is_one_for_each():
    assert [path.name.removesuffix(".Dockerfile") for path in DOCKERFILES] == sorted(EXTRAS)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile(path):
    found = instructions(path)
    assert [
        name for name, _ in found if name not in ("FROM", "ENV", "WORKDIR", "COPY", "RUN", "CMD")
    ] == []
    assert found[0][0] == "FROM" and re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", found[0][1])
    kept = [
        line[1:]
        for line in path.with_name(path.name + ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [source for name, value in found if name == "COPY" for source in value.split()[:-1]]
    extra = EXTRAS[path.name.removesuffix(".Dockerfile")]
    assert set(copied) == {
        "requirements.txt",
        f"launch/{extra}",
        "grm_jax",
        "experiments",
        "launch",
    }
    assert [source for source in copied if not (REPO / source).exists()] == []
    assert [
        source
        for source in copied
        if not any(source == name or source.startswith(name + "/") for name in kept)
    ] == []
    (run,) = [value for name, value in found if name == "RUN"]
    assert run == f"pip install --requirement=requirements.txt --requirement={extra}"


@pytest.mark.parametrize("name", EXTRAS.values())
def test_every_package_is_pinned(name):
    lines = [
        line
        for line in (REPO / "launch" / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    assert lines and [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)] == []


def test_pins_are_what_jax_asks_for():
    jax = next(
        line
        for line in (REPO / "requirements.txt").read_text().splitlines()
        if line.startswith("jax==")
    )
    version = jax.removeprefix("jax==")
    assert f"jax-cuda12-plugin=={version}" in (REPO / "launch/requirements-cuda12.txt").read_text()
    if importlib.metadata.version("jax") == version:
        (wanted,) = [
            line for line in importlib.metadata.requires("jax") if line.startswith("libtpu")
        ]
        prefix = re.match(r"libtpu==([\d.]+)\*", wanted)[1]
        assert f"libtpu=={prefix}" in (REPO / "launch/requirements-tpu.txt").read_text()
    assert f"jax {version} " in "".join(path.read_text() for path in DOCKERFILES)
