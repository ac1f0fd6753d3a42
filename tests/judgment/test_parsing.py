import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judgment.parsing import (
    FAILURE_REASONS,
    Choice,
    Judgment,
    ParseFailure,
    parse_choice,
    parse_judgment,
    read_answer,
)

TINY = (
    "Specific Criteria: order 7, case 3\nAnalysis: order: 1.fox 2.ant\nResponse 1: "
    "good\nResponse 2: bad\nScores: \\boxed{9, 2}"
)


def test_compact_judgment():
    assert parse_judgment(TINY, 2) == Judgment(
        (("order", 7.0), ("case", 3.0)),
        "order: 1.fox 2.ant\nResponse 1: good\nResponse 2: bad",
        (9, 2),
    )


MARKDOWN = """### Specific Criteria:
1. **Accuracy** (Weight: 40%): the facts hold.
   - sub-point (20%)
2. **Clarity (Weight: 0.3)**: easy to follow.
3. Depth - weight 30 %

### Analysis:
**Response 1:** right, but terse.
- Accuracy: \\boxed{7}

### Scores:
- Accuracy: \\boxed{9, 3}
- Clarity: \\boxed{2, 4}

### Output: **\\boxed{8, 5}**"""


def test_markdown_judgment_with_earlier_boxes():
    """The variety of Tab 17 of the paper: headings, criterion scores in boxes, the final box inside
    bold marks.
    """
    judgment = parse_judgment(MARKDOWN, 2)
    assert judgment.principles == (("Accuracy", 0.4), ("Clarity", 0.3), ("Depth", 0.3))
    assert judgment.scores == (8, 5)
    assert judgment.critique.startswith("**Response 1:** right") and judgment.critique.endswith(
        "\\boxed{7}"
    )


@pytest.mark.parametrize(
    "section, principles",
    [
        ("Specific Criteria: order 7", (("order", 7.0),)),
        (
            "Specific Criteria:\n- **Accuracy** (weight 0.4)\n- **Helpfulness**: 60%\n- Safety: "
            "nothing in 40 words harms",
            (("Accuracy", 0.4), ("Helpfulness", 0.6), ("Safety", None)),
        ),
        (
            "**Specific Criteria:** Accuracy (40%, main), Clarity [30%]; Style",
            (("Accuracy", 0.4), ("Clarity", 0.3), ("Style", None)),
        ),
        ("## 1. Principles\n(1) Truth: 3\n(2) Tone: 1", (("Truth", 3.0), ("Tone", 1.0))),
        ("Criteria:\nTruth (Weight: 5)\nTone (Weight: 5)", (("Truth", 5.0), ("Tone", 5.0))),
        (
            "Specific Criteria:\n1. 准确性（Weight: 40%）：事实\n2. 安全",
            (("准确性", 0.4), ("安全", None)),
        ),
        ("Specific Criteria:", ()),
        ("Specific Criteria: 40%", ()),
        ("Specific Criteria: " + "a long sentence that is no name at all " * 3, ()),
        ("", ()),
    ],
)
def test_principles(section, principles):
    assert parse_judgment(f"{section}\n**Analysis**\nfine\nScores: \\boxed{{3}}", 1) == Judgment(
        principles, "fine", (3,)
    )


def test_sections_are_optional():
    assert parse_judgment("I like the first. \\boxed{8, 2} Thanks!", 2) == Judgment(
        (), "I like the first.", (8, 2)
    )
    assert parse_judgment("Analysis: a\nb\nTherefore \\boxed{1}", 1).critique == "a\nb\nTherefore"
    assert parse_judgment("\\boxed{1}", 1) == Judgment((), "", (1,))


