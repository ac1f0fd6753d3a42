"""Principles that are written once: where they end, that judgments go on from them, token for
token, and who cannot.
"""

import dataclasses

import pytest

import grm_jax
from grm_jax.evaluation.store import record_digest
from grm_jax.judgment.parsing import principles_part
from grm_jax.judgment.records import record_from_dict, record_to_dict
from grm_jax.reward_models.grm import Prompter
from grm_jax.reward_models.pointwise import pointwise_grm, with_principles_once
from tests.reward_models.judge_cases import PROMPTER, FakeSampler, judgment, record

PART = "Specific Criteria: Accuracy (Weight: 60%), Brevity (Weight: 40%)"
REST = "\n" + r"Analysis: as they say.\nScores: \boxed{3, 4}"
TASK, RESPONSES = "Reverse the list: 1.fox 2.ant 3.hen", ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"]


@pytest.mark.parametrize(
    "text, part",
    [
        (PART + REST, PART),
        ("So.\n## Principles\n- a: 3\n\n**Analysis**\nx", "So.\n## Principles\n- a: 3"),
        ("Analysis: 1.\nPrinciples: a (100%)\nCritique: x", "Analysis: 1.\nPrinciples: a (100%)"),
        (r"Principles: \boxed{1}" + REST, ""),
        (PART, ""),  # it does not say where they end
        (REST, ""),
        ("", ""),
    ],
)  # fmt: skip
def test_where_principles_end(text, part):
    assert principles_part(text) == part


def continuing(prompt, key):
    """Goes on from a prompt that ends in principles, or writes its own."""
    whole = judgment((9, 2), note=f" [{key[0] % 1000}, {key[1] % 1000}]")
    return whole.removeprefix(PART) if prompt.endswith(PART) else whole, True


def model(answer=continuing, prompter=PROMPTER):
    sampler = FakeSampler(answer)
    grm = pointwise_grm(
        "grm", lambda temperature: sampler, {}, prompter, seed=3, buckets=(512,), rows=4
    )
    return grm, sampler


def once_of(grm, fits=lambda record: True):
    return with_principles_once(grm, fits, size=2)


def rows(grm, records, samples=(0, 1, 2), temperature=1.0):
    return [row for block in grm.judge(records, samples, temperature) for row in block]


def test_judgments_go_on_from_the_principles_of_their_record():
    given = dataclasses.replace(record("two", (9, 2)), principles=PART)
    grm, _ = model()
    for row in rows(grm, [given]):
        assert row["text"].startswith(PART) and row["principles"] == [
            ["Accuracy", 0.6],
            ["Brevity", 0.4],
        ]
        assert row["tokens"] == len(row["text"]) - len(PART) + 1  # and the end
        assert row["failure"] is None
    plain = rows(grm, [dataclasses.replace(given, principles="")])
    assert [row["prompt_tokens"] + len(PART) for row in plain] == [
        row["prompt_tokens"] for row in rows(grm, [given])
    ]


def test_once_is_what_the_greedy_judgment_has_written():
    records = [record("a", (9, 2)), record("b", (9, 2), words=4)]
    plain, _ = model()
    greedy = [rows(plain, [one], (0,), 0.0)[0]["text"] for one in records]
    given = [
        dataclasses.replace(one, principles=principles_part(text))
        for one, text in zip(records, greedy)
    ]
    assert {one.principles for one in given} == {PART}
    once = once_of(plain)

    def by_key(rows):
        return {(row["id"], row["sample"]): row for row in rows}

    wanted = by_key(rows(plain, given))
    assert by_key(rows(once, records)) == wanted
    # a sample is a function of record and seed, whatever was asked before; greedy is as ever
    fresh = once_of(model()[0])
    assert by_key(rows(fresh, records[1:], (2,))) == {("b", 2): wanted["b", 2]}
    assert rows(once, records, (0,), 0.0) == rows(plain, records, (0,), 0.0)
    # the principles are there now: nothing greedy is drawn again
    grm, sampler = model()
    once, calls = once_of(grm), []
    for _ in range(2):
        before = sampler.calls
        rows(once, records)
        calls.append(sampler.calls - before)
    assert calls[1] < calls[0]


