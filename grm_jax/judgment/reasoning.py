r"""Finds the reasoning in what a model wrote, which is no part of its answer.

A reasoning model drafts before it answers: a box in a draft is no verdict, and a heading in it no
principle. What counts as reasoning:

    <think> ... </think>                                     or thinking, thought(s), reasoning,
        reflection, scratchpad, inner_thoughts; capitals, attributes, a prefix ("x:think")
    [THINK] ... [/THINK]                                     Magistral
    <|START_THINKING|> ... <|END_THINKING|>                  Command
    <|begin_of_thought|> ... <|end_of_thought|>              Sky-T1, OpenThinker
    <|channel>thought ... <channel|>                         Gemma 4
    ◁think▷ ... ◁/think▷                                     Kimi
    <|channel|>analysis<|message|> ... <|end|>               gpt-oss (harmony): all but its channel
        "final"; where its control tokens are left out, all up to "assistantfinal"

A mark that never closes hides what follows it, and one that closes what was never opened hides all
before it, because chat templates open reasoning in the prompt. Blocks nest; inside a block only its
own kind of mark counts. A mark between quotes or backticks is spoken of, and hides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAMES = "think|thinking|thoughts?|reasoning|reflection|scratchpad|inner_thoughts"
_QUOTES = "`\"'“”‘’«»「」"
_MARK = re.compile(
    rf"""
      < (?P<tag_end> /? ) (?: [a-z]\w* : )? (?P<tag> {_NAMES} ) (?: \s [^<>]* )? (?<! / ) >
    | \[ (?P<square_end> /? ) (?P<square> think ) \]
    | ◁ (?P<kimi_end> /? ) (?P<kimi> think ) ▷
    | <\| (?: start | (?P<command_end> end ) ) _ (?P<command> thinking ) \|>
    | <\| (?: begin | (?P<sky_end> end ) ) _of_ (?P<sky> thought ) \|>
    | (?P<channel> <\|channel> | (?P<channel_end> <channel\|> ) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KINDS = ("tag", "square", "kimi", "command", "sky", "channel")
_HARMONY = re.compile(r"<\|(channel|message|start|end|return|call)\|>")
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[^\W\d_a-z])")  # "analysisWe need to ..."
_BARE_FINAL = "assistantfinal"

Span = tuple[int, int]  # characters text[start:end]


def is_mark(text: str) -> bool:
    """Says whether a text is one mark that opens or closes reasoning, and nothing else."""
    return bool(_MARK.fullmatch(text))


def template_marks(template: str) -> tuple[str, str] | None:
    """Finds the marks between which a chat template has reasoning: (opens, closes), or None.

    A template that only takes reasoning away names one of the two.
    """
    for mark in _MARK.finditer(template):
        kind = next(name for name in _KINDS if mark[name])
        if kind == "channel":
            return "<|channel>", "<channel|>"
        text, closes = mark.group(), bool(mark[f"{kind}_end"])
        if kind in ("command", "sky"):
            begins, ends = ("START", "END") if kind == "command" else ("begin", "end")
            other = text.replace(ends, begins) if closes else text.replace(begins, ends)
        else:  # <think>, [THINK], ◁think▷
            other = text.replace("/", "", 1) if closes else f"{text[0]}/{text[1:]}"
        return (other, text) if closes else (text, other)
    return None


def without_reasoning(text: str) -> str:
    """Returns the answer alone: the text itself where nothing in it is reasoning."""
    spans = reasoning_spans(text)
    if not spans:
        return text
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    answer = (text[start:end] for start, end in zip(starts, ends))
    return "\n".join(part for part in answer if part).strip()


def blanked(text: str, opened: str = "") -> str:
    """Returns a text of equal length, its reasoning written over with line breaks.

    opened: the mark that opens reasoning in which the prompt before the text ends; "" for none.
    """
    return _blanked(opened + text, reasoning_spans(opened + text))[len(opened) :]


def reasoning_spans(text: str) -> list[Span]:
    """Finds the spans of reasoning, marks included: in order, apart. Linear time."""
    channels = _outside_final(text)
    return _united([*channels, *_blocks(_blanked(text, channels))])


def _blanked(text: str, spans: list[Span]) -> str:
    pieces, last = [], 0
    for start, end in spans:
        pieces += [text[last:start], "\n" * (end - start)]
        last = end
    return "".join([*pieces, text[last:]]) if spans else text


def _united(spans: list[Span]) -> list[Span]:
    united: list[Span] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        elif end > start:
            united.append((start, end))
    return united


def _meant(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Finds the marks that are no quotation."""
    for mark in pattern.finditer(text):
        before, after = (
            text[max(0, mark.start() - 1) : mark.start()],
            text[mark.end() : mark.end() + 1],
        )
        if not (before and after and before in _QUOTES and after in _QUOTES):
            yield mark


def _blocks(text: str) -> list[Span]:
    """Spans between the marks of reasoning that open and close."""
    spans: list[Span] = []
    kind, depth, opened = None, 0, 0
    for mark in _meant(_MARK, text):
        name = next(n for n in _KINDS if mark[n])
        of_kind = (name, "" if name == "channel" else mark[name].lower())
        closes = bool(mark[f"{name}_end"])
        if depth == 0 and closes:
            spans = [(0, mark.end())]
        elif depth == 0:
            kind, depth, opened = of_kind, 1, mark.start()
        elif of_kind == kind:
            depth += -1 if closes else 1
            if depth == 0:
                spans.append((opened, mark.end()))
    return [*spans, (opened, len(text))] if depth else spans


def _outside_final(text: str) -> list[Span]:
    """Spans of a reply in channels (harmony) that are not the text of the channel "final"."""
    marks = [*_meant(_HARMONY, text)]
    if not any(mark[1] == "channel" for mark in marks):
        final = text.rfind(_BARE_FINAL)
        if final >= 0:
            return [(0, final + len(_BARE_FINAL))]
        return [(0, len(text))] if _BARE_ANALYSIS.match(text) else []
    spans: list[Span] = []
    last, channel = 0, ""  # the end of the answer so far
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends):
        if mark[1] == "channel":
            channel = text[mark.end() : end].strip().partition(" ")[0]
        elif mark[1] == "message" and channel == "final":
            spans.append((last, mark.end()))
            last = end
        elif mark[1] != "message":
            channel = ""
    return [*spans, (last, len(text))]
