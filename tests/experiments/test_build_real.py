"""The records of real text: gold that a second program finds too, no prompt on both sides, and the
same files every time. The answers are fabricated here; a real model draws them for the preset.
"""

import collections
import json
import random
import re

import pytest

from experiments.build_real import __main__ as build_real
from experiments.build_real import draw, lines, questions
from experiments.build_real.constraints import FOREIGN, TEST_KINDS, TRAIN_KINDS
from grm_jax.benchmarks import load_benchmark
from grm_jax.judgment.parsing import read_answer
from grm_jax.judgment.records import Criterion, Record, Turn, read_records
from grm_jax.judgment.rubric import read_rubric

NOUNS = """quiet river stone bright garden people morning silver music market happy small wonder
story travel green winter little friend careful""".split()


def fabricated(topics, each):
    rng = random.Random(topics[0])

    def text():
        parts = [["They", *rng.sample(NOUNS, rng.randint(4, 9))] for _ in range(rng.randint(1, 3))]
        return " ".join(" ".join(part) + "." for part in parts)

    return {key: [text() for _ in range(4)] for key in questions.questions(topics, each)}


def published():
    """Pairs as the published sets have them, some requests in two sets."""
    return {
        name: [
            Record(
                f"{name}/{i}", (Turn("user", f"How much is {i} and {i}?"),), ("a", "b"), (1.0, 0.0)
            )
            for i in range(30)
        ]
        for name in build_real.PUBLISHED
        if name not in ("llmbar", "rmb")
    } | {
        name: [
            Record(f"{name}/{i}", (Turn("user", f"Is {i} a {name}?"),), ("a", "b"), (1.0, 0.0))
            for i in range(5)
        ]
        for name in ("llmbar", "rmb")
    }


