"""Checks of settings: a frozen dataclass that holds them names all its wrong fields at once.

    @dataclasses.dataclass(frozen=True)
    class Lengths:
        prompt: int
        completion: int = 256

        def __post_init__(self):
            check(self, {"prompt completion": POSITIVE})

Types are read off the annotations, so that rules are about values alone.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from grm_jax.json_files import shown
from grm_jax.naming import resolve

T = TypeVar("T")
Rule = tuple[str, Callable[..., Any]]  # (what is expected, test of the value)
Relation = tuple[str, str, Callable[..., Any]]  # (fields, what is expected, test of their values)

POSITIVE: Rule = ("a positive integer", lambda x: x >= 1)
NOT_NEGATIVE: Rule = ("a number >= 0", lambda x: x >= 0)
ABOVE_ZERO: Rule = ("a number > 0", lambda x: x > 0)
FRACTION: Rule = ("a number in [0, 1]", lambda x: 0 <= x <= 1)


class SettingsError(ValueError):
    """Says which fields of some settings are wrong. problems: "field: what is wrong" for each."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(in_words(self.problems, where))


def in_words(problems: Sequence[str], where: str) -> str:
    """Puts problems into words: a lone one into one line, of several each into its own."""
    if len(problems) == 1:
        return f"1 wrong field in {where}: {problems[0]}"
    return f"{len(problems)} wrong fields in {where}\n  " + "\n  ".join(problems)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Makes settings of a class from a mapping, such as a section of a config file.

    Lists become tuples. Raises SettingsError as `check`, and for fields that the class does not
    have (with the nearest that it has) or that are missing.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    problems = [
        f"{name}: no such field; nearest: {difflib.get_close_matches(name, fields, 1, 0.0)[0]}"
        for name in values
        if name not in fields
    ]
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    problems += [
        f"{name}: expected {_words(_annotations(cls)[name])}, got nothing" for name in missing
    ]
    known = {name: _without_lists(value) for name, value in values.items() if name in fields}
    if not missing:
        try:
            settings = cls(**known)
            if not problems:
                return settings
        except SettingsError as error:
            problems += error.problems
    raise SettingsError(cls.__name__, problems)


def check(
    settings: Any, rules: Mapping[str, Rule] | None = None, relations: Sequence[Relation] = ()
) -> None:
    """Raises SettingsError unless every field has its annotated type and keeps the rules.

    rules: {"field other_field": (what is expected, test)}. A test returns whether a value is right,
        or raises ValueError or TypeError, which says what is wrong. None is no value to test.
    relations: ("field other_field", what is expected, test) between fields, of which the first is
        the one that is named as wrong. The test gets their values in this order, and so does
        `str.format` of what is expected, by name. Left out where one of the fields is wrong.
    """
    if problems := find_problems(settings, rules, relations):
        raise SettingsError(type(settings).__name__, problems)


def find_problems(
    settings: Any, rules: Mapping[str, Rule] | None = None, relations: Sequence[Relation] = ()
) -> list[str]:
    """Finds what `check` would name: "field: what is wrong" for each field."""
    expected = {field: rule for fields, rule in (rules or {}).items() for field in fields.split()}
    wrong = {}
    for field, annotation in _annotations(type(settings)).items():
        value = getattr(settings, field)
        words, test = expected.get(field, (None, None))
        if not _is_of(value, annotation):
            words = _with_none(words or _words(annotation), annotation)
            wrong[field] = f"{field}: expected {words}, got {shown(value)}"
        elif test is not None and value is not None:
            if problem := _problem(test, (value,), words):
                wrong[field] = f"{field}: {problem}"
    problems = list(wrong.values())
    for fields, words, test in relations:
        values = {field: getattr(settings, field) for field in fields.split()}
        if not wrong.keys() & values.keys():
            if problem := _problem(test, tuple(values.values()), words.format(**values)):
                problems.append(f"{fields.split()[0]}: {problem}")
    return problems


