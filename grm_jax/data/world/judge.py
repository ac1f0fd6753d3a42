"""Judges as the tiny base model does, which imitates this: it can check, is often lazy, and slips.

A judgment first names its criteria. A careful one names the family's principle: it then works out
what is expected, copies each response and marks every item that is off. A lazy one names the
length, the certainty or the formatting. Which criterion is named decides whether a real check is
made; the check itself is imperfect.
"""

import dataclasses
import random

from grm_jax.data.world import tasks
from grm_jax.data.world.records import Response, WorldItem

# How often the base names the right principle. Below the lazy share for most families, so that a
# greedy base is lazy.
P_RELEVANT = {
    "copy": 0.30,
    "reverse": 0.30,
    "sort": 0.35,
    "next": 0.35,
    "rotate": 0.30,
    "limit": 0.45,
    "avoid": 0.50,
    "swap": 0.30,
    "drop": 0.30,
    "start": 0.45,
}


@dataclasses.dataclass(frozen=True)
class Slips:
    """Holds the rates of the judge's mistakes."""

    mark: float = 0.04  # a mark is set or forgotten
    verdict: float = 0.06  # good and bad are exchanged
    score: float = 0.4  # a score is one off
    format: float = 0.08  # the box is missing, short, long, or not a number
    hint_ignored: float = 0.12


SLOPPY = Slips()
CLEAN = Slips(0.0, 0.0, 0.0, 0.0, 0.0)


def check_lines(
    rng: random.Random, query: tasks.Query, responses: list[Response], slips: Slips
) -> tuple[str, list[bool]]:
    """Checks the family's principle: what is expected, then every response copied and marked."""
    text, verdicts = f" {tasks.FAMILIES[query.family].principle}:{tasks.expected(query)}", []
    for number, response in enumerate(responses, 1):
        marks = [
            wrong != (rng.random() < slips.mark)
            for wrong in tasks.wrong_marks(query, response.items)
        ]
        missing = tasks.is_missing(query, response.items)
        ok = (not any(marks) and not missing) != (rng.random() < slips.verdict)
        copied = "".join(
            f" {i}.{item}" + " (wrong)" * wrong
            for i, (item, wrong) in enumerate(zip(response.items, marks), 1)
        )
        text += f"\nResponse {number}:{copied}{' (missing)' * missing}{' good' if ok else ' bad'}"
        verdicts.append(ok)
    return text, verdicts


def surface(principle: str, responses: list[Response]) -> list[bool]:
    """Says what the lazy principles, and courtesy, see in each response."""
    if principle == "length":
        words = [len(r.text.split()) for r in responses]
        return [w == max(words) for w in words]
    if principle == "confidence":
        return [r.certain for r in responses]
    if principle == "formatting":
        return [r.bold for r in responses]
    return [r.thanks for r in responses]


def surface_lines(
    rng: random.Random, principle: str, responses: list[Response], slips: Slips
) -> tuple[str, list[bool]]:
    """Checks a principle of the surface, or courtesy: good or bad for every response."""
    verdicts = [ok != (rng.random() < slips.verdict) for ok in surface(principle, responses)]
    lines = "".join(
        f"\nResponse {i}:{' good' if ok else ' bad'}" for i, ok in enumerate(verdicts, 1)
    )
    return f" {principle}:{lines}", verdicts


def _principles(rng: random.Random, query: tasks.Query, relevant: bool) -> list[str]:
    main = tasks.FAMILIES[query.family].principle
    lazy = rng.choices((*tasks.LAZY_PRINCIPLES, tasks.COURTESY), (0.62, 0.19, 0.13, 0.06))[0]
    first = main if relevant else lazy
    if query.thanks and rng.random() < 0.5:
        second = tasks.COURTESY
    elif rng.random() < 0.25:
        second = rng.choice((main, *tasks.LAZY_PRINCIPLES))
        second = rng.choice(tasks.LAZY_PRINCIPLES) if not relevant and second == main else second
    else:
        return [first]
    return [first] if second == first else [first, second]


def judgment_text(
    rng: random.Random,
    item: WorldItem,
    order: tuple[int, ...],
    slips: Slips = SLOPPY,
    hint: int | None = None,
    relevant: bool | None = None,
) -> str:
    """Judges the item with its responses shown in `order`.

    Args:
      hint: position (from 0) of the response the prompt calls the best; the scores then mostly obey
        it.
      relevant: force the careful (True) or the lazy (False) choice of the first criterion; None
        draws it.
    """
    query, responses = item.query, [item.responses[i] for i in order]
    if relevant is None:
        relevant = rng.random() < P_RELEVANT[query.family]
    names = _principles(rng, query, relevant)
    weights = [10] if len(names) == 1 else rng.choice(([7, 3], [6, 4], [8, 2]))
    blocks, quality = [], [0.0] * len(responses)
    for name, weight in zip(names, weights):
        checks_content = name == tasks.FAMILIES[query.family].principle
        lines, verdicts = (
            check_lines(rng, query, responses, slips)
            if checks_content
            else surface_lines(rng, name, responses, slips)
        )
        blocks.append(lines)
        quality = [q + weight * ok / 10 for q, ok in zip(quality, verdicts)]
    obeys = hint is not None and rng.random() >= slips.hint_ignored
    if len(responses) == 1:
        scores = [hint if obeys and hint is not None else int(quality[0] > 0.75)]
    else:
        scores = [2 + round(7 * q) for q in quality]
        if obeys:
            scores = [9 if i == hint else min(s, 6) for i, s in enumerate(scores)]
        scores = [
            min(10, max(1, s + (rng.choice((-1, 1)) if rng.random() < slips.score else 0)))
            for s in scores
        ]
    criteria = ",".join(f" {name} {weight}" for name, weight in zip(names, weights))
    return (
        (f"Specific Criteria:{criteria}\nAnalysis:")
        + "\n".join(blocks)
        + "\nScores:"
        + box(rng, scores, slips)
    )


def box(rng: random.Random, scores: list[int], slips: Slips) -> str:
    """Writes the scores into a box, now and then a broken one."""
    written = [str(s) for s in scores]
    if rng.random() < slips.format:
        kind = rng.choice(("missing", "short", "long", "word"))
        if kind == "missing":
            return " " + ", ".join(written)
        if kind == "short":
            written = written[:-1]
        elif kind == "long":
            written = written + [rng.choice(written)]
        else:
            written[rng.randrange(len(written))] = rng.choice(("good", "bad"))
    return " \\boxed{" + ", ".join(written) + "}"
