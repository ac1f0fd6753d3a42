"""Compiled programs are kept where they are asked to be, and nowhere else."""

import os
import subprocess
import sys

import pytest

from grm_jax.compile_cache import cpu_digest

PROGRAM = """
import jax
from grm_jax.compile_cache import enable_compile_cache
folder = enable_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
print(folder)
"""


def run(tmp_path, **variables):
    """(folder that the program names, its log, whether a program was kept in it)."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "GRM_JAX_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"HOME": str(tmp_path / "home")} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = done.stdout.strip()
    kept = folder != "None" and any("lambda" in name for name in os.listdir(folder))
    return folder, done.stderr.splitlines(), kept


def test_the_folder_is_made_once_with_a_line_and_is_used(tmp_path):
    folder, log, kept = run(tmp_path)
    assert folder.startswith(str(tmp_path / "home/.cache/grm_jax/jax-")) and kept
    assert "-cpu-" in folder and os.stat(folder).st_mode & 0o77 == 0
    assert [line for line in log if "compiled programs are kept in" in line] == log
    assert run(tmp_path)[1] == []


@pytest.mark.parametrize(
    "variables, below",
    [
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/grm_jax/jax-"),
        ({"XDG_CACHE_HOME": "{}/xdg", "GRM_JAX_CACHE": "{}/own"}, "own/jax-"),
        ({"GRM_JAX_CACHE": "0"}, None),
        ({"GRM_JAX_CACHE": "off"}, None),
        ({"GRM_JAX_CACHE": ""}, None),
        ({"GRM_JAX_CACHE": "{}/own", "JAX_COMPILATION_CACHE_DIR": "{}/jax"}, "jax"),
    ],
)
def test_variables_choose_the_folder_or_switch_it_off(variables, below, tmp_path):
    (tmp_path / "jax").mkdir()
    variables = {name: value.format(tmp_path) for name, value in variables.items()}
    folder, _, kept = run(tmp_path, **variables)
    assert folder.startswith(str(tmp_path / below)) if below else folder == "None"
    assert kept == bool(below) and not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    folder, log, _ = run(tmp_path, GRM_JAX_CACHE=str(tmp_path / "file"))
    assert folder == "None" and len(log) == 1
    assert "compiled programs are not kept" in log[0] and str(tmp_path / "file") in log[0]


def test_kinds_of_cpu_differ_and_their_clocks_do_not(tmp_path):
    def digest(text):
        (tmp_path / "cpuinfo").write_text(text)
        return cpu_digest(tmp_path / "cpuinfo")

    one = digest("model name\t: A\ncpu MHz\t\t: 1000.0\nflags\t\t: fpu avx\n\nmodel name\t: A\n")
    assert one == digest("model name\t: A\ncpu MHz\t\t: 2999.9\nflags\t\t: fpu avx\n")
    assert one != digest("model name\t: A\nflags\t\t: fpu avx avx512f\n")
    assert cpu_digest(tmp_path / "gone") == cpu_digest(tmp_path / "gone") != one
