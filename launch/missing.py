"""Exits with 1 if a package of a requirement file is not installed in just its pinned version.

python launch/missing.py requirements.txt
"""

import importlib.metadata
import pathlib
import sys


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]  # "2.13.0+cpu" is 2.13.0
    except importlib.metadata.PackageNotFoundError:
        return None


lines = [
    line.split("#")[0].strip()
    for line in pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
]
pins = [line.split("==") for line in lines if line]
sys.exit(any(installed(name) != version for name, version in pins))
