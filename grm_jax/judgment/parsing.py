r"""Reads a judge's completion: a Judgment (scores), a Choice, or a named ParseFailure.

There is never a default score. Scores are strict unless they are read as "released". Only the LAST
\boxed{...} counts: models print criterion scores and drafts before it. Its braces must balance, its
content is split at commas, and each item must be an integer in ASCII digits, with blanks around it
and a sign allowed ("8", " 8 ", "08", "-1"). Everything else is a failure, because leniency would
hide drift of the format, and dropping an item would shift the rest:

    no_box           no \boxed{ in the answer, or the last one never closes
    only_reasoning   every \boxed{ stands in the model's reasoning (`judgment.reasoning`)
    empty_box        nothing but blanks in it
    wrong_count      not n items
    not_a_number     an item such as "eight", "8/10", "\text{8}", "" or fullwidth digits
    not_an_integer   an item such as "8.5", "8.0" or "1e1"
    out_of_range     an integer below `low` or above `high`, a letter of no response
    not_a_letter     a verdict that is neither a letter nor a tie, where the answer is a "letter"
    truncated        the generation hit its length limit, whatever it contains

The reasoning before an answer ("<think> ... </think>") is no part of it: boxes and headings there
do not count. Of several bad items the first one names the failure. An answer by index is read by
the same rules: one item, an integer from 1 to n. `parse_released` reads scores as the code on the
card of DeepSeek-GRM does, `parse_letter` the verdicts of pairwise judges. Principles and critique
are read on a best-effort basis and never fail a judgment: headings may be bare ("Analysis:"),
Markdown ("### Scores:", "**Analysis**:") or numbered ("2. Analysis:"). All functions take time
linear in the length of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grm_jax.judgment.reasoning import blanked
from grm_jax.judgment.records import SCORES_HEADINGS, to_record_order
from grm_jax.judgment.rules import score_range

# what the answer holds: a score for each response (see `read_answer`), the number of the best
# response, or its letter
ANSWERS = ("scores", "ten", "index", "letter")
CHOICES = ("index", "letter")  # those that name one response, of two or more
PARSINGS = ("strict", "released")
FAILURE_REASONS = (
    "no_box",
    "only_reasoning",
    "empty_box",
    "wrong_count",
    "not_a_number",
    "not_an_integer",
    "out_of_range",
    "not_a_letter",
    "truncated",
)

BOX = r"\boxed{"
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# the code on the card of DeepSeek-GRM takes the last match of this; `_released` finds it in time
# that is linear in the text
RELEASED = r"(?:\\{1,2}boxed\{|\[)\s*([^\]\}]+?)\s*(?:\}|\])"
RELEASED_OPENS, RELEASED_CLOSES = re.compile(r"\\{1,2}boxed\{|\["), re.compile(r"[\]}]")
RELEASED_RANGE = (1.0, 10.0)
VERDICT = re.compile(
    r"\[\[(?P<brackets>[^\[\]\n]*)\]\]"
    r"|<answer>(?P<tag>(?:(?!</?answer>|\\boxed\{)[^\[])*)</answer>"
    r"|\\boxed\{(?P<box>(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]*+\})*+\})*+)\}",
    re.IGNORECASE,
)
MACRO = re.compile(r"\\(?:text|textbf|textrm|mathbf|mathrm)\{(?P<of>(?:[^{}\n]|\{[^{}\n]*+\})*+)\}")
# A, "Response A", "Assistant 1", A>B, A>>B, A=B
LETTER = re.compile(
    r"(?:(?:assistant|response|answer|candidate|chatbot|model|output)\s+)?"
    r"(?P<name>[a-z]|[0-9]{1,3})(?:\s*(?P<relation>>{1,2}|<{1,2}|=)\s*(?P<other>[a-z]))?",
    re.IGNORECASE,
)
MAX_DIGITS = 18  # longer integers are out of range without being computed

CRITERIA_HEADINGS = ("specific criteria", "evaluation criteria", "criteria", "principles")
ANALYSIS_HEADINGS = ("analysis", "critique")
OUTPUT_HEADINGS = ("output", "score", "best")

DECORATION = " \t#*_>`-"
LIST_MARK = re.compile(r"(?P<indent>[ \t]*)(?P<mark>[-*•]|\(?[0-9]{1,3}[.)])[ \t]+(?=\S)")
NAME_LIMIT = 80  # longer text before a weight or colon is prose, not a name
_WEIGHT = r"(?<![0-9.])(?P<number>[0-9]{1,6}(?:\.[0-9]{1,6})?)[ \t]?"
WEIGHTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # (Weight: 40%), weight 0.4, **Weight**: 3
        r"\bweight(?:ing|age)?\b[^\w\n]{0,6}" + _WEIGHT + r"(?P<percent>%?)",
        # (40%), [3]
        r"[(\[][ \t]?" + _WEIGHT + r"(?P<percent>%?)[ \t]?[)\]]",
        _WEIGHT + r"(?P<percent>%)",  # 40%
        r"(?<=[^\W\d_])[*_]{0,3}:?[ \t]" + _WEIGHT + r"(?P<percent>%?)[*_. \t]{0,6}$",  # order 7
    )
)
NAME_END = re.compile(r"[(（\[:：=]|[ \t][-–—][ \t]")


@dataclass(frozen=True)
class Judgment:
    """Holds what a completion says.

    principles: (name, weight as a number, or None where none is stated; 40% is 0.4).
    critique: the text of the analysis.
    scores: n numbers in PROMPT order, integers where the parsing is strict.
    """

    principles: tuple[tuple[str, float | None], ...]
    critique: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """Holds what a completion says that names the best response.

    principles, critique: as in Judgment.
    chosen: index (from 0) of the best response in PROMPT order; None where two are tied.
    span: the characters text[start:end] of the number or letter.
    """

    principles: tuple[tuple[str, float | None], ...]
    critique: str
    chosen: int | None
    span: tuple[int, int]


@dataclass(frozen=True)
class ParseFailure:
    """Says why a completion yields no scores; `reason` is one of FAILURE_REASONS."""

    reason: str


def parse_judgment(
    text: str, n: int, low: int = 1, high: int = 10, truncated: bool = False, opened: str = ""
) -> Judgment | ParseFailure:
    r"""Reads the n scores (low..high) in the last \boxed{...} of `text`, and what stands before it.

    That is principles and critique. opened: as in `read_answer`.
    """
    return _parse(text, blanked(text, opened), n, low, high, truncated)


def parse_released(
    text: str, n: int, truncated: bool = False, opened: str = "", answer: str = "scores"
) -> Judgment | ParseFailure:
    """Reads n scores as the code on the card of DeepSeek-GRM does.

    The last match of RELEASED counts, a box or any brackets; it is split at commas, numbers are
    kept as floats and clipped to [1, 10], other items dropped. That code gives a list of any
    length. Here another count than n is the failure "wrong_count" ("not_a_number" where no item is
    a number): which response a score belongs to is then not known. So are "no_box" without a match,
    "truncated" for a text that was cut. The score of a single response is 0 or 1 there: any other
    number is "out_of_range", unless the answer is "ten".
    """
    if truncated:
        return ParseFailure("truncated")
    answered = blanked(text, opened)
    match = _released(answered)
    if match is None:
        return ParseFailure("no_box" if _released(text) is None else "only_reasoning")
    start, content = match
    numbers = [number for item in content.split(",") if (number := _float(item)) is not None]
    if not numbers:
        return ParseFailure("not_a_number")
    if len(numbers) != n:
        return ParseFailure("wrong_count")
    if n == 1 and answer != "ten":
        if numbers[0] not in (0.0, 1.0):
            return ParseFailure("out_of_range")
        scores = tuple(numbers)
    else:
        low, high = RELEASED_RANGE
        scores = tuple(min(max(number, low), high) for number in numbers)
    before = _without_gaps(answered[:start], answered != text)
    return Judgment(*_principles_and_critique(before), scores)


def parse_choice(
    text: str, n: int, truncated: bool = False, opened: str = ""
) -> Choice | ParseFailure:
    r"""Reads the number (1..n) of the best response in the last \boxed{...} of `text`.

    And principles and critique before it.
    """
    answer = blanked(text, opened)  # what it holds stands at the same place in the text
    parsed = _parse(text, answer, 1, low=1, high=n, truncated=truncated)
    if isinstance(parsed, ParseFailure):
        return parsed
    start = answer.rfind(BOX) + len(BOX)
    content = answer[start : answer.index("}", start)]  # an integer: no brace inside
    start += len(content) - len(content.lstrip())
    return Choice(
        parsed.principles,
        parsed.critique,
        int(parsed.scores[0]) - 1,
        (start, start + len(content.strip())),
    )


def parse_letter(
    text: str, n: int, truncated: bool = False, opened: str = ""
) -> Choice | ParseFailure:
    r"""Reads the letter of the best response: the last [[A]], <answer>A</answer> or \boxed{A}.

    Of RM-R1, RRM, J1 and judges of their kind. A number counts as a letter ("Assistant 1"), a word
    for a response may stand before it. Of two responses [[C]], "tie" and A=B say that they are
    tied, A>B and A>>B that the first is better. A box is one that closes in its line, and may hold
    \text{A}, \textbf{A} and their like.
    """
    if truncated:
        return ParseFailure("truncated")
    answer = blanked(text, opened)
    verdicts = list(VERDICT.finditer(answer))
    if not verdicts:
        return ParseFailure("only_reasoning" if VERDICT.search(text) else "no_box")
    last = verdicts[-1]
    group = next(name for name in ("brackets", "tag", "box") if last[name] is not None)
    content, start = _stripped(last[group], last.start(group))
    while macro := MACRO.fullmatch(content):
        content, start = _stripped(macro["of"], start + macro.start("of"))
    if not content:
        return ParseFailure("empty_box")
    chosen = _chosen(content, n)
    if isinstance(chosen, ParseFailure):
        return chosen
    before = _without_gaps(answer[: last.start()], answer != text)
    return Choice(*_principles_and_critique(before), chosen, (start, start + len(content)))


def _stripped(text: str, start: int) -> tuple[str, int]:
    """A part of a text without outer white space, and where it begins."""
    return text.strip(), start + len(text) - len(text.lstrip())


def read_answer(
    text: str,
    order: Sequence[int],
    answer: str = "scores",
    truncated: bool = False,
    parsing: str = "strict",
    opened: str = "",
) -> dict:
    """Reads a completion about the n responses shown in `order`.

    Returns {"scores", "failure", "principles", "critique"}. `scores` are in the record's order, or
    None with the reason in `failure`: integers in `score_range(n)`; where the answer is "ten", from
    1 to 10 for a single response too (paper, D.1: ReaLMistake); where it is an "index" or a
    "letter", 1 for the chosen response and 0 for the others, 1/2 for each of two that are tied, so
    that a sum of scores is a count of votes.

    parsing: "strict", or "released" for scores as `parse_released` reads them; "strict" then holds
        the {"scores", "failure"} of the strict reading, beside it.
    opened: the mark that opens reasoning in which the prompt ends; "" for none.
    """
    n = len(order)
    low, high = score_bounds(n, answer)
    if answer in CHOICES:
        parse = parse_letter if answer == "letter" else parse_choice
        return _read(parse(text, n, truncated, opened), order)
    strict = parse_judgment(text, n, low, high, truncated, opened)
    if parsing == "strict":
        return _read(strict, order)
    beside = _read(strict, order)
    return _read(parse_released(text, n, truncated, opened, answer), order) | {
        "strict": {name: beside[name] for name in ("scores", "failure")}
    }


def _read(parsed: Judgment | Choice | ParseFailure, order: Sequence[int]) -> dict:
    if isinstance(parsed, ParseFailure):
        return {"scores": None, "failure": parsed.reason, "principles": [], "critique": ""}
    n = len(order)
    if isinstance(parsed, Judgment):
        shown = parsed.scores
    elif parsed.chosen is None:
        shown = [1 / n] * n
    else:
        shown = [int(position == parsed.chosen) for position in range(n)]
    return {
        "scores": list(to_record_order(shown, order)),
        "failure": None,
        "principles": [list(principle) for principle in parsed.principles],
        "critique": parsed.critique,
    }


def score_bounds(n: int, answer: str = "scores") -> tuple[int, int]:
    """Returns the (lowest, highest) score that `read_answer` gives to one of n responses."""
    return (0, 1) if answer in CHOICES else score_range(2 if answer == "ten" else n)


def score_span(n: int, answer: str = "scores") -> int | None:
    """Returns the largest difference of two scores that `read_answer` gives to n responses.

    Of a single response, which has no second, the largest of two judgments; None where its score
    says neither right nor wrong ("ten").
    """
    low, high = score_bounds(n, answer)
    return None if answer == "ten" and n == 1 else high - low


def _parse(
    text: str, answer: str, n: int, low: int, high: int, truncated: bool
) -> Judgment | ParseFailure:
    """Reads a judgment of `answer`: the text with its reasoning written over."""
    if truncated:
        return ParseFailure("truncated")
    start = answer.rfind(BOX)
    if start < 0:
        return ParseFailure("only_reasoning" if BOX in text else "no_box")
    content = _balanced(answer, start + len(BOX))
    if content is None:
        return ParseFailure("no_box")
    scores = _scores(content, n, low, high)
    if isinstance(scores, ParseFailure):
        return scores
    before = _without_gaps(answer[:start], answer != text)
    return Judgment(*_principles_and_critique(before), scores)


def _without_gaps(text: str, written_over: bool) -> str:
    """Text before a verdict, without the gaps that reasoning left where it was written over."""
    return re.sub(r"\n{3,}", "\n\n", text) if written_over else text


def _released(text: str) -> tuple[int, str] | None:
    """The start and the content of the last match of RELEASED."""
    last, at = None, 0
    while opens := RELEASED_OPENS.search(text, at):
        closes = RELEASED_CLOSES.search(text, opens.end())
        if closes is None:
            break
        content = text[opens.end() : closes.start()]
        if content:
            last, at = (opens.start(), content.strip()), closes.end()
        else:
            at = opens.end()
    return last


def _float(item: str) -> float | None:
    """A finite number as Python reads it; None for anything else."""
    try:
        number = float(item)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _chosen(content: str, n: int) -> int | None | ParseFailure:
    """The index of the response that a verdict names; None for a tie of two."""
    if n == 2 and content.lower() in ("c", "tie", "tied", "both"):
        return None
    match = LETTER.fullmatch(content)
    if not match:
        return ParseFailure("not_a_letter")
    name, relation, other = match["name"], match["relation"], match["other"]
    chosen = int(name) - 1 if name.isdigit() else ord(name.lower()) - ord("a")
    if not 0 <= chosen < n:
        return ParseFailure("out_of_range")
    if relation is None:
        return chosen
    second = ord(other.lower()) - ord("a")
    if n != 2 or {chosen, second} != {0, 1} or name.isdigit():
        return ParseFailure("not_a_letter")
    return None if relation == "=" else chosen if relation[0] == ">" else second


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the one before it; None when it never
    closes.
    """
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def _scores(content: str, n: int, low: int, high: int) -> tuple[int, ...] | ParseFailure:
    if not content.strip():
        return ParseFailure("empty_box")
    items = [item.strip() for item in content.split(",")]
    if len(items) != n:
        return ParseFailure("wrong_count")
    for item in items:
        if not NUMBER.fullmatch(item):
            return ParseFailure("not_a_number")
        if not INTEGER.fullmatch(item):
            return ParseFailure("not_an_integer")
        if len(item) > MAX_DIGITS or not low <= int(item) <= high:
            return ParseFailure("out_of_range")
    return tuple(int(item) for item in items)


