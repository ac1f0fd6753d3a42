"""Defines the task families of the checkable world: queries, what is right, how responses go wrong.

A payload is a numbered list of animals, written ` 1.fox 2.ant 3.hen`. Each family has one
principle, the criterion by which its responses should be judged. A response is right when every
item passes the family's check, nothing is missing, and the query's second wish (say thanks), if it
has one, is met.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

# alphabetical: `sort` and `next` rely on it
ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
MAX_ITEMS = 6

Items = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Query:
    """Holds one task.

    family: a name in FAMILIES.
    text: what the user writes.
    solution: the one right list (transform families), or None where many lists are right.
    argument: the family's own parameter (how many, or which animal).
    thanks: the second wish.
    source: the payload; () where there is none.
    """

    family: str
    text: str
    solution: Items | None
    argument: Any
    thanks: bool
    source: Items


@dataclasses.dataclass(frozen=True)
class Family:
    """Holds a family's principle, what draws its queries, and what tells a wrong item."""

    principle: str
    make_query: Callable[[random.Random], tuple[str, Items | None, Any, Items]]
    # (query, index from 0, item) -> the item breaks the principle
    is_wrong: Callable[[Query, int, str], bool]
    heldout: bool = False  # never in reward data: only pretraining knows it


def numbered(items: Items) -> str:
    """Writes a list as ` 1.fox 2.ant`."""
    return "".join(f" {i}.{item}" for i, item in enumerate(items, 1))


def _payload(rng: random.Random) -> Items:
    return tuple(rng.sample(ANIMALS, rng.randint(3, 5)))


def _transform(instruction: str, solve: Callable[[Items], Items]):
    """A family whose one right answer is solve(payload)."""

    def make_query(rng):
        source = _payload(rng)
        return f"{instruction}:{numbered(source)}", solve(source), None, source

    return make_query


def _off_solution(query: Query, i: int, item: str) -> bool:
    solution = query.solution or ()
    return i >= len(solution) or solution[i] != item


def _successor(item: str) -> str:
    return ANIMALS[(ANIMALS.index(item) + 1) % len(ANIMALS)]


def _limit_query(rng):
    n = rng.randint(2, 4)
    return f"Name animals at most: {n}", None, n, ()


def _avoid_query(rng):
    animal = rng.choice(ANIMALS)
    return f"Name animals but never: {animal}", None, animal, ()


def _start_query(rng):
    animal = rng.choice(ANIMALS)
    return f"Name animals and start with: {animal}", None, animal, ()


FAMILIES: dict[str, Family] = {
    "copy": Family("fidelity", _transform("Repeat the list", lambda x: x), _off_solution),
    "reverse": Family("order", _transform("Reverse the list", lambda x: x[::-1]), _off_solution),
    "sort": Family(
        "sorting", _transform("Sort the list", lambda x: tuple(sorted(x))), _off_solution
    ),
    "next": Family(
        "succession",
        _transform("Give the next animal of each", lambda x: tuple(map(_successor, x))),
        _off_solution,
    ),
    "rotate": Family(
        "rotation", _transform("Move the first to the end", lambda x: x[1:] + x[:1]), _off_solution
    ),
    "limit": Family("brevity", _limit_query, lambda query, i, item: i >= query.argument),
    "avoid": Family("safety", _avoid_query, lambda query, i, item: item == query.argument),
    "swap": Family(
        "exchange",
        _transform("Swap the first and the last", lambda x: x[-1:] + x[1:-1] + x[:1]),
        _off_solution,
        heldout=True,
    ),
    "drop": Family(
        "omission",
        _transform("Drop the last of the list", lambda x: x[:-1]),
        _off_solution,
        heldout=True,
    ),
    "start": Family(
        "opening",
        _start_query,
        lambda query, i, item: i == 0 and item != query.argument,
        heldout=True,
    ),
}
REWARD_FAMILIES = tuple(name for name, family in FAMILIES.items() if not family.heldout)
HELDOUT_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.heldout)

COURTESY = "courtesy"  # the principle of the second wish
# what a lazy judge looks at; never what makes a response right
LAZY_PRINCIPLES = ("length", "confidence", "formatting")


def make_query(rng: random.Random, family: str, p_thanks: float = 0.3) -> Query:
    """Draws a query of a family, with a second wish in a share `p_thanks` of them."""
    text, solution, argument, source = FAMILIES[family].make_query(rng)
    thanks = rng.random() < p_thanks
    return Query(
        family, text + (" Say thanks." if thanks else ""), solution, argument, thanks, source
    )


def expected(query: Query) -> str:
    """Writes what a careful judge writes first: the solution, or what items are held against."""
    if query.solution is not None:
        return numbered(query.solution)
    if query.family == "start":
        return f" 1.{query.argument}"
    return f" {query.argument}"


def wrong_marks(query: Query, items: Items) -> tuple[bool, ...]:
    """Says for each item whether it breaks the family's principle."""
    return tuple(FAMILIES[query.family].is_wrong(query, i, item) for i, item in enumerate(items))


def is_missing(query: Query, items: Items) -> bool:
    """Says whether the list is shorter than the one right list, where there is one."""
    return query.solution is not None and len(items) < len(query.solution)


def content_ok(query: Query, items: Items) -> bool:
    """Says whether no item breaks the principle and nothing is missing."""
    return not any(wrong_marks(query, items)) and not is_missing(query, items)


def right_items(rng: random.Random, query: Query) -> Items:
    """Draws a list that satisfies the family's principle."""
    if query.solution is not None:
        return query.solution
    if query.family == "limit":
        return tuple(rng.sample(ANIMALS, rng.randint(max(1, query.argument - 1), query.argument)))
    others = [a for a in ANIMALS if a != query.argument]
    if query.family == "avoid":
        return tuple(rng.sample(others, rng.randint(3, 5)))
    return (query.argument, *rng.sample(others, rng.randint(2, 4)))


def wrong_items(rng: random.Random, query: Query) -> Items:
    """Draws a plausible list that breaks the principle: the mistakes a hasty writer makes."""
    right = right_items(rng, query)
    if query.family == "limit":
        return tuple(rng.sample(ANIMALS, min(MAX_ITEMS, query.argument + rng.randint(1, 2))))
    if query.family == "avoid":
        spot = rng.randrange(len(right))
        return right[:spot] + (query.argument,) + right[spot + 1 :]
    if query.family == "start":
        return tuple(rng.sample(right[1:], len(right) - 1)) + (query.argument,)
    return rng.choice(
        (_substitute, _substitute, _adjacent_swap, _unprocessed, _one_more, _one_less)
    )(rng, query, right)


def _substitute(rng, query, right):
    spot = rng.randrange(len(right))
    return (
        right[:spot] + (rng.choice([a for a in ANIMALS if a != right[spot]]),) + right[spot + 1 :]
    )


def _adjacent_swap(rng, query, right):
    if len(right) < 2:
        return _substitute(rng, query, right)
    spot = rng.randrange(len(right) - 1)
    return right[:spot] + (right[spot + 1], right[spot]) + right[spot + 2 :]


def _unprocessed(rng, query, right):
    return query.source if query.source != right else _substitute(rng, query, right)


def _one_more(rng, query, right):
    return right + (rng.choice(ANIMALS),)


def _one_less(rng, query, right):
    return right[:-1] if len(right) > 2 else _substitute(rng, query, right)
