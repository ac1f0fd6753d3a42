"""Every kind of system is described without its weights, is loaded once, and judges; what cannot be
right is said before.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import grm_jax
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.data.world import make_records
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import Criterion
from grm_jax.models.config import Numerics
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import SCALAR
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models import load as module
from grm_jax.reward_models import remote
from grm_jax.reward_models import spec as spec_module
from grm_jax.reward_models.description import (
    ASSETS,
    TINY_BASE,
    Description,
    read_description,
    write_description,
)
from grm_jax.reward_models.grm import Prompter
from grm_jax.reward_models.llm_judge import by_probability, llm_judge
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.system import Asking
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.tokenizer import load_tokenizer
from tests.reward_models.judge_cases import TOKENIZER, FakeSampler, choose
from tests.reward_models.judge_cases import record as worth

RECORDS = make_records("test", 3, 0) + make_records("single", 2, 0)
PAIRS = [record for record in RECORDS if len(record.responses) > 1]


@pytest.fixture(scope="module")
def asking():
    return Asking(
        mesh=make_mesh(replica=-1, fsdp=1),  # prompts are split over the devices
        numerics=Numerics(),
        lengths=Lengths(prompt=80, completion=12, buckets=(80,)),
        sampling=Sampling(rows=8, sampler="shard_map"),
        templates={
            role: load_template(f"tiny_{role}") for role in ("pointwise", "single", "judge", "meta")
        },
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The tiny base with a scalar head that was never trained, without a grm.json."""
    cfg = load_config(TINY_BASE)
    folder = tmp_path_factory.mktemp("models") / "head"
    params = init_scalar_params(cfg, load_params(TINY_BASE, cfg), jax.random.key(0))
    save_folder(folder, params, cfg, tokenizer_files_from=TINY_BASE, architecture=SCALAR)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny base, to be changed."""
    return pathlib.Path(shutil.copytree(TINY_BASE, tmp_path / "model"))


@pytest.fixture
def no_weights(monkeypatch):
    """Nothing may read a tensor."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(spec_module, "load_adapted", refuse)
    monkeypatch.setattr(module, "load_scalar", refuse)


def judgments(model, records, samples=(0, 1), temperature=1.0):
    blocks = model.judge(records, samples, temperature)
    return {(one["id"], one["sample"]): one for block in blocks for one in block}


def test_each_kind_that_lies_in_a_folder_judges_what_it_accepts(head, asking):
    specs = (
        {"name": "grm", "kind": "pointwise_grm", "path": "tiny_base", "meta": head},
        {"name": "judge", "kind": "llm_judge", "path": "tiny_base"},
        {"name": "scalar", "kind": "scalar", "path": head},
        {"name": "pairs", "kind": "pair_rm", "path": head, "swap_average": True},
        {"name": "cloud", "kind": "cloud", "path": head, "critic": "tiny_base"},
    )
    rows, systems = {}, [describe(spec, asking) for spec in specs]
    for system in systems:
        model = system.load(0)
        assert isinstance(model, RewardModel) and model.name == system.name
        assert model.sampled == system.sampled
        assert [model.accepts(n) for n in (1, 2, 5)] == [system.accepts(n) for n in (1, 2, 5)]
        records = RECORDS if system.accepts(1) else PAIRS
        rows[system.name] = judgments(model, records)
        assert len(rows[system.name]) == 2 * len(records)
    assert [s.name for s in systems if s.accepts(1)] == ["grm", "scalar", "cloud"]
    assert [s.name for s in systems if not s.sampled] == ["scalar", "pairs"]
    parsed = [row for row in rows["grm"].values() if row["failure"] is None]
    assert parsed and all(np.isfinite(row["meta_logit"]) for row in parsed)
    exact = [*rows["scalar"].values(), *rows["pairs"].values()]
    assert {row["failure"] for row in exact} == {None}
    assert all(row["critiques"] for row in rows["cloud"].values())
    assert len({json.dumps(row["scores"]) for row in rows["scalar"].values()}) > 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error_before_anything_is_judged(
    head, folder, asking, tmp_path, value
):
    """Of every kind, and of each of its folders."""
    head = shutil.copytree(head, tmp_path / "head")
    asked: list[tuple[str, dict, str]] = [
        ("pointwise_grm", {"path": str(folder)}, "model.norm.weight"),
        ("pointwise_grm", {"path": "tiny_base", "meta": str(head)}, "score.weight"),
        ("llm_judge", {"path": str(folder)}, "model.norm.weight"),
        ("token_prob", {"path": str(folder)}, "model.norm.weight"),
        ("scalar", {"path": str(head)}, "score.weight"),
        ("bradley_terry", {"path": str(head)}, "score.weight"),
        ("pair_rm", {"path": str(head)}, "score.weight"),
        ("cloud", {"path": str(head), "critic": "tiny_base"}, "score.weight"),
        ("cloud", {"path": str(head), "critic": str(folder)}, "model.norm.weight"),
    ]
    for path, tensor in ((folder, "model.norm.weight"), (head, "score.weight")):
        file = path / "model.safetensors"
        tensors = {name: array.copy() for name, array in load_file(file).items()}
        tensors[tensor].reshape(-1)[3] = value
        save_file(tensors, file)
    for kind, fields, tensor in asked:
        system = describe({"name": "broken", "kind": kind, **fields}, asking)
        with pytest.raises(ValueError, match=rf"tensor {tensor} holds {value:g} at \["):
            system.load(0)
    with pytest.raises(ValueError, match=rf"tensor model.norm.weight holds {value:g}"):
        grm_jax.load(folder)("question", ["a", "b"])


