"""Joins the processes of a job: start, what process 0 does for all, barriers, the end on a signal.

    joined = processes.initialize()             # before anything else asks JAX for its devices
    processes.barrier("loaded", timeout_s=600)  # LateProcesses names those that did not come
    done = processes.on_main("done", count)     # process 0 reads or writes files, all get it
    with processes.stop_signal("rl") as stopped:  # asked at every step: on a signal save and leave

Every process runs the same program on the same values, and only what touches files asks who it is.

Who the processes are comes from, in this order: arguments; GRM_JAX_COORDINATOR,
GRM_JAX_NUM_PROCESSES and GRM_JAX_PROCESS_ID (launch/gke, launch/multi_gpu.sh); Open MPI; SLURM; the
TPU slice. One process needs nothing, and nothing is then started.
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

# no public road leads to the key-value store, nor to whether this is a TPU VM
from jax._src import cloud_tpu_init, distributed
from jax.experimental import multihost_utils

from grm_jax import signals

# process 0, which has the store, leaves so much later than the others who read there who is missing
READING_S = 3
# a process that is done waits so long for the others; after that JAX ends the whole job
SHUTDOWN_S = 3600
VARIABLES = ("GRM_JAX_COORDINATOR", "GRM_JAX_NUM_PROCESSES", "GRM_JAX_PROCESS_ID")
STOPPED = 75  # exit status of a job that was asked to stop, and saved: EX_TEMPFAIL, start it again
_HOSTS, _BARRIERS, _TOLD = "grm_jax/hosts", "grm_jax/barriers", "grm_jax/told"
# the same numbers in every process, as all run the same program
_told, _polls = itertools.count(), itertools.count()
_asked_by: list[signal.Signals] = []  # the signal that `stopped` has told of
_for_good = contextlib.ExitStack()  # contexts that no one leaves
_AGAIN = "The same command goes on from there"


class Processes(NamedTuple):
    """Says who this process is.

    index: of this process, in [0, count).
    coordinator: "host:port" of process 0, None for one process.
    launcher: what said so: "arguments", "environment", "open mpi", "slurm", "tpu"; "none" where
        nothing was started.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    coordinator: str | None
    launcher: str


class LateProcesses(RuntimeError):
    """Says that a barrier was not reached by all; `late` are the processes that did not come.

    The job cannot go on: let it end, and start it again.
    """

    def __init__(self, message: str, late: tuple[int, ...]):
        super().__init__(message)
        self.late = late


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: int | None = None,
    heartbeat_s: int | None = None,
) -> Processes:
    """Joins the processes of this job; for one process nothing is done.

    All of them call this, before anything that needs a device.

    coordinator: "host:port" where process 0 listens and the others reach it. Give all of the first
        three, or none.
    timeout_s: how long to wait for the others (GRM_JAX_TIMEOUT_S, else 300).
    heartbeat_s: a process that is silent for so long counts as dead, and JAX ends all others
        (GRM_JAX_HEARTBEAT_S, else 100).

    Every process sees all devices of its host, unless SLURM or Open MPI started several on a host:
    then the one of its local rank. A process that ends in an exception leaves at once, where JAX
    would have it wait for the others, who may be waiting for it. Only after an error of JAX itself,
    which a lost process leads to, it first finds out who is missing, for half as long as a
    heartbeat may take.

    Raises:
      ValueError: some of the three are missing or wrong, or Open MPI does not say where process 0
          is.
      RuntimeError: devices were asked for before.

    Where not all processes come in time, JAX ends this one (SIGABRT) and does not say who is
    missing. So each says first, on stderr, who it is and whom it waits for: the host without that
    line is the one to look at.
    """
    launcher, asked = _launcher(coordinator, num_processes, process_id)
    if launcher == "none":
        return Processes(0, 1, None, launcher)
    timeout_s = timeout_s or _integer(
        "GRM_JAX_TIMEOUT_S", os.environ.get("GRM_JAX_TIMEOUT_S", "300")
    )
    heartbeat_s = heartbeat_s or _integer(
        "GRM_JAX_HEARTBEAT_S", os.environ.get("GRM_JAX_HEARTBEAT_S", "100")
    )
    if "cpu" in _platforms():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    times: dict[str, Any] = {
        "initialization_timeout": timeout_s,
        "heartbeat_timeout_seconds": heartbeat_s,
        "shutdown_timeout_seconds": SHUTDOWN_S,
    }
    state = distributed.global_state
    me = (f"{socket.gethostname()} (launcher: {launcher})") + "".join(
        f", {name} {asked[name]}" for name in asked if name in ("process_id", "num_processes")
    )
    print(
        f"{me}: meeting the others at "
        f"{asked.get('coordinator_address') or 'the place that the launcher names'}, for "
        f"{timeout_s} s at most",
        file=sys.stderr,
        flush=True,
    )
    jax.distributed.initialize(**asked, **times)
    _for_good.enter_context(signals.heard(_interrupted, (signal.SIGINT,)))
    # runs before what JAX registered when it was imported
    atexit.register(_leave_after_error, heartbeat_s)
    state.client.key_value_set(f"{_HOSTS}/{state.process_id}", socket.gethostname())
    return Processes(state.process_id, state.num_processes, state.coordinator_address, launcher)


