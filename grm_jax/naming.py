"""Turns a name in a config file into a function, with the settings that the config gives it."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def resolve(name: str, table: Mapping[str, Callable]) -> Callable:
    """Finds the function that `name` stands for: a key of `table`, or `package.module:function`.

    Any function can be named; the table only saves typing. Modules in the current folder are found
    whether Python was started as `python -m` or by a console script. An error inside the named
    module while it is imported comes through unchanged. Raises ValueError, with the nearest names,
    if there is no such short name, module or function; TypeError if the attribute is not callable.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown name {name!r}; {nearest(name, table)}, or write package.module:function"
        )
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"{name!r} does not have the form package.module:function")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
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
            f"{nearest(attribute, public)}"
        )
    function = getattr(module, attribute)
    if not callable(function):
        raise TypeError(f"{name!r}: expected a function, found {type(function).__name__}")
    return function


def source_digest(name: str) -> str:
    """Digests the module of `package.module:function`: 16 hex digits of what its code says.

    Where the function is defined in another module, and that one only hands it on, both count.
    Comments and layout do not. "" where the module has no source in Python.
    """
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, attribute, None)
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else module
    home = sys.modules.get(getattr(function, "__module__", None) or module_name, module)
    codes = [_code(module), *([] if home is module else [_code(home)])]
    told = "\n".join(code for code in codes if code)
    return hashlib.sha256(told.encode()).hexdigest()[:16] if told else ""


def _code(module: types.ModuleType) -> str:
    """What the code of a module says; "" where it has no source in Python."""
    try:
        return ast.dump(ast.parse(inspect.getsource(module)))
    except (OSError, TypeError):
        return ""


def with_settings(function: Callable, given: int, settings: Mapping[str, Any]) -> Callable:
    """Binds a function's own settings by keyword; its first `given` parameters stay open.

    Raises ValueError with a line for each setting that the function does not have (and the nearest
    that it has) and each without a default that is not there.
    """
    own = own_settings(function, given)
    name = f"{function.__module__}:{function.__qualname__}"
    problems = [
        f"{name} has no setting {setting!r}; {nearest(setting, own)}"
        for setting in settings
        if setting not in own and None not in own
    ]
    problems += [
        f"{name} needs the setting {setting!r}"
        for setting, needed in own.items()
        if needed and setting not in settings
    ]
    if problems:
        raise ValueError("\n".join(problems))
    return functools.partial(function, **settings) if settings else function


def own_settings(function: Callable, given: int) -> dict[str | None, bool]:
    """Names the parameters behind the first `given`: {name: whether it has no default}.

    A function that takes any keyword has None among them.
    """
    parameters = list(inspect.signature(function).parameters.values())[given:]
    return {
        None if p.kind is p.VAR_KEYWORD else p.name: p.default is p.empty and p.kind < p.VAR_KEYWORD
        for p in parameters
        if p.kind is not p.VAR_POSITIONAL
    }


def nearest(name: str, known: Iterable[str | None]) -> str:
    """Says which known names are spelt most like `name`, or else all of them."""
    known = [key for key in known if key is not None]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else (f"known names: {', '.join(sorted(known)) or 'none'}")
    )
