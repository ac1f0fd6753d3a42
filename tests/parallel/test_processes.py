"""Real processes on this machine: who they are, sums over them, barriers that name who is late; and
what every launcher's variables mean.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
from jax._src import cloud_tpu_init

from grm_jax.parallel import processes

REPO = pathlib.Path(__file__).resolve().parents[2]
HOST = socket.gethostname()
WORKER = """
import os, sys, time
import jax
from grm_jax.parallel import processes

job = processes.initialize(timeout_s=120, heartbeat_s=100)
print(*job, processes.is_main(), flush=True)
processes.barrier("start", timeout_s=60)
mesh = jax.make_mesh((job.count,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
ranks = jax.make_array_from_process_local_data(jax.sharding.NamedSharding(mesh, jax.P("all")), jax.numpy.array([job.index + 1.0]))
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=jax.P("all"), out_specs=jax.P()))(ranks)
print("sum", float(total[0]), flush=True)
processes.barrier("start", timeout_s=60)  # the same name again
if sys.argv[1] == "late" and job.index == job.count - 1:
    time.sleep(600)
if sys.argv[1] == "error" and job.index == job.count - 1:
    raise ValueError("an error of one process")
began = time.time()
try:
    processes.barrier("end", timeout_s=4 if sys.argv[1] == "late" else 60)
except processes.LateProcesses as error:
    print("late", *error.late, f"{time.time() - began:.0f}", flush=True)
    raise
print("end", flush=True)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(count: int, what: str, variables, worker: str = WORKER) -> list[subprocess.Popen]:
    """The worker, `count` times; variables(i) is what the launcher sets for process i."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "GRM_JAX_"))
    }
    inherited |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(REPO)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", worker, what],
            env=inherited | {name: str(value) for name, value in variables(i).items()},
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(workers, timeout_s: float) -> list[tuple[int, str, str]]:
    """(status, stdout without what Gloo prints there, stderr) of each; kills what has not ended in
    time.
    """
    deadline, found = time.time() + timeout_s, []
    for worker in workers:
        try:
            out, err = worker.communicate(timeout=max(0.1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            worker.kill()
            out, err = worker.communicate()
        found.append(
            (
                worker.returncode,
                "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")),
                err,
            )
        )
    return found


def by_environment(count: int):
    port = free_port()
    return lambda i: {
        "GRM_JAX_COORDINATOR": f"localhost:{port}",
        "GRM_JAX_NUM_PROCESSES": count,
        "GRM_JAX_PROCESS_ID": i,
    }


def by_slurm(count: int):
    job = free_port()  # JAX makes the port from the job's number
    return lambda i: {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": count,
        "SLURM_PROCID": i,
        "SLURM_LOCALID": i,
        "SLURM_STEP_NUM_NODES": 1,
    }


def by_open_mpi(count: int):
    job = free_port() * 2**12
    return lambda i: {
        "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": count,
        "OMPI_COMM_WORLD_RANK": i,
        "OMPI_COMM_WORLD_LOCAL_SIZE": count,
        "OMPI_COMM_WORLD_LOCAL_RANK": i,
    }


def test_a_late_process_is_named_and_the_others_end():
    workers = start(2, "late", by_environment(2))
    (status, out, err), (late_status, late_out, _) = finish(workers[:1], 300) + finish(
        workers[1:], 20
    )
    assert (
        out.splitlines()[1:] == ["sum 3.0", "late 1 " + out.split()[-1]]
        and out.startswith("0 2 localhost:")
        and "environment True" in out
    )
    assert 4 <= int(out.split()[-1]) <= 8
    assert (
        f"barrier 'end': 1 of 2 processes within 4 s, missing process 1 ({HOST})"
    ) in err and status == 1
    assert late_out.startswith("1 2 localhost:") and late_out.endswith(
        "environment False\nsum 3.0\n"
    )
    assert late_status == -6  # ended by JAX, as the coordinator left


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, variables, launcher",
    [(2, by_slurm, "slurm"), (4, by_open_mpi, "open mpi"), (4, by_environment, "environment")],
)
def test_processes_meet_by_the_variables_of_each_launcher(count, variables, launcher):
    for i, (status, out, err) in enumerate(finish(start(count, "pass", variables(count)), 400)):
        who, *rest = out.splitlines()
        assert status == 0, err
        assert who.startswith(f"{i} {count} ") and who.endswith(f" {launcher} {i == 0}")
        assert rest == [f"sum {count * (count + 1) / 2}", "end"]


@pytest.mark.slow
def test_late_process_among_four():
    for i, (status, out, err) in enumerate(finish(start(4, "late", by_environment(4))[:3], 400)):
        assert (
            status in (1, -6)
            and "missing process 3" in err
            and out.splitlines()[-1].startswith("late 3 ")
        ), (i, status, out, err)


@pytest.mark.slow
def test_an_exception_in_one_process_ends_all():
    workers = start(2, "error", by_environment(2))
    (failed_status, _, failed_err), (status, _, err) = finish(workers[1:], 300) + finish(
        workers[:1], 60
    )
    assert failed_status == 1 and "ValueError: an error of one process" in failed_err
    assert status != 0 and (
        "missing process 1" in err
        or "1 heartbeat timeout" in err
        or "stopped sending heartbeats" in err
    ), err


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost, named",
    [
        (1, f"1 of 2 processes within 5 s, missing process 1 ({HOST})"),
        (0, "the leader (usually slice 0"),
    ],
)
def test_a_lost_process_breaks_a_collective_and_is_named(lost, named):
    worker = """
