"""The store of judgments: what is on file, what is missing, whose it is, and in which order it is
trained on.
"""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from grm_jax.evaluation import store
from grm_jax.judgment.records import Record, Turn
from grm_jax.reward_models.protocol import new_judgment


def record(name, n=2):
    rewards = tuple(float(i == 0) for i in range(n)) if n > 1 else (1.0,)
    return Record(name, (Turn("user", name),), tuple(f"{name} {i}" for i in range(n)), rewards)


RECORDS = [record("a"), record("b", 3), record("c", 1)]


def judge(records, samples=(0,), temperature=0.0, swapped=False):
    """A block for each record."""
    for one in records:
        scores = [5] * len(one.responses)
        yield [
            new_judgment(one, s, range(len(scores)), temperature, scores, text=f"{one.id} {s}")
            for s in samples
        ]


def ask(path, records=RECORDS, samples=(0, 1), judge=judge, temperature=0.5, **more):
    digests = {one.id: store.record_digest(one) for one in records}
    rows = store.read_rows(path, digests, temperature)
    absent = store.missing(rows, records, samples, **more)
    return rows | store.judge_missing(path, judge, absent, temperature, False, "test", len(rows))


def test_what_is_on_file_is_not_asked_again_and_its_lines_are_where_it_says(tmp_path):
    path = tmp_path / "system" / "benchmark" / "sampled-seed0.jsonl"
    rows = ask(path)
    assert rows.keys() == {(name, s) for name in "abc" for s in (0, 1)}

    def never(*_):
        raise AssertionError("asked again")

    assert ask(path, judge=never) == rows
    for (name, sample), slim in rows.items():
        judgment = store.read_line(path, slim["offset"])
        assert (judgment["id"], judgment["sample"]) == (name, sample)
        assert judgment["temperature"] == 0.5 and judgment["seconds"] >= 0
        assert judgment["text"] == f"{name} {sample}" and "text" not in slim
    assert [(j["id"], j["sample"]) for j in store.read(path)] == list(rows)


def test_a_torn_line_is_cut_and_asked_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = ask(path)
    written = path.read_bytes()
    path.write_bytes(written[:-20])
    assert len(store.read(path)) == 5
    asked = []

    def remember(records, samples=(0,), temperature=0.0, swapped=False):
        asked.extend((one.id, s) for one in records for s in samples)
        yield from judge(records, samples, temperature, swapped)

    again = ask(path, judge=remember)
    assert asked == [("c", 1)] and again.keys() == whole.keys()
    assert len(store.read(path)) == 6


def test_only_failures_that_are_named_are_asked_again_and_the_last_answer_counts(tmp_path):
    path = tmp_path / "rows.jsonl"

    def failing(reason):
        def judge(records, samples=(0,), temperature=0.0, swapped=False):
            for one in records:
                order = range(len(one.responses))
                yield [
                    new_judgment(one, s, order, temperature, None, failure=reason) for s in samples
                ]

        return judge

    ask(path, RECORDS[:1], judge=failing("request_failed:timeout"))
    ask(path, RECORDS[:2], judge=failing("no_box"))
    rows = ask(path, RECORDS[:2], retry=("request_failed",))
    assert {key: one["failure"] for key, one in rows.items()} == {
        ("a", 0): None,
        ("a", 1): None,
        ("b", 0): "no_box",
        ("b", 1): "no_box",
    }
    last = store.in_drawn_order(store.read(path), RECORDS)
    assert [(j["id"], j["sample"], j["failure"]) for j in last] == [
        ("a", 0, None),
        ("a", 1, None),
        ("b", 0, "no_box"),
        ("b", 1, "no_box"),
    ]


def test_a_record_of_another_text_and_another_temperature_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    ask(path)
    with pytest.raises(ValueError, match=r'rows.jsonl:1: field "temperature": 0.5, but 0.7 is'):
        ask(path, temperature=0.7)
    changed = dataclasses.replace(RECORDS[1], responses=("x", "y", "z"))
    with pytest.raises(ValueError, match=r"rows.jsonl:3: field \"record\": .* of 'b'"):
        ask(path, [RECORDS[0], changed])