def test_more_rows_at_once_give_the_same_judgments_and_weights_are_loaded_once(asking, monkeypatch):
    loads = []
    whole = spec_module.load_adapted
    monkeypatch.setattr(
        spec_module,
        "load_adapted",
        lambda *args, **kwargs: loads.append(1) or whole(*args, **kwargs),
    )
    system = describe({"name": "grm", "kind": "pointwise_grm", "path": "tiny"}, asking)
    assert not loads
    eight, sixteen = (judgments(system.load(3, rows=rows), PAIRS) for rows in (8, 16))
    assert [row["text"] for row in eight.values()] == [row["text"] for row in sixteen.values()]
    assert len(loads) == 1
    other = judgments(system.load(4, rows=8), PAIRS)
    assert [row["text"] for row in eight.values()] != [row["text"] for row in other.values()]


def test_kinds_that_know_no_rubric_judge_a_record_as_if_it_had_none(head, asking):
    ruled = [dataclasses.replace(r, rubric=(Criterion("order", 7),)) for r in PAIRS[:2]]
    for spec in (
        {"kind": "llm_judge", "path": "tiny_base"},
        {"kind": "token_prob", "path": "tiny_base"},
        {"kind": "bradley_terry", "path": head},
        {"kind": "pair_rm", "path": head},
        {"kind": "cloud", "path": head, "critic": "tiny_base"},
        {"kind": "random"},
    ):
        model = describe({"name": "x", **spec}, asking).load(0)
        assert judgments(model, ruled) == judgments(model, PAIRS[:2]), spec["kind"]


def test_a_scalar_model_reads_a_chat_with_the_switches_of_its_folder(head, asking, tmp_path):
    """Those that it was trained with, and that its identity holds."""

    def scores(name, template, **said):
        path = pathlib.Path(shutil.copytree(head, tmp_path / name))
        (path / "chat_template.jinja").write_text(template)
        write_description(path, Description("bradley_terry", chat="template", **said))
        system = describe({"name": "bt", "kind": "bradley_terry", "path": str(path)}, asking)
        rows = judgments(system.load(0), PAIRS, (0,), 0.0)
        return [row["scores"] for row in rows.values()]

    chat = "{{ bos_token }}%s{%% for one in messages %%}{{ one.content }}\n{%% endfor %%}"
    switched = chat % "{% if terse is defined %}Be terse. {% endif %}"
    said = scores("said", switched, chat_args={"terse": True})
    assert said == scores("written", chat % "Be terse. ")
    assert said != scores("silent", switched)


def test_token_prob_reads_the_judgments_of_the_judge(asking):
    spec = {"name": "judge", "kind": "llm_judge", "path": "tiny_base"}
    judge = describe(spec, asking)
    system = describe(spec | {"name": "by probability", "kind": "token_prob"}, asking)
    assert system.identity == judge.identity and judge.view is None
    assert system.view is by_probability
    stored = judgments(judge.load(0), PAIRS)
    assert judgments(system.load(0), PAIRS) == stored


