r"""Reasoning is no part of an answer: a box in a draft is no verdict, whatever marks the draft."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.benchmarks.gsm8k import answer_field
from grm_jax.judgment.parsing import (
    FAILURE_REASONS,
    Judgment,
    ParseFailure,
    parse_choice,
    parse_judgment,
    read_answer,
)
from grm_jax.judgment.reasoning import blanked, reasoning_spans, without_reasoning
from grm_jax.judgment.rules import is_correct

PAIRS = [  # what opens reasoning, and what closes it
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "thoughts")),
    *((f"<{name}>", f"</{name}>") for name in ("reasoning", "reflection", "scratchpad")),
    ("<inner_thoughts>", "</inner_thoughts>"),
    ("<THINK>", "</Think>"),
    ('<think budget="4096">', "</think >"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe see ", "assistantfinal"),
]
DRAFT = "Specific Criteria: draft 9\nAnalysis: perhaps\nScores: \\boxed{3, 9}"
ANSWER = "Specific Criteria: order 7\nAnalysis: fine\nScores: \\boxed{8, 2}"
PARSED = Judgment((("order", 7.0),), "fine", (8, 2))


@pytest.mark.parametrize("opening, closing", PAIRS)
def test_a_draft_is_no_verdict_and_its_headings_are_no_principles(opening, closing):
    refusal = f"{opening}{DRAFT}{closing}I cannot judge these."
    assert parse_judgment(refusal, 2) == ParseFailure("only_reasoning")
    assert parse_judgment(opening + DRAFT, 2) == ParseFailure("only_reasoning"), "never closes"
    assert parse_judgment(f"{opening}{DRAFT}{closing}\n\n{ANSWER}", 2) == PARSED
    assert parse_judgment(f"{DRAFT}{closing}\n{ANSWER}", 2) == PARSED, "opened in the prompt"
    assert without_reasoning(f"\n{opening}{DRAFT}{closing}\n\n{ANSWER}\n") == ANSWER
    judged = read_answer(refusal, (1, 0))
    assert judged == {"scores": None, "failure": "only_reasoning", "principles": [], "critique": ""}
    assert not is_correct(judged["scores"], (1.0, 0.0)), "so training rewards it as wrong"


@pytest.mark.parametrize(
    "text, scores",
    [
        # behind the verdict
        (ANSWER + "<think>or \\boxed{1, 1}?</think>", (8, 2)),
        (ANSWER + "<think>or \\boxed{1, 1}?", (8, 2)),
        # several, nested, of two kinds
        ("<think>\\boxed{1, 1}</think>a<think>\\boxed{2, 2}</think>\\boxed{8, 2}", (8, 2)),
        ("<think>a<think>b</think>\\boxed{3, 9}</think>\\boxed{8, 2}", (8, 2)),
        ("<think>a<think>b</think>\\boxed{3, 9}", None),
        ("<thinking>a<reflection>b</reflection>\\boxed{3, 9}</thinking>no", None),
        ("<thinking>a<reflection>b</reflection>\\boxed{3, 9}", None),
        ("<think>\\boxed{3, 9}</thinking>", None),
        ("<think>\\boxed{1, 1}</think>\\boxed{3, 9}</think>no", None),
        # inside code
        ("```\n<think>\\boxed{3, 9}</think>\n```\nI cannot judge.", None),
        ("```xml\n<think>\\boxed{3, 9}\n```", None),
        # spoken of
        ("Response 1 leaks its `<think>` tag. \\boxed{8, 2}", (8, 2)),
        ("\\boxed{8, 2} It ends in '</think>', or \"<|channel|>\", or “[/THINK]”.", (8, 2)),
        ("<think>it shows `</think>` \\boxed{3, 9}</think>no", None),
        # across a box
        ("\\boxed{8, <think>3, </think>2}", (8, 2)),
        ("\\boxed{1<think></think>0, 2}", None),
        ("\\bo<think></think>xed{8, 2}", None),
        # no marks of reasoning
        ("<thinker>\\boxed{8, 2}", (8, 2)),
        ("<think/>\\boxed{8, 2}", (8, 2)),
        ("think>\\boxed{8, 2}", (8, 2)),
        ("<b>thinking</b> analysis: \\boxed{8, 2}", (8, 2)),
        ("analysis: a\nassistantfinal \\boxed{8, 2}", (8, 2)),
        ("<think", None),
        # channels
        ("<|channel|>analysis<|message|>\\boxed{3, 9}<|channel|>final<|message|>no", None),
        ("<|channel|>commentary to=x<|message|>\\boxed{3, 9}<|call|>", None),
        ("<|channel|>final<|message|>\\boxed{8, 2}<|return|>", (8, 2)),
        ("<|channel|>final <|constrain|>json<|message|>\\boxed{8, 2}<|end|>x", (8, 2)),
        ("<|channel|>final<|message|><think>\\boxed{3, 9}</think>no", None),
    ],
)
def test_what_is_reasoning_and_what_is_not(text, scores):
    result = parse_judgment(text, 2)
    assert getattr(result, "scores", None) == scores
    assert len(blanked(text)) == len(text)


def test_the_answer_keeps_what_stands_around_reasoning_in_its_middle():
    text = "Criteria: a 1\n<think>Criteria: z\nAnalysis: y</think>\nAnalysis: b\n\\boxed{8, 2}"
    assert parse_judgment(text, 2) == Judgment((("a", 1.0),), "b", (8, 2))
    assert without_reasoning(text) == "Criteria: a 1\n\n\nAnalysis: b\n\\boxed{8, 2}"


@pytest.mark.parametrize("opening, closing", PAIRS)
def test_the_place_of_a_choice_is_that_in_the_whole_text(opening, closing):
    text = f"{opening}or \\boxed{{1}}?{closing}Best: \\boxed{{ 2}}"
    choice = parse_choice(text, 2)
    assert choice.chosen == 1 and choice.span == (len(text) - 2, len(text) - 1)
    assert parse_choice(f"{opening}Best: \\boxed{{2}}{closing}", 2) == ParseFailure(
        "only_reasoning"
    )


@pytest.mark.parametrize("opening, closing", PAIRS)
def test_the_answer_to_a_question_stands_behind_the_reasoning(opening, closing):
    draft = f'{opening}{{"answer": "5"}}{closing}'
    assert answer_field(draft + '{"reasoning": "so", "answer": "7"}') == "7"
    assert answer_field(draft) is None


MARKS = [mark for pair in PAIRS for mark in pair]
words = st.lists(
    st.sampled_from(
        ["\\boxed{", "}", "8, 2", "\\boxed{8, 2}", "\\boxed{3}", "I cannot judge.", "\n", " ", "`"]
        + ["Scores:", "Analysis:", "Specific Criteria: a 40%", "```", "<", "/", ">", "\u2028"]
        + ["\u202e", "\u0000", "é", "判断", "🤔", "<think", "think>", "</", "<b>"]
    ),
    max_size=12,
).map("".join)
plain = (words | st.text(max_size=30)).filter(lambda text: not reasoning_spans(text))
marked = st.lists(
    st.sampled_from([*MARKS, "<|end|>", "<|message|>"]) | words | st.text(max_size=12),
    min_size=1,
    max_size=12,
).map("".join)
EXAMPLES = {"max_examples": 150, "deadline": None, "derandomize": True}


@settings(**EXAMPLES)
@given(marked, st.integers(1, 17), st.sampled_from(["scores", "ten", "index"]), st.booleans())
def test_any_completion_gives_n_scores_in_range_or_one_named_failure(text, n, answer, truncated):
    judged = read_answer(text, range(n), answer, truncated)
    low, high = (0, 1) if answer == "index" or (n == 1 and answer == "scores") else (1, 10)
    if judged["failure"] is None:
        scores = judged["scores"]
        assert len(scores) == n and all(type(s) is int and low <= s <= high for s in scores)
        assert not truncated
    else:
        assert judged["failure"] in FAILURE_REASONS and judged["scores"] is None
        assert judged["principles"] == [] and judged["critique"] == ""
    assert len(blanked(text)) == len(text)
    spans = reasoning_spans(text)
    ends = [0, *(place for span in spans for place in span), len(text)]
    assert ends == sorted(ends) and all(start < end for start, end in spans)


@settings(**EXAMPLES)
@given(st.sampled_from(PAIRS), plain, plain)
def test_no_draft_changes_what_an_answer_says(pair, draft, answer):
    """Nor does one that the prompt had opened; and a draft alone says nothing."""
    opening, closing = pair
    if "\\boxed{" in f"{draft}{closing}" and "\\boxed{" not in answer:
        expected = ParseFailure("only_reasoning")
    else:
        expected = parse_judgment(f"\n{answer}", 2)
    assert parse_judgment(f"{opening}{draft}{closing}\n{answer}", 2) == expected
    assert parse_judgment(f"{draft}{closing}\n{answer}", 2) == expected
    alone = parse_judgment(f"{opening}{draft}", 2)
    assert alone == ParseFailure("only_reasoning" if "\\boxed{" in draft else "no_box")


@settings(**EXAMPLES)
@given(plain)
def test_text_without_marks_is_its_own_answer(text):
    assert blanked(text) == text and without_reasoning(text) == text


@pytest.mark.parametrize(
    "unit",
    [*MARKS, "<think ", "<think", "<", "<a:", "[think", "<|", "`<think>`", "</think", "<think>a"]
    + ["<think></think>", "<think></thinking>", "\\boxed{<think>", "analysis", "<|channel|>"],
)
def test_a_huge_text_of_any_mark_is_read(unit):
    """In time linear in its length: squares of it would take hours."""
    body = unit * (200_000 // len(unit))
    for text in (body, f"<think>{body}", f"{body}</think>\\boxed{{8, 2}}"):
        parse_judgment(text, 2)