@pytest.mark.parametrize("line", ["not json", "[1]", '{"sample": 0}', "null"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    ask(path)
    path.write_text(path.read_text() + line + "\n")
    for read in (store.read, lambda path: store.read_rows(path, {"a": "0"}, 0.5)):
        with pytest.raises(ValueError, match=r"rows.jsonl:(7|1): "):
            read(path)
    with pytest.raises(ValueError, match="rows.jsonl:7: "):
        store.read(path)


def test_a_folder_belongs_to_one_identity_and_the_fields_that_differ_are_named(tmp_path):
    identity = {"kind": "pointwise_grm", "templates": {"pointwise": "abc", "single": "def"}}
    store.claim(tmp_path / "grm", identity)
    store.claim(tmp_path / "grm", dict(reversed(identity.items())))
    changed = {"kind": "pointwise_grm", "templates": {"pointwise": "abd", "single": "def"}, "k": 1}
    ask(tmp_path / "grm" / "rmb" / "greedy-seed0.jsonl", RECORDS[:1])
    with pytest.raises(ValueError, match=r"it differs in k, templates\.pointwise\. Choose"):
        store.claim(tmp_path / "grm", changed)
    assert json.loads((tmp_path / "grm" / store.IDENTITY).read_text()) == identity


def test_a_folder_without_judgments_is_free_and_a_look_claims_nothing(tmp_path):
    store.claim(tmp_path / "grm", {"k": 1}, write=False)
    assert not (tmp_path / "grm").exists()
    store.claim(tmp_path / "grm", {"k": 1})
    store.claim(tmp_path / "grm", {"k": 2}, write=False)
    assert store.holds(tmp_path / "grm", {"k": 1})
    (tmp_path / "grm" / "rmb").mkdir()
    (tmp_path / "grm" / "rmb" / "greedy-seed0.jsonl").write_bytes(b"")  # a run that got no reply
    store.claim(tmp_path / "grm", {"k": 2})
    assert store.holds(tmp_path / "grm", {"k": 2})
    ask(tmp_path / "grm" / "rmb" / "greedy-seed0.jsonl", RECORDS[:1])
    with pytest.raises(ValueError, match="it differs in k"):
        store.claim(tmp_path / "grm", {"k": 1}, write=False)
    # judgments of who knows whom are nobody's
    (tmp_path / "grm" / "identity.json").unlink()
    for write in (False, True):
        with pytest.raises(ValueError, match="grm holds judgments and no identity.json, which"):
            store.claim(tmp_path / "grm", {"k": 2}, write=write)
    assert not (tmp_path / "grm" / "identity.json").exists()


def test_the_order_of_training_does_not_depend_on_the_order_of_lines(tmp_path):
    def drawn(name, sample, tokens, hinted=False):
        return {"id": name, "sample": sample, "prompt_tokens": tokens, "hinted": hinted}

    # short prompts first; then unhinted before hinted, records in their order, samples in theirs
    expected = [
        drawn("b", 0, 10),
        drawn("a", 0, 20),
        drawn("a", 1, 20),
        drawn("c", 0, 20),
        drawn("a", 3, 20, True),
        drawn("b", 3, 30, True),
    ]
    for lines in (expected, expected[::-1], expected[3:] + expected[:3]):
        assert store.in_drawn_order(lines, RECORDS) == expected
    assert store.in_drawn_order([drawn("not asked", 0, 1), *expected], RECORDS) == expected


def test_rollouts_behind_a_step_are_cut(tmp_path):
    path = tmp_path / "rl.jsonl"
    store.cut(path, lambda j: False)
    assert not path.exists()
    with store.appending(path) as file:
        for step in range(4):
            rollouts = [new_judgment(RECORDS[0], s, (0, 1), 0.5, [1, 2], step=step) for s in (0, 1)]
            store.append(file, rollouts)
    with open(path, "ab") as file:
        file.write(b'{"id": "a", "samp')
    store.cut(path, lambda j: j["step"] < 2)
    assert [j["step"] for j in store.read(path)] == [0, 0, 1, 1]
    assert path.read_bytes().endswith(b"}\n")
    path.write_bytes(path.read_bytes()[:-3])
    store.cut(path, lambda j: j["step"] < 2)
    assert len(store.read(path)) == 3


def test_two_systems_read_one_file_in_two_ways(tmp_path):
    path = tmp_path / "rows.jsonl"
    ask(path)
    digests = {one.id: store.record_digest(one) for one in RECORDS}

    def doubled(judgment):
        return judgment | {"scores": [2 * score for score in judgment["scores"]]}

    plain = store.read_rows(path, digests, 0.5)
    view = store.read_rows(path, digests, 0.5, doubled)
    assert {key: r["scores"][0] for key, r in plain.items()} == dict.fromkeys(plain, 5)
    assert {key: r["scores"][0] for key, r in view.items()} == dict.fromkeys(plain, 10)


def test_a_value_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with store.appending(tmp_path / "rows.jsonl") as file:
        with pytest.raises(ValueError):
            store.append(file, [{"id": "a", "sample": 0, "meta_logit": float("nan")}])
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "value", ["\ud800", {"\udfff": 1}, np.float32(1), {1, 2}, float("inf"), b"bytes"], ids=ascii
)
def test_a_judgment_that_cannot_be_written_is_named_and_none_of_its_block_is(tmp_path, value):
    sound = new_judgment(record("a"), 0, (0, 1), 0.5, [1, 2])
    broken = sound | {"sample": 3, "text": value}
    with (
        store.appending(tmp_path / "rows.jsonl") as file,
        pytest.raises(ValueError, match="judgment of record 'a', sample 3 cannot be written: "),
    ):
        store.append(file, [sound, broken])
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


@pytest.mark.parametrize("line", ['{"id": ["a"], "sample": 0}', '{"id": "a", "sample": "0"}'])
def test_an_id_or_sample_of_another_type_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r'rows.jsonl:1: field "(id|sample)": expected (a t|an i)'):
        store.read_rows(tmp_path / "rows.jsonl", {"a": "0"}, 0.5)


def test_a_line_without_its_record_is_refused_by_field(tmp_path):
    judgment = new_judgment(record("a"), 0, (0, 1), 0.5, [1, 2])
    (tmp_path / "rows.jsonl").write_text(json.dumps(judgment) + "\n")
    with pytest.raises(ValueError, match=r'rows.jsonl:1: field "record": None'):
        store.read_rows(tmp_path / "rows.jsonl", {"a": "0"}, 0.5)


def test_an_identity_that_is_no_object_is_named(tmp_path):
    (tmp_path / store.IDENTITY).write_text("[]")
    with pytest.raises(ValueError, match="identity.json: expected a JSON object"):
        store.claim(tmp_path, {"kind": "length"})


def test_a_judge_that_waits_lets_a_signal_end_it(tmp_path, capsys):
    def waiting(records, samples, temperature, swapped):
        yield from judge(records[:1], samples, temperature, swapped)
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            yield []

    path = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit):
        ask(path, RECORDS[:2], judge=waiting)
    assert len(store.read(path)) == 2
    assert "2 of 4 judgments are on file" in capsys.readouterr().out
