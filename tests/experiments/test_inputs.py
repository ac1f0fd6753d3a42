"""What a run reads: each paradigm counts its own input, what is left out is counted, to a limit,
and what is missing is said before anything is computed.
"""

import json
import types

import pytest

from experiments import run_config
from experiments.stages import evaluation
from experiments.stages import inputs as stage
from grm_jax.benchmarks import load_benchmark
from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.judgment.records import Record, Turn
from grm_jax.reward_models.grm import Prompter
from grm_jax.tokenizer import load_tokenizer
from tests.experiments import micro, micro_reward_model

PROMPT, SEQUENCE = 80, 80 + micro.get_config().lengths.completion


def record(name, words, responses=2):
    texts = [f"1.cat {i}.dog" for i in range(responses)]
    turns = [{"role": "user", "content": f"Name {'animals ' * words}"}]
    best = {"best": 0} if responses > 1 else {"rewards": [1]}
    return {"id": name, "conversation": turns, "responses": texts, **best}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def load(tmp_path):
    """load(train rows, kind or None, test rows, **fields) of the config -> Inputs."""

    def load(train, kind=None, test=(), general=None, **fields):
        config = micro_reward_model.get_config() if kind else micro.get_config()
        sources = {
            "data.train": ({"path": write(tmp_path / "train.jsonl", train)},),
            "data.eval": {
                "test": {
                    "path": write(tmp_path / "test.jsonl", test or [record("t", 1, responses=3)])
                }
            },
            "eval.splits": ("test",),
            "eval.records": 0,
        }
        if general is not None:
            sources["data.general"] = ({"path": write(tmp_path / "general.jsonl", general)},)
        with config.ignore_type():
            config.update_from_flattened_dict(sources | ({"kind": kind} if kind else {}) | fields)
        config = run_config.finish(config)
        tokenizer = load_tokenizer(run_config.tokenizer_path(config))
        templates = run_config.load_templates(config)
        prompter = Prompter(tokenizer, templates["pointwise"], templates["single"], config.answer)
        lengths = run_config.section(config, "lengths")
        load.config, load.prompter, load.meta = config, prompter, templates["meta"]
        return stage.load_inputs(config, prompter, templates["meta"], lengths)

    return load


def as_record(row):
    turns = tuple(Turn(turn["role"], turn["content"]) for turn in row["conversation"])
    return Record(row["id"], turns, tuple(row["responses"]))


def test_each_paradigm_counts_its_own_input(load):
    """By what a judge renders, of the training records and of the splits alike."""
    rows = [record(f"a{words}", words) for words in range(1, 80, 2)]
    test = [record(f"t{words}", words, responses=3) for words in range(1, 80, 2)]
    scalar = load_template("scalar")

    def tokens(kind, row, split):
        whole, tokenizer = as_record(row), load.prompter.tokenizer
        n = len(whole.responses)
        lone = [Record("x", whole.conversation, (text,)) for text in whole.responses]
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        two = [Record("x", whole.conversation, tuple(whole.responses[k] for k in p)) for p in pairs]
        turns = [(turn.role, turn.content) for turn in whole.conversation]
        if kind == "bradley_terry":
            return max(
                len(tokenizer.chat([*turns, ("assistant", text)])) for text in whole.responses
            )
        if kind == "pair_rm":
            return max(len(tokenizer.chat_prompt(render_prompt(scalar, r, (0, 1)))) for r in two)
        if kind == "cloud":
            return max(len(tokenizer.chat_prompt(render_prompt(scalar, r, (0,)))) for r in lone)
        if kind == "index" and split == "test":
            return max(len(load.prompter.ids(r, (0, 1))) for r in two)
        hinted = Record("x", whole.conversation, whole.responses, (1.0, *[0.0] * (n - 1)))
        return len(load.prompter.ids(hinted, range(n), hint=True))

    kept = {}
    for kind, limit in (
        ("grm", PROMPT),
        ("index", PROMPT),
        ("bradley_terry", SEQUENCE),
        ("pair_rm", SEQUENCE),
        ("cloud", PROMPT),
    ):
        own = {"answer": "index", "templates.pointwise": "tiny_judge"} if kind == "index" else {}
        named = None if kind in ("grm", "index") else kind
        found = load(rows, named, test, **{"data.max_left_out": 1.0}, **own)
        for split, of in (("train", rows), ("test", test)):
            lengths = {row["id"]: tokens(kind, row, split) for row in of}
            fit = [name for name, length in lengths.items() if length <= limit]
            assert [r.id for r in found.records[split]] == fit, (kind, split)
            long = {name: length for name, length in lengths.items() if length > limit}
            assert dict(found.left_out[split]) == long and fit and long, (kind, split)
        kept[kind] = {split: len(records) for split, records in found.records.items()}
    # the GRM's prompt says nothing about what the others can read
    assert kept["bradley_terry"]["train"] > kept["pair_rm"]["train"] > kept["grm"]["train"]
    assert kept["cloud"]["train"] != kept["grm"]["train"]
    assert kept["index"]["test"] != kept["index"]["train"]