import os, signal, sys, time
import jax
from grm_jax.parallel import processes
job = processes.initialize(timeout_s=120, heartbeat_s=10)
mesh = jax.make_mesh((job.count,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
ranks = jax.make_array_from_process_local_data(jax.sharding.NamedSharding(mesh, jax.P("all")), jax.numpy.array([job.index + 1.0]))
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=jax.P("all"), out_specs=jax.P()))
for step in range(10_000):
    if step == 20 and job.index == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    float(total(ranks)[0])
    time.sleep(0.01)
"""
    ended = finish(start(2, str(lost), by_environment(2), worker), 200)
    assert ended[lost][0] == -9
    status, _, err = ended[1 - lost]
    assert status in (1, -6) and named in err, (status, err)


def test_one_process_starts_nothing(monkeypatch):
    clean(monkeypatch)
    assert processes.initialize() == (0, 1, None, "none")
    monkeypatch.setenv("GRM_JAX_NUM_PROCESSES", "1")
    assert processes.initialize() == (0, 1, None, "none")
    assert processes.is_main()
    processes.barrier("alone", timeout_s=0.1)
    assert processes.on_main("alone", lambda: {1: (2, 3)}) == {1: (2, 3)} and processes.count() == 1


@pytest.mark.parametrize(
    "number, saved", [(signal.SIGTERM, processes.STOPPED), (signal.SIGINT, 130)]
)
def test_a_signal_waits_for_whoever_looks_and_ends_who_does_not(number, saved):
    worker = """
import os, sys
from grm_jax.parallel import processes
with processes.stop_signal("rl") as stopped:
    assert not stopped()
    os.kill(os.getpid(), int(os.environ["NUMBER"]))
    print("alive", flush=True)
    if sys.argv[1] == "look" and stopped():
        processes.leave("here")
print("not reached")
"""

    def ended(what):
        return finish(start(1, what, lambda i: {"NUMBER": int(number)}, worker), 60)[0]

    said = f"== stopped by {number.name}: here. The same command goes on from there\n"
    status, out, err = ended("look")
    assert (status, out) == (saved, "alive\n" + said)
    assert f"{number.name}: rl finishes the block under way (" in err and "Traceback" not in err
    assert ended("away")[:2] == (-number, "alive\n")


def test_ctrl_c_to_one_of_several_is_sigterm_to_all():
    worker = """