def answered():
    return (
        fabricated(questions.TRAIN_TOPICS[:40], build_real.EACH_TRAIN_TOPIC),
        fabricated(questions.TEST_TOPICS[:20], build_real.EACH_TEST_TOPIC),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    build_real.build(*answered(), published(), out, seed=0)
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_are_a_function_of_the_seed(built, tmp_path):
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        build_real.build(*answered(), published(), out, seed)
        files = sorted(path.relative_to(built) for path in built.rglob("*.jsonl"))
        assert len(files) == 5 + len(build_real.TESTS)
        equal = [(out / file).read_bytes() == (built / file).read_bytes() for file in files]
        assert all(equal) if same else not all(equal)


def quoted(request):
    return re.findall(r'"([^"]*)"', request)


# a second program: {how the request says it: (request, response) -> whether the response does it}
ORACLE = {
    r'Use the word "': lambda q, r: has(r, re.search(r'Use the word "(\w+)"', q)[1]),
    r'Do not use the word "': lambda q, r: (
        not has(r, re.search(r'Do not use the word "(\w+)"', q)[1])
    ),
    r'Begin with the word "': lambda q, r: r.lower().startswith(
        re.search(r'Begin with the word "(\w+)"', q)[1].lower() + ","
    ),
    r'End with the sentence "': lambda q, r: r.lower().endswith(
        re.search(r'End with the sentence "([^"]*)"', q)[1].lower()
    ),
    r"Write in capital letters only": lambda q, r: not re.search("[a-z]", r),
    r"Answer with a numbered list": lambda q, r: (
        [line.split(".")[0] for line in r.split("\n")]
        == [str(i + 1) for i in range(int(re.search(r"exactly (\d)", q)[1]))]
    ),
    r"Answer in JSON": lambda q, r: is_json(r, re.search(r'one key "(\w+)"', q)[1]),
    r"Write exactly": lambda q, r: (
        r.count(".") == {"one": 1, "two": 2, "three": 3}[re.search(r"exactly (\w+) ", q)[1]]
    ),
    r"Use at most": lambda q, r: len(r.split(" ")) <= int(re.search(r"at most (\d+)", q)[1]),
    r"Answer in (Spanish|French|German)": lambda q, r: (
        r.split(". ")[0].rstrip(".") + "."
        in FOREIGN[re.search(r"Answer in (Spanish|French|German)", q)[1]]
    ),
    r'Mention "': lambda q, r: in_order(r.lower(), *re.findall(r'"(\w+)"', q)),
    r"Write in small letters": lambda q, r: not re.search("[A-Z]", r),
    r"End with a question": lambda q, r: r.endswith("?"),
    r"Put the whole answer into": lambda q, r: r.startswith('"') and r.endswith('"'),
    r"Write every sentence on a line": lambda q, r: r.count("* ") == r.count(".") > 0,
}


def has(text, word):
    return re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None


def is_json(text, key):
    return text.startswith(f'{{"{key}": "') and text.endswith('"}')


def in_order(text, a, b):
    return a in text and b in text and text.index(a) < text.index(b)


def test_a_second_program_finds_the_same_gold(built):
    kinds = set()
    records = [
        record
        for file in ("train", "test/constraints", "test/new_kinds")
        for record in read_records(built / f"{file}.jsonl")
        if "kinds" in record.metadata
    ]
    for record in records:
        request, asked = record.conversation[0].content, record.metadata["kinds"]
        oracles = [check for words, check in ORACLE.items() if re.search(words, request)]
        assert len(oracles) == len(asked), request
        found = [
            sum(bool(check(request, response)) for check in oracles)
            for response in record.responses
        ]
        assert found == list(record.rewards), (request, record.responses)
        assert max(found) == len(asked) and found.count(max(found)) == 1
        kinds |= set(asked)
    assert kinds == TRAIN_KINDS.keys() | TEST_KINDS.keys()
    assert {len(record.responses) for record in records} == {2, 3}
    assert {len(record.metadata["kinds"]) for record in records} == {1, 2}


def test_judgments_that_are_written_by_rule_are_right(built):
    written = rows(built / "judgments.jsonl")
    requests = {r.conversation[-1].content for r in read_records(built / "train.jsonl")}
    assert len(written) > 100
    seen = collections.defaultdict(set)  # responses: how many of them are right
    for row in written:
        shown = re.findall(r"^\[Response \d\] ", row["prompt"], re.MULTILINE)
        request = re.search(r"^\[Request\] (.*)$", row["prompt"], re.MULTILINE)[1]
        read = read_answer(row["completion"], range(len(shown)))
        assert read["failure"] is None and read["principles"] and read["critique"]
        assert sum(weight for _, weight in read["principles"]) == pytest.approx(1)
        # the highest scores are those of the responses without a "wrong"
        lines = read["critique"].splitlines()
        asked = len(read["principles"]) - 1
        places = [re.match(r"\[Response (\d)\] .* \((right|wrong)\)$", line) for line in lines]
        assert [int(m[1]) for m in places] == [
            i + 1 for i in range(len(shown)) for _ in range(asked)
        ]
        gold = [
            all(m[2] == "right" for m in places if int(m[1]) == i + 1) for i in range(len(shown))
        ]
        if len(shown) == 1:
            assert read["scores"] == [int(gold[0])]
        else:
            assert gold == [score >= 8 for score in read["scores"]]
        seen[len(shown)] |= {sum(gold)}
        # and its topic is none of the records that are sampled
        topic = next(t for t in questions.TRAIN_TOPICS if f" {t}" in request)
        assert not any(f" {topic}" in other.split(".")[0].split("?")[0] for other in requests)
    assert seen == {1: {0, 1}, 2: {0, 1, 2}, 3: {1}}


# what a criterion is called, and how a request would ask for it
ASKED = {
    r'uses the word "(.*)"': 'Use the word "{}".',
    r'avoids the word "(.*)"': 'Do not use the word "{}".',
    r'begins with "(.*)"': 'Begin with the word "{}".',
    r'ends with "(.*)"': 'End with the sentence "{}"',
    r"capital letters only": "Write in capital letters only.",
    r'JSON with the key "(.*)"': 'Answer in JSON, with the one key "{}".',
    r"exactly (.*)": "Write exactly {} .",
    r"at most (\d+) words": "Use at most {} words.",
    r"written in (.*)": "Answer in {}.",
}


def meets(criterion, response):
    """Whether a response meets a criterion, by the second program."""
    found = (
        (ask, match) for name, ask in ASKED.items() if (match := re.fullmatch(name, criterion))
    )
    ask, match = next(found)
    request = ask.format(*match.groups())
    return bool(
        next(check(request, response) for q, check in ORACLE.items() if re.search(q, request))
    )


def test_the_weights_of_a_rubric_decide_and_a_twin_has_them_exchanged(built):
    records = read_records(built / "test/rubric.jsonl")
    assert len(records) > 20
    for record in records:
        worth = [
            sum(c.weight for c in record.rubric if meets(c.name, response)) / 100
            for response in record.responses
        ]
        assert worth == list(record.rewards), record
        assert sum(c.weight for c in record.rubric) == 100
        assert not any(c.name in record.conversation[0].content for c in record.rubric)
    for one, other in zip(records[::2], records[1::2], strict=True):
        assert one.responses == other.responses and one.rewards == other.rewards[::-1]
        assert one.rewards[0] != one.rewards[1]
        assert [c.name for c in one.rubric] == [c.name for c in other.rubric]


def test_judgments_by_a_rubric_are_right(built):
    written, seen = rows(built / "rubrics.jsonl"), collections.Counter()
    assert len(written) > 100
    for row in written:
        shown = re.findall(r"^\[Response \d\] (.*(?:\n\d\. .*)*)$", row["prompt"], re.MULTILINE)
        told = re.search(r"^\[Criteria\] (.*)$", row["prompt"], re.MULTILINE)[1]
        head, *lines = row["completion"].splitlines()
        assert head == f"Principles: {told}"
        rubric = [
            Criterion(name, float(weight))
            for name, weight in re.findall(r"(?:^|, )(.*?) \((\d+)%\)", told)
        ]
        read = read_rubric(row["completion"], range(2), rubric)
        assert read["failure"] is None, row
        right = [[meets(c.name, text) for text in shown] for c in rubric]
        assert [[score >= 8 for score in scores] for scores in read["criteria"]] == right
        worth = [
            sum(c.weight for c, met in zip(rubric, of, strict=True) if met)
            for of in zip(*right, strict=True)
        ]
        a, b = read["scores"]
        assert (a > b) == (worth[0] > worth[1]) and (a < b) == (worth[0] < worth[1])
        said = re.findall(
            r"^\[Response (\d)\] .* \((right|wrong)\)$", row["completion"], re.MULTILINE
        )
        assert said == [
            (str(i + 1), "right" if of[i] else "wrong") for of in right for i in range(2)
        ]
        seen[len(rubric), (a > b) - (a < b)] += 1
    assert {count for count, _ in seen} == {1, 2}


def prompts(records):
    """All that a user asked, without differences of case and space."""
    return {
        " ".join(turn.content.lower().split())
        for record in records
        for turn in record.conversation
        if turn.role == "user"
    }


def assert_nothing_of_the_tests_is_trained_on(built):
    trained = prompts(read_records(built / "train.jsonl"))
    told = " ".join(
        (row["prompt"] + row["completion"]).lower()
        for name in ("judgments", "rubrics", "general")
        for row in rows(built / f"{name}.jsonl")
    )
    told = " ".join(told.split())
    for name in (*build_real.TESTS, "rubric"):
        tested = read_records(built / "test" / f"{name}.jsonl")
        # of a conversation of several turns the first one names it; later ones may be "Thanks."
        first = prompts(Record(r.id, r.conversation[:1], ("",)) for r in tested)
        assert tested and not first & trained, name
        assert not [prompt for prompt in first if len(prompt) > 20 and prompt in told], name


def test_no_prompt_is_on_both_sides(built):
    assert_nothing_of_the_tests_is_trained_on(built)
    sets = {record.id.split("/")[0] for record in read_records(built / "train.jsonl")}
    assert sets == {"train", *build_real.TRAIN_PAIRS}  # neither RMB nor LLMBar


def test_no_prompt_of_the_published_sets_is_on_both_sides(data_dir, tmp_path):
    sets = {
        name: load_benchmark(spec | {"path": str(data_dir / spec["path"])}).records
        for name, spec in build_real.PUBLISHED.items()
    }
    build_real.build(*answered(), sets, tmp_path, seed=0)
    assert_nothing_of_the_tests_is_trained_on(tmp_path)
    counts = {
        name: len(read_records(tmp_path / "test" / f"{name}.jsonl"))
        for name in build_real.PUBLISHED
    }
    assert counts == {name: build_real.TESTS[name] for name in build_real.PUBLISHED}


def test_what_is_drawn_stays_on_file(tmp_path, monkeypatch):
    asked, calls = {"a/0": "Tell me about a.", "b/0": "Tell me about b."}, []

    def drawn(folder, missing, samples, seed):
        calls.append(list(missing))
        for name in missing:
            yield name, [f"{name} is one. It is two. It is thr", "no end"][:samples]

    monkeypatch.setattr(draw, "_draw", drawn)
    path = tmp_path / "answers.jsonl"
    first = draw.answers(tmp_path, {"a/0": asked["a/0"]}, 2, 0, path)
    both = draw.answers(tmp_path, asked, 2, 0, path)
    again = draw.answers(tmp_path, asked, 2, 0, path)
    assert calls == [["a/0"], ["b/0"]]
    assert both == again == first | {"b/0": ["b/0 is one. It is two."]}

    # of another model, seed or number of samples, or to another question
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r'answers.of.json: field "model.config": expected .*got None'
    ):
        draw.answers(tmp_path, asked, 2, 0, path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r'of.json: field "seed": expected 1, got 0, so answers'):
        draw.answers(tmp_path, asked, 2, 1, path)
    with pytest.raises(ValueError, match=r'of.json: field "samples": expected 3, got 2'):
        draw.answers(tmp_path, asked, 3, 0, path)
    with pytest.raises(ValueError, match=r"id 'b/0': field \"asked\": expected 'Tell me m"):
        draw.answers(tmp_path, asked | {"b/0": "Tell me more."}, 2, 0, path)
    assert len(calls) == 2


