"""Makes records whose rubric decides: a plain question, and criteria that a program can check.

The request asks for nothing; the criteria are the rubric's, with weights, and a response is worth
the weights of those that it meets. Of the two responses one often meets the one criterion and the
other the other, and always in twins: the weights say which is better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from experiments.build_real.constraints import TRAIN_KINDS, Constraint
from experiments.build_real.records import BESIDE_WORDS, TRIES, WORDS, Made, finding_line
from grm_jax.judgment.records import Criterion, Record, Turn

BESIDE = (*BESIDE_WORDS, "language", "most_words", "sentence_count")  # a criterion about words
WEIGHTS = (20, 30, 40)  # % of the lighter of two criteria
ONE, CONFLICT = 0.2, 0.6  # shares of the records with one criterion, and with a conflict of two
MET, NOT_MET = 9, 2  # scores; the weights decide for each of WEIGHTS


def make_rubrics(
    name: str,
    asked: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    each: int,
    seed: int,
    twins: bool = False,
) -> list[Made]:
    """Makes `each` records of two responses of every question; what does not come out is left out.

    twins: all of two criteria in conflict, each record twice (2 `each`), the second time with the
    weights exchanged: who does not see the weights, or does not follow them, is right in half.
    """
    made = []
    for key, question in asked.items():
        for i in range(each):
            rng = random.Random(f"{name} {seed} {key} {i}")
            kinds = [rng.choice(WORDS), rng.choice(BESIDE)]
            if not twins and rng.random() < ONE:
                kinds = [rng.choice(kinds)]
            constraints = [TRAIN_KINDS[kind](rng, answers[key]) for kind in kinds]
            if len(answers[key]) < 2 or None in constraints:
                continue
            rng.shuffle(constraints)
            conflict = len(kinds) == 2 and (twins or rng.random() < CONFLICT)
            responses = _two(answers[key], constraints, conflict, rng)
            if responses is None:
                continue
            lighter = rng.choice(WEIGHTS)
            weights = [100] if len(kinds) == 1 else [lighter, 100 - lighter]
            rng.shuffle(weights)
            for again in range(1 + twins):
                turned = weights[::-1] if again else weights
                record = _record(
                    f"{name}/{key}/{i}/{again}", question, responses, constraints, turned
                )
                made.append(Made(record, tuple(constraints)))
    return made


def _record(
    record_id: str,
    question: str,
    responses: Sequence[str],
    constraints: Sequence[Constraint],
    weights: Sequence[int],
) -> Record:
    worth = [
        sum(w for w, c in zip(weights, constraints, strict=True) if c.check(text)) / 100
        for text in responses
    ]
    return Record(
        id=record_id,
        conversation=(Turn("user", question),),
        responses=tuple(responses),
        rewards=tuple(worth),
        domain="+".join(sorted(c.kind for c in constraints)),
        metadata={"kinds": [c.kind for c in constraints]},
        rubric=tuple(Criterion(c.name, w) for c, w in zip(constraints, weights, strict=True)),
    )


def _two(
    texts: Sequence[str], constraints: Sequence[Constraint], conflict: bool, rng: random.Random
) -> list[str] | None:
    """Draws two responses that meet different criteria; in conflict: one each, not the same."""
    found: dict[tuple[bool, ...], str] = {}  # what is met: the first response that does so
    for _ in range(TRIES):
        text = rng.choice(texts)
        for constraint in constraints:
            repaired = rng.random() < 0.5
            text = constraint.repair(text) if repaired else constraint.break_(text)
        met = tuple(constraint.check(text) for constraint in constraints)
        if text.strip() and not (conflict and sum(met) != 1):
            found.setdefault(met, text)
        if len(found) == 2:
            responses = list(found.values())
            rng.shuffle(responses)
            return responses
    return None


def written_rubric_judgment(made: Made, order: Sequence[int]) -> str:
    r"""Writes the judgment of such a record, one criterion after the other.

    Principles are the criteria, with their weights in %. Under the name of each stands a line on
    each response, as in `written_judgment`, and behind these its box: a small model writes the
    scores that the lines before them say.
    """
    texts = [made.record.responses[index] for index in order]
    parts = []
    for constraint in made.constraints:
        scores = (str(MET if constraint.check(text) else NOT_MET) for text in texts)
        parts += [
            f"{constraint.name}:",
            *(finding_line(i, text, constraint) for i, text in enumerate(texts, 1)),
            f"{constraint.name}: \\boxed{{{', '.join(scores)}}}",
        ]
    principles = (f"{c.name} ({c.weight:g}%)" for c in made.record.rubric)
    return "\n".join([f"Principles: {', '.join(principles)}", "Analysis:", *parts])
