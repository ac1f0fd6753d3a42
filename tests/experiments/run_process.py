"""Runs `python -m experiments.SCRIPT` in processes of their own, forked from one that imported all.

A run has its own process group, one CPU device, and writes its output to a file. All runs of a test
session share a compilation cache; that pays for compiling with optimization, which most tests go
without.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import re
import runpy
import signal
import socket
import sys
import tempfile
import types
from collections.abc import Mapping

REPO = pathlib.Path(__file__).resolve().parents[2]
IMPORTS = (
    "experiments.config_flags",
    "experiments.stages.evaluate",
    "experiments.stages.meta",
    "experiments.stages.rl",
    "experiments.stages.scalar",
    "grm_jax.report.report",
)
# a run imports this file too, and has the variable: it makes no folder, which nobody would remove
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.TemporaryDirectory(
    prefix="grm_jax_compiled_"
)
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": CACHE if isinstance(CACHE, str) else CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "XLA_FLAGS": re.sub(
        r"--xla_(force_host_platform_device_count|backend_optimization_level)=\S+",
        "",
        os.environ.get("XLA_FLAGS", ""),
    ).strip(),
}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(IMPORTS))


def start_server() -> None:
    """The environment of all runs is that of this call."""
    multiprocessing.forkserver.ensure_running()


def start(
    config: str | os.PathLike,
    workdir: pathlib.Path,
    *overrides: str,
    script: str = "spct_rl",
    environment: Mapping[str, str] = types.MappingProxyType({}),
    log: str = "log",
) -> multiprocessing.Process:
    """Starts a run, its output in <workdir>.<log>. Its pid is its process group.

    `environment` is set upon that of all runs.
    """
    arguments = [script, f"--config={config}", f"--workdir={workdir}", *overrides]
    log = pathlib.Path(f"{workdir}.{log}")
    log.write_bytes(b"")
    process = _context.Process(
        target=_run, args=(arguments, str(log), dict(environment)), daemon=True
    )
    process.start()
    return process


def start_job(
    config: str | os.PathLike,
    workdir: pathlib.Path,
    count: int,
    devices: int,
    *overrides: str,
    script: str = "spct_rl",
) -> list[multiprocessing.Process]:
    """Starts a job of `count` processes with `devices` devices each.

    The output of process i is in <workdir>.<i>.log.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    job = {
        "GRM_JAX_COORDINATOR": f"localhost:{port}",
        "GRM_JAX_NUM_PROCESSES": str(count),
        "GRM_JAX_HEARTBEAT_S": "20",
    }
    job |= {
        "NPROC": "16",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }
    return [
        start(
            config,
            workdir,
            *overrides,
            script=script,
            environment=job | {"GRM_JAX_PROCESS_ID": str(i)},
            log=f"{i}.log",
        )
        for i in range(count)
    ]


def finish(process: multiprocessing.Process) -> int:
    """Waits, and returns the exit status; the negative number of the signal that ended it."""
    process.join()
    return process.exitcode


def kill(process: multiprocessing.Process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def run(
    config: str | os.PathLike,
    workdir: pathlib.Path,
    *overrides: str,
    script: str = "spct_rl",
    status: int = 0,
) -> str:
    """The output of a run that must end with this status."""
    ended = finish(start(config, workdir, *overrides, script=script))
    output = pathlib.Path(f"{workdir}.log").read_text()
    assert ended == status, output[-6000:]
    return output


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = arguments
    try:
        runpy.run_module(f"experiments.{arguments[0]}", run_name="__main__", alter_sys=True)
    # as the interpreter ends: multiprocessing would run no exit functions
    except Exception as error:
        sys.last_value = error
        sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        sys.exit(1)