@pytest.mark.parametrize(
    "box, n, reason",
    [
        ("", 2, "no_box"),
        ("Scores: 9, 2", 2, "no_box"),
        ("\\boxed(9, 2)", 2, "no_box"),
        ("\\boxed{9, 2", 2, "no_box"),
        ("\\boxed{9, 2} or \\boxed{9, {3", 2, "no_box"),
        ("\\boxed{}", 1, "empty_box"),
        ("\\boxed{ \n }", 1, "empty_box"),
        ("\\boxed{9, 2}", 3, "wrong_count"),
        ("\\boxed{9, 2,}", 2, "wrong_count"),
        ("\\boxed{9 2}", 2, "wrong_count"),
        ("\\boxed{9，2}", 2, "wrong_count"),
        ("\\boxed{9, 2} \\boxed{9}", 2, "wrong_count"),
        ("\\boxed{9, }", 2, "not_a_number"),
        ("\\boxed{9, eight}", 2, "not_a_number"),
        ("\\boxed{9/10, 8/10}", 2, "not_a_number"),
        ("\\boxed{\\text{9}, 8}", 2, "not_a_number"),
        ("\\boxed{9, ８}", 2, "not_a_number"),
        ("\\boxed{9, ²}", 2, "not_a_number"),
        ("\\boxed{9, 1_0}", 2, "not_a_number"),
        ("\\boxed{9, nan}", 2, "not_a_number"),
        ("\\boxed{9, inf}", 2, "not_a_number"),
        ("\\boxed{x, x}", 2, "not_a_number"),
        ("\\boxed{9, 8.5}", 2, "not_an_integer"),
        ("\\boxed{9, 8.0}", 2, "not_an_integer"),
        ("\\boxed{9, 1e1}", 2, "not_an_integer"),
        ("\\boxed{9, .5}", 2, "not_an_integer"),
        ("\\boxed{0, 9}", 2, "out_of_range"),
        ("\\boxed{9, 11}", 2, "out_of_range"),
        ("\\boxed{9, -3}", 2, "out_of_range"),
        ("\\boxed{9, " + "9" * 5000 + "}", 2, "out_of_range"),
        ("\\boxed{8.5, eight}", 2, "not_an_integer"),
    ],
)
def test_every_failure_is_named(box, n, reason):
    assert parse_judgment("Specific Criteria: a 1\nAnalysis: b\n" + box, n) == ParseFailure(reason)


def test_truncated_text_fails_even_with_a_box():
    assert parse_judgment(TINY, 2, truncated=True) == ParseFailure("truncated")


@pytest.mark.parametrize(
    "box, scores", [("{8, 10}", (8, 10)), ("{ 8 ,\n1 }", (8, 1)), ("{08,+3}", (8, 3))]
)
def test_accepted_spellings(box, scores):
    assert parse_judgment("\\boxed" + box, 2).scores == scores


def test_single_response_range():
    assert [parse_judgment(f"\\boxed{{{s}}}", 1, 0, 1) for s in (0, 1, 2)] == [
        Judgment((), "", (0,)),
        Judgment((), "", (1,)),
        ParseFailure("out_of_range"),
    ]


scores = st.lists(st.integers(1, 10), min_size=1, max_size=7).map(tuple)
pieces = st.lists(
    st.sampled_from(
        [
            "\\boxed{",
            "}",
            "{",
            "\\boxed",
            "9",
            ",",
            " ",
            "\n",
            "Scores:",
            "Analysis:",
            "Specific Criteria:",
            "- ",
            "1. ",
            "(40%)",
            "weight 3",
            "**",
            "\u2028",
            "８",
            "é",
            "\x00",
        ]
    ),
    max_size=30,
).map("".join) | st.text(max_size=40)


@settings(max_examples=150)
@given(pieces, scores)
def test_a_final_box_decides_whatever_stands_before_it(before, values):
    judgment = parse_judgment(before + "\\boxed{" + ", ".join(map(str, values)) + "}", len(values))
    assert isinstance(judgment, Judgment) and judgment.scores == values


@settings(max_examples=150)
@given(pieces, st.integers(1, 4))
def test_any_text_gives_scores_in_range_or_a_named_failure(text, n):
    result = parse_judgment(text, n)
    if isinstance(result, ParseFailure):
        assert result.reason in FAILURE_REASONS
    else:
        assert len(result.scores) == n and all(
            type(s) is int and 1 <= s <= 10 for s in result.scores
        )
        assert all(
            name.strip() and (weight is None or weight >= 0) for name, weight in result.principles
        )


@pytest.mark.parametrize("text", [TINY, MARKDOWN])
def test_cut_text_never_invents_scores(text):
    """Every proper prefix either fails, or shows a box that the text had closed by then."""
    for end in range(len(text)):
        result = parse_judgment(text[:end], 2)
        if isinstance(result, Judgment):
            assert "\\boxed{" + ", ".join(map(str, result.scores)) + "}" in text[:end]


UNITS = [
    "\\boxed{",
    "{",
    "}",
    "{}",
    "\\",
    " ",
    "\n",
    "\t",
    "1",
    "1,",
    ", ",
    "(",
    "[",
    "()",
    "*",
    "#",
    "`",
    "weight",
    "weight:",
    "weight ",
    "weight 1",
    "1.",
    "(1) ",
    "- ",
    "\n- ",
    "1%",
    "1 %",
    "a 1",
    "a: ",
    " - ",
    "Scores:\n",
    "Analysis:\n",
    "Criteria:\n",
    "Scores: \\boxed{1}\n",
    "٣",
    "é",
    "\u2028",
]