def test_token_prob_leaves_failures_as_they_are():
    lists = [worth("two", (9, 2)), worth("four", (5, 8, 1, 3))]
    prompter = Prompter(
        TOKENIZER, load_template("tiny_judge"), load_template("tiny_single"), answer="index"
    )

    def answer(prompt, key):  # some pairs fail
        return choose(prompt, key) if key[0] % 7 else ("no box", True)

    sizes = {"seed": 0, "buckets": (200,), "rows": 8}
    judge = llm_judge("judge", lambda temperature: FakeSampler(answer), {}, prompter, **sizes)
    plain = judgments(judge, lists, samples=range(6))
    seen = {key: by_probability(json.loads(json.dumps(row))) for key, row in plain.items()}
    assert {row["failure"] is None for row in seen.values()} == {True, False}
    for key, judgment in seen.items():
        if judgment["failure"] is not None:
            assert judgment["scores"] is None
            continue
        for i, score in enumerate(judgment["scores"]):
            won = [pair for pair in plain[key]["pairs"] if pair["chosen"] == i]
            assert score == pytest.approx(sum(pair["probability"] for pair in won))
            assert len(won) == plain[key]["scores"][i]


def test_baselines_and_a_kind_of_ones_own(asking):
    (length, chance) = (describe({"name": n, "kind": n}, asking) for n in ("length", "random"))
    assert length.accepts(1) and not length.sampled and chance.sampled
    assert length.identity == {"kind": "length"} and length.load(0).name == "length"
    spec = {"name": "mine", "kind": f"{__name__}:own_model", "path": "tiny_base", "bias": (1, 2)}
    mine = describe(spec, asking)
    assert mine.accepts is None and mine.sampled is None and mine.identity["bias"] == [1, 2]
    model = mine.load(7)
    assert model.name == "mine" and model.sampled and SEEN == [(spec, asking, 7)]


SEEN = []


def own_model(spec, asking, seed):
    SEEN.append((spec, asking, seed))
    return RewardModel("own", lambda *args: iter(()), True, lambda n: n > 2)


def test_the_identity_holds_by_content_what_a_text_depends_on(asking, folder, tmp_path, no_weights):
    (folder / "grm.json").unlink()
    own = tmp_path / "own.jinja"
    own.write_text("Judge {{ conversation[0].content }} {{ responses | join }}")
    spec = {"name": "grm", "kind": "pointwise_grm", "path": str(folder)}

    def identity(asking=asking, **fields):
        return describe(spec | fields, asking).identity

    before = identity()
    assert json.loads(json.dumps(before)) == before and str(tmp_path) not in json.dumps(before)
    rows = dataclasses.replace(asking.sampling, rows=16, sampler="jit")
    wider = dataclasses.replace(asking.lengths, buckets=(40, 80), sequences=(64,))
    moved = shutil.copytree(folder, tmp_path / "moved")
    for same in (
        identity(name="other"),
        identity(path=str(moved)),
        identity(templates={"pointwise": "tiny_pointwise"}),
        identity(dataclasses.replace(asking, sampling=rows)),
        identity(dataclasses.replace(asking, lengths=wider)),
    ):
        assert same == before

    changed = [
        identity(answer="ten"),
        identity(hint=True),
        identity(meta="tiny"),
        identity(path="tiny"),
        identity(templates={"pointwise": str(own)}),
        identity(dataclasses.replace(asking, samples_per_order=2)),
        identity(dataclasses.replace(asking, lengths=Lengths(80, 13, (80,)))),
        identity(dataclasses.replace(asking, numerics=Numerics(dtype="bfloat16"))),
        *(
            identity(
                dataclasses.replace(asking, sampling=dataclasses.replace(asking.sampling, **other))
            )
            for other in ({"top_p": 0.5}, {"kv_cache_dtype": "int8"})
        ),
    ]
    own.write_text(
        "Judge! {{ conversation[0].content }} {{ responses | join }}"
    )  # the same name, another text
    changed.append(identity(templates={"pointwise": str(own)}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 32}))
    changed.append(identity())
    with jax.default_matmul_precision("bfloat16"):
        changed.append(identity())
    assert len({json.dumps(one, sort_keys=True) for one in [before, *changed]}) == 14


def _last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


EDITS = {
    "weights": lambda folder: _last_bit(folder / "model.safetensors"),
    "config": lambda folder: _change(
        folder / "config.json", '"sliding_window": 64', '"sliding_window": 32'
    ),
    "tokenizer": lambda folder: _change(folder / "tokenizer.json", "{", "{ "),
    "tokenizer's settings": lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
}


