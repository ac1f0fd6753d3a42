"""The front door: a model folder as one function, from Python."""

import dataclasses
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grm_jax
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.data.world import make_records
from grm_jax.judgment.given import as_record
from grm_jax.judgment.records import Record, Turn, record_to_dict
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import SCALAR
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import (
    ASSETS,
    TINY_BASE,
    Description,
    read_description,
    write_description,
)
from tests import fabricated_judge

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RIGHT, WRONG = "1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"


@pytest.fixture(scope="module")
def tiny():
    return grm_jax.load("tiny", mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.fixture
def honest():
    fabricated_judge.CALLS.clear()
    return grm_jax.load({"kind": "tests.fabricated_judge:honest"})


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_package_is_imported_without_jax_and_names_what_it_gives():
    heavy = "[m for m in ('jax', 'transformers', 'numpy', 'flax') if m in sys.modules]"
    assert python(f"import sys, grm_jax; print({heavy})") == "[]\n"
    light = "grm_jax.load, grm_jax.Judge, grm_jax.Record, grm_jax.read_records, grm_jax.vote"
    assert python(f"import sys, grm_jax; {light}; print({heavy})") == "[]\n"
    assert set(grm_jax.__all__) <= set(dir(grm_jax))
    assert all(getattr(grm_jax, name) is not None for name in grm_jax.__all__)
    with pytest.raises(AttributeError, match="'grm_jax' has no attribute 'laod'"):
        grm_jax.laod  # noqa: B018


def test_tiny_judges_and_a_second_call_compiles_nothing(tiny):
    compiled = []
    listen = lambda name, seconds, **_: compiled.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    verdict = tiny(TASK, [RIGHT, WRONG], k=8, seed=0)
    assert any("backend_compile" in name for name in compiled)
    compiled.clear()
    again = tiny(TASK, [RIGHT, WRONG], k=8, seed=0)
    other = tiny("Sort the list: 1.owl 2.bee 3.cat", ["1.owl 2.cat 3.bee", "1.cat"], k=8, seed=5)
    assert not any("compile" in name for name in compiled), compiled
    assert again == verdict and other.k == 8

    assert verdict.best == 0 and verdict.scores[0] > verdict.scores[1]
    assert verdict.k == len(verdict.judgments) == verdict.valid + verdict.failed == 8
    kept = [judgment for judgment in verdict.judgments if judgment.kept]
    assert len(kept) == 4
    assert verdict.scores == tuple(map(sum, zip(*(judgment.scores for judgment in kept))))
    assert verdict.margin == (verdict.scores[0] - verdict.scores[1]) / 4
    left_out = [j.meta_logit for j in verdict.judgments if j.scores and not j.kept]
    assert min(judgment.meta_logit for judgment in kept) >= max(left_out)
    first = verdict.judgments[0]
    assert first.text.count("Scores:") == 1 and first.critique and first.tokens > 5
    assert all(isinstance(name, str) for name, weight in first.principles)
    assert sorted(first.order) == [0, 1] and {j.order for j in verdict.judgments} > {first.order}


def test_k_1_is_greedy_and_n_may_be_1_or_many(tiny):
    greedy = tiny(TASK, [RIGHT, WRONG])
    assert greedy.k == 1 and greedy.best == 0 and greedy.judgments[0].meta_logit is None
    assert greedy.judgments[0].kept
    sample = tiny(TASK, [RIGHT, WRONG], temperature=1.0)
    assert sample.judgments[0].text == tiny(TASK, [RIGHT, WRONG], k=8).judgments[0].text
    assert np.isfinite(sample.judgments[0].meta_logit)
    single = tiny(TASK, [RIGHT], k=8)
    assert single.best == 0 and single.margin is None and 0 <= single.scores[0] <= 4
    five = tiny(TASK, [WRONG, "1.fox", "1.hen 2.ant", RIGHT, "2.ant"], k=8)
    assert len(five.scores) == len(five.judgments[0].order) == 5
    assert five.scores[five.best] == max(five.scores)
    tight = tiny(TASK, [RIGHT, WRONG * 40], k=2)  # longer than the model was trained for
    assert (tight.scores, tight.best, tight.margin, tight.failed) == (None, None, None, 2)
    assert tight.failure == "too_long"


def test_the_meta_rm_can_be_left_out_chosen_and_told_how_many_to_keep(tiny, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    plain = grm_jax.load("tiny", meta=False, mesh=mesh)
    verdict = plain(TASK, [RIGHT, WRONG], k=8)
    assert [j.kept for j in verdict.judgments] == [j.scores is not None for j in verdict.judgments]
    assert {j.meta_logit for j in verdict.judgments} == {None}
    guided = tiny(TASK, [RIGHT, WRONG], k=8)
    assert [j.text for j in verdict.judgments] == [j.text for j in guided.judgments]
    assert sum(j.kept for j in tiny(TASK, [RIGHT, WRONG], k=8, k_meta=2).judgments) == 2
    with pytest.raises(ValueError, match="k_meta: expected None, as <Judge 'tiny'.* no Meta RM"):
        plain(TASK, [RIGHT, WRONG], k=8, k_meta=2)
    (tmp_path / "models").mkdir()  # a work folder: the Meta RM beside the GRM
    shutil.copytree(ASSETS / "tiny/grm", tmp_path / "models/grm")
    shutil.copytree(ASSETS / "tiny/meta", tmp_path / "models/meta")
    named = grm_jax.load(tmp_path, mesh=mesh)
    assert named.guided and named.system.identity == tiny.system.identity
    shutil.rmtree(tmp_path / "models/meta")
    with pytest.raises(FileNotFoundError, match='grm.json: field "meta": expected the folder'):
        grm_jax.load(tmp_path, mesh=mesh)
    assert not grm_jax.load(tmp_path, meta=False, mesh=mesh).guided
    assert grm_jax.load(tmp_path, meta="tiny", mesh=mesh).system.identity == tiny.system.identity
    for wrong in (True, 3):
        with pytest.raises(
            ValueError, match="meta: expected the folder of a Meta RM, None .*False"
        ):
            grm_jax.load("tiny", meta=wrong)


def test_a_conversation_may_be_a_text_dicts_or_turns(honest):
    text = honest("Say a number.", ["3", "9", "5"], k=2)
    assert text.best == 1 and text.scores == (6, 18, 10) and text.margin == 4.0
    dicts = honest([{"role": "user", "content": "Say a number."}], ("3", "9", "5"), k=2)
    turns = honest([Turn("user", "Say a number.")], ["3", "9", "5"], k=2)
    assert text == dicts == turns
    longer = honest(
        [Turn("user", "Hi"), {"role": "assistant", "content": "Hi"}, Turn("user", "?")], ["3", "9"]
    )
    assert longer.best == 1 and longer.id != text.id
    assert honest("Say a number.", ["3", "9", "5"], k=2, reference="9").id != text.id


@pytest.mark.parametrize(
    "change, message",
    [
        ({"conversation": 3}, 'judge: field "conversation": expected a non-empty list of turns'),
        ({"conversation": []}, 'judge: field "conversation": expected a non-empty list of turns'),
        ({"conversation": ["hi"]}, '"conversation\\[0\\]": expected an object with "role"'),
        (
            {"conversation": [{"role": "me", "content": "x"}]},
            '"conversation\\[0\\].role": expected',
        ),
        ({"conversation": [{"rle": "user"}]}, "rle\": unknown; did you mean 'role'"),
        ({"conversation": [Turn("assistant", "x")]}, "expected the last turn to be the user's"),
        ({"responses": "a"}, "field \"responses\": expected a list of texts, got the text 'a'"),
        ({"responses": []}, 'judge: field "responses": expected a non-empty list of strings'),
        ({"responses": ["a", 3]}, 'judge: field "responses\\[1\\]": expected a string, got 3'),
        ({"responses": None}, 'judge: field "responses": expected a non-empty list of strings'),
        ({"k": 0}, "k: expected a positive integer, got 0"),
        ({"k": True}, "k: expected a positive integer, got True"),
        ({"seed": "a"}, "seed: expected an integer, got 'a'"),
        (
            {"temperature": -1},
            "temperature: expected 0, which is greedy, or a number from 0.0001 to 100, got -1",
        ),
        ({"temperature": 2e-38}, "temperature: expected 0, .* got 2e-38"),
        ({"temperature": float("nan")}, "temperature: expected 0, .* got nan"),
        ({"k_meta": 3}, "k_meta: expected 1 to k = 2, got 3"),
        ({"reference": 3}, 'judge: field "reference": expected a string, got 3'),
    ],
)
def test_errors_say_what_was_expected(change, message, honest):
    arguments = {"conversation": "hi", "responses": ["1", "2"], "k": 2}
    with pytest.raises(ValueError, match=message):
        honest(**arguments | change)
    assert fabricated_judge.CALLS == []


words = st.sampled_from(["role", "content", "user", "assistant", "conversation", "responses", "id"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5)
anything = st.recursive(
    leaves | st.just(Turn("user", "x")) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(words | st.integers(), inner, max_size=3)
    ),
)
turn = st.fixed_dictionaries({"role": words, "content": st.text(max_size=3)})


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(turn | anything, max_size=3) | anything, anything | st.lists(st.text()))
def test_arguments_of_any_shape_are_a_record_or_an_error_that_says_where(conversation, responses):
    try:
        record = as_record({"conversation": conversation, "responses": responses}, "judge")
    except ValueError as error:
        assert str(error).startswith("judge: ")
    else:
        assert record.conversation[-1].role == "user" and len(record.responses) >= 1
        assert as_record(record_to_dict(record)) == record
    try:
        assert isinstance(as_record(conversation, "records[3]"), Record)
    except ValueError as error:
        assert str(error).startswith("records[3]")


def test_ties_failures_and_no_guess(honest):
    tied = [honest("q", ["4", "4", "1"], k=2, seed=seed) for seed in range(40)]
    assert {verdict.best for verdict in tied} == {0, 1} and {v.margin for v in tied} == {0.0}
    assert honest("q", ["4", "4", "1"], k=2, seed=7) == honest("q", ["4", "4", "1"], k=2, seed=7)
    half = honest("q", ["4", "half"], k=4)
    assert (half.scores, half.best, half.valid, half.failed) == ((8, 2), 0, 2, 2)
    assert half.margin == 3.0 and half.failure is None
    assert [j.kept for j in half.judgments] == [True, False, True, False]
    assert half.judgments[1].failure == "no_box" and half.judgments[1].scores is None
    none = honest("q", ["4", "fails"], k=4)
    assert (none.scores, none.best, none.margin, none.valid) == (None, None, None, 0)
    assert none.failure == "no_box" and none.failed == none.k == 4
    assert half.judgments[0].principles == (("worth", 1.0), ("x", None))
    with pytest.raises(dataclasses.FrozenInstanceError):
        half.best = 1


def test_a_guided_vote_counts_the_half_that_the_meta_rm_likes(honest):
    guided = dataclasses.replace(honest, guided=True)
    record = ["0", "9", "early"]
    assert honest("q", record, k=8).best == 0
    verdict = guided("q", record, k=8)
    assert verdict.best == 1 and verdict.scores == (0, 36, 4) and verdict.margin == 8.0
    assert [j.kept for j in verdict.judgments] == [False] * 4 + [True] * 4
    assert guided("q", record, k=8, k_meta=8).best == 0
    fixed = dataclasses.replace(guided, k_meta=6)
    assert [sum(j.kept for j in fixed("q", record, k=k).judgments) for k in (8, 4)] == [6, 4]
    with pytest.raises(ValueError, match="k_meta: expected None at temperature 0, .* got 4"):
        guided("q", record, k=8, temperature=0, k_meta=4)
    assert all(j.kept for j in fixed("q", record, k=8, temperature=0).judgments)  # its own says it
    half = guided("q", ["4", "half"], k=4)  # two failed, so the other two are kept
    assert [j.kept for j in half.judgments] == [True, False, True, False]


def test_auto_draws_until_the_vote_stands_and_says_why_it_stopped():
    fabricated_judge.CALLS.clear()
    judge = grm_jax.load({"kind": "tests.fabricated_judge:bounded"})
    clear = judge("q", ["8", "2"], k="auto")
    assert (clear.best, clear.k, clear.stopped, clear.valid) == (0, 8, "test", 8)
    assert [samples for _, samples, *_ in fabricated_judge.CALLS] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert clear.scores == (64, 16) and len(clear.judgments) == 8
    eight = judge("q", ["8", "2"], k=8)
    assert dataclasses.replace(clear, stopped=None) == eight, "they are the first of any k"
    certain = judge("q", ["8", "2"], k=grm_jax.Anytime(error=0.0))
    assert (certain.k, certain.stopped) == (20, "certain")  # 6 each against 9 of those to come
    tied = judge("q", ["4", "4"], k=grm_jax.Anytime(10))
    assert (tied.k, tied.stopped) == (10, None)
    few = judge("q", ["8", "2"], k="auto", temperature=0)
    assert (few.k, few.stopped) == (1, None), "a greedy judgment is drawn once"
    for wrong in ("Auto", "8", grm_jax.Anytime(2**20)):
        with pytest.raises(ValueError, match="k: expected"):
            judge("q", ["8", "2"], k=wrong)
    for wrong in ({"most": 0}, {"error": 1}, {"error": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            grm_jax.Anytime(**wrong)


def test_auto_of_many_leaves_each_record_by_itself_and_asks_the_open_ones_alone():
    fabricated_judge.CALLS.clear()
    judge = grm_jax.load({"kind": "tests.fabricated_judge:bounded"})
    asked = [{"conversation": "q", "responses": texts} for texts in (["9", "1"], ["5", "4"], ["3"])]
    many = list(judge.many(asked, k="auto", progress=False))
    assert many == [judge("q", one["responses"], k="auto") for one in asked]
    sizes = [len(names) for names, *_ in fabricated_judge.CALLS][:8]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 3 and sizes[-1] < 3
    guided = dataclasses.replace(judge, guided=True)
    verdict = guided("q", ["9", "1"], k="auto")
    assert 8 < verdict.k < 32 and sum(j.kept for j in verdict.judgments) == verdict.k // 2
    assert verdict.stopped == "test" and verdict.best == 0
    unknown = grm_jax.load({"kind": "tests.fabricated_judge:honest"})
    assert (unknown("q", ["9", "1"], k="auto").k, verdict.failed) == (32, 0)


def records(n, **fields):
    return [
        {"id": f"r{i}", "conversation": "q", "responses": [str(i), "5"], **fields} for i in range(n)
    ]


def test_many_gives_the_verdicts_of_records_in_their_order_and_reads_no_further(honest, capsys):
    judge = dataclasses.replace(honest, rows=4)
    read = []

    def source():
        for record in records(100):
            read.append(record["id"])
            yield record

    verdicts = judge.many(source(), k=2)
    assert read == [] and next(verdicts).id == "r0"
    first = len(read)
    assert 4 <= first < 60
    rest = list(verdicts)
    assert [verdict.id for verdict in rest] == [f"r{i}" for i in range(1, 100)]
    assert [verdict.best for verdict in rest] == [int(i < 5) for i in range(1, 5)] + [
        verdict.best for verdict in rest[4:5]
    ] + [0] * 94
    assert len(fabricated_judge.CALLS) == -(-100 // first)
    assert list(judge.many([], k=2)) == []
    assert capsys.readouterr() == ("", "")  # what is done soon says nothing


def test_many_takes_records_and_dicts_with_and_without_gold_and_ids(honest):
    whole = grm_jax.Record("a", (Turn("user", "q"),), ("1", "2"), (0.0, 1.0))
    bare = {"conversation": [{"role": "user", "content": "q"}], "responses": ["1", "2"]}
    verdicts = list(
        honest.many([whole, bare, {**bare, "id": "b", "best": 0}, bare], progress=False)
    )
    assert [verdict.best for verdict in verdicts] == [1, 1, 1, 1]
    assert verdicts[0].id == "a" and verdicts[2].id == "b" and verdicts[1] == verdicts[3]
    assert verdicts[1].id == honest("q", ["1", "2"]).id
    # a verdict is a function of the texts, and so is the id that stands for them
    told = {**bare, "domain": "d", "metadata": {"row": 3}}
    length = grm_jax.load({"kind": "length"})
    assert len({one.id for one in length.many([bare, told, {**told, "best": 0}])}) == 1
    assert next(honest.many([told])) == verdicts[1]
    with pytest.raises(ValueError, match="two records have this id"):
        list(honest.many([bare, told]))  # a model of one's own may read them
    with pytest.raises(ValueError, match=r"records\[1\]: expected a Record, or a dict with .*'x'"):
        list(honest.many([whole, "x"]))
    with pytest.raises(
        ValueError, match=r"records\[0\] .id 'b'.: field \"rewards\": expected exactly"
    ):
        list(honest.many([{**bare, "id": "b", "rewards": [1, 1]}]))
    with pytest.raises(ValueError, match="record 'a': two records have this id"):
        list(honest.many([whole, {**bare, "id": "a", "responses": ["3"]}]))
    with pytest.raises(ValueError, match="k: expected a positive integer"):
        honest.many([whole], k=0)  # before anything is asked for
    broken = grm_jax.Record("a", "q", ("1",))
    with pytest.raises(ValueError, match=r"records\[0\]"):
        list(honest.many([broken]))


def test_what_a_model_cannot_judge_is_said(honest):
    pairs = grm_jax.load({"kind": "tests.fabricated_judge:pairs", "name": "pairs"})
    assert not pairs.accepts(1) and pairs.accepts(2)
    verdict = pairs("q", ["1", "2"], k=8)  # its samples are all the same
    assert verdict.k == 1 and verdict.best == 1
    with pytest.raises(ValueError, match="has 1 response, which a .*pairs cannot judge"):
        pairs("q", ["1"])
    assert repr(pairs) == "<Judge 'pairs': tests.fabricated_judge:pairs>"


def test_what_a_call_depends_on(tiny):
    before = tiny.asked(k=8)
    assert before == json.loads(json.dumps(before)) and before["k_meta"] == 4
    assert tiny.asked(k=8, temperature=1.0) == before
    changed = [
        tiny.asked(k=4),
        tiny.asked(k=8, seed=1),
        tiny.asked(k=8, temperature=0.5),
        tiny.asked(k=8, k_meta=3),
        grm_jax.load("tiny", meta=False).asked(k=8),
        grm_jax.load("tiny_base").asked(k=8),
        grm_jax.load("tiny", completion=60).asked(k=8),
    ]
    assert len({json.dumps(one) for one in [before, *changed]}) == 8
    assert tiny.asked() | {"k": 8} == tiny.asked(k=8, temperature=0)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY_BASE, tmp_path / "model")


def test_what_nothing_says_is_guessed_aloud_in_one_line(folder, caplog):
    (folder / "grm.json").unlink()
    mesh = make_mesh(devices=jax.devices()[:1])
    judge = grm_jax.load(folder, mesh=mesh)
    (line,) = caplog.messages
    assert line == (
        f"{folder} does not say how it wants to be asked (grm.json); guessed: kind pointwise_grm, "
        "completion 256, prompt 768, temperature 0.5, template 'pointwise', template 'single'. "
        "Arguments say otherwise"
    )
    assert judge.system.identity["lengths"] == {"prompt": 768, "completion": 256}
    caplog.clear()
    told = grm_jax.load(
        folder,
        kind="pointwise_grm",
        templates={"pointwise": "tiny_pointwise", "single": "tiny_single"},
        prompt=80,
        completion=128,
        temperature=1.0,
        mesh=mesh,
    )
    assert caplog.messages == []
    assert told.system.identity == grm_jax.load("tiny_base", mesh=mesh).system.identity
    with pytest.raises(ValueError, match="1024 positions; expected at least .* 1000 . 256"):
        grm_jax.load(folder, prompt=1000, mesh=mesh)
    with pytest.raises(ValueError, match="completion: expected fewer than the 1024 positions of t"):
        grm_jax.load(folder, completion=1024, mesh=mesh)
    with pytest.raises(ValueError, match="prompt: expected a positive integer, got 'long'"):
        grm_jax.load(folder, prompt="long", mesh=mesh)
    with pytest.raises(
        ValueError, match="'pointwise' is asked for, but the model was trained with"
    ):
        grm_jax.load("tiny", templates={"pointwise": "pointwise"})
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: expected a JSON object, got"):
        grm_jax.load(folder)


def test_a_public_folder_is_sampled_as_its_generation_config_says(folder):
    (folder / "grm.json").unlink()
    mesh = make_mesh(devices=jax.devices()[:1])

    def temperature(stated):
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text() or "{}") | stated))
        return grm_jax.load(folder, mesh=mesh).asked(k=2)["temperature"]

    (folder / "generation_config.json").touch()
    assert temperature({"temperature": 0.75, "top_p": 0.9}) == 0.75
    # which is greedy decoding of whoever wrote it, and says nothing of samples
    assert temperature({"do_sample": False, "temperature": 0.0, "top_p": 0}) == 0.5
    with pytest.raises(ValueError, match='generation_config.json: field "temperature": expected a'):
        temperature({"do_sample": True})


