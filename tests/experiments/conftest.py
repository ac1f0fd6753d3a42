"""Runs the micro preset once, for the tests that look at what a run leaves and that kill runs."""

import os

import pytest

from tests.experiments import run_process


@pytest.fixture(scope="session")
def processes():
    """Returns `run_process`, its server started with the environment of a run.

    One device and a compilation cache of this session.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in run_process.ENVIRONMENT.items():
            patch.setitem(os.environ, name, value)
        run_process.start_server()
    return run_process


@pytest.fixture(scope="session")
def micro(processes):
    return processes.REPO / "tests/experiments/micro.py"


@pytest.fixture(scope="session")
def finished(processes, micro, tmp_path_factory):
    """Returns (work folder, output) of an uninterrupted run.

    Read only: copy it before running in it again.
    """
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, processes.run(micro, workdir)