def _principles_and_critique(text: str) -> tuple[tuple[tuple[str, float | None], ...], str]:
    """Sections of the text before the final box: the criteria, and the analysis up to the last
    heading of scores.
    """
    lines = text.split("\n")
    headings = [(i, kind, rest) for i, line in enumerate(lines) for kind, rest in _heading(line)]
    final = len(lines)  # no heading of scores: the analysis runs up to the box
    for kind in (SCORES_HEADINGS, OUTPUT_HEADINGS):
        of_kind = [i for i, heading_kind, _ in headings if heading_kind is kind]
        if of_kind:
            final = of_kind[-1]
            break
    headings = [heading for heading in headings if heading[0] < final]
    criteria = next(((i, rest) for i, kind, rest in headings if kind is CRITERIA_HEADINGS), None)
    analysis = next(
        (
            (i, rest)
            for i, kind, rest in headings
            if kind is ANALYSIS_HEADINGS and (not criteria or i > criteria[0])
        ),
        None,
    )
    principles: tuple[tuple[str, float | None], ...] = ()
    if criteria:
        end = analysis[0] if analysis else final
        principles = _principles([criteria[1], *lines[criteria[0] + 1 : end]])
    critique = [analysis[1], *lines[analysis[0] + 1 : final]] if analysis else lines[:final]
    return principles, "\n".join(critique).strip()