def test_ids_that_generation_config_or_added_tokens_add_are_part_of_the_identity(
    asking, folder, no_weights
):
    spec = {"name": "grm", "kind": "pointwise_grm", "path": str(folder)}

    def stated(*ids):
        text = json.dumps({"eos_token_id": list(ids)})
        (folder / "generation_config.json").write_text(text)
        return describe(spec, asking).identity

    plain, tokenizer = describe(spec, asking).identity, load_tokenizer(folder)
    assert stated(tokenizer.eos_id) == stated(*tokenizer.stop_ids) == plain
    further = [i for i in (7, 9) if i not in tokenizer.stop_ids]
    assert stated(*tokenizer.stop_ids, *further) == plain | {"stop_ids": further}
    assert stated(further[0]) != stated(further[1])
    (folder / "generation_config.json").unlink()

    (folder / "added_tokens.json").write_text('{"<a>": 300}')
    assert describe(spec, asking).identity == plain  # tokenizer.json has all
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")  # SentencePiece has not
    one = describe(spec, asking).identity
    (folder / "added_tokens.json").write_text('{"<b>": 300}')
    assert describe(spec, asking).identity != one


def test_a_chat_format_that_is_stated_is_that_of_the_folders_files(asking, folder, no_weights):
    spec = {"name": "grm", "kind": "pointwise_grm", "path": str(folder)}
    stated = json.loads((folder / "grm.json").read_text())

    def refused(chat, message):
        (folder / "grm.json").write_text(json.dumps(stated | {"chat": None}))
        describe(spec, asking)
        (folder / "grm.json").write_text(json.dumps(stated | {"chat": chat}))
        with pytest.raises(ValueError, match=f'"path": .*grm.json: field "chat": {message}'):
            describe(spec, asking)

    assert stated["chat"] == "gemma" and describe(spec, asking)
    refused("template", "expected 'gemma', .*model has no other, got 'template'")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    refused("gemma", "expected 'template', that of .*chat_template.jinja, got 'gemma'")
    (folder / "grm.json").write_text(json.dumps(stated | {"chat": "template"}))
    assert describe(spec, asking).identity["chat"]["text"].startswith("{{ messages")


@pytest.mark.parametrize("kind", ["pointwise_grm", "pair_rm"])
def test_a_mesh_that_a_model_cannot_be_split_over_is_said_before_any_is_loaded(
    head, tmp_path, asking, no_weights, kind
):
    folder = tmp_path / "odd"
    shutil.copytree(TINY_BASE if kind == "pointwise_grm" else head, folder)
    spec = {"name": "odd", "kind": kind, "path": str(folder)}
    split = dataclasses.replace(asking, mesh=make_mesh(replica=-1, fsdp=8))
    describe(spec, split)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 132}))
    describe(spec, asking)  # whose shapes are seen as it is loaded
    with pytest.raises(ValueError, match='"path": .*odd: .*fsdp = 8 does not divide 132 in shape'):
        describe(spec, split)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize(
    "kind, place",
    [
        ("pointwise_grm", "path"),
        ("pointwise_grm", "meta"),
        ("llm_judge", "path"),
        ("token_prob", "path"),
        ("scalar", "path"),
        ("bradley_terry", "path"),
        ("pair_rm", "path"),
        ("cloud", "path"),
        ("cloud", "critic"),
    ],
)
def test_a_folder_that_was_edited_in_place_is_another_model(
    head, folder, asking, tmp_path, no_weights, kind, place, edit
):
    """Of every kind, and in each of its folders."""
    scores = kind in ("scalar", "bradley_terry", "pair_rm", "cloud")
    spec = {"name": "one", "kind": kind, "path": head if scores else "tiny_base"}
    spec |= {"critic": "tiny_base"} if kind == "cloud" else {}
    is_head = place == "meta" or (place == "path" and scores)
    copy = pathlib.Path(shutil.copytree(head, tmp_path / "copy")) if is_head else folder
    spec[place] = str(copy)
    before = describe(spec, asking).identity
    assert describe(spec, asking).identity == before
    edit(copy)
    assert describe(spec, asking).identity != before