@pytest.mark.parametrize(
    "kind, reader, field",
    [
        (None, "prompts of the GRM", "lengths.prompt = 80"),
        ("bradley_terry", "inputs of bradley_terry", "lengths.prompt"),
        ("pair_rm", "inputs of pair_rm", "lengths.prompt"),
        ("cloud", "prompts of the critic", "lengths.prompt = 80"),
    ],
)
def test_more_left_out_than_the_limit_is_an_error_that_says_whose_input_it_is(
    load, kind, reader, field
):
    short, long = [record("a", 1), record("b", 2)], [record(f"l{i}", 300 + i) for i in range(3)]
    for split, sets in (("train", (short + long, short[:1])), ("test", (short[:1], short + long))):
        train, test = sets
        with pytest.raises(ValueError) as error:
            load(train, kind, [{**row, "id": f"t{row['id']}"} for row in test])
        message = str(error.value)
        if split == "train":
            assert f"data for 'train': 3 of 5 records are longer than {field}" in message
            assert reader in message and "data.max_left_out = 0.5" in message
    with pytest.raises(ValueError, match=f"no record is left of the 3 .*: 3 {reader} are longer"):
        load(long, kind)


def test_what_is_left_out_is_counted_by_its_reason(load, tmp_path, capsys):
    rows = [
        {"prompt": f"Name {i} animals", "responses": ["1", "2"], "scores": [1, 1 - i % 2]}
        for i in range(4)
    ]
    rows.append({"prompt": "Name animals " * 200, "responses": ["1", "2"], "scores": [1, 0]})
    found = load(rows, **{"data.max_left_out": 0.6})
    assert len(found.records["train"]) == 2
    assert [why for _, why in found.left_out["train"]][:2] == ["no single best response"] * 2
    assert stage.counts(found.left_out) == {
        "train": {"no single best response": 2, "too long": 1},
        "test": {},
    }
    said = capsys.readouterr().out
    assert "data train: 2 records; 1 longer than 80 tokens" in said
    assert "2 without a single best response are left out" in said
    with pytest.raises(ValueError, match="1 of 5 .* tokens, and 2 have no single best response"):
        load(rows)
    stage.write_inputs(tmp_path / "records", found)
    stage.write_inputs(tmp_path / "records", found)
    # and stands on the page: of what was trained on in a note, of a split beside its benchmark
    run = types.SimpleNamespace(train=found.records["train"], left_out=stage.counts(found.left_out))
    assert evaluation.left_out_notes(run) == [
        "Of 5 training records 2 are used; left out are 2 (no single best response), 1 (too long)."
    ]
    split = {"kind": "records", "path": str(tmp_path / "records/train.jsonl")}
    counts = load_benchmark(split | {"left_out": run.left_out["train"]}).counts
    assert counts["left out: too long"] == 1 and counts["left out: no single best response"] == 2
    assert len(json.loads((tmp_path / "records/left_out.json").read_text())["train"]) == 3


def test_instructions_and_critiques_have_the_limit_too(load, tmp_path):
    general = [{"prompt": "p", "completion": "c " * words} for words in (1, 400, 400, 400)]
    with pytest.raises(ValueError, match="data.general: instructions: 3 of 4 are longer than"):
        load([record("a", 1)], general=general)
    critiques = [
        {**record(f"c{i}", 1, responses=1), "metadata": {"critique": "it is right " * words}}
        for i, words in enumerate((1, 400, 400))
    ]
    path = write(tmp_path / "critiques.jsonl", critiques)
    source = {"data.critiques": ({"path": path},)}
    with pytest.raises(ValueError, match="data.critiques: critiques: 2 of 3 are longer than"):
        load([record("a", 1)], "cloud", **source)
    # which a Bradley-Terry model never reads
    load([record("a", 1)], "bradley_terry", general=general, **source)


