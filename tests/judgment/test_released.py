"""Scores as the code on the card of DeepSeek-GRM reads them, and verdicts of pairwise judges."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judgment.parsing import (
    RELEASED,
    Choice,
    Judgment,
    ParseFailure,
    parse_letter,
    parse_released,
    read_answer,
)


def of_the_card(text):
    """What the released code gives: a list of any length."""
    matches = re.findall(RELEASED, text)
    numbers = []
    for item in matches[-1].split(",") if matches else ():
        try:
            numbers.append(float(item))
        except ValueError:
            continue
    return [min(max(number, 1.0), 10.0) for number in numbers]


# text, n, the scores or the failure, whether the strict reading gives the same
READINGS = [
    ("\\boxed{8, 8}", 2, (8, 8), True),
    ("### Output:\n**\\boxed{8, 7}**", 2, (8, 7), True),
    ("\\\\boxed{8, 7}", 2, (8, 7), True),
    ("\\boxed{8.5, 7}", 2, (8.5, 7), False),
    ("[8, 7]", 2, (8, 7), False),
    ("\\boxed{11, 7}", 2, (10, 7), False),
    ("\\boxed{0, -3}", 2, (1, 1), False),
    ("\\boxed{8, 7,}", 2, (8, 7), False),
    ("\\boxed{Scores, 8, 7}", 2, (8, 7), False),
    # the released code gives one score, or none, to two responses here
    ("\\boxed{8, 7} See [1].", 2, "wrong_count", False),
    ("\\boxed{8, 7} [sic]", 2, "not_a_number", False),
    ("\\boxed{8, nan}", 2, "wrong_count", False),
    ("\\boxed{[8, 7]}", 2, "wrong_count", False),
    ("\\boxed{8/10, 7/10}", 2, "not_a_number", True),
    ("\\boxed{\\text{8}, 7}", 2, "not_a_number", True),
    ("\\boxed{8, 7}", 3, "wrong_count", True),
    ("8, 7", 2, "no_box", True),
    ("\\boxed{8, 7", 2, "no_box", True),
    ("\\boxed{}", 2, "no_box", False),
    ("<think>\\boxed{8, 7}</think> none", 2, "only_reasoning", True),
    ("\\boxed{1}", 1, (1,), True),
    ("[0]", 1, (0,), False),
    ("\\boxed{0.5}", 1, "out_of_range", False),
    ("\\boxed{7}", 1, "out_of_range", True),
]


@pytest.mark.parametrize("text, n, expected, same", READINGS)
def test_scores_are_the_released_codes_or_a_named_failure(text, n, expected, same):
    parsed = parse_released("Analysis: fine.\n" + text, n)
    if isinstance(expected, str):
        assert parsed == ParseFailure(expected)
    else:
        assert isinstance(parsed, Judgment) and parsed.scores == expected
        assert parsed.critique.startswith("fine.")
        if n > 1:
            assert of_the_card(text) == list(expected)
    order = tuple(reversed(range(n)))
    read = read_answer("Analysis: fine.\n" + text, order, parsing="released")
    assert read["scores"] == (None if isinstance(expected, str) else list(expected)[::-1])
    strict = {name: read[name] for name in ("scores", "failure")}
    assert (read["strict"] == strict) == same
    assert read["strict"] == {
        name: read_answer("Analysis: fine.\n" + text, order)[name] for name in strict
    }


def test_a_score_from_1_to_10_of_a_single_response_and_a_text_that_was_cut():
    assert parse_released("\\boxed{11.5}", 1, answer="ten").scores == (10.0,)
    assert parse_released("\\boxed{8, 7}", 2, truncated=True) == ParseFailure("truncated")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["\\boxed{", "\\\\boxed{", "[", "]", "}", "{", "\\", " ", ",", "8", "7.5", "x", "\n"]
        ),
        max_size=40,
    ).map("".join),
    st.integers(2, 3),
)
def test_any_text_gives_what_the_released_code_gives_or_no_scores(text, n):
    parsed, card = parse_released(text, n), of_the_card(text)
    if isinstance(parsed, Judgment):
        assert list(parsed.scores) == card
    else:
        assert len(card) != n


@pytest.mark.parametrize("unit", ["[", "\\boxed{", "[ ", "[[", "<answer>", "\\boxed{\\text{", "[]"])
def test_a_huge_text_is_read(unit):
    """In time that is linear: what is not takes minutes."""
    many = unit * (200_000 // len(unit))
    for text in (many, f"\\boxed{{{many}", f"\\boxed{{{' ' * 200_000}{unit}"):
        for parse in (parse_released, parse_letter):
            assert isinstance(parse(text, 2), ParseFailure)


@pytest.mark.parametrize(
    "text, n, chosen",
    [
        ("[[A]]", 2, 0),
        ("<answer>[[B]]</answer>", 2, 1),
        ("<answer> B </answer>", 2, 1),
        ("\\boxed{A}", 2, 0),
        ("\\boxed{\\text{B}}", 2, 1),
        ("\\boxed{ \\text{B} }", 2, 1),
        ("<answer>\\boxed{B}</answer>", 2, 1),
        ("[[B]] is wrong. \\boxed{\\textbf{A}}", 2, 0),
        ("[[B]] is wrong. \\boxed{\\mathbf{A}}", 2, 0),
        ("[[A]] \\boxed{\\frac{1}{2}}", 2, "not_a_letter"),
        ("[[B]] is wrong. \\boxed{\\textbf{\\text{ A } }}", 2, 0),
        ("[[B]] is wrong. \\boxed{\\text{A} > \\text{B}}", 2, "not_a_letter"),
        ("\\boxed{Assistant 2}", 2, 1),
        ("My final verdict is: [[A>>B]]", 2, 0),
        ("[[B>A]]", 2, 1),
        ("[[A<B]]", 2, 1),
        ("[[A=B]]", 2, None),
        ("[[C]]", 2, None),
        ("<answer>tie</answer>", 2, None),
        ("[[C]]", 3, 2),
        ("[[Response d]]", 4, 3),
        ("[[A]] at first, but [[B]]", 2, 1),
        ("<think>[[A]]</think>[[B]]", 2, 1),
        ("<think>[[A]]</think> none", 2, "only_reasoning"),
        ("[[A>B]]", 3, "not_a_letter"),
        ("[[D]]", 3, "out_of_range"),
        ("[[0]]", 2, "out_of_range"),
        ("[[ ]]", 2, "empty_box"),
        ("[[both are bad]]", 2, "not_a_letter"),
        ("A", 2, "no_box"),
    ],
)
def test_verdicts_of_pairwise_judges(text, n, chosen):
    text = f"Analysis: B is longer.\n{text}"
    parsed, order = parse_letter(text, n), tuple(reversed(range(n)))
    read = read_answer(text, order, "letter")
    if isinstance(chosen, str):
        assert parsed == ParseFailure(chosen)
        assert (read["scores"], read["failure"]) == (None, chosen)
        return
    assert isinstance(parsed, Choice) and parsed.chosen == chosen
    start, end = parsed.span
    assert text[start:end] == text[start:end].strip() != ""
    assert parsed.critique.startswith("B is longer.")
    shown = [0.5] * n if chosen is None else [int(i == chosen) for i in range(n)]
    assert read["scores"] == shown[::-1] and sum(read["scores"]) == 1


@pytest.mark.parametrize("parsing, answer", [("strict", "scores"), ("released", "scores")])
def test_what_a_prompt_opened_and_nobody_closed_is_no_answer(parsing, answer):
    text = "hm, \\boxed{8, 7}"
    read = read_answer(text, (0, 1), answer, parsing=parsing, opened="<think>")
    assert read["failure"] == "only_reasoning"
    closed = read_answer(
        f"{text}</think>\\boxed{{1, 9}}", (0, 1), answer, False, parsing, "<think>"
    )
    assert closed["scores"] == [1, 9]
    other = "hm [THINK] </think> \\boxed{8, 7}"  # inside a block its own kind of mark counts
    assert read_answer(other, (0, 1), answer, False, parsing, "<think>")["scores"] == [8, 7]
    nested = "hm <think> </think> \\boxed{8, 7}"
    assert read_answer(nested, (0, 1), opened="<think>")["failure"] == "only_reasoning"