def test_a_bradley_terry_folder_gives_scores_too(tmp_path, caplog):
    cfg, folder = load_config(TINY_BASE), tmp_path / "head"
    params = init_scalar_params(cfg, load_params(TINY_BASE, cfg), jax.random.key(0))
    save_folder(folder, params, cfg, tokenizer_files_from=TINY_BASE, architecture=SCALAR)
    mesh = make_mesh(devices=jax.devices()[:1])
    judge = grm_jax.load(folder, mesh=mesh)
    (line,) = caplog.messages
    assert "guessed: kind bradley_terry. Arguments" in line
    verdict = judge(TASK, [RIGHT, WRONG, "x"], k=8)
    assert verdict.k == 1 and verdict.best == int(np.argmax(verdict.scores))
    assert verdict.margin == sorted(verdict.scores)[-1] - sorted(verdict.scores)[-2]
    caplog.clear()
    write_description(folder, Description("bradley_terry"))
    assert grm_jax.load(folder, mesh=mesh)(TASK, [RIGHT, WRONG, "x"]) == verdict
    assert caplog.messages == []
    with pytest.raises(ValueError, match="meta: a bradley_terry has no Meta RM"):
        grm_jax.load(folder, meta="tiny")
    for kind in ("meta_rm", "critic"):
        write_description(folder, Description(kind))
        with pytest.raises(
            ValueError, match=f"head holds a {kind}, which judges nothing by itself"
        ):
            grm_jax.load(folder)