def principles_part(text: str) -> str:
    """Returns the beginning of a judgment that holds its principles, up to where it analyzes.

    Without blanks at the end: tokens join a line's end with what follows. "" where no heading of an
    analysis follows one of criteria, or scores stand before it.
    """
    lines = text.split("\n")
    kinds = [{kind for kind, _ in _heading(line)} for line in lines]
    criteria = next((i for i, kind in enumerate(kinds) if CRITERIA_HEADINGS in kind), len(lines))
    rest = range(criteria + 1, len(lines))
    analysis = next((i for i in rest if ANALYSIS_HEADINGS in kinds[i]), 0)
    part = "\n".join(lines[:analysis]).rstrip()
    return "" if BOX in part else part


def _heading(line: str) -> list[tuple[tuple[str, ...], str]]:
    """[(kind, rest of the line)] when the line is a heading, else []. A heading ends in a colon or
    stands alone.
    """
    core = line.strip(DECORATION + "\r").lstrip("0123456789.)(").lstrip(DECORATION)
    lowered = core[:30].lower()
    for kind in (CRITERIA_HEADINGS, ANALYSIS_HEADINGS, SCORES_HEADINGS, OUTPUT_HEADINGS):
        for label in kind:
            if lowered.startswith(label):
                rest = core[len(label) :].lstrip("*_` \t")
                if rest == "" or rest[0] in ":：":
                    return [(kind, rest[1:].lstrip("*_ \t"))]
    return []