import os, signal
from grm_jax.parallel import processes
job = processes.initialize(timeout_s=120, heartbeat_s=100)
with processes.stop_signal("here") as stopped:
    for step in range(2000):
        if step == 3 and job.index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        if stopped():
            processes.leave("here")
        processes.barrier("step")
"""
    (status, out, _), (status_1, out_1, err) = finish(start(2, "", by_environment(2), worker), 120)
    assert status == status_1 == processes.STOPPED
    assert out == out_1 == "== stopped by SIGTERM: here. The same command goes on from there\n"
    assert "SIGINT: taken for SIGTERM; once more to end at once" in err


SLURM = {
    "SLURM_STEP_NODELIST": "gpu[3-6]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
}
SLURM_8 = SLURM | {"SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
RANK_5 = {"num_processes": 8, "process_id": 5, "cluster_detection_method": "ompi"}


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, ("none", {})),
        ({"GRM_JAX_NUM_PROCESSES": "1"} | SLURM, ("none", {})),
        (SLURM, ("slurm", {"cluster_detection_method": "slurm", "local_device_ids": []})),
        (SLURM_8, ("slurm", {"cluster_detection_method": "slurm", "local_device_ids": [1]})),
        (
            SLURM_8 | {"CUDA_VISIBLE_DEVICES": "0"},
            ("slurm", {"cluster_detection_method": "slurm", "local_device_ids": []}),
        ),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, ("none", {})),
        (
            ORTE | OPEN_MPI,
            ("open mpi", RANK_5 | {"coordinator_address": None, "local_device_ids": [1]}),
        ),
        (
            OPEN_MPI | {"GRM_JAX_COORDINATOR": "a:1"},
            ("open mpi", RANK_5 | {"coordinator_address": "a:1", "local_device_ids": [1]}),
        ),
    ],
)
def test_what_the_variables_say(monkeypatch, env, expected):
    clean(monkeypatch, env)
    assert processes._launcher(None, None, None) == expected


def test_a_tpu_vm_is_left_to_jax(monkeypatch):
    clean(monkeypatch)
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    # these tests run with JAX_PLATFORMS=cpu
    assert processes._launcher(None, None, None) == ("none", {})
    monkeypatch.setattr(
        processes,
        "jax",
        types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms="tpu,cpu")),
    )
    assert processes._launcher(None, None, None) == ("tpu", {})


@pytest.mark.parametrize(
    "env, arguments, message",
    [
        ({"GRM_JAX_NUM_PROCESSES": "4"}, (), "GRM_JAX_COORDINATOR, GRM_JAX_PROCESS_ID not set"),
        ({"GRM_JAX_COORDINATOR": "a:1"}, (), "GRM_JAX_NUM_PROCESSES, GRM_JAX_PROCESS_ID not set"),
        (
            {},
            ("a:1", 4, None),
            "process_id not set; expected all of coordinator, num_processes, process_id, or none",
        ),
        (
            {},
            ("a:1", 4, 4),
            "process_id: expected a number from 0 to 3, as num_processes is 4, got 4",
        ),
        ({}, ("a", 4, 0), "coordinator: expected HOST:PORT, got 'a'"),
        (
            {"GRM_JAX_NUM_PROCESSES": "two"},
            (),
            "GRM_JAX_NUM_PROCESSES: expected a whole number, got 'two'",
        ),
        (OPEN_MPI, (), "mpirun -x GRM_JAX_COORDINATOR=HOST:PORT"),
    ],
)
def test_what_is_missing_or_wrong_is_named(monkeypatch, env, arguments, message):
    clean(monkeypatch, env)
    with pytest.raises(ValueError, match=message):
        processes.initialize(*arguments)


def clean(monkeypatch, env=None):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "GRM_JAX_")) or name == "CUDA_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
    for name, value in (env or {}).items():
        monkeypatch.setenv(name, value)