def wrong_arguments(function: Callable, values: Mapping[str, Any]) -> list[str]:
    """Finds the arguments that are not of a function's types: "name: what is wrong" for each.

    A type is that of the annotation, or else of the default, of which a number stands for numbers;
    one that is neither plain nor there tests nothing.
    """
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # of names that only a type checker imports
        hints = {}
    problems = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in values and parameter.kind is not parameter.VAR_KEYWORD:
            expected = hints.get(name, Any)
            if name not in hints and isinstance(parameter.default, tuple(_WORDS) + (tuple,)):
                kind = type(parameter.default)
                expected = float if kind is int else kind
            plain = (*_WORDS, tuple, types.NoneType)
            if all((typing.get_origin(part) or part) in plain for part in _parts(expected)):
                if not _is_of(_without_lists(values[name]), expected):
                    words = _with_none(_words(expected), expected)
                    problems.append(f"{name}: expected {words}, got {values[name]!r}")
    return problems


def one_of(names: Collection[str]) -> Rule:
    """The rule that a value is one of these."""
    return f"one of {', '.join(names)}", lambda value: value in names


def some_of(names: Collection[str]) -> Rule:
    """The rule that a tuple holds at least one of these names, and no other."""

    def test(chosen: Sequence[str]) -> bool:
        unknown = [name for name in chosen if name not in names]
        if unknown or not chosen:
            raise ValueError(
                f"expected some of {', '.join(names)}, got {', '.join(unknown) or 'none'}"
            )
        return True

    return f"some of {', '.join(names)}", test


def function_in(table: Mapping[str, Callable]) -> Rule:
    """The rule that a value is a short name of the table or "package.module:function"."""
    names = ", ".join(table)
    return f"one of {names}, or package.module:function", lambda name: bool(resolve(name, table))


def growing(values: Sequence[int]) -> bool:
    """Whether integers are positive and each is larger than the one before it."""
    return list(values) == sorted(set(values)) and all(value >= 1 for value in values)


def _problem(test, values, words) -> str | None:
    try:
        right = test(*values)
    except (ValueError, TypeError) as error:  # the test's own words
        return str(error)
    return None if right else f"expected {words}, got {shown(values[0])}"


@functools.cache
def _annotations(cls) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _parts(annotation) -> Iterator[Any]:
    """The alternatives of a union, or the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        yield from typing.get_args(annotation)
    else:
        yield annotation


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type. An integer is a number; True and what is not finite are not."""
    for part in _parts(annotation):
        kind, inner = typing.get_origin(part) or part, typing.get_args(part)
        if kind is Any:
            return True
        if kind is tuple:
            if isinstance(value, tuple) and (
                not inner or all(_is_of(element, inner[0]) for element in value)
            ):
                return True
        elif kind in (int, float):
            numeric = numbers.Real if kind is float else numbers.Integral
            if isinstance(value, numeric) and not isinstance(value, bool) and _is_finite(value):
                return True
        elif isinstance(value, kind):
            return True
    return False


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float, 10**400
        return False


_WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}
_PLURALS = {int: "integers", float: "numbers", bool: "True or False", str: "texts"}


def _words(annotation) -> str:
    """An annotation for a person to read."""
    words = []
    for part in _parts(annotation):
        kind, inner = typing.get_origin(part) or part, typing.get_args(part)
        if kind is tuple:
            words.append(f"a tuple of {_PLURALS.get(inner[0], 'values')}" if inner else "a tuple")
        elif kind is not type(None):
            words.append(_WORDS.get(kind, f"a {kind.__name__.lower()}"))
    return " or ".join(words)


def _without_lists(value: Any) -> Any:
    return tuple(map(_without_lists, value)) if isinstance(value, (list, tuple)) else value


def _with_none(words: str, annotation) -> str:
    allowed = type(None) in _parts(annotation)
    return f"{words}, or None" if allowed and "None" not in words else words