def test_where_none_were_written_samples_write_their_own():
    def without(prompt, key):
        return judgment((9, 2)).removeprefix(PART), True

    grm, _ = model(without)
    assert rows(once_of(grm), [record("a", (9, 2))]) == rows(grm, [record("a", (9, 2))])


def test_where_they_do_not_fit_samples_write_their_own():
    records = [record("a", (9, 2)), record("b", (9, 2), words=4), record("c", (9, 2), words=5)]
    grm, _ = model()
    fitting = rows(once_of(grm, lambda record: record.id != "b"), records)
    plain, given = rows(grm, records), rows(once_of(grm), records)
    wanted = {
        True: {(r["id"], r["sample"]): r for r in plain},
        False: {(r["id"], r["sample"]): r for r in given},
    }
    assert len(fitting) == 9
    assert all(r == wanted[r["id"] == "b"][r["id"], r["sample"]] for r in fitting)


def test_records_keep_them_and_say_what_is_wrong():
    fields = {
        "id": "7",
        "conversation": [{"role": "user", "content": "q"}],
        "responses": ["a", "b"],
    }
    one = record_from_dict(fields | {"principles": PART}, "f:1")
    assert record_from_dict(fields | {"principles": PART + " \n"}, "f:1") == one
    assert one.principles == PART and record_from_dict(record_to_dict(one), "f:1") == one
    assert record_digest(one) != record_digest(dataclasses.replace(one, principles=""))
    for bad in (" \n", r"\boxed{1}", 3, ["a"]):
        with pytest.raises(ValueError, match=r'f:1 .*field "principles": expected'):
            record_from_dict(fields | {"principles": bad}, "f:1")
    with pytest.raises(ValueError, match='"principles": expected none beside a rubric'):
        rubric = [{"name": "truth", "weight": 1}]
        record_from_dict(fields | {"principles": PART, "rubric": rubric}, "f:1")


def test_who_cannot_go_on_says_so():
    given = dataclasses.replace(record("two", (9, 2)), principles=PART)
    chooser = Prompter(PROMPTER.tokenizer, PROMPTER.pointwise, PROMPTER.single, answer="index")
    with pytest.raises(
        ValueError, match="record 'two': field \"principles\": this model does not go"
    ):
        rows(model(prompter=chooser)[0], [given])
    length = grm_jax.load({"kind": "length"})
    with pytest.raises(ValueError, match='field "principles": a length judges by none'):
        length(TASK, RESPONSES, principles=PART)
    with pytest.raises(
        ValueError, match=r'principles \(id .*field "principles": a length judges by'
    ):
        length.principles(TASK, RESPONSES)
    with pytest.raises(ValueError, match='field "principles": expected "once" or none, got True'):
        grm_jax.load({"kind": "pointwise_grm", "path": "tiny", "principles": True})


def test_the_packaged_judge_writes_and_follows_them():
    tiny = grm_jax.load("tiny")
    principles = tiny.principles(TASK, RESPONSES)
    greedy = tiny(TASK, RESPONSES)
    assert greedy.judgments[0].text.startswith(principles) and "\n" not in principles
    again = tiny(TASK, RESPONSES, principles=principles)
    assert again.judgments[0].text == greedy.judgments[0].text and again.scores == greedy.scores
    # other responses to the same query
    other = tiny(TASK, ["1.ant 2.fox 3.hen", *RESPONSES], k=4, principles=principles)
    assert all(j.text.startswith(principles) for j in other.judgments)
    assert other.best == 1
    with pytest.raises(ValueError, match=r'field "principles": the prompt has \d+ tokens with it'):
        tiny(TASK, RESPONSES, principles=principles * 30)
    once = grm_jax.load({"kind": "pointwise_grm", "path": "tiny", "principles": "once"})
    asked = {"id": "a", "conversation": TASK, "responses": RESPONSES}
    (sampled,) = once.many([asked], k=4, progress=False)
    (given,) = tiny.many([asked | {"principles": principles}], k=4, progress=False)
    assert [j.text for j in sampled.judgments] == [j.text for j in given.judgments]
