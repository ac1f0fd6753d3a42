"""LLM-as-a-Judge and TokenProb behind the protocol: pairs, lists through their pairs, and the
probability of the number that was written.
"""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

import grm_jax
from grm_jax.judgment.parsing import parse_choice
from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.judgment.voting import vote
from grm_jax.reward_models.grm import Prompter, judge
from grm_jax.reward_models.llm_judge import by_probability, index_probability, llm_judge
from grm_jax.reward_models.protocol import pairs, shown_order
from grm_jax.tokenizer import load_tokenizer
from tests.reward_models.judge_cases import (
    PROMPTER,
    TOKENIZER,
    FakeSampler,
    choose,
    record,
    shuffled_asks,
)

PAIRWISE = Prompter(
    TOKENIZER, load_template("tiny_judge"), load_template("tiny_single"), answer="index"
)
SIZES = {"seed": 3, "buckets": (256, 512), "rows": 4}
RECORDS = [record("two", (2, 9)), record("four", (3, 1, 8, 5), words=9)]


def model(answer=choose, **more):
    return llm_judge(
        "judge", lambda temperature: FakeSampler(answer), {}, PAIRWISE, **SIZES, **more
    )


def rows_by_sample(judged, records, samples=(0,), **how):
    blocks = list(judged.judge(records, samples, **how))
    found = {(row["id"], row["sample"]): row for block in blocks for row in block}
    assert (
        all(blocks)
        and found.keys() == {(r.id, s) for r in records for s in samples}
        and len(found) == sum(map(len, blocks))
    )
    return found


def always(number):
    return lambda prompt, key: (f"Analysis: {key[0] % 10**6}.\nBest: \\boxed{{{number}}}", True)


def test_a_pair_is_one_generation_and_a_list_goes_through_all_pairs():
    rows = rows_by_sample(model(), RECORDS, range(6), temperature=0.5)
    assert all(
        row["scores"] == ([0, 1] if name == "two" else [1, 0, 3, 2]) and row["failure"] is None
        for (name, _), row in rows.items()
    )
    for (name, sample), row in rows.items():
        one = next(r for r in RECORDS if r.id == name)
        assert row["order"] == list(shown_order(3, one, sample, False)) and row["rewards"] == list(
            one.rewards
        )
        assert [found["pair"] for found in row["pairs"]] == [
            list(pair) for pair in pairs(len(one.responses))
        ]
        for found in row["pairs"]:
            assert found["order"] == sorted(found["pair"], key=row["order"].index)
            assert (
                found["chosen"] == found["order"][int(found["text"][-2]) - 1]
                and 0 < found["probability"] < 1
            )
        assert row["tokens"] == sum(found["tokens"] for found in row["pairs"])
    assert rows["two", 0]["text"] == rows["two", 0]["pairs"][0]["text"] and rows["two", 0][
        "principles"
    ] == [["Worth", 10.0]]
    assert rows["four", 0]["text"] == "" and len({tuple(row["order"]) for row in rows.values()}) > 5


def test_a_pair_is_drawn_as_training_draws_it():
    """The same key, order and prompt as `grm.judge` has for the same record, seed and sample."""
    asks = shuffled_asks(RECORDS[:1], 1, seed=3)
    ((drawn,),) = judge(
        FakeSampler(always(1)), {}, PAIRWISE, asks, seed=3, temperature=1.0, buckets=(512,), rows=1
    )
    row = rows_by_sample(model(always(1)), RECORDS, temperature=1.0)["two", 0]
    assert {
        name: row[name] for name in ("text", "order", "scores", "principles", "critique")
    }.items() <= drawn.judgment.items()


def test_a_row_is_the_same_whatever_else_is_asked_and_each_pair_has_its_own_randomness():
    whole = rows_by_sample(model(always(2)), RECORDS, range(8), temperature=0.5)
    for records in (RECORDS, RECORDS[1:]):
        assert rows_by_sample(model(always(2)), records, [7, 3], temperature=0.5) == {
            (r.id, s): whole[r.id, s] for r in records for s in (3, 7)
        }
    assert len({found["text"] for row in whole.values() for found in row["pairs"]}) == 8 * 1 + 8 * 6


def test_long_runs_are_judged_in_parts_that_finish_whole_lists(monkeypatch):
    monkeypatch.setattr("grm_jax.reward_models.llm_judge.BATCHES_AT_ONCE", 2)
    records = [record(f"r{i}", (3, 1, 8), words=1 + 7 * i) for i in range(9)]
    blocks = list(model().judge(records, (0, 1)))
    assert len(blocks) >= 5 and rows_by_sample(model(), records, (0, 1))["r8", 1]["scores"] == [
        1,
        0,
        2,
    ]


def test_swapped_shows_every_pair_the_other_way_round_and_a_position_bias_shows():
    plain, swapped = (
        rows_by_sample(model(always(1)), RECORDS, range(3), swapped=swap) for swap in (False, True)
    )
    for key, row in plain.items():
        assert row["order"] == swapped[key]["order"][::-1]
        assert [found["order"] for found in row["pairs"]] == [
            found["order"][::-1] for found in swapped[key]["pairs"]
        ]
        assert [a + b for a, b in zip(row["scores"], swapped[key]["scores"])] == [
            len(row["order"]) - 1
        ] * len(row["order"])
    assert all(row["scores"][row["order"][0]] == len(row["order"]) - 1 for row in plain.values())


