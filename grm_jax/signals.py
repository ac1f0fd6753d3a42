"""Hears Ctrl-C and SIGTERM at once, also while the main thread is in a long call of XLA.

    with signals.ending():                       # a script: a line, and the end, wherever it is
        with signals.heard(say) as came:         # a loop: `say` at once, and `came` to look at
            for ...:
                if came: ...

Python calls the handler of a signal between two byte codes of the main thread, which may be minutes
away. So a thread of its own is told of each signal by the C handler, through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID_WITHIN_S = 1.0  # that the main thread waits for `say`, which may be waiting for it


@contextlib.contextmanager
def heard(
    say: Callable[[signal.Signals, int], None],
    numbers: Sequence[signal.Signals] = SIGNALS,
    handle: Callable[[signal.Signals], None] | None = None,
) -> Iterator[list[signal.Signals]]:
    """Opens a context in which these signals end nothing; it gives the list of those that came.

    say: called at once by a thread, with a signal and which one it is: 1 for the first.
    handle: called by the main thread, as soon as that gets to it.

    Signals that are ignored outside stay ignored. Outside of the main thread nothing is heard.
    """
    came: list[signal.Signals] = []
    said = threading.Semaphore(0)
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, _) -> None:
        said.acquire(timeout=SAID_WITHIN_S)  # so that what follows from it is said behind it
        came.append(signal.Signals(number))
        if handle is not None:
            handle(came[-1])

    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        times = 0
        while (number := os.read(reader, 1)[0]) != 0:
            if number in numbers:
                times += 1
                say(signal.Signals(number), times)
                said.release()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    # ignored ones stay so, and those of a library that has handlers in C are its own (None)
    own = (signal.SIG_IGN, None)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) not in own}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(writer, b"\0")
        listener.join()
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def ending(how_to_go_on: str = "The same command goes on from what is on file") -> Iterator[None]:
    """Opens the context of a script: a signal ends it at once, with a line and no traceback."""

    def say(number: signal.Signals, times: int) -> None:
        end(number, f"== stopped by {number.name}. {how_to_go_on}")

    with heard(say):
        yield


def end(number: signal.Signals, line: str) -> None:
    """Ends this process wherever it is, with a last line and the status that shells give a signal.

    What has been written to files stays; nothing is waited for.
    """
    print(line, file=sys.stderr, flush=True)
    os._exit(128 + number)


def run(command: Sequence[str], name: str = "", **how: Any) -> tuple[int, list[signal.Signals]]:
    """Runs a command in a process group of its own, and passes every signal on to it.

    Returns its exit status, 128 + n for signal n, and the signals that came: the command decides
    when it ends. how: as `subprocess.Popen`.
    """
    started = threading.Event()

    def pass_on(number: signal.Signals, times: int) -> None:
        started.wait()
        print(
            f"{number.name}: passed on to {name or command[0]}, which ends behind the block under "
            "way" + ("; once more to end at once" if times == 1 else ", or at once"),
            file=sys.stderr,
            flush=True,
        )
        process.send_signal(number)

    with heard(pass_on, (*SIGNALS, signal.SIGHUP)) as came:
        process = subprocess.Popen(command, process_group=0, **how)
        started.set()
        status = process.wait()
    return (status if status >= 0 else 128 - status), came