def test_a_judge_of_pairs_from_a_folder(folder):
    said = read_description(folder)
    template = said.templates["pointwise"]
    write_description(
        folder, dataclasses.replace(said, kind="llm_judge", templates={"judge": template})
    )
    judge = grm_jax.load(folder, mesh=make_mesh(devices=jax.devices()[:1]), completion=8)
    verdict = judge(TASK, [RIGHT, WRONG], k=2)
    assert verdict.k == 2 and verdict.failed == 2 and verdict.failure == "truncated"
    with pytest.raises(ValueError, match="which a llm_judge cannot judge"):
        judge(TASK, [RIGHT])


def test_several_devices_give_the_same_verdicts_and_many_those_of_calls(tiny):
    over_all = grm_jax.load("tiny", rows=16)
    some = make_records("test", 3, 0) + make_records("single", 1, 0)
    verdicts = list(over_all.many(some, k=4, progress=False))
    assert [verdict.id for verdict in verdicts] == [record.id for record in some]
    alone = [next(tiny.many([record], k=4, progress=False)) for record in some]

    def texts(verdict):
        return [judgment.text for judgment in verdict.judgments]

    assert list(map(texts, verdicts)) == list(map(texts, alone))


DOC = (pathlib.Path(__file__).parents[1] / "docs/judge.md").read_text()


