"""Reads candidate solutions of GSM8K questions with verified correctness.

openai/grade-school-math's samples, and WildEval/ZeroEval's models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from grm_jax.benchmarks.base import Benchmark, Figures, Place, Reading, finish, texts, with_overall
from grm_jax.benchmarks.credit import best_of_k_figures, grouped, within_list_auc
from grm_jax.benchmarks.pairs import summarize_domains
from grm_jax.data.files import Row
from grm_jax.data.rows import row_text, row_value
from grm_jax.judgment.reasoning import without_reasoning
from grm_jax.judgment.records import Record, record_from_dict, seeded_digest

SAMPLERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
FORMS = ("pairs", "lists", "best_of_k")

PROTOCOLS = {
    "pairs": """One right and one wrong candidate of each question that has both, drawn as a
function of (seed, question). overall is the accuracy over the pairs; a tie counts 1/2 in
expectation.""",
    "lists": """For each question that has both, one right candidate, drawn as a function of (seed,
question), and all wrong ones. overall is the share of lists whose right candidate is chosen; a tie
of t counts 1/t in expectation. Candidates with the same text are one.""",
    "best_of_k": """Every candidate of every question judged alone. overall is the mean over
questions of the ROC area among its candidates; best_of_k the probability that the candidate with
the highest score among k is right, exactly over all subsets, ties broken at random, a candidate
without a score chosen last; ceiling the share of questions with a right candidate.""",
}
SOLUTIONS = (
    """Four model solutions of each GSM8K test question, marked right or wrong by the source."""
)
ZEROEVAL = """One greedy output a model of each GSM8K test question. It is right when the first
number in its "answer" field, and failing that in what follows the word answer, equals the reference
after removing $ and commas: the source's own rule, whose published accuracies it reproduces."""


class Candidate(NamedTuple):
    """Holds one solution: which model wrote it, its text, and whether it is right."""

    source: str
    text: str
    right: bool


class Question(NamedTuple):
    """Holds one question with its candidates; `where` opens messages of errors about it."""

    key: str
    text: str
    where: str
    candidates: tuple[Candidate, ...]


def load_solutions(name: str, place: Place, form: str = "pairs", seed: int = 0) -> Benchmark:
    """Reads grade_school_math/data/example_model_solutions.jsonl."""
    reading = Reading(place)
    questions = []
    for _, row in reading.rows():
        solutions = [(sampler, row_value(row, sampler, dict)) for sampler in SAMPLERS]
        for sampler, solution in solutions:
            if not isinstance(solution.get("solution"), str) or not isinstance(
                solution.get("is_correct"), bool
            ):
                raise ValueError(
                    f'{row.where}: field "{sampler}": expected an object with a text "solution" '
                    'and true or false "is_correct"'
                )
        candidates = tuple(
            Candidate(sampler, solution["solution"], solution["is_correct"])
            for sampler, solution in solutions
        )
        questions.append(Question(str(row.index), row_text(row, "question"), row.where, candidates))
    return _benchmark(name, reading, "gsm8k_solutions", SOLUTIONS, questions, form, seed)


def load_zeroeval(name: str, place: Place, form: str = "pairs", seed: int = 0) -> Benchmark:
    """Reads a folder of result files, one JSON list a model, over the same questions."""
    reading = Reading(place)
    text_of: dict[str, str] = {}
    candidates: dict[str, dict[str, Candidate]] = {}
    where: dict[str, str] = {}
    for part, row in reading.rows():
        model = part.rsplit("/", 1)[-1].split(".json")[0]
        key, question = row_text(row, "id"), row_text(row, "question")
        if text_of.setdefault(key, question) != question:
            raise ValueError(
                f'{row.where}: field "question": {key!r} is another question in {where[key]}'
            )
        where.setdefault(key, row.where)
        if model in candidates.setdefault(key, {}):
            raise ValueError(f'{row.where}: field "id": {key!r} occurs twice in this file')
        candidates[key][model] = Candidate(
            model, texts(row, "output", 1)[0], is_right(texts(row, "output", 1)[0], _reference(row))
        )
    models = {model for found in candidates.values() for model in found}
    for key, found in candidates.items():
        if found.keys() != models:
            absent = ", ".join(sorted(models - found.keys()))
            raise ValueError(
                f"{where[key]}: expected question {key!r} in the file of every model, it is not "
                f"in those of {absent}"
            )
    questions = [
        Question(
            key.rsplit("#", 1)[-1],
            text_of[key],
            where[key],
            tuple(found[model] for model in sorted(found)),
        )
        for key, found in candidates.items()
    ]
    return _benchmark(name, reading, "zeroeval_gsm", ZEROEVAL, questions, form, seed)


