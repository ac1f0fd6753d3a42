"""From a name in a config file to a function."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping


def resolve(name: str, table: Mapping[str, Callable]) -> Callable:
    """Function that `name` stands for: a key of `table`, or `package.module:function` for one of
    your own.

    Any function can be named; the table only saves typing. An error inside the named module while
    it is imported comes through unchanged. Raises ValueError, with the nearest names, if there is
    no such short name, module or function; TypeError if the attribute is not callable.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown name {name!r}; {_nearest(name, table)}, or write package.module:function"
        )
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"{name!r} does not have the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
        raise ValueError(f"{name!r}: no module named {error.name!r} on the import path") from error
    if not hasattr(module, attribute):
        public = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        raise ValueError(
            f"{name!r}: {module_name} ({module.__file__}) has no {attribute!r}; "
            f"{_nearest(attribute, public)}"
        )
    function = getattr(module, attribute)
    if not callable(function):
        raise TypeError(f"{name!r}: expected a function, found {type(function).__name__}")
    return function


def _nearest(name, known):
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else (f"known names: {', '.join(sorted(known)) or 'none'}")
    )