def _principles(lines: list[str]) -> tuple[tuple[str, float | None], ...]:
    """Principles of a criteria section: a list's top-level entries, else the lines, else the parts
    of one line between commas.
    """
    marked = [(LIST_MARK.match(line), line) for line in lines]
    first = next((mark for mark, _ in marked if mark), None)
    if first:
        top_level = (first["indent"], first["mark"] in "-*•")
        entries = [
            line[mark.end() :]
            for mark, line in marked
            if mark and (mark["indent"], mark["mark"] in "-*•") == top_level
        ]
    else:
        entries = [line for line in lines if line.strip()]
        if len(entries) == 1:
            entries = _outside_brackets(entries[0])
    found = [_name_and_weight(entry) for entry in entries]
    return tuple(principle for principle in found if principle)


def _outside_brackets(line: str) -> list[str]:
    """Parts of a line between commas or semicolons that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for mark in re.finditer(r"[()\[\],;]", line):
        if mark.group() in "([":
            depth += 1
        elif mark.group() in ")]":
            depth = max(0, depth - 1)
        elif depth == 0:
            parts.append(line[start : mark.start()])
            start = mark.end()
    return [*parts, line[start:]]


def _name_and_weight(entry: str) -> tuple[str, float | None] | None:
    """("Accuracy", 0.4) from "**Accuracy** (Weight: 40%): ..."; None when no name of at most
    NAME_LIMIT characters stands first.
    """
    match = next((match for pattern in WEIGHTS if (match := pattern.search(entry))), None)
    head = entry[: match.start()] if match else entry
    end = NAME_END.search(head)
    name = (head[: end.start()] if end else head).strip(DECORATION + " .\r,;")
    if not name or len(name) > NAME_LIMIT:
        return None
    if match is None:
        return name, None
    return name, float(match["number"]) / (100.0 if match["percent"] else 1.0)