def _reference(row: Row) -> float:
    value = _first_number(row_text(row, "answer"))
    if value is None:
        raise ValueError(
            f'{row.where}: field "answer": expected a number, got {row.data["answer"]!r}'
        )
    return value


def is_right(output: str, reference: float) -> bool:
    """Says whether the number in the output's "answer" field is the reference.

    False where there is none.
    """
    answer = answer_field(output)
    return answer is not None and _first_number(answer) == reference


def answer_field(output: str) -> str | None:
    """Returns the "answer" of the first JSON object in the output, behind its reasoning.

    Where that cannot be read, what first follows the word answer.
    """
    output = without_reasoning(output)
    line = output.replace("\n", "")
    if "{" in line:
        try:
            found, _ = json.JSONDecoder().raw_decode(line, line.index("{"))
            if "answer" in found:
                return str(found["answer"])
        except (ValueError, RecursionError):
            pass  # not JSON: many outputs have bare calculations or quotes inside
    for pattern in (
        r'"answer"\s*:\s*"([^"]*)"',
        r'"answer"\s*:\s*([^,\s]*)',
        r"answer\s*:\s*([^,\s]*)",
    ):
        match = re.search(pattern, output)
        if match:
            return match.group(1)
    return None


def _first_number(text: str) -> float | None:
    match = re.search(r"-?\d+(\.\d+)?", text.replace("$", "").replace(",", ""))
    return float(match.group()) if match else None


def _benchmark(
    name: str,
    reading: Reading,
    family: str,
    source: str,
    questions: Sequence[Question],
    form: str,
    seed: int,
) -> Benchmark:
    if form not in FORMS:
        raise ValueError(
            f'benchmark {name!r}: field "form": expected one of {", ".join(FORMS)}, got {form!r}'
        )
    make = {"pairs": _pairs, "lists": _lists, "best_of_k": _singles}[form]
    records = [record for question in questions for record in make(family, question, seed)]
    right = [any(candidate.right for candidate in question.candidates) for question in questions]
    wrong = [
        not all(candidate.right for candidate in question.candidates) for question in questions
    ]
    counted = {
        "questions": len(questions),
        "questions with a right candidate": sum(right),
        "questions with right and wrong ones": sum(r and w for r, w in zip(right, wrong)),
    }
    metric, summarize = (
        ("roc_auc", summarize_best_of_k) if form == "best_of_k" else ("accuracy", summarize_domains)
    )
    return finish(
        name,
        reading,
        f"{source} {PROTOCOLS[form]}",
        records,
        metric,
        summarize,
        counted=counted,
        prompt_key="question",
    )


def _draw(candidates: Sequence[Candidate], purpose: str, seed: int, key: str) -> Candidate:
    return candidates[int.from_bytes(seeded_digest(purpose, seed, key), "big") % len(candidates)]


def _halves(question: Question) -> tuple[list[Candidate], list[Candidate]]:
    """(right, wrong) candidates of different texts."""
    distinct = list(
        {candidate.text: candidate for candidate in reversed(question.candidates)}.values()
    )[::-1]
    return [c for c in distinct if c.right], [c for c in distinct if not c.right]


def _make(
    family: str, question: Question, suffix: str, candidates: Sequence[Candidate], **gold
) -> Record:
    return record_from_dict(
        {
            "id": f"{family}/{question.key}{suffix}",
            "conversation": [{"role": "user", "content": question.text}],
            "responses": [candidate.text for candidate in candidates],
            "domain": family,
            "metadata": {
                "question": question.key,
                "models": [candidate.source for candidate in candidates],
            },
            **gold,
        },
        question.where,
    )


def _pairs(family: str, question: Question, seed: int) -> Iterator[Record]:
    right, wrong = _halves(question)
    if right and wrong:
        key = f"{family}/{question.key}"
        yield _make(
            family,
            question,
            "",
            [_draw(right, "right", seed, key), _draw(wrong, "wrong", seed, key)],
            best=0,
        )


def _lists(family: str, question: Question, seed: int) -> Iterator[Record]:
    right, wrong = _halves(question)
    if right and wrong:
        yield _make(
            family,
            question,
            "",
            [_draw(right, "right", seed, f"{family}/{question.key}"), *wrong],
            best=0,
        )


def _singles(family: str, question: Question, seed: int) -> Iterator[Record]:
    for candidate in question.candidates:
        yield _make(
            family, question, f"/{candidate.source}", [candidate], rewards=[float(candidate.right)]
        )


def summarize_best_of_k(records: Sequence[Record], scores: Mapping[str, float | None]) -> Figures:
    """Averages the ROC area inside each question, and gives the figures of best-of-k."""
    lists = list(grouped(scores, records, lambda record: record.metadata["question"]).values())
    return with_overall(best_of_k_figures(lists), within_list_auc(lists)) if lists else {}