def test_answers_of_who_knows_which_model_are_no_ones(tmp_path):
    """Files of earlier runs have nothing beside them; their reader writes what they are of."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a/0", "texts": ["It is one."]}\n')
    of = {"samples": 1, "seed": 0}
    with pytest.raises(ValueError, match=r"no answers.of.json beside it .*; expected \{.samples"):
        draw.answers(tmp_path, {"a/0": "Tell me about a."}, 1, 0, path)
    (tmp_path / "answers.of.json").write_text(json.dumps(of))
    assert draw.answers(tmp_path, {"a/0": "Tell me"}, 1, 0, path) == {"a/0": ["It is one."]}


def test_a_torn_line_of_answers_is_cut_and_a_foreign_one_is_named(tmp_path, monkeypatch):
    asked, calls = {"a/0": "Tell me about a.", "b/0": "Tell me about b."}, []

    def drawn(folder, missing, samples, seed):
        calls.append(list(missing))
        yield from ((name, [f"{name} is one."]) for name in missing)

    monkeypatch.setattr(draw, "_draw", drawn)
    path = tmp_path / "answers.jsonl"
    whole = draw.answers(tmp_path, asked, 1, 0, path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:-9])  # as a kill leaves it
    assert draw.answers(tmp_path, asked, 1, 0, path) == whole
    assert calls == [list(asked), ["b/0"]] and path.read_bytes() == first + second

    for line, what in (
        (b"{\n", "not UTF-8 JSON: cut off"),
        (b'["a/0"]\n', r"expected a JSON object, got \['a/0'\]"),
        (b'{"id": "a/0"}\n', 'field "texts": missing'),
        (b'{"id": "a/0", "texts": "It is one."}\n', 'field "texts": expected a list, got'),
    ):
        path.write_bytes(first + line + second)
        with pytest.raises(ValueError, match=rf"answers.jsonl:2: {what}"):
            draw.answers(tmp_path, asked, 1, 0, path)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "text, whole",
    [
        ("One is here. Two is h", ["One is here."]),
        ('He said "yes." Then he left! Why?', ['He said "yes."', "Then he left!", "Why?"]),
        ("no end", []),
        ("", []),
        ("Version 1.5 is out. Good.", ["Version 1.5 is out.", "Good."]),
    ],
)
def test_sentences(text, whole):
    assert draw.sentences(text) == whole


def test_a_judgment_that_was_asked_again_counts_once(tmp_path):
    row = {"id": "a", "sample": 0, "rewards": [1.0, 0.0], "text": "\u2028"}
    path = tmp_path / "judgments.jsonl"
    path.write_text(
        "".join(
            json.dumps(r, ensure_ascii=False) + "\n"
            for r in (row | {"scores": [1, 9]}, row | {"sample": 1}, row)
        )
    )
    assert lines.judged(path) == [row, row | {"sample": 1}]
    path.write_text(json.dumps(row | {"rewards": None}) + "\n")
    with pytest.raises(ValueError, match="judgments.jsonl: record 'a': no gold; expected"):
        lines.judged(path)


def test_lines_and_pairs_are_counted():
    def judged(name, order, scores, said, rewards=(1.0, 0.0), sample=0):
        text = "\n".join(f"[Response {i}] a -> b ({x})" for i, x in enumerate(said, 1))
        row = {"id": name, "sample": sample, "domain": "order", "order": list(order)}
        return row | {"scores": scores, "rewards": list(rewards), "text": text}

    found = lines.counts(
        [
            judged("a", (0, 1), [9, 1], ("right", "wrong")),  # true, and followed
            judged("a", (1, 0), [1, 9], ("right", "wrong")),  # false, followed; not alike
            judged("b", (0, 1), [9, 1], ("right", "right")),  # not told apart, right by chance
            judged("b", (1, 0), [9, 1], ("wrong", "right")),
            judged("c", (0, 1), None, ("right",)),  # cut off behind a line
            judged("d", (0, 1), [9, 1], ("right", "wrong"), rewards=(2.0, 1.0)),  # left out
            judged("e", (0, 1), [7.6, 3.4], ("right", "wrong"), rewards=(0.8, 0.2)),
            judged("f", (0, 1), [9, 1], ("right", "wrong")) | {"criteria": [[9, 1]]},
        ]
    )
    assert found["lines"] == {"order": {"true": 6, "false": 3}}
    assert found["pairs"] == {
        "judgments": 4,
        "first chosen": 3,
        "told apart": 3,
        "scores follow": 3,
        "right without": 1,
        "not told apart": 1,
        "in both orders": 2,
        "decided alike": 1,
    }
    assert "| all | 9 | 66.7 |" in lines.table(found)


def test_a_pair_is_in_both_orders_once_each_was_shown():
    """Samples are shown in orders of their own: two judgments of a pair may be of one order."""

    def judged(name, order, scores):
        row = {"id": name, "sample": 0, "domain": "order", "order": order, "scores": scores}
        return row | {"rewards": [1.0, 0.0], "text": ""}

    found = lines.counts(
        [
            judged("a", [0, 1], [9, 1]),
            judged("a", [0, 1], [9, 1]),
            judged("b", [0, 1], [9, 1]),
            judged("b", [1, 0], [1, 9]),
        ]
    )
    assert found["pairs"]["judgments"] == 4
    assert found["pairs"]["in both orders"] == 1 and found["pairs"]["decided alike"] == 0