def test_templates_of_a_folder_are_known_by_their_text(asking, folder, no_weights):
    spec = {"name": "grm", "kind": "pointwise_grm", "path": str(folder)}
    before = describe(spec, asking).identity
    _change(folder / "grm.json", "Judge from", "Rate from")
    assert describe(spec, asking).identity != before


def test_files_that_a_kind_of_ones_own_names_are_known_by_their_content(
    asking, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("rules.txt", "mine.jinja", "nested.json"):
        (tmp_path / name).write_text("one")
    spec = {"name": "mine", "kind": f"{__name__}:own_model", "bias": (1, 2), "note": "."}
    spec |= {"rules": "rules.txt", "templates": {"pointwise": str(tmp_path / "mine.jinja")}}
    spec |= {"more": [{"file": "./nested.json"}, str(folder)]}
    seen = [describe(spec, asking).identity]
    for name in ("rules.txt", "mine.jinja", "nested.json"):
        (tmp_path / name).write_text("two")
        seen.append(describe(spec, asking).identity)
    _last_bit(folder / "model.safetensors")
    seen.append(describe(spec, asking).identity)
    assert len({json.dumps(one, sort_keys=True) for one in seen}) == 5
    assert describe(spec, asking).identity == seen[-1]


def test_the_folder_says_which_templates_it_was_trained_with(asking, folder, tmp_path, no_weights):
    spec = {"name": "grm", "kind": "pointwise_grm", "path": str(folder)}
    # asking.templates are for folders that say nothing
    other = dataclasses.replace(asking, templates={"pointwise": load_template("pointwise")})
    assert describe(spec, other).identity == describe(spec, asking).identity
    assert describe(spec | {"templates": {"pointwise": "tiny_pointwise"}}, other)
    with pytest.raises(ValueError) as error:
        describe(spec | {"templates": {"pointwise": "pointwise"}}, asking)
    assert str(error.value).startswith(
        "system 'grm': field \"templates.pointwise\": 'pointwise' is asked for, but the model was "
        f"trained with 'tiny_pointwise.jinja' of {folder / 'grm.json'}; they differ in "
        "_context.jinja, _pointwise.jinja, "
    )
    said = read_description(folder)
    write_description(folder, dataclasses.replace(said, answer="index"))
    assert not describe(spec, asking).accepts(1)
    with pytest.raises(
        ValueError, match="field \"answer\": 'ten' .* trained with 'index' of .*json"
    ):
        describe(spec | {"answer": "ten"}, asking)
    (folder / "grm.json").write_text('{"kind": "pointwise"}')
    with pytest.raises(
        ValueError, match="system 'grm': .*grm.json: field \"kind\": expected one of"
    ):
        describe(spec, asking)
    (folder / "grm.json").unlink()
    with pytest.raises(ValueError, match='field "templates.single": missing; expected the name of'):
        describe(spec, other)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kind": "pointwise_gmr"}, 'field "kind": expected one of pointwise_grm, .*, got'),
        ({"kind": "llm_judge"}, "kind 'llm_judge' needs the field path"),
        ({"kind": "length", "path": "tiny"}, "unknown field 'path'; kind 'length' has no fields"),
        ({"kind": "llm_judge", "path": "tiny", "pth": 1}, "unknown field 'pth'; .* has path, temp"),
        ({"kind": "llm_judge", "path": "/gone"}, "field \"path\": model '/gone': no such folder"),
        ({"kind": "llm_judge", "path": 3}, 'field "path": expected'),
        (
            {"kind": "pointwise_grm", "path": "tiny", "templates": {"pointwise": "gone"}},
            "template 'gone': no file",
        ),
        ({"kind": "pointwise_grm", "path": "tiny", "answer": "eleven"}, 'field "answer": expected'),
        (
            {"kind": "bradley_terry", "path": "tiny"},
            'field "path": expected a folder with a Gemma2ForSequenceClassification, but .*config',
        ),
        (
            {"kind": "pointwise_grm", "path": "tiny", "meta": "tiny_base"},
            'field "meta": expected a folder with a Gemma2ForSequenceClassification, but .*config',
        ),
        (
            {"kind": "pair_rm", "path": str(ASSETS / "tiny/meta")},
            "field \"path\": expected a folder of kind pair_rm, but .*grm.json says 'meta_rm'",
        ),
        ({"kind": "no_such_module:model"}, "no module named 'no_such_module'"),
        ({"kind": "remote", "base_url": "ftp://x", "model": "m"}, "base_url: expected http"),
    ],
)
def test_what_cannot_be_right_is_said_before_weights_are_read(spec, message, asking, no_weights):
    with pytest.raises(ValueError, match=f"^system 'x': .*{message}"):
        describe({"name": "x", **spec}, asking)