def test_the_page_about_judging_runs(capsys):
    for snippet in re.findall(r"^```python\n(.*?)^```", DOC, re.M | re.S):
        exec(compile(snippet, "docs/judge.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and re.fullmatch(r"\(\d+, \d+\) \d+\.\d+", lines[0])
    fields = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)*", DOC, re.M)
    assert {"scores", "kind", "lengths"} <= {name for names in fields for name in names}
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", DOC):
        path, _, anchor = link.partition("#")
        page = pathlib.Path(__file__).parents[1] / "docs" / (path or "judge.md")
        assert page.exists(), link
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M) if anchor else []
        named = [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]
        assert not anchor or anchor in named, link


def test_a_judge_behind_an_api_is_a_spec():
    judge = grm_jax.load({"kind": "remote", "base_url": "http://localhost:1/v1", "model": "m"})
    assert judge.accepts(1) and judge.system.name == "remote" and not judge.guided


@pytest.fixture(autouse=True)
def no_cache_and_quiet(caplog, monkeypatch):
    """The log is empty but for what a test makes."""
    monkeypatch.setenv("GRM_JAX_CACHE", "0")
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": {"path": "tiny"}}, 'expected a spec with the field "kind"'),
        ({"name": {"kind": "length"}, "kind": "random"}, "kind: expected none beside a spec"),
        ({"name": "tiny", "meta": ""}, "meta: expected the folder of a Meta RM"),
    ],
)
def test_arguments_that_would_be_passed_over_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        grm_jax.load(**arguments)


