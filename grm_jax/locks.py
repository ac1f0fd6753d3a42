"""Keeps a file or folder for one process at a time, by a lock file that says who has it.

The lock is the kernel's (flock): it ends with the process, however that ends, and holds on network
file systems that know it. Nothing here needs JAX.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Callable
from typing import IO

log = logging.getLogger(__name__)
_held: dict[pathlib.Path, IO[str]] = {}


@atexit.register
def _close() -> None:
    """Ends what is held, as the end of the process would: without a ResourceWarning."""
    while _held:
        _held.popitem()[1].close()


def hold(lock: pathlib.Path, what: str) -> Callable[[], None]:
    """Takes the lock file for this process, and returns what gives it back and removes it.

    Not given back, it is this process's until that ends. A process that holds it already goes on.
    `what` it stands for: the subject of the message. Raises ValueError, naming the process, its
    host, and since when, where another one holds it.
    """
    place = lock.absolute()

    def release() -> None:
        if place in _held:
            place.unlink(missing_ok=True)
            _held.pop(place).close()

    while place not in _held:
        file = open(place, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read()
            file.close()
            raise ValueError(f"{what} is in use by {_who(holder)}") from None
        except OSError as error:
            log.warning("%s: no locks here (%s): nothing keeps other processes out", what, error)
            _held[place] = file
            continue
        if not place.exists() or os.stat(place).st_ino != os.fstat(file.fileno()).st_ino:
            file.close()  # it was given back, and removed, between opening and locking
            continue
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        file.truncate(0)
        file.write(json.dumps(about) + "\n")
        file.flush()
        _held[place] = file
    return release


def _who(holder: str) -> str:
    """Words on the process that wrote a lock file."""
    try:
        about = json.loads(holder)
        process, host, since = about["process"], about["host"], float(about["since"])
    except (ValueError, KeyError, TypeError):
        return holder.strip() or "another process"
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
    return f"process {process} on {host}, for {_age(time.time() - since)} (since {began})"


def _age(seconds: float) -> str:
    minutes, hours, days = (int(seconds // size) for size in (60, 3600, 86400))
    if days >= 2:
        return f"{days} days"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{max(0, int(seconds))} s"
