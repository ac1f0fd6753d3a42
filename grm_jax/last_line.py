"""Puts an exception into the one line that a command ends with: what, where, what to do."""

from __future__ import annotations

import dis
import errno
import io
import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from grm_jax.json_files import cut

OURS = tuple(
    str(folder) + os.sep
    for here in [pathlib.Path(__file__).resolve().parent]
    for folder in (here, here.parent / "experiments")
)
GOES_ON = "What is written stays, and the same command goes on from there"
FULL = "no space left to write; free some, or choose another folder. " + GOES_ON
MEMORY = (
    "out of memory; ask for less at once (sampling.rows, micro_batch, lengths), or spread the "
    "model over more devices (mesh): experiments.plan says what fits"
)
NETWORK = "no answer over the network; look at the connection, or name what is on this machine"
DAMAGED = "damaged, or cut off while it was written or copied; make it or fetch it again"
OF_ERRNO = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission; change its mode or owner, or choose another folder",
    errno.EPERM: "not permitted; change its mode or owner, or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EISDIR: "is a folder; expected a file",
    errno.ENOTDIR: "a part of this path is a file; expected folders",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.EIO: "the disk, or the share, gives errors; look at it. " + GOES_ON,
    errno.ESTALE: "the share has lost this file; mount it again. " + GOES_ON,
    errno.EPIPE: "whoever read the output is gone. " + GOES_ON,
}
# errors of libraries, by the module of their class and its name ("" is any)
DAMAGES = (
    ("pyarrow", "ArrowInvalid"),
    ("safetensors", "SafetensorError"),
    ("safetensors_rust", "SafetensorError"),
    ("zipfile", "BadZipFile"),
    ("sqlite3", "DatabaseError"),
    ("zlib", "error"),
    ("gzip", "BadGzipFile"),
    ("_lzma", ""),
    ("builtins", "EOFError"),
    ("_pickle", "UnpicklingError"),
    ("json", "JSONDecodeError"),
    ("builtins", "UnicodeDecodeError"),
)
NETWORKS = ("httpx", "httpcore", "requests", "urllib3", "urllib", "huggingface_hub", "aiohttp")
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|File too large", re.I)
_NO_PERMISSION = re.compile(r"Permission denied|Read-only file system", re.I)
_PATH = re.compile(r"""["'\s](/[^"'\s:]+)""")


def explain(error: BaseException) -> str | None:
    """Says what went wrong in one line, or None for what nobody foresaw, a fault of the program.

    Foreseen are errors that this package itself raises, those of the operating system (disk,
    permissions, memory, network), of damaged files, and of modules that are not there.
    """
    text = str(error)
    if isinstance(error, MemoryError) or (
        "RESOURCE_EXHAUSTED" in text and not _NO_SPACE.search(text)
    ):
        return f"{MEMORY} ({first_line(error)})" if text else MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    for pattern, words in ((_NO_SPACE, FULL), (_NO_PERMISSION, OF_ERRNO[errno.EACCES])):
        if pattern.search(text) and not _raised_by_us(error):  # inside the text of a library
            path = _PATH.search(text)
            return f"{path[1]}: {words}" if path else words
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
        return f"{cut(command, 200)}: ended with status {error.returncode}; its words stand above"
    if isinstance(error, ModuleNotFoundError):
        return f"no module named {error.name!r}, asked for in {_place(error)}; install it"
    kind = type(error)
    module = kind.__module__.partition(".")[0]
    if any(module == of and name in ("", kind.__name__) for of, name in DAMAGES):
        return f"{_file_in_hand(error)}{DAMAGED} ({first_line(error)})"
    if module in NETWORKS:
        return f"{NETWORK} ({first_line(error)})"
    if isinstance(error, OSError) or _raised_by_us(error):
        return text or kind.__name__
    return None


def open_streams() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that is closed (`2>&-`, some daemons).

    Else the first file of ours would take its number, and what libraries in C say would be written
    into that. What stdout has no letters for is escaped. To be called before any file is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    # an example that is judged may have letters that the locale of the machine has not
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        strict = out.errors == "strict"
        if strict or out.errors == "surrogateescape" and out.encoding.lower() != "utf-8":
            out.reconfigure(errors="backslashreplace")


def unforeseen(error: BaseException) -> str:
    """Says of an error that `explain` does not know where it came up, in one line."""
    return f"{first_line(error)}, in {_place(error)}; its traceback stands above"


def first_line(error: BaseException) -> str:
    """Returns the class of an error and the first line of its message."""
    line = next(iter(str(error).strip().splitlines()), "")
    return cut(f"{type(error).__name__}: {line}" if line else type(error).__name__, 300)


def _of_system(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(names) or _file_in_hand(error).removesuffix(": ")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        words = FULL
    elif error.errno == errno.ENOMEM:
        words = MEMORY
    elif error.errno == errno.EEXIST and where and not os.path.isdir(where):
        words = "is a file; expected a folder"
    elif isinstance(error, ConnectionError) and error.errno != errno.EPIPE:
        words = f"{NETWORK} ({error.strerror})"
    else:
        words = OF_ERRNO.get(error.errno or 0, error.strerror or str(error))
    return f"{where}: {words}" if where else words


def _steps(error: BaseException) -> Iterator[TracebackType]:
    """Yields the traceback, the innermost frame first."""
    steps, step = [], error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    return reversed(steps)


def _raised_by_us(error: BaseException) -> bool:
    """Says whether a `raise` of this package or its scripts made the error."""
    for step in _steps(error):
        code = step.tb_frame.f_code
        raised = dis.opname[code.co_code[step.tb_lasti]] == "RAISE_VARARGS"
        return raised and os.path.realpath(code.co_filename).startswith(OURS)
    return False


def _file_in_hand(error: BaseException) -> str:
    """The file that the innermost function with one had in a variable, and ": "; else nothing."""
    for step in _steps(error):
        for value in step.tb_frame.f_locals.values():
            if isinstance(value, pathlib.Path) and value.is_file():
                return f"{value}: "
    return ""


def _place(error: BaseException) -> str:
    """The innermost line of this package, its scripts or a module of the user: "file:line"."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in frames if "importlib" not in f.filename and "<" not in f.filename]
    own = [f for f in frames if f"{os.sep}site-packages{os.sep}" not in f.filename]
    chosen = next(iter([*reversed(own), *reversed(frames)]), None)
    return "a place unknown" if chosen is None else f"{chosen.filename}:{chosen.lineno}"