def is_main() -> bool:
    """Says whether this is process 0, the one that writes reports. Asks for no device.

    True where `initialize` started nothing.
    """
    return distributed.global_state.process_id == 0


def index() -> int:
    """Returns the number of this process, 0 where it is alone. Asks for no device."""
    return distributed.global_state.process_id


def written(path: str | os.PathLike) -> str | os.PathLike:
    """Returns the file that this process writes instead of `path`.

    `path` itself in process 0, and nothing in the others.
    """
    return path if is_main() else os.devnull


def count() -> int:
    """Counts the processes of this job. Asks for no device."""
    return distributed.global_state.num_processes or 1


def barrier(name: str, timeout_s: float | None = None) -> None:
    """Waits until every process has called this with `name`, which may be used again.

    timeout_s: GRM_JAX_BARRIER_S where None, else 3600: while process 0 writes a large model, the
        others wait.

    Returns at once where there is one process. Each process notes in the coordinator's store that
    it is here; where the others do not come in time, those who wait read who is missing. Raises
    LateProcesses then, and also where a process died.
    """
    state = distributed.global_state
    if state.client is None:
        return
    if timeout_s is None:
        timeout_s = _integer("GRM_JAX_BARRIER_S", os.environ.get("GRM_JAX_BARRIER_S", "3600"))
    mine = f"{_BARRIERS}/{name}/{state.process_id}"
    try:
        state.client.key_value_set(mine, "", allow_overwrite=True)
        state.client.wait_at_barrier(f"grm_jax/{name}", round(1000 * timeout_s))
    except jax.errors.JaxRuntimeError as error:
        raise _late(state, name, timeout_s, error) from error
    # all have come, so no one reads it; it must be gone when the name is used again
    state.client.key_value_delete(mine)


def on_main(what: str, function: Callable[[], Any]) -> Any:
    """Returns what `function()` gives in process 0, in every process.

    The others do not call it, they wait for it. It must be JSON-able. For all that reads or changes
    files on which the program's way depends, so that no process sees them earlier or later than
    another. `what` is the barrier's name, and LateProcesses is raised as by `barrier`.
    """
    client = distributed.global_state.client
    if client is None:
        return function()
    key = f"{_TOLD}/{next(_told)}"
    if is_main():
        client.key_value_set(key, json.dumps(function()))
    barrier(what)
    return json.loads(client.blocking_key_value_get(key, 60_000))


