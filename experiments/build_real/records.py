"""Makes preference records of constraints: a request, responses that meet more or less of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

from experiments.build_real.constraints import Constraint, Maker
from grm_jax.judgment.records import Record, Turn

# of which a request may have one beside another kind
WORDS = ("use_word", "avoid_word")
BESIDE_WORDS = ("first_word", "last_sentence", "capitals", "json_object")
TWO, THREE_RESPONSES = 0.3, 0.15  # shares of the records
TRIES = 30


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
) -> list[Made]:
    """Makes `each` records of every question, each of another kind; what does not come out is left
    out. A reward is the number of constraints that a response meets.
    """
    made, names = [], sorted(kinds)
    for number, (key, question) in enumerate(asked.items()):
        if len(texts := answers[key]) < 2:
            continue
        for i in range(each):
            rng = random.Random(f"{name} {seed} {key} {i}")
            kind = names[(number * each + i) % len(names)]
            record = _make(f"{name}/{key}/{i}", question, texts, kinds, kind, rng)
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
) -> Made | None:
    chosen = [kind]
    if kind in BESIDE_WORDS and set(WORDS) <= kinds.keys() and rng.random() < TWO:
        chosen.insert(0, rng.choice(WORDS))
    constraints = [kinds[name](rng, texts) for name in chosen]
    if None in constraints:
        return None
    wanted = 3 if rng.random() < THREE_RESPONSES else 2
    best, others = None, {}
    for _ in range(TRIES):
        text = rng.choice(texts)
        kept = [rng.random() < 0.5 for _ in constraints]
        for constraint, repaired in zip(constraints, kept):
            text = constraint.repair(text) if repaired else constraint.break_(text)
        met = sum(constraint.check(text) for constraint in constraints)
        if met == len(constraints) and best is None:
            best = text
        elif met < len(constraints) and text.strip() and len(others) < wanted - 1:
            others[text] = met
        if best is not None and len(others) == wanted - 1:
            break
    else:
        return None
    responses = [(best, len(constraints)), *others.items()]
    rng.shuffle(responses)
    record = Record(
        id=record_id,
        conversation=(Turn("user", " ".join([question, *(c.ask for c in constraints)])),),
        responses=tuple(text for text, _ in responses),
        rewards=tuple(float(met) for _, met in responses),
        domain=kind,
        metadata={"kinds": chosen},
    )
    return Made(record, tuple(constraints))


def written_judgment(made: Made, order: Sequence[int], rng: random.Random) -> str:
    r"""Writes the judgment of a record whose gold is computed: what each check found, and scores.

    In the form of the template: principles with weights, a line on each response, a box.
    """
    names = [constraint.name for constraint in made.constraints]
    weight = 80 // len(names)
    principles = [f"{name} ({weight}%)" for name in names] + ["answers the request (20%)"]
    lines, scores = [], []
    for number, index in enumerate(order, 1):
        text, said, met = made.record.responses[index], [], 0
        for constraint in made.constraints:
            right = constraint.check(text)
            said.append(f"{constraint.say(text, right)} ({'right' if right else 'wrong'})")
            met += right
        lines.append(f"Response {number}: {'; '.join(said)}.")
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
