"""Whatever JSON a reader is given, it gives a right value or one ValueError that names the file:
sound files of every kind are changed at random, and what is read is written and read again.
"""

import copy
import gzip
import json
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.stages import reuse
from grm_jax.benchmarks import load_benchmark
from grm_jax.data.sources import load_instructions, load_source
from grm_jax.evaluation import store
from grm_jax.evaluation.merge import check_results, merge
from grm_jax.json_files import decode, read_object
from grm_jax.judgment.given import as_record
from grm_jax.judgment.records import read_records, write_records
from grm_jax.result_lines import done_lines
from grm_jax.training.metrics import read_metrics
from tests.benchmarks import official_files
from tests.evaluation import fabricated

EXAMPLES = 25  # of each reader, in CI


def nested(depth):
    value = "deep"
    for _ in range(depth):
        value = [value]
    return value


texts = st.text(st.characters(exclude_categories=()), max_size=6)  # halves of pairs among them
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([10**30, 10**400, -(10**1200), 2**63])
    | st.floats()
    | texts
    | st.sampled_from(["user", "assistant", "system", "tie", "1", "\ud800"])
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "id", "\udfff"]) | texts, inner)
    ),
    max_leaves=6,
) | st.sampled_from([90, 99, 101, 200]).map(nested)


@st.composite
def changed(draw, document):
    """A document with one or two of its values replaced, taken away, repeated or added to."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        if not isinstance(document, (list, dict)) or draw(st.integers(0, 19)) == 0:
            return draw(anything)
        node = document
        while True:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (list, dict)) and draw(st.integers(0, 2)):
                node = node[key]
                continue
            way = draw(st.integers(0, 4))
            if way == 0:
                del node[key]
            elif way == 1 and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            elif way == 1:
                node[draw(texts)] = node[key]
            elif way == 2:
                node[key] = [node[key]]
            else:
                node[key] = draw(anything)
            break
    return document


def text_of(document, by_line):
    """JSON with NaN and halves of pairs, as Python writes it."""
    if by_line and isinstance(document, list):
        return "".join(json.dumps(row) + "\n" for row in document)
    return json.dumps(document) + "\n"


def check(path, read, again=lambda value: None):
    """`read(path)` gives a value, of which `again` is right too, or a ValueError with the path."""
    try:
        value = read(path)
    except ValueError as error:
        assert type(error) is ValueError, error
        assert str(path) in str(error) or str(path.parent) in str(error), error
        assert len(str(error)) < 2000 and "\n" not in str(error), error
        str(error).encode("utf-8", "strict")
    else:
        again(value)


def holds(max_examples=EXAMPLES):
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def property_test(path, document, read, again=lambda value: None, by_line=True):
    @holds()
    @given(changed(document))
    def test(value):
        path.write_text(text_of(value, by_line), encoding="utf-8")
        check(path, read, again)

    path.write_text(text_of(document, by_line), encoding="utf-8")
    again(read(path))  # as it is, it is sound
    test()


# ---- records

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
GOOD, BAD = ([*TALK, TALK[0], {"role": "assistant", "content": text}] for text in ("good", "bad"))
RECORD = {
    "id": "a",
    "conversation": [{"role": "system", "content": "s"}, TALK[0]],
    "responses": ["x", "y"],
    "rewards": [1.0, 0.0],
    "domain": "d",
    "reference": "r",
    "metadata": {"a": [1, {"b": "c"}], "d": 1.5},
}
ROWS = {
    "records": RECORD,
    "best": {key: RECORD[key] for key in ("id", "conversation", "responses")} | {"best": 1},
    "preference": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "preference of turns": {"messages": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]},
    "preference of dialogues": {"chosen": GOOD, "rejected": BAD, "source": "s", "system": ""},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "scored": {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2.5]},
    "scored dialogues": {"prompt": "q", "responses": [GOOD, BAD], "scores": [1, 2.5]},
    "ultrafeedback": {
        "instruction": "q",
        "completions": [
            {"response": "a", "overall_score": 3.0},
            {"response": "b", "overall_score": 9.0},
        ],
    },
    "nectar": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}],
    },
    "helpsteer": {"prompt": "q", "response": "a", "helpfulness": 4},
    "strength": {"context": TALK[:1], "response1": "a", "response2": "b", "overall_preference": 1},
    "hh_rlhf": {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    },
    "rmb": official_files.rmb_row("bon", "u", "BoN_set/Helpfulness/x", 3),
    "rmb pair": official_files.rmb_row("pair", "u", "Pairwise_set/Harmlessness/x", 2),
    "llmbar": {"input": "q", "output_1": "a", "output_2": "b", "label": 2},
}


@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("form", ROWS)
def test_every_form_of_records(tmp_path, form, by_line):
    rows = [copy.deepcopy(ROWS[form]) for _ in range(2)]
    if "id" in rows[1]:
        rows[1]["id"] = "b"
    for name in ("bon_uid", "pair_uid"):
        if name in rows[1]:
            rows[1][name] = "v"
    if form == "helpsteer":
        rows[1]["helpfulness"] = 1

    def again(records):
        write_records(tmp_path / "out.jsonl", records)
        assert read_records(tmp_path / "out.jsonl") == records
        assert load_source({"path": str(tmp_path / "out.jsonl")}) == records

    def read(path):
        return load_source({"path": str(path)})

    name = "in.jsonl" if by_line else "in.json"
    property_test(tmp_path / name, rows, read, again, by_line)


@pytest.mark.parametrize("row", [ROWS["preference of dialogues"], ROWS["scored dialogues"]])
def test_columns(tmp_path, row):
    names = ["chosen", "rejected"] if "chosen" in row else "responses"
    columns = {"responses": names} | ({"best": 0} if "chosen" in row else {"rewards": "scores"})

    def again(records):
        write_records(tmp_path / "out.jsonl", records)
        assert read_records(tmp_path / "out.jsonl") == records

    def read(path):
        return load_source({"path": str(path), "columns": columns})

    property_test(tmp_path / "in.jsonl", [row, row], read, again)


@pytest.mark.parametrize(
    "row", [{"id": "a", "prompt": "q", "completion": "a"}, {"messages": TALK}], ids=str
)
def test_instructions(tmp_path, row):
    def again(items):
        for item in items:
            assert decode(json.dumps(item).encode(), "item") == item

    def read(path):
        return load_instructions({"path": str(path)})

    property_test(tmp_path / "in.jsonl", [row], read, again)


def test_records_of_our_own(tmp_path):
    def again(records):
        write_records(tmp_path / "out.jsonl.gz", records)
        assert read_records(tmp_path / "out.jsonl.gz") == records

    property_test(tmp_path / "in.jsonl", [RECORD, RECORD | {"id": "b"}], read_records, again)


def test_a_record_in_a_pipe(tmp_path):
    """As `grm judge -` reads it."""

    def read(path):
        lines = path.read_bytes().splitlines()
        return [
            as_record(decode(line, f"{path}:{i}"), f"{path}:{i}") for i, line in enumerate(lines)
        ]

    def again(records):
        write_records(tmp_path / "out.jsonl", {r.id: r for r in records}.values())

    property_test(tmp_path / "in.jsonl", [RECORD, ROWS["best"]], read, again)


# ---- benchmarks


@pytest.mark.parametrize("name", official_files.WRITERS)
def test_every_benchmark(tmp_path, name):
    spec = official_files.WRITERS[name](tmp_path)
    files = sorted(path for path in pathlib.Path(spec["path"]).rglob("*.json*"))
    files = files or [pathlib.Path(spec["path"])]
    load_benchmark(spec)

    @holds(2 * EXAMPLES)
    @given(st.data())
    def test(data):
        path = data.draw(st.sampled_from(files))
        packed = path.read_bytes()
        whole = gzip.decompress(packed) if path.suffix == ".gz" else packed
        by_line = whole[:1] == b"{"
        rows = [json.loads(line) for line in whole.splitlines()] if by_line else json.loads(whole)
        kept = rows[:1]  # a change of the first row, so that it is found
        value = data.draw(changed(kept))
        value = value + rows[1:] if isinstance(value, list) else value
        try:
            path.write_text(text_of(value, by_line), encoding="utf-8")
            check(tmp_path / "any", lambda _: load_benchmark(spec), again)
        finally:
            path.write_bytes(packed)

    def again(benchmark):
        write_records(tmp_path.parent / "out.jsonl", benchmark.records)
        assert tuple(read_records(tmp_path.parent / "out.jsonl")) == benchmark.records
        benchmark.summarize({record.id: 1.0 for record in benchmark.records})

    test()


# ---- what runs leave

JUDGMENT = {
    "id": "a",
    "domain": "d",
    "sample": 0,
    "order": [0, 1],
    "temperature": 0.5,
    "rewards": [1.0, 0.0],
    "scores": [3, 5],
    "failure": None,
    "text": "t",
    "tokens": 3,
    "prompt_tokens": 5,
    "hinted": False,
    "correct": False,
    "meta_logit": 0.5,
    "record": "digest",
    "seconds": 0.1,
}


def test_stored_judgments(tmp_path):
    def read(path):
        rows = store.read_rows(path, {"a": "digest"}, 0.5)
        judgments = store.read(path, ("hinted", "correct", "order", "text"))
        store.missing(rows, [], (0,), ("no_box",))
        return rows, judgments

    def again(value):
        with store.appending(tmp_path / "out.jsonl") as file:
            file.truncate(0)
            store.append(file, value[1])
        assert store.read(tmp_path / "out.jsonl") == value[1]

    rows = [JUDGMENT, JUDGMENT | {"sample": 1, "scores": None, "failure": "no_box"}]
    property_test(tmp_path / "in.jsonl", rows, read, again)


@pytest.mark.parametrize("command", ["judge", "rank"])
def test_verdicts_on_file(tmp_path, command):
    about = {"record": "digest", "model": "m", "k": 2, "scores": [1, 2]}
    row = {"id": "a", **about} if command == "judge" else {"id": "a", "metadata": {"grm": about}}

    def read(path):
        return done_lines(path, command, {"model": "m", "k": 2}, False)

    property_test(tmp_path / "out.jsonl", [row], read)


def test_metrics(tmp_path):
    property_test(
        tmp_path / "metrics.jsonl", [{"stage": "rl", "step": 0, "loss": 0.5}], read_metrics
    )


def test_the_config_of_a_run_and_the_markers_of_its_stages(tmp_path):
    run = {"digest": "d", "inputs": {"data.train": "x"}, "config": {"seed": 0}}
    property_test(tmp_path / "config.json", run, reuse.read_run, by_line=False)
    marker = {"seconds": 1.5, "note": None, "funnel": {"unhinted": {"accepted": 1}}, "models": {}}
    property_test(tmp_path / "rft.json", marker, reuse.read_marker, by_line=False)
    property_test(tmp_path / "any.json", run, read_object, by_line=False)


def test_results_that_are_merged(tmp_path):
    where = fabricated.evaluation(tmp_path / "run", ("test",), items=3, samples=2, seed=0)
    results = fabricated.results_of(*where, (1, 2), draws=20)
    results = json.loads(json.dumps(results | {"seed": 0}))
    for table in ("rows", "paired"):
        results[table] = results[table][:2]

    def read(path):
        return check_results(read_object(path), str(path))

    def again(changed_results):
        other = results | {"seed": 5 if changed_results.get("seed") != 5 else 6}
        try:
            merge({"one": changed_results, "other": other})
        except ValueError as error:
            assert "one" in str(error) or "other" in str(error)

    property_test(tmp_path / "results.json", results, read, again, by_line=False)


@holds(300)
@given(anything)
def test_json_is_read_as_it_was_written_or_not_at_all(value):
    for options in ({"ensure_ascii": True}, {"ensure_ascii": False}):
        raw = json.dumps(value, **options).encode("utf-8", "surrogatepass")
        try:
            read = decode(raw, "file:1")
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith("file:1: ")
        else:
            assert read == value
            assert decode(json.dumps(read, allow_nan=False).encode(), "file:1") == read
            json.dumps(read, ensure_ascii=False).encode()


@holds(300)
@given(st.binary(max_size=40))
def test_any_bytes(raw):
    try:
        decode(raw, "file")
    except ValueError as error:
        assert type(error) is ValueError and str(error).startswith("file: ")
