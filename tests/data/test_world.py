"""The checkable world: gold is computed, unique and unleaked; splits share no record; the judge's
text parses.
"""

import random

import pytest

from grm_jax.data.world import (
    corpus,
    describe,
    judge,
    make_instructions,
    make_records,
    make_rubric_judgments,
    records,
    rubrics,
    tasks,
)
from grm_jax.judgment.parsing import Judgment, ParseFailure, parse_judgment
from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.judgment.records import read_records, write_records
from grm_jax.judgment.rubric import read_rubric
from grm_jax.judgment.rules import is_correct

COUNT = 400


def content(record):
    return record.conversation[0].content, tuple(sorted(record.responses))


def test_every_split_is_described_with_its_domains():
    for split in records.SPLITS:
        text = describe(split)
        domains = {record.domain for record in make_records(split, 60)}
        assert f"split {split}" in text and all(f"{domain}: " in text for domain in domains)
    assert len({describe(split) for split in records.SPLITS}) == len(records.SPLITS)


@pytest.mark.parametrize("split", records.SPLITS)
def test_gold_is_unique_and_follows_from_the_text_alone(split):
    for item, record in zip(records.make_items(split, COUNT, 3), make_records(split, COUNT, 3)):
        n = len(record.responses)
        assert len(set(record.responses)) == n
        assert sum(record.rewards) == 1.0 if n > 1 else record.rewards[0] in (0.0, 1.0)
        for response, text, reward in zip(item.responses, record.responses, record.rewards):
            written = tuple(word.split(".")[1] for word in text.split() if word[0].isdigit())
            assert written == response.items
            right = not any(tasks.wrong_marks(item.query, written)) and not tasks.is_missing(
                item.query, written
            )
            right &= text.endswith("Thanks.") or not record.conversation[0].content.endswith(
                "Say thanks."
            )
            assert right == (reward == 1.0)


def test_sizes_of_the_splits():
    sizes = {
        split: {len(r.responses) for r in make_records(split, COUNT)} for split in records.SPLITS
    }
    assert sizes["train"] == {1, 2, 3, 4} and sizes["test"] == sizes["hard"] == {2, 3, 4}
    assert sizes["wide"] == {5, 6} and sizes["single"] == {1}


def test_families_of_the_reward_data_and_of_the_heldout_split_are_apart():
    assert {r.domain for r in make_records("train", COUNT)} == set(tasks.REWARD_FAMILIES)
    assert {r.domain for r in make_records("heldout", COUNT)} == set(tasks.HELDOUT_FAMILIES)
    assert len(tasks.REWARD_FAMILIES) >= 6 and not set(tasks.REWARD_FAMILIES) & set(
        tasks.HELDOUT_FAMILIES
    )


def test_hard_split_has_its_distractors_on_the_wrong_responses_only():
    for item in records.make_items("hard", COUNT, 0):
        for response, right in zip(item.responses, item.right):
            assert bool(response.filler or response.certain or response.bold) == (not right)


def test_distractors_are_as_common_on_right_as_on_wrong_responses_elsewhere():
    shares = {True: [], False: []}
    for item in records.make_items("test", 3000, 0):
        for response, right in zip(item.responses, item.right):
            shares[right].append(bool(response.filler) + response.certain + response.bold)
    means = {right: sum(values) / len(values) for right, values in shares.items()}
    assert means[True] == pytest.approx(means[False], abs=0.08)


def test_gold_index_and_position_are_independent():
    found = [r.rewards.index(1.0) for r in make_records("test", 3000) if len(r.responses) == 2]
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.04)


def test_no_test_record_is_a_training_or_pretraining_record():
    train = {content(r) for seed in range(3) for r in make_records("train", 2000, seed)}
    for split in ("test", "hard", "wide", "single", "heldout"):
        assert not train & {content(r) for r in make_records(split, 1000)}
    for split in ("test", "hard", "wide", "single"):
        assert all(item.for_testing for item in records.make_items(split, 200, 0))
    seen = []
    for i in range(3000):  # every record that the pretraining corpus shows is of the training side
        corpus.make_document(0, i, lambda record, order, hint: seen.append(record) or "")
    test = {
        content(r)
        for split in ("test", "hard", "wide", "single")
        for r in make_records(split, 1000)
    }
    assert len(seen) > 1000 and not test & {content(r) for r in seen}