def test_one_pair_that_fails_fails_the_sample_and_keeps_the_texts():
    def answer(prompt, key):
        return (
            choose(prompt, key)
            if "worth 8." not in prompt or "worth 5." not in prompt
            else ("Both are fine.", True)
        )

    row = rows_by_sample(model(answer), RECORDS)["four", 0]
    assert (row["scores"], row["failure"]) == (None, "pair_failed:no_box")
    assert [found["failure"] for found in row["pairs"]] == [None] * 5 + ["no_box"] and row["pairs"][
        5
    ]["text"] == "Both are fine."
    assert (row["pairs"][5]["chosen"], row["pairs"][5]["probability"]) == (None, None) and row[
        "pairs"
    ][0]["chosen"] == 0
    cut = rows_by_sample(model(lambda prompt, key: (choose(prompt, key)[0], False)), RECORDS)
    assert (cut["two", 0]["failure"], cut["four", 0]["failure"]) == (
        "truncated",
        "pair_failed:truncated",
    )


def test_a_prompt_that_no_bucket_holds_is_a_named_failure():
    rows = rows_by_sample(
        model(),
        [*RECORDS, record("long", (1, 2), words=200), record("longer", (1, 2, 3), words=200)],
    )
    assert (rows["long", 0]["failure"], rows["longer", 0]["failure"]) == (
        "too_long",
        "pair_failed:too_long",
    )
    assert rows["long", 0]["text"] == "" and rows["two", 0]["scores"] == [0, 1]


def test_votes_are_sums_majority_and_weighted_by_probability():
    # two of three samples or so say 1, but not surely: the fake's log-probabilities fall with the
    # position
    def answer(prompt, key):
        return ("Best: \\boxed{1}" if key[0] % 3 else "\\boxed{2}"), True

    plain = rows_by_sample(model(answer), RECORDS, range(16), temperature=0.5)
    weighted = {key: by_probability(judgment) for key, judgment in plain.items()}
    for row in weighted.values():
        for i, score in enumerate(row["scores"]):
            assert score == pytest.approx(
                sum(found["probability"] for found in row["pairs"] if found["chosen"] == i)
            )
    majority = vote([plain["two", s]["scores"] for s in range(16)])
    assert sum(majority.totals) == 16
    written = {
        found["text"]: found["probability"] for row in weighted.values() for found in row["pairs"]
    }
    # 14th, 8th character
    assert written == {
        "Best: \\boxed{1}": pytest.approx(np.exp(-14 / 8)),
        "\\boxed{2}": pytest.approx(np.exp(-8 / 8)),
    }


def test_what_it_cannot_judge_is_refused():
    assert [model().accepts(n) for n in (1, 2, 7)] == [False, True, True] and model().sampled
    with pytest.raises(
        ValueError, match="record 'one' has one response: a judge of pairs needs two or more"
    ):
        list(model().judge([record("one", (1,))]))
    with pytest.raises(
        ValueError,
        match="judge: a judge of pairs needs a prompter with answer = 'index' or 'letter', got 's",
    ):
        llm_judge("judge", lambda temperature: FakeSampler(), {}, PROMPTER, **SIZES)
    assert list(model().judge([])) == []


def check_probabilities(tokenizer, text, n=12):
    """Against a slow search: the tokens that hold a character of the number, by the text that each
    prefix of the ids stands for.
    """
    ids = np.array([*tokenizer.encode(text), tokenizer.eos_id])
    logp = -np.random.default_rng(0).random(len(ids)).astype(np.float32)
    start, end = parse_choice(text, n).span
    ends = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    holding = [i for i in range(len(ids)) if ends[i] > start and (ends[i - 1] if i else 0) < end]
    assert re.search(text[start:end], tokenizer.decode(ids[holding]))
    assert index_probability(tokenizer, ids, logp, (start, end)) == pytest.approx(
        np.exp(logp[holding].sum()), rel=1e-6
    )
    return [tokenizer.decode([i]) for i in ids[holding]]


TEXTS = [
    "Best: \\boxed{1}",
    "Analysis: caf\u00e9 \\boxed{1}\nBest: \\boxed{ 2 } thanks \U0001f44d",
    "\\boxed{12}",
    "**\\boxed{02}**\n",
    "\\boxed{\u30003}\u3000",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_the_number_are_found(text):
    tiny = load_tokenizer(pathlib.Path(grm_jax.__file__).parent / "assets" / "tiny_base")
    for tokenizer in (TOKENIZER, tiny) if text.isascii() else (tiny,):
        check_probabilities(tokenizer, text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_the_number_are_found_for_real_tokenizers(text, data_dir):
    for name in ("gemma_tokenizer", "mistral_tokenizer"):
        if (data_dir / name / "tokenizer.model").is_file():
            check_probabilities(load_tokenizer(data_dir / name), text)


def test_a_token_that_holds_more_than_the_number_is_taken_whole():
    pieces = ["Best: \\boxed", "{1", "}"]
    merging = dataclasses.replace(
        TOKENIZER, decode=lambda ids: "".join(pieces[int(i) - 10] for i in ids if i >= 10)
    )
    ids, logp = (
        np.array([10, 11, 12, TOKENIZER.eos_id]),
        np.log(np.array([0.9, 0.5, 0.8, 0.7], np.float32)),
    )
    span = parse_choice("".join(pieces), 2).span
    assert index_probability(merging, ids, logp, span) == pytest.approx(0.5)


def test_the_tiny_judge_prompt():
    assert render_prompt(PAIRWISE.pointwise, record("r", (2, 9), words=1), (1, 0)) == (
        "[Choose the best response]\n[User] speak\n[Response 1] I am worth 9.\n[Response 2] "
        "I am worth 2.\n"
    )
