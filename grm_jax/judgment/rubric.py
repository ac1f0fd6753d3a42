r"""Reads a judgment by a rubric: a score for each criterion and response, the total by the weights.

The criteria and their weights are the record's (`records.Criterion`), and the model writes no
total. Behind the last "Scores:" heading, or anywhere where there is none, each criterion stands by
its name before a box with one integer for each response:

    Scores:
    accuracy: \boxed{8, 3}
    brevity: \boxed{4, 9}

All on one line does as well, and names may be numbered, marked as Markdown and in other capitals.
A box is read as `parsing` reads it, and fails by its names. Further failures:

    unknown_criterion    a box behind a name that is none of the rubric's, "Overall" say, or none
    repeated_criterion   two boxes of one criterion
    missing_criterion    a criterion without a box
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from grm_jax.judgment.fences import fenced
from grm_jax.judgment.parsing import ANALYSIS_HEADINGS, DECORATION, ParseFailure, parse_judgment
from grm_jax.judgment.reasoning import blanked
from grm_jax.judgment.records import SCORES_HEADINGS, Criterion, criterion_key, to_record_order

REASONS = ("unknown_criterion", "repeated_criterion", "missing_criterion")
LOW, HIGH = 1, 10  # of a criterion's score, for one response too
_BOX = re.compile(r"\\boxed\{[^{}]*\}")
_NUMBERING = re.compile(
    r"(?:criterion\s+)?\(?[0-9]{1,3}[.):]\s+|criterion\s+[0-9]{1,3}\s*[.):]?\s+"
)


def _heading(labels: Sequence[str]) -> re.Pattern[str]:
    """A line that opens with one of the labels and a colon, or is nothing else."""
    return re.compile(
        rf"^[{re.escape(DECORATION)}0-9.)(]*(?:{'|'.join(labels)})[*_` \t]*(?:[:：]|$)",
        re.IGNORECASE | re.MULTILINE,
    )


_SCORES, _ANALYSIS = _heading(SCORES_HEADINGS), _heading(ANALYSIS_HEADINGS)


def read_rubric(
    text: str,
    order: Sequence[int],
    rubric: Sequence[Criterion],
    truncated: bool = False,
    opened: str = "",
) -> dict:
    """Reads a completion about the n responses shown in `order`, judged by `rubric`.

    Returns {"scores", "failure", "principles", "critique", "criteria"}. criteria: for each
    criterion of the rubric n integers from 1 to 10, in the record's order. scores: their means
    by the weights (`weighted`). Both are None with the reason in `failure`. principles: those of
    the rubric. opened: as in `reasoning.blanked`. Linear time.
    """
    read = _scores(text, blanked(text, opened), order, rubric, truncated)
    if isinstance(read, str):
        return {"scores": None, "failure": read, "principles": [], "critique": "", "criteria": None}
    criteria, critique = read
    return {
        "scores": weighted(criteria, rubric),
        "failure": None,
        "principles": [[criterion.name, criterion.weight] for criterion in rubric],
        "critique": critique,
        "criteria": criteria,
    }


def weighted(scores_CN: Sequence[Sequence[int]], rubric: Sequence[Criterion]) -> list[float]:
    """Returns for each of N responses the mean of its C scores by the weights of the rubric.

    Weights count as the decimal numbers that they are written as, and the mean is rounded once: two
    responses whose means are equal get equal floats.
    """
    weights = [Fraction(repr(criterion.weight)) for criterion in rubric]
    whole = sum(weights)
    return [
        float(sum(w * score for w, score in zip(weights, scores, strict=True)) / whole)
        for scores in zip(*scores_CN, strict=True)
    ]


def _scores(
    text: str, answer: str, order: Sequence[int], rubric: Sequence[Criterion], truncated: bool
) -> tuple[list[list[int]], str] | str:
    """(scores by criterion, critique), or the reason of a failure."""
    if truncated:
        return "truncated"
    headings = [*_SCORES.finditer(answer)]
    start = headings[-1].end() if headings else 0
    boxes = [*_BOX.finditer(answer, start)]
    if not boxes:
        return "only_reasoning" if _BOX.search(text) and not _BOX.search(answer) else "no_box"
    # a name that imitates a mark of the prompt is shown with a backslash in it
    at = {criterion_key(fenced(criterion.name)): i for i, criterion in enumerate(rubric)}
    at |= {criterion_key(criterion.name): i for i, criterion in enumerate(rubric)}
    found: dict[int, list[int]] = {}
    last = start
    for box in boxes:
        label = answer[last : box.start()].strip().rpartition("\n")[2]
        i = _criterion(label, at)
        if i is None:
            return "unknown_criterion"
        if i in found:
            return "repeated_criterion"
        parsed = parse_judgment(box.group(), len(order), LOW, HIGH)
        if isinstance(parsed, ParseFailure):
            return parsed.reason
        found[i] = [int(score) for score in to_record_order(parsed.scores, order)]
        last = box.end()
    if len(found) < len(rubric):
        return "missing_criterion"
    before = answer[: headings[-1].start()] if headings else answer[: boxes[0].start()]
    analysis = _ANALYSIS.search(before)
    critique = before[analysis.end() if analysis else 0 :]
    critique = re.sub(r"\n{3,}", "\n\n", critique).strip()
    return [found[i] for i in range(len(rubric))], critique


def _criterion(label: str, at: dict[str, int]) -> int | None:
    """The index of the criterion that a label names; None where it names none."""
    key = criterion_key(label)
    if key in at:
        return at[key]
    bare = _NUMBERING.match(key)
    return None if bare is None else at.get(criterion_key(key[bare.end() :]))