def test_records_are_a_function_of_split_and_seed_and_distinct():
    assert make_records("test", 50, 1) == make_records("test", 60, 1)[:50]
    assert make_records("test", 50, 1) != make_records("test", 50, 2)
    for split in records.SPLITS:
        assert len({content(r) for r in make_records(split, 1000)}) == 1000


def test_records_go_through_the_jsonl_of_real_data(tmp_path):
    made = make_records("train", 50)
    write_records(tmp_path / "world.jsonl", made)
    assert read_records(tmp_path / "world.jsonl") == made


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'tset'.*train, test, hard"):
        make_records("tset", 1)


def test_a_careful_clean_judgment_is_correct_and_every_judgment_is_readable():
    failures = 0
    for i, item in enumerate(records.make_items("train", 300, 0)):
        rng, n = random.Random(i), len(item.responses)
        order = tuple(rng.sample(range(n), n))
        low, high = (0, 1) if n == 1 else (1, 10)
        clean = judge.judgment_text(rng, item, order, slips=judge.CLEAN, relevant=True)
        parsed = parse_judgment(clean, n, low, high)
        assert (
            isinstance(parsed, Judgment)
            and parsed.principles[0][0] == tasks.FAMILIES[item.query.family].principle
        )
        right = [item.right[j] for j in order]
        if n > 1 and not item.query.thanks:
            assert parsed.scores.index(max(parsed.scores)) == right.index(True)
        failures += isinstance(
            parse_judgment(judge.judgment_text(rng, item, order), n, low, high), ParseFailure
        )
    assert 0 < failures < 60  # a sloppy judge now and then spoils its box


def test_prompts_show_the_responses_untouched_and_nothing_of_the_gold():
    template = load_template("tiny_pointwise")
    for record in make_records("test", 50):
        order = tuple(reversed(range(len(record.responses))))
        prompt = render_prompt(template, record, order)
        assert [line.split("] ", 1)[1] for line in prompt.strip().splitlines()[2:]] == [
            record.responses[i] for i in order
        ]
        stripped = record.__class__(
            **{**record.__dict__, "rewards": None, "metadata": {}, "domain": ""}
        )
        assert render_prompt(template, stripped, order) == prompt


def test_instructions_are_right_answers():
    for row in make_instructions(100):
        assert (
            row["prompt"] and row["completion"] and row["completion"] == row["completion"].strip()
        )


def test_a_rubric_decides_which_response_is_the_best():
    items = rubrics.make_rubric_items("rubric", COUNT, 0)
    made = make_records("rubric", COUNT)
    for (item, rubric), record in zip(items, made, strict=True):
        assert record.rubric == rubric and record.rewards.count(max(record.rewards)) == 1
        principle = tasks.FAMILIES[item.query.family].principle
        for response, text, reward in zip(item.responses, record.responses, record.rewards):
            longest = max(len(other.split()) for other in record.responses)
            met = {
                principle: tasks.content_ok(item.query, response.items),
                "courtesy": "Thanks." in text,
                "length": len(text.split()) == longest,
                "confidence": "Definitely!" in text,
                "formatting": "**" in text,
            }
            whole = sum(criterion.weight for criterion in rubric)
            assert reward == sum(c.weight * met[c.name] for c in rubric) / whole
    bests = [r.rewards.index(max(r.rewards)) for r in made]
    same = sum(best == r.metadata["plain_best"] for best, r in zip(bests, made))
    assert same == COUNT // 2
    trained = {content(r) for r in make_records("rubric_train", 300) + make_records("train", 300)}
    assert len({content(r) for r in made} - trained) == COUNT
    assert describe("rubric") != describe("rubric_train")


def test_a_clean_judgment_by_a_rubric_is_right_and_instructions_show_no_gold():
    rng = random.Random(0)
    for item, rubric in rubrics.make_rubric_items("rubric", COUNT, 1):
        order = tuple(rng.sample(range(len(item.responses)), len(item.responses)))
        text = rubrics.judgment_text(rng, item, order, rubric, judge.CLEAN)
        read = read_rubric(text, order, rubric)
        assert is_correct(read["scores"], rubrics.rewards_of(item, rubric)), text
    rows = make_rubric_judgments(load_template("tiny_rubric"), 50)
    assert len({row["id"] for row in rows}) == 50
    assert all("Specific Criteria:" in r["prompt"] and "best" not in r["prompt"] for r in rows)
