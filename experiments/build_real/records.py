"""Makes preference records of constraints: a request, responses that meet more or less of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from experiments.build_real.constraints import Constraint, Maker
from grm_jax.judgment.records import Record, Turn

# of which a request may have one beside another kind
WORDS = ("use_word", "avoid_word")
BESIDE_WORDS = ("first_word", "last_sentence", "capitals", "json_object")
TWO, THREE_RESPONSES = 0.3, 0.15  # shares of the records
TRIES = 30

Draw = Callable[[], tuple[str, int]]  # -> (response, how many constraints it meets)


@dataclasses.dataclass(frozen=True)
class Made:
    """Holds a record and the constraints that its rewards count."""

    record: Record
    constraints: tuple[Constraint, ...]


def make_records(
    name: str,
    asked: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    kinds: Mapping[str, Maker],
    each: int,
    seed: int,
    one_best: bool = True,
) -> list[Made]:
    """Makes `each` records of every question, each of another kind; what does not come out is left
    out. A reward is the number of constraints that a response meets.

    one_best: two or three responses, of which one meets all constraints. Otherwise one or two, each
    of which meets what a coin says: nothing is to be learned from the other one.
    """
    made, names = [], sorted(kinds)
    for number, (key, question) in enumerate(asked.items()):
        if len(texts := answers[key]) < 2:
            continue
        for i in range(each):
            rng = random.Random(f"{name} {seed} {key} {i}")
            kind = names[(number * each + i) % len(names)]
            record = _make(f"{name}/{key}/{i}", question, texts, kinds, kind, rng, one_best)
            if record is not None:
                made.append(record)
    return made


def _make(
    record_id: str,
    question: str,
    texts: Sequence[str],
    kinds: Mapping[str, Maker],
    kind: str,
    rng: random.Random,
    one_best: bool,
) -> Made | None:
    chosen = [kind]
    if kind in BESIDE_WORDS and set(WORDS) <= kinds.keys() and rng.random() < TWO:
        chosen.insert(0, rng.choice(WORDS))
    constraints = [kinds[name](rng, texts) for name in chosen]
    if None in constraints:
        return None

    def drawn() -> tuple[str, int]:
        text = rng.choice(texts)
        kept = [rng.random() < 0.5 for _ in constraints]
        for constraint, repaired in zip(constraints, kept):
            text = constraint.repair(text) if repaired else constraint.break_(text)
        return text, sum(constraint.check(text) for constraint in constraints)

    draw = _one_best if one_best else _any
    if (responses := draw(drawn, len(constraints), rng)) is None:
        return None
    record = Record(
        id=record_id,
        conversation=(Turn("user", " ".join([question, *(c.ask for c in constraints)])),),
        responses=tuple(text for text, _ in responses),
        rewards=tuple(float(met) for _, met in responses),
        domain=kind,
        metadata={"kinds": chosen},
    )
    return Made(record, tuple(constraints))


def _one_best(drawn: Draw, every: int, rng: random.Random) -> list[tuple[str, int]] | None:
    """Draws responses of which exactly one meets every constraint."""
    wanted = 3 if rng.random() < THREE_RESPONSES else 2
    best, others = None, {}
    for _ in range(TRIES):
        text, met = drawn()
        if met == every and best is None:
            best = text
        elif met < every and text.strip() and len(others) < wanted - 1:
            others[text] = met
        if best is not None and len(others) == wanted - 1:
            responses = [(best, every), *others.items()]
            rng.shuffle(responses)
            return responses
    return None


def _any(drawn: Draw, every: int, rng: random.Random) -> list[tuple[str, int]] | None:
    """Draws one or two responses, whatever each of them meets."""
    wanted, found = rng.randint(1, 2), {}
    for _ in range(TRIES):
        text, met = drawn()
        if text.strip():
            found[text] = met
        if len(found) == wanted:
            return list(found.items())
    return None


def finding_line(number: int, text: str, constraint: Constraint) -> str:
    """Writes what a judge says of the response that is shown as `number`, and a requirement.

    It begins as the response does in the prompt, reads on as far as it must, says what was found,
    and only then whether that is right: a small model copies before it decides.
    """
    right = constraint.check(text)
    said = f"{constraint.say(text, right)} ({'right' if right else 'wrong'})"
    return f"[Response {number}] {said}"


def written_judgment(made: Made, order: Sequence[int], rng: random.Random) -> str:
    r"""Writes the judgment of a record whose gold is computed: what each check found, and scores.

    In the form of the template: principles with weights, a `finding_line` on each response and
    requirement, a box.
    """
    names = [constraint.name for constraint in made.constraints]
    weight = 80 // len(names)
    principles = [f"{name} ({weight}%)" for name in names] + ["answers the request (20%)"]
    lines, scores = [], []
    for number, index in enumerate(order, 1):
        text = made.record.responses[index]
        lines += [finding_line(number, text, constraint) for constraint in made.constraints]
        met = sum(constraint.check(text) for constraint in made.constraints)
        if len(order) == 1:  # wrong or right
            scores.append(str(int(met == len(names))))
        else:
            low = {0: 1, len(names): 8}.get(met, 4)
            scores.append(str(rng.randint(low, low + 2)))
    return "\n".join(
        [
            f"Principles: {', '.join(principles)}",
            "Analysis:",
            *lines,
            f"Scores: \\boxed{{{', '.join(scores)}}}",
        ]
    )