RUBRIC = [{"name": "truth", "weight": 3}, grm_jax.Criterion("brevity", 1)]


def test_a_rubric_makes_the_total_and_each_criterion_has_its_scores(honest):
    verdict = honest("q", ["8 2", "4 10"], k=4, rubric=RUBRIC)
    assert verdict.criteria == {"truth": (32, 16), "brevity": (8, 40)}
    assert verdict.scores == (4 * 6.5, 4 * 5.5) and verdict.best == 0 and verdict.margin == 1.0
    assert verdict.judgments[1].criteria == {"truth": (8, 4), "brevity": (2, 10)}
    assert verdict.judgments[1].principles == (("truth", 3), ("brevity", 1))
    turned = [{"name": "truth", "weight": 1}, {"name": "brevity", "weight": 3}]
    assert honest("q", ["8 2", "4 10"], k=4, rubric=turned).best == 1
    (alone,) = honest.many([{"conversation": "q", "responses": ["8 2"], "rubric": RUBRIC}], k=2)
    assert alone.scores == (13,) and alone.criteria == {"truth": (16,), "brevity": (4,)}
    # equal means of other scores are a tie, which is broken as all are
    assert {honest("q", ["4 9", "5 6"], seed=s, rubric=RUBRIC).best for s in range(8)} == {0, 1}
    failed = honest("q", ["8 2", "4 11"], rubric=RUBRIC)
    assert failed.failure == "out_of_range" and failed.criteria is None
    plain = honest("q", ["8", "4"])
    assert plain.criteria is None and plain.judgments[0].criteria is None
    with pytest.raises(ValueError, match=r'judge: field "rubric": expected a non-empty list'):
        honest("q", ["8 2", "4 10"], rubric=[])


def test_a_model_that_judges_by_no_rubric_says_so(tiny, tmp_path):
    asked = {"conversation": TASK, "responses": [RIGHT, WRONG], "rubric": RUBRIC}
    with pytest.raises(ValueError, match=r'records\[0\] .*field "rubric": this model was given no'):
        list(tiny.many([asked]))
    length = grm_jax.load({"kind": "length"})
    with pytest.raises(ValueError, match='field "rubric": a length judges by none'):
        length(TASK, [RIGHT, WRONG], rubric=RUBRIC)
    told = grm_jax.load("tiny", templates={"rubric": "tiny_rubric"})
    long = [{"name": "truth", "weight": 1, "description": ""}]
    long += [{"name": f"a longer name {i}", "weight": 1} for i in range(40)]
    with pytest.raises(ValueError, match=r'field "rubric": the prompt has \d+ tokens with it; exp'):
        told(TASK, [RIGHT, WRONG], rubric=long)
    with pytest.raises(ValueError, match="shows no rubric"):
        grm_jax.load("tiny", templates={"rubric": "tiny_pointwise"})
