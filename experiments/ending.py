"""How a script ends where it cannot go on: the last line on stderr says what, where, what to do.

    ending.install()

An error that was foreseen (grm_jax/last_line.py) is that line alone; GRM_JAX_TRACEBACK=1 shows the
traceback above it. Of one that nobody foresaw the traceback is always shown.
"""

import atexit
import logging
import os
import sys
import traceback

from grm_jax.last_line import explain, open_streams, unforeseen

_last: list[tuple[str, int]] = []  # the line, and the exit status


def install() -> None:
    """End the program so after an error that nothing catches. To be called before anything that
    leaves work, and words, for the end of the program: they then stand above the line.

    A stream that is closed is as /dev/null.
    """
    open_streams()
    sys.excepthook = _note
    atexit.register(_leave)


def _note(kind, error, trace) -> None:
    line, status = explain(error), 1
    if isinstance(error, KeyboardInterrupt):
        line, status = "stopped by SIGINT; the same command goes on from what is saved", 130
    if line is None or os.environ.get("GRM_JAX_TRACEBACK"):
        traceback.print_exception(kind, error, trace)
    _last.append((f"error: {line or unforeseen(error)}", status))
    if "grm_jax.parallel.processes" in sys.modules:
        from grm_jax.parallel import processes

        if processes.count() > 1:  # it leaves at once, without waiting for the others
            print(_last.pop()[0], file=sys.stderr, flush=True)


def _leave() -> None:
    if _last:
        line, status = _last.pop()
        logging.shutdown()
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
        os._exit(status)  # threads that still run have no more words