@pytest.mark.parametrize(
    "kind", ["pointwise_grm", "llm_judge", "token_prob", "scalar", "pair_rm", "cloud", "meta"]
)
def test_more_positions_than_the_model_has_are_an_error(kind, asking, head, no_weights):
    """Of the model, of the critic that a CLoud head reads, and of the Meta RM beside a model."""
    spec = {"name": "x", "kind": kind, "path": "tiny"}
    if kind in ("scalar", "pair_rm"):
        spec["path"] = head
    elif kind == "cloud":
        spec |= {"path": head, "critic": "tiny_base"}
    elif kind == "meta":
        spec |= {"kind": "pointwise_grm", "meta": head}
    longer = dataclasses.replace(asking, lengths=Lengths(1020, 5, (1020,)))
    with pytest.raises(ValueError, match=r"system 'x': .*1024 positions; .* 1020 \+ 5"):
        describe(spec, longer)
    describe(spec, dataclasses.replace(asking, lengths=Lengths(1020, 4, (1020,))))


@pytest.mark.parametrize("field", ["path", "critic", "meta"])
def test_a_config_that_cannot_be_right_is_named_with_the_system_and_the_field(
    field, asking, head, folder, no_weights
):
    stated = json.loads((folder / "config.json").read_text())
    if field == "path":
        spec = {"kind": "pointwise_grm", "path": str(folder)}
    elif field == "critic":
        spec = {"kind": "cloud", "path": head, "critic": str(folder)}
    else:
        spec = {"kind": "pointwise_grm", "path": "tiny_base", "meta": str(folder)}
    for change, words in (
        ({"sliding_window": 0}, "field .sliding_window.: expected an integer from 1"),
        ({"rope_scaling": {"type": "linear"}}, "field .rope_scaling.type.: expected 'default'"),
        ({"architectures": 3}, "field .architectures.: expected a list of names"),
    ):
        (folder / "config.json").write_text(json.dumps(stated | change))
        with pytest.raises(
            ValueError, match=f"system 'x': field .{field}.: .*config.json: {words}"
        ):
            describe({"name": "x"} | spec, asking)


def test_a_remote_judge_takes_its_templates_and_limits_from_the_asking(asking, monkeypatch):
    spec = {"name": "gpt", "kind": "remote", "base_url": "http://localhost:1/v1", "model": "m"}
    system = describe(spec | {"answer": "index", "retries": 0}, asking)
    model = system.load(3)
    assert model.name == "gpt" and model.sampled and not model.accepts(1) and model.accepts(4)
    assert not system.accepts(1) and describe(spec, asking).load(0).accepts(1)
    given = []
    monkeypatch.setattr(module, "remote_judge", lambda **arguments: given.append(arguments))
    describe(spec | {"templates": {"single": "single"}}, asking)
    assert given[0]["max_tokens"] == 12 and given[0]["template"].name == "tiny_pointwise"
    assert given[0]["single_template"].name == "single"
    monkeypatch.setattr(module, "remote_judge", remote.remote_judge)

    def identity(**fields):
        return json.dumps(describe(spec | fields, asking).identity, sort_keys=True)

    before = identity()
    for field, value in {
        "base_url": "https://other/v1",
        "api_key_env": "KEY",
        "concurrency": 3,
        "timeout_s": 1.0,
        "retries": 1,
        "price_per_million": (1.0, 2.0),
        "top_p": 1.0,
    }.items():
        assert identity(**{field: value}) == before
    different = [identity(model="n"), identity(top_p=0.9), identity(max_tokens=5)]
    assert len({before, *different, identity(answer="ten")}) == 5


def test_a_folder_of_another_kind_may_be_asked_as_a_judge(asking, folder, no_weights):
    assert describe({"name": "x", "kind": "llm_judge", "path": "tiny"}, asking)
    write_description(folder, Description("meta_rm"))
    with pytest.raises(ValueError, match="of kind pointwise_grm or llm_judge or critic, but"):
        describe({"name": "x", "kind": "llm_judge", "path": str(folder)}, asking)