def in_all(what: str, fine: bool) -> bool:
    """Says whether it is fine in every process, the same answer in all.

    `what` is a barrier's name, as in `on_main`.
    """
    client = distributed.global_state.client
    if client is None:
        return fine
    folder = f"{_TOLD}/{next(_told)}"
    client.key_value_set(f"{folder}/{distributed.global_state.process_id}", str(int(fine)))
    barrier(what)
    return all(answer == "1" for answer in _by_process(client, folder).values())


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Returns the whole array, in every process.

    Where parts of it are with other processes, all of them must call this; each of its devices then
    holds the whole for a moment, so call it for one array at a time.
    """
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    # of another array of the same buffers: a copy that np.asarray makes stays as long as its array
    if isinstance(array, jax.Array):
        array = jax.make_array_from_single_device_arrays(
            array.shape, array.sharding, [shard.data for shard in array.addressable_shards]
        )
    return np.asarray(array)


@contextlib.contextmanager
def stop_signal(label: str = "") -> Iterator[Callable[[], bool]]:
    """Opens a context in which SIGTERM and Ctrl-C end nothing; it gives `stopped()`.

    That is called behind every block of work, and says whether to save now, and then `leave`. What
    is being finished, and for how long at most, is said at once; a second signal ends the process
    wherever it is. Of several processes one may have got the signal: JAX tells the others, and
    `stopped` is true at the same block in all of them. A lone process that leaves the context
    without having looked ends there, by the signal.
    """
    # JAX has the signal, inside the context and outside of it
    if distributed.global_state.client is not None:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_polls))
        return
    looked, longest = time.monotonic(), 0.0

    def say(number: signal.Signals, times: int) -> None:
        if times > 1:
            signals.end(number, f"== stopped by {number.name}, at once: {_AGAIN}")
        since = time.monotonic() - looked
        bound = f"the longest took {longest:.0f} s" if longest else "the first, which also compiles"
        print(
            f"{number.name}: {label or 'this process'} finishes the block under way ({since:.0f} s "
            f"so far; {bound}) and saves; once more to end at once",
            file=sys.stderr,
            flush=True,
        )

    def stopped() -> bool:
        nonlocal looked, longest
        now = time.monotonic()
        looked, longest = now, max(longest, now - looked)
        if came:
            _asked_by[:] = came[:1]
        return bool(came)

    with signals.heard(say) as came:
        yield stopped
    if came:
        signal.raise_signal(came[0])


def leave(where: str) -> None:
    """Ends this process, as a signal asked: with a line that says `where`, and a status.

    That is STOPPED for SIGTERM, which a launcher sends, and 130 for Ctrl-C. Everything must be
    saved.
    """
    number = _asked_by[0] if _asked_by else signal.SIGTERM
    print(f"== stopped by {number.name}: {where}. {_AGAIN}", flush=True)
    raise SystemExit(STOPPED if number == signal.SIGTERM else 128 + number)


def _interrupted(number: signal.Signals, times: int) -> None:
    """Ctrl-C in a job of several processes: JAX knows SIGTERM alone, and tells the others."""
    if times > 1:
        signals.end(number, f"== stopped by {number.name}, at once: {_AGAIN}")
    print(
        f"{number.name}: taken for SIGTERM; once more to end at once", file=sys.stderr, flush=True
    )
    os.kill(os.getpid(), signal.SIGTERM)


def _late(state, name: str, timeout_s: float, error: Exception) -> LateProcesses:
    try:
        here, hosts = (
            _by_process(state.client, f"{_BARRIERS}/{name}"),
            _by_process(state.client, _HOSTS),
        )
    except jax.errors.JaxRuntimeError:  # the store is in process 0
        return LateProcesses(
            f"barrier {name!r}: process 0 ({state.coordinator_address}) is gone. {error}", (0,)
        )
    late = tuple(i for i in range(state.num_processes) if i not in here)
    missing = (
        "missing " + ", ".join(f"process {i} ({hosts.get(i, 'host not known')})" for i in late)
        if late
        else "all came, and one failed"
    )
    return LateProcesses(
        f"barrier {name!r}: {len(here)} of {state.num_processes} processes within {timeout_s:g} "
        f"s, {missing}. {error}",
        late,
    )


def _leave_after_error(heartbeat_s: int) -> None:
    if hasattr(sys, "last_value"):  # an exception that nothing caught; its traceback is printed
        error = sys.last_value
        of_jax = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(
            error
        )
        # perhaps a collective, which does not say which process is gone
        if of_jax or "Gloo" in str(error):
            try:
                # those who are left come at once; JAX ends this process behind a heartbeat
                barrier("after an error", heartbeat_s / 2)
            except LateProcesses as late:
                print(
                    f"{late}\nWho is missing may be alive, and waiting for this process, whose "
                    "own error is above",
                    file=sys.stderr,
                )
        if isinstance(error, LateProcesses) and is_main():
            time.sleep(READING_S)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _by_process(client, folder: str) -> dict[int, str]:
    """{process: value} of the keys folder/process."""
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(folder)}


def _platforms() -> str:
    return jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]


def _launcher(coordinator, num_processes, process_id) -> tuple[str, dict[str, Any]]:
    """What started this process, and what to tell `jax.distributed.initialize`; "none" for one
    process.
    """
    env, arguments = (
        os.environ,
        {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id},
    )
    if any(value is not None for value in arguments.values()):
        return _explicit("arguments", arguments)
    if env.get("GRM_JAX_NUM_PROCESSES") or env.get("GRM_JAX_PROCESS_ID"):
        return _explicit("environment", {name: env.get(name) or None for name in VARIABLES})
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "open mpi", _open_mpi(env)
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        tasks_per_node = -(-int(env["SLURM_NTASKS"]) // int(env["SLURM_STEP_NUM_NODES"]))
        return "slurm", {
            "cluster_detection_method": "slurm",
            "local_device_ids": _local_devices(tasks_per_node, int(env["SLURM_LOCALID"])),
        }
    if cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in (_platforms() or "tpu"):
        return "tpu", {}  # how many hosts the slice has is for JAX to find out
    if env.get("GRM_JAX_COORDINATOR"):
        return _explicit("environment", {name: env.get(name) or None for name in VARIABLES})
    return "none", {}


def _explicit(launcher, given: dict) -> tuple[str, dict]:
    (_, coordinator), (count_name, count), (index_name, index) = given.items()
    if count is not None and _integer(count_name, count) == 1:
        return "none", {}
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(
            f"{', '.join(missing)} not set; expected all of {', '.join(given)}, or none"
        )
    count, index = _integer(count_name, count), _integer(index_name, index)
    if not 0 <= index < count:
        raise ValueError(
            f"{index_name}: expected a number from 0 to {count - 1}, as {count_name} is {count}, "
            f"got {index}"
        )
    if not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"{next(iter(given))}: expected HOST:PORT, got {coordinator!r}")
    asked = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    return launcher, asked | {"cluster_detection_method": "deactivate"}


def _open_mpi(env) -> dict:
    coordinator = env.get("GRM_JAX_COORDINATOR") or None
    if coordinator is None and "OMPI_MCA_orte_hnp_uri" not in env:  # jax-ml/jax#14576
        raise ValueError(
            "Open MPI 5 does not say where rank 0 is, as Open MPI 4 did; start with mpirun "
            "-x GRM_JAX_COORDINATOR=HOST:PORT, HOST that of rank 0"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": int(env["OMPI_COMM_WORLD_SIZE"]),
        "process_id": int(env["OMPI_COMM_WORLD_RANK"]),
        "cluster_detection_method": "ompi",
        "local_device_ids": _local_devices(
            int(env["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(env["OMPI_COMM_WORLD_LOCAL_RANK"])
        ),
    }


def _local_devices(processes_on_host: int, local_rank: int) -> list[int]:
    """The GPUs of a process, [] for all that it sees. Left to itself JAX gives each process under
    SLURM or Open MPI one GPU, even a lone one.
    """
    bound = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and os.environ.get(
        "CUDA_VISIBLE_DEVICES"
    )
    return [] if processes_on_host == 1 or bound else [local_rank]


def _integer(name: str, value) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None