@pytest.mark.parametrize("unit", UNITS)
def test_adversarial_text_takes_linear_time(unit):
    body = unit * (100_000 // len(unit))
    for text in (
        body,
        f"Specific Criteria: {body}\nAnalysis: x\nScores: \\boxed{{1, 2}}",
        f"Criteria: a\n- {body}x\\boxed{{1, 2}}",
        f"\\boxed{{{body}}}",
        f"\\boxed{{{body}x, 1}}",
    ):
        start = time.process_time()
        parse_judgment(text, 2)
        assert time.process_time() - start < 1.0


CHOICE = "Specific Criteria: order 7\nAnalysis: the second keeps it\nBest: \\boxed{2}"


def test_choice():
    choice = parse_choice(CHOICE, 2)
    assert choice == Choice(
        (("order", 7.0),), "the second keeps it", 1, (len(CHOICE) - 2, len(CHOICE) - 1)
    )
    assert parse_choice("\\boxed{1} no, \\boxed{ 03\n} it is", 3) == Choice(
        (), "\\boxed{1} no,", 2, (22, 24)
    )


@pytest.mark.parametrize(
    "box, n, reason",
    [
        ("", 2, "no_box"),
        ("Best: 2", 2, "no_box"),
        ("\\boxed{2", 2, "no_box"),
        ("\\boxed{1} \\boxed{2", 2, "no_box"),
        ("\\boxed{}", 2, "empty_box"),
        ("\\boxed{1, 2}", 2, "wrong_count"),
        ("\\boxed{2,}", 2, "wrong_count"),
        ("\\boxed{Response 2}", 2, "not_a_number"),
        ("\\boxed{B}", 2, "not_a_number"),
        ("\\boxed{\\text{2}}", 2, "not_a_number"),
        ("\\boxed{1 2}", 2, "not_a_number"),
        ("\\boxed{1} \\boxed{x}", 2, "not_a_number"),
        ("\\boxed{２}", 2, "not_a_number"),
        ("\\boxed{2.0}", 2, "not_an_integer"),
        ("\\boxed{0}", 2, "out_of_range"),
        ("\\boxed{3}", 2, "out_of_range"),
        ("\\boxed{-1}", 2, "out_of_range"),
        ("\\boxed{" + "9" * 5000 + "}", 2, "out_of_range"),
    ],
)
def test_every_failure_of_a_choice_is_named(box, n, reason):
    assert parse_choice("Specific Criteria: a 1\nAnalysis: b\nBest: " + box, n) == ParseFailure(
        reason
    )


def test_a_truncated_choice_fails_even_with_a_box():
    assert parse_choice(CHOICE, 2, truncated=True) == ParseFailure("truncated")


@settings(max_examples=150)
@given(
    pieces,
    st.integers(2, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.sampled_from(["", " ", "\n ", "\u3000"]),
    st.sampled_from(["", "0", "+"]),
)
def test_the_final_box_decides_the_choice_and_its_place_is_known(before, numbers, blank, sign):
    n, number = numbers
    text = f"{before}\\boxed{{{blank}{sign}{number}{blank}}} thanks"
    choice = parse_choice(text, n)
    assert isinstance(choice, Choice) and choice.chosen == number - 1
    assert text[slice(*choice.span)] == f"{sign}{number}"


@settings(max_examples=150)
@given(pieces, st.integers(2, 4), st.booleans())
def test_any_text_gives_a_choice_in_range_or_a_named_failure(text, n, truncated):
    result = parse_choice(text, n, truncated)
    if isinstance(result, ParseFailure):
        assert result.reason in FAILURE_REASONS
    else:
        assert (
            0 <= result.chosen < n
            and int(text[slice(*result.span)]) == result.chosen + 1
            and not truncated
        )


def test_cut_text_never_invents_a_choice():
    text = "Analysis: not \\boxed{1}, as it is late\nBest: \\boxed{2}"
    for end in range(len(text)):
        result = parse_choice(text[:end], 2)
        assert isinstance(result, ParseFailure) or (
            result.chosen == 0 and "\\boxed{1}" in text[:end]
        )


def test_an_answer_is_put_into_the_records_order():
    assert read_answer(TINY, (1, 0))["scores"] == [2, 9]
    assert read_answer(CHOICE, (2, 0, 1), "index") == {
        "scores": [1, 0, 0],
        "failure": None,
        "principles": [["order", 7.0]],
        "critique": "the second keeps it",
    }
    assert read_answer("\\boxed{1}", (0,)) == {
        "scores": [1],
        "failure": None,
        "principles": [],
        "critique": "",
    }
    assert read_answer("\\boxed{2}", (0,))["failure"] == "out_of_range"
    assert read_answer(TINY, (1, 0), truncated=True) == {
        "scores": None,
        "failure": "truncated",
        "principles": [],
        "critique": "",
    }
    assert read_answer(TINY, (1, 0), "index")["failure"] == "wrong_count"


@settings(max_examples=100)
@given(st.permutations(range(5)), st.integers(1, 5))
def test_a_choice_is_one_vote_for_one_response(order, number):
    scores = read_answer(f"\\boxed{{{number}}}", order, "index")["scores"]
    assert sum(scores) == 1 and scores[order[number - 1]] == 1