def test_a_template_of_the_meta_rm_that_leaves_no_room_is_an_error_before_compute(load, tmp_path):
    path = tmp_path / "long_meta.jinja"
    path.write_text("Read on. " * 200 + load_template("tiny_meta").files[0][1])
    with pytest.raises(ValueError, match="Meta RM, template .*: records: 1 of 1 are longer than"):
        load([record("a", 1)], **{"templates.meta": str(path)})


def test_what_is_missing_is_said_before_compute(load):
    for kind in ("bradley_terry", "pair_rm", "cloud"):
        single = [record(f"s{i}", 1, responses=1) for i in range(3)]
        with pytest.raises(ValueError, match=f"{kind} is trained on pairs, but all 3 records have"):
            load(single, kind)
    with pytest.raises(ValueError, match="train.jsonl: expected JSON: the file is empty"):
        load([])


@pytest.mark.parametrize("ids", ["given", "made"])
def test_two_sources_never_share_an_id(load, tmp_path, ids):
    texts = ("prompt,chosen,rejected\nName animals,1.cat,1.box\n", [record("a", 1)])
    paths = []
    for folder in "one", "two":
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / ("data.csv" if ids == "made" else "data.jsonl"))
        if ids == "made":
            paths[-1].write_text(texts[0])
        else:
            write(paths[-1], texts[1])
    name = "preference/data/train/0" if ids == "made" else "a"
    sources = tuple({"path": str(path)} for path in paths)
    for field, split in (("data.train", "train"), ("data.eval.test", "test")):
        said = f"data for '{split}': .*'{name}' of {paths[1]} is used in {paths[0]} already; .*"
        with pytest.raises(ValueError, match=f"{said}rename one of the files"):
            load([record("x", 2)], **{field: sources})


def test_training_and_test_records_may_be_splits_of_one_file_or_folder(load, tmp_path):
    """Records that are in both are found by their content."""
    splits = {"train": [record("a", 1)], "test": [record("t", 2)]}
    (tmp_path / "both.json").write_text(json.dumps(splits))
    (tmp_path / "folder").mkdir()
    for split, rows in splits.items():
        write(tmp_path / f"folder/{split}.jsonl", rows)
    for path in (str(tmp_path / "both.json"), str(tmp_path / "folder")):
        train, test = ({"path": path, "split": split} for split in ("train", "test"))
        found = load([], **{"data.train": (train,), "data.eval.test": (test,)}).records
        assert [[one.id for one in found[split]] for split in splits] == [["a"], ["t"]]
        with pytest.raises(ValueError, match=r"data\.eval\.test: expected other records than"):
            load([], **{"data.train": (train,), "data.eval.test": (train,)})
    whole = {"path": str(tmp_path / "folder")}
    with pytest.raises(ValueError, match="record 'a' of 'test' is also the training record 'a'"):
        load([], **{"data.train": (train,), "data.eval.test": (whole,)})


@pytest.mark.slow
@pytest.mark.parametrize("script", ["spct_rl", "reward_model"])
def test_one_training_record_is_enough(processes, tmp_path, script):
    """For batches of 4 and 8 in every stage, and for the kinds of reward models."""
    train = write(tmp_path / "train.jsonl", [record("a", 1)])
    general = write(
        tmp_path / "general.jsonl", [{"prompt": "Name 1 animal", "completion": "1.cat"}]
    )
    test = write(tmp_path / "test.jsonl", [record("t", 2)])
    preset = "micro.py" if script == "spct_rl" else "micro_reward_model.py"
    for kind in ("",) if script == "spct_rl" else ("bradley_terry", "pair_rm"):
        processes.run(
            processes.REPO / "tests/experiments" / preset,
            tmp_path / f"run{kind}",
            f"--config.data.train={train}",
            f"--config.data.general={general}",
            f"--config.data.eval.test={test}",
            '--config.eval.splits=["test"]',
            *([f"--config.kind={kind}"] if kind else []),
            script=script,
        )
        results = json.loads((tmp_path / f"run{kind}/results.json").read_text())
        assert results["rows"] and results["benchmarks"][0]["items"] == 1
