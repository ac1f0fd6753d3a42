r"""Runs a command until it ends well, with a log for this host, and restarts it up to a limit.

    python launch/supervise.py --logs=runs/big/logs --restarts=5 -- .venv/bin/python \
        -m experiments.spct_rl --config=... --workdir=runs/big

Signals are passed on, and its work folder may be copied to a bucket. SIGTERM and SIGINT go to the
command, which may use --grace seconds to save before it is killed; it is not started again then.
Restarts count from the last one that came further (launch/progress.py), and status 75, with which a
job that was asked to stop elsewhere has saved, is no failure. Its status is that of the command
(128 + n for signal n), or 75 where it may be started again all the same: --restarts=0, and it came
further. Needs nothing but Python; --bucket needs gcloud.
"""

import argparse
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from progress import progress

SAVED = 75  # status of a job that was asked to stop, and saved (grm_jax/parallel/processes.py)
PAUSE_S = 10  # before a restart: the other hosts of a job end at about the same time


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/supervise.py", allow_abbrev=False, usage="%(prog)s [options] -- COMMAND ..."
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=5,
        help="how often the command is started again after it failed, without having come further",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=120,
        help="seconds between a SIGTERM that was passed on and SIGKILL",
    )
    parser.add_argument(
        "--logs",
        type=pathlib.Path,
        required=True,
        help="folder for HOSTNAME.log, which is appended to",
    )
    parser.add_argument(
        "--status", type=pathlib.Path, help="file that says 'running PID' and then 'ended STATUS'"
    )
    parser.add_argument(
        "--bucket", help="gs://BUCKET/FOLDER for a copy of --workdir; only for a job of one host"
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        help="the work folder of the command (default: the folder of --logs)",
    )
    parser.add_argument("--every", type=float, default=300, help="seconds between copies")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    own, dashes, command = (
        (argv[: argv.index("--")], True, argv[argv.index("--") + 1 :])
        if "--" in argv
        else (argv, False, [])
    )
    args = parser.parse_args(own)
    if args.restarts < 0:
        parser.error(f"--restarts: expected a number >= 0, got {args.restarts}")
    if not dashes or not command:
        parser.error("expected -- and a command behind the options")
    if args.bucket and (not args.bucket.startswith("gs://") or args.workdir is None):
        parser.error(
            f"--bucket: expected gs://BUCKET/FOLDER with --workdir beside it, got {args.bucket}"
        )
    args.command = command
    return args


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    rank = os.environ.get("GRM_JAX_PROCESS_ID")
    log_path = args.logs / (socket.gethostname() + (f"-{rank}" if rank else "") + ".log")
    if args.dry_run:
        describe(args, log_path)
        return 0
    if args.bucket:
        fetch(args.bucket, args.workdir)
    args.logs.mkdir(parents=True, exist_ok=True)
    write_status(args.status, f"running {os.getpid()}")
    stop = threading.Event()
    signals = []  # that came while the command was not running, or are for the one that is
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: (signals.append(number), stop.set()))
    done = threading.Event()
    copier = threading.Thread(
        target=copy_often, args=(args.bucket, args.workdir, args.every, done), daemon=True
    )
    if args.bucket:
        copier.start()
    with open(log_path, "ab", buffering=0) as log:
        status = run(args, log, stop, signals)
    if args.bucket:
        done.set()
        copier.join()
        if not copy(args.bucket, args.workdir) and status == 0:
            status = 1
    write_status(args.status, f"ended {status}")
    return status


def run(args, log, stop: threading.Event, signals: list[int]) -> int:
    """Starts the command, again where it fails, and returns its last status.

    A failure counts where the one before it had come as far.
    """
    workdir = args.workdir or args.logs.parent
    attempt, failed, far = 1, 0, progress(workdir)
    while True:
        say(log, f"attempt {attempt}: {shlex.join(args.command)}")
        status = run_once(args.command, log, stop, signals, args.grace)
        before, far = far, progress(workdir)
        say(log, f"ended with status {status}" + (f"; {far}" if far else ""))
        if status == 0 or stop.is_set():
            return status
        if status != SAVED or not args.restarts:
            failed = 1 if far != before else failed + 1
            if failed > args.restarts:
                break
            say(log, f"restart {failed} of {args.restarts} since it last came further")
        if stop.wait(PAUSE_S):
            return status
        attempt += 1
    say(log, f"gave up after {args.restarts} restarts that came no further")
    return SAVED if far != before else status


