"""Times a call, alone or in turns with other programs. Standard library alone: peers import it too.

`speed/compare.py` starts all contenders of a case with SPEED_TURNS=1. Each makes its first call,
writes "turn ready", and then makes one call for each line of its standard input, writing "turn
SECONDS" behind it. When its input ends, it goes on and prints its line of JSON. So all are loaded
and compiled, one of them computes at any moment, and each round meets the same machine.
"""

import json
import os
import resource
import statistics
import sys
import time

GIB = 2**30


def measure(call, rounds: int, warm: bool = True) -> tuple[float | None, list[float]]:
    """Returns the seconds of the first call, which compiles, and those of the calls behind it.

    warm: False leaves the first call out, for a program that compiles nothing: None.
    """
    first = seconds_of(call) if warm else None
    if not asked():
        return first, [seconds_of(call) for _ in range(rounds)]
    print("turn ready", flush=True)
    taken = []
    for _ in sys.stdin:
        taken.append(seconds_of(call))
        print(f"turn {taken[-1]}", flush=True)
    return first, taken


def asked() -> bool:
    """Whether another program gives the turns."""
    return os.environ.get("SPEED_TURNS") == "1"


def seconds_of(call) -> float:
    """Calls once; what is computed must be done when the call returns."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(values) -> dict:
    """Returns the median, and with several values all of them, least and greatest."""
    values = list(values)
    if not values:
        return {"median": None, "min": None, "max": None, "all": []}
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def rss_gib() -> float:
    """Returns the most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def precision() -> dict[str, str]:
    """Returns {"matmul_precision": JAX's setting in the environment}, or nothing without one."""
    asked = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION")
    return {} if asked is None else {"matmul_precision": asked}


def write(line: dict) -> None:
    """Prints one line of JSON, its numbers to five digits."""
    print(json.dumps(_short(line)), flush=True)


def _short(value):
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _short(x) for name, x in value.items()}
    return [_short(x) for x in value] if isinstance(value, (list, tuple)) else value