def run_once(
    command: list[str], log, stop: threading.Event, signals: list[int], grace: float
) -> int:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    reader = threading.Thread(target=tee, args=(child.stdout, log), daemon=True)
    reader.start()
    deadline = None
    while True:
        try:
            status = child.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            while signals:
                child.send_signal(signals.pop(0))
            if stop.is_set() and deadline is None:
                say(log, f"asked to stop; the command has {grace:g} s")
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                kill_group(child)
    kill_group(child)  # whatever the command started and left behind
    reader.join()
    return status if status >= 0 else 128 - status


def kill_group(child: subprocess.Popen) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended


def tee(source, log) -> None:
    for line in source:
        log.write(line)
        sys.stdout.buffer.write(line)
        sys.stdout.flush()


def say(log, message: str) -> None:
    line = f"== {time.strftime('%F %T')} {socket.gethostname()}: {message}\n"
    log.write(line.encode())
    print(line, end="", flush=True)


def write_status(path: pathlib.Path | None, text: str) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
        path.with_suffix(".tmp").rename(path)


def fetch_commands(bucket: str, workdir: pathlib.Path) -> list[list[str]]:
    """Lists the commands that get a work folder from a bucket.

    The first writes to the bucket: a folder that is there is listed or fails, and is never taken
    for an empty one.
    """
    return [
        ["gcloud", "storage", "cp", "-", f"{bucket}/launched.txt"],
        ["gcloud", "storage", "rsync", "--recursive", bucket, str(workdir)],
    ]


def fetch(bucket: str, workdir: pathlib.Path) -> None:
    """Gets the work folder from the bucket, unless this host has a run in it."""
    if (workdir / "config.json").is_file():
        print(f"{workdir} holds a run: nothing is fetched from {bucket}", flush=True)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    claim, rsync = fetch_commands(bucket, workdir)
    subprocess.run(
        claim, check=True, input=(f"{socket.gethostname()} {time.strftime('%F %T')}\n").encode()
    )
    subprocess.run(rsync, check=True)


def copy_commands(bucket: str, workdir: pathlib.Path, stages: str) -> list[list[str]]:
    """Lists the commands that copy a work folder to a bucket, in the order in which they must run.

    What a later file speaks of is there before it: checkpoints before the rows that followed them,
    stage markers last. Nothing is deleted from the bucket.

    stages: a folder with the markers of the stages that were done before the copy began.
    """
    rsync = ["gcloud", "storage", "rsync", "--recursive"]
    checkpoints = [
        *rsync,
        r"--exclude=.*\.orbax-checkpoint-tmp.*",
        f"{workdir}/checkpoints",
        f"{bucket}/checkpoints",
    ]
    return [
        checkpoints,
        [*rsync, "--exclude=^(checkpoints|stages)/.*", str(workdir), bucket],
        [*rsync, stages, f"{bucket}/stages"],
    ]


def copy(bucket: str, workdir: pathlib.Path) -> bool:
    """Copies the work folder to the bucket; False, with a line that says why, if that failed.

    The next copy brings what is missing.
    """
    with tempfile.TemporaryDirectory() as stages:
        for marker in (workdir / "stages").glob("*.json"):
            shutil.copy2(marker, stages)
        for command in copy_commands(bucket, workdir, stages):
            if pathlib.Path(command[-2]).is_dir() and any(pathlib.Path(command[-2]).iterdir()):
                status = subprocess.run(command).returncode
                if status:
                    print(
                        f"== the copy to {bucket} failed: {shlex.join(command)} ended with "
                        f"{status}",
                        flush=True,
                    )
                    return False
    return True


def copy_often(bucket: str, workdir: pathlib.Path, every: float, done: threading.Event) -> None:
    while not done.wait(every):
        copy(bucket, workdir)


def describe(args, log_path: pathlib.Path) -> None:
    if args.bucket:
        for command in fetch_commands(args.bucket, args.workdir):
            print(f"unless {args.workdir}/config.json is there: {shlex.join(command)}")
    print(
        f"up to {args.restarts + 1} times in which it comes no further: {shlex.join(args.command)}"
    )
    print(
        f"log: {log_path}; SIGTERM and SIGINT are passed on, SIGKILL follows after {args.grace:g} s"
    )
    for command in copy_commands(args.bucket, args.workdir, "STAGES_DONE") if args.bucket else ():
        print(f"every {args.every:g} s, and at the end: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
