"""Whose a work folder is: of one run, by the content of all that it read, and of one process."""

import json
import os
import pathlib
import shutil
import socket

import jax
import ml_collections
import numpy as np
import pytest

from experiments import run_config
from experiments.configs import tiny, tiny_evaluate, tiny_reward_model
from experiments.stages import evaluation
from experiments.stages.workdir import _model_config, hold, load_policy, setup, system
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.checkpoint.peft import save_adapters
from grm_jax.judgment.prompts import TEMPLATES
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig, init_adapters, merge
from grm_jax.models.table import SCALAR
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import TINY_BASE, model_folder
from grm_jax.reward_models.load import describe
from grm_jax.tokenizer import load_tokenizer
from tests.experiments import micro, micro_reward_model

INSTRUCTION = json.dumps({"prompt": "Name 1 animal", "completion": "1.cat"}) + "\n"
GENERAL, TEMPLATE = ("data.general", "general.jsonl"), ("templates.pointwise", "mine.jinja")
REPO = pathlib.Path(__file__).resolve().parents[2]
SWITCHED = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{% if quiet is defined and quiet %}No words. {% endif %}"
    "Answer:{% endif %}"
)


def record(name, query, best=0, responses=("1.cat", "1.dog 2.cow")):
    return {
        "id": name,
        "conversation": [{"role": "user", "content": query}],
        "responses": list(responses),
        "best": best,
    }


@pytest.fixture
def base(tmp_path):
    """A model folder of one's own."""
    return pathlib.Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


@pytest.fixture
def start(tmp_path):
    """start(train, template=text, **fields) sets up a run of these records in one work folder."""

    def start(train, template=None, test=(), preset=micro, **fields):
        test = [record("t", "Name 3 animals"), *test]
        for name, records in (("train", train), ("test", test)):
            lines = "".join(json.dumps(one) + "\n" for one in records)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / "mine.jinja").write_text(
            template or (TEMPLATES / "tiny_pointwise.jinja").read_text()
        )
        config = preset.get_config()
        with config.ignore_type():
            config.update_from_flattened_dict(
                {
                    "data.train": ({"path": str(tmp_path / "train.jsonl")},),
                    "data.eval": {"test": {"path": str(tmp_path / "test.jsonl")}},
                    "eval.splits": ("test",),
                    "templates.pointwise": str(tmp_path / "mine.jinja"),
                    # 8 devices here, which micro-batches of 4 rows cannot be cut over
                    "mesh.replica": 1,
                    "mesh.tensor": -1,
                }
                | fields
            )
        return setup(run_config.finish(config), tmp_path / "run")

    return start


@pytest.mark.parametrize("left", ["stages/rft.json", "trajectories/rl.jsonl", "checkpoints/rft/2"])
def test_work_of_who_knows_which_run_is_no_ones(start, tmp_path, left):
    train = [record("a", "Name 1 animal")]
    start(train)
    (tmp_path / "run" / left).parent.mkdir(parents=True)
    (tmp_path / "run" / left).write_text("{}")
    start(train)
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(ValueError, match=f"run holds {left.split('/')[0]} and no config.json"):
        start(train, **{"rl.beta": 0.5})
    assert not (tmp_path / "run/config.json").exists()


def test_a_run_goes_on_with_the_records_that_it_began_with(start, tmp_path):
    train = [record("a", "Name 1 animal"), record("b", "Name 2 animals")]
    start(train)
    on_file = tmp_path / "run/records/train.jsonl"
    before = on_file.stat().st_mtime_ns
    # the gold is another, all else is the same
    changed = [record("a", "Name 1 animal", best=1), train[1]]
    with pytest.raises(ValueError, match=r"other inputs; what was read then for data\.train had"):
        start(changed)
    with pytest.raises(ValueError, match=r"data\.train"):
        start(train[::-1])
    start(train)
    assert on_file.stat().st_mtime_ns == before, "what a run used is not written again"


def test_a_run_goes_on_with_the_templates_that_it_began_with(start):
    train = [record("a", "Name 1 animal")]
    start(train)
    text = (TEMPLATES / "tiny_pointwise.jinja").read_text()
    with pytest.raises(ValueError, match=r"what was read then for templates\.pointwise had"):
        start(train, template=text.replace("Judge from", "Rate from"))
    start(train)


def test_a_run_goes_on_wherever_what_it_reads_lies(start, tmp_path):
    """A copied or moved folder: the paths are others, the content is not."""
    train = [record("a", "Name 1 animal")]
    before = start(train)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("run", "moved"))
    shutil.copytree(model_folder("tiny_base"), moved / "base")
    fields = {
        "data.train": ({"path": str(moved / "train.jsonl")},),
        "templates.pointwise": str(moved / "mine.jinja"),
        "model.path": str(moved / "base"),
    }
    assert start(train, **fields).setup.digest == before.setup.digest  # of its checkpoints
    with pytest.raises(ValueError, match=r"differs in rl\.beta\. Choose another .* --from=.*run"):
        start(train, **fields, **{"rl.beta": 0.5})


def test_a_run_goes_on_with_the_code_of_its_own_loss(start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "a_loss_of_mine.py"
    code.write_text("def loss(inputs, cfg, width=1.0):\n    return width * inputs.logp.sum(), {}\n")
    train, fields = [record("a", "Name 1 animal")], {"rl.loss": "a_loss_of_mine:loss"}
    start(train, **fields)
    code.write_text(
        "# a word\n" + code.read_text().replace("inputs.logp.sum()", "(inputs.logp.sum())")
    )
    start(train, **fields)
    code.write_text(code.read_text().replace("width * ", "-width * "))
    with pytest.raises(ValueError, match=r"what was read then for functions\.rl\.loss had another"):
        start(train, **fields)


def edit_config(base):
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 32}))


def edit_weights(base):
    path = base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_tokenizer(base):
    path = base / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("preset", [micro, micro_reward_model])
@pytest.mark.parametrize(
    "edit, field, file",
    [
        (edit_config, "model.config, tokenizer.config", "base/config.json"),
        (edit_weights, "model.weights", "base"),
        (edit_tokenizer, "tokenizer.tokenizer", "base"),
        (lambda base: (base.parent / "general.jsonl").write_text(INSTRUCTION * 2), *GENERAL),
        (lambda base: (base.parent / "part.jinja").write_text("More of it. "), *TEMPLATE),
    ],
)
def test_a_run_goes_on_with_the_files_that_it_began_with(
    start, base, tmp_path, preset, edit, field, file
):
    """Whatever it trains: a resumed run is one world. The message names the file."""
    (tmp_path / "general.jsonl").write_text(INSTRUCTION)
    (tmp_path / "part.jinja").write_text("Take care. ")
    text = "{% include 'part.jinja' %}\n" + (TEMPLATES / "tiny_pointwise.jinja").read_text()
    fields = {
        "template": text,
        "preset": preset,
        "model.path": str(base),
        "data.general": ({"path": str(tmp_path / "general.jsonl")},),
    }
    train = [record("a", "Name 1 animal")]
    start(train, **fields)
    kept = (tmp_path / "run/config.json").read_bytes()
    edit(base)
    with pytest.raises(ValueError) as error:
        start(train, **fields)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run of other inputs; what was read then for {field} had "
        f"another content ({tmp_path / file}). Bring it back, or choose another --workdir."
    )
    assert (tmp_path / "run/config.json").read_bytes() == kept


def edit_chat(base):
    (base / "chat_template.jinja").write_text(SWITCHED.replace("Answer:", "Say:"))


def edit_stops(base):
    (base / "generation_config.json").write_text('{"eos_token_id": [9]}')


def test_a_run_goes_on_with_the_chat_template_and_the_stop_ids_that_it_began_with(
    start, base, tmp_path
):
    """Also where they appear, and where the tokenizer is a file beside which they lie."""
    train, file = [record("a", "Name 1 animal")], {"tokenizer.path": str(base / "tokenizer.json")}
    for name, fields in (("folder", {}), ("file", file)):
        fields = {"model.path": str(base)} | fields
        start(train, **fields)
        (base / "chat_template.jinja").write_text(SWITCHED)
        with pytest.raises(ValueError, match=r"for tokenizer\.chat had .*/base/chat_template.jin"):
            start(train, **fields)
        shutil.move(tmp_path / "run", tmp_path / name)
        start(train, **fields)
        edits = [("chat", edit_chat), ("stop_ids", edit_stops)]
        if name == "file":
            edit = lambda base: (base / "special_tokens_map.json").write_text("{}")  # noqa: E731
            edits.append(("beside", edit))
        for field, edit in edits:
            kept = shutil.copytree(base, tmp_path / "kept", dirs_exist_ok=True)
            edit(base)
            with pytest.raises(ValueError, match=rf"what was read then for tokenizer\.{field} had"):
                start(train, **fields)
            shutil.rmtree(base), shutil.move(kept, base)
        start(train, **fields)
        shutil.rmtree(tmp_path / "run"), (base / "chat_template.jinja").unlink()


def test_a_run_goes_on_with_the_rounding_of_products_that_it_began_with(start):
    train = [record("a", "Name 1 animal")]
    assert "matmul_precision" not in start(train).inputs
    with jax.default_matmul_precision("bfloat16"):
        with pytest.raises(ValueError, match=r"then for matmul_precision had .*PRECISION=bfloat16"):
            start(train)
    start(train)


def test_a_run_of_an_earlier_version_goes_on_though_it_says_nothing_of_a_chat_template(
    start, base, tmp_path
):
    edit_stops(base), edit_chat(base)
    train, path = [record("a", "Name 1 animal")], tmp_path / "run/config.json"
    first = start(train, **{"model.path": str(base)})
    said = json.loads(path.read_text())
    said["inputs"]["tokenizer"].pop("chat"), said["inputs"]["tokenizer"].pop("stop_ids")
    path.write_text(json.dumps(said))
    with jax.default_matmul_precision("bfloat16"):
        start(train, **{"model.path": str(base)})
    for _ in range(2):
        later = start(train, **{"model.path": str(base)})
        assert later.inputs["tokenizer"] == said["inputs"]["tokenizer"]
    assert later.setup.digest != first.setup.digest  # its checkpoints are those that it had
    edit_tokenizer(base)
    with pytest.raises(ValueError, match=r"what was read then for tokenizer\.tokenizer had"):
        start(train, **{"model.path": str(base)})


def test_a_tokenizer_that_nothing_reads_may_be_another(start, base, tmp_path):
    train = [record("a", "Name 1 animal")]
    fields = {"model.path": str(base), "tokenizer.path": "tiny_base"}
    first = start(train, **fields)
    (base / "special_tokens_map.json").write_text("{}")
    assert start(train, **fields).setup.digest == first.setup.digest
    edit_config(base)
    with pytest.raises(ValueError, match="what was read then for model.config had"):
        start(train, **fields)


def test_the_base_is_asked_with_the_tokenizer_and_the_switches_that_it_is_trained_with(
    start, base, tmp_path
):
    """In its identity too, which is what it was where the run says nothing of its own."""
    train = [record("a", "Name 1 animal")]
    own = pathlib.Path(shutil.copytree(base, tmp_path / "tokenizer"))
    for folder in (base, own):
        (folder / "chat_template.jinja").write_text(SWITCHED)
        about = json.loads((folder / "grm.json").read_text())
        (folder / "grm.json").write_text(json.dumps(about | {"chat": "template"}))
    plain = {"name": "base", "kind": "pointwise_grm", "path": str(base), "answer": "scores"}

    def asked(name, **fields):
        run = start(train, **{"model.path": str(base)} | fields)
        shutil.move(tmp_path / "run", tmp_path / name)
        model = system(run, "base")
        prompt = model.policy().prompter.ids(run.train[0], (0, 1))
        assert prompt == run.prompter.ids(run.train[0], (0, 1))
        return run, model.identity, run.tokenizer.decode(prompt)

    run, before, text = asked("plain")
    assert "No words." not in text and describe(plain, run.asking).identity == before
    quiet = {"tokenizer.chat_args": {"quiet": True}}
    _, switched, text = asked("switched", **quiet)
    assert text.endswith("No words. Answer:") and switched["chat"]["values"]["quiet"]
    assert {name for name in before if before[name] != switched[name]} == {"chat"}
    moved = {"tokenizer.path": str(own)}
    assert asked("the same elsewhere", **moved)[1] == before
    for file in ("tokenizer.json", "chat_template.jinja"):
        (base / file).unlink()
    _, apart, _ = asked("apart", **moved)
    assert apart["tokenizer"]["tokenizer"] == before["tokenizer"]
    assert apart["chat"] == before["chat"]
    edit_tokenizer(own)
    assert asked("another", **moved)[1]["tokenizer"] != before["tokenizer"]
    of_file = {"tokenizer.path": str(own / "tokenizer.json")}
    assert asked("a file", **of_file)[1]["chat"] == before["chat"]


def test_test_records_that_are_judged_are_never_written_again(start, tmp_path):
    train, more = [record("a", "Name 1 animal")], record("u", "Name 4 animals")
    start(train)
    start(train, test=[record("u", "Name 5 animals")])  # nothing is judged yet
    on_file = tmp_path / "run/records/test.jsonl"
    judgments = tmp_path / "run/judgments/grm/test/greedy-seed0.jsonl"
    judgments.parent.mkdir(parents=True)
    judgments.write_text("")
    before = on_file.read_text()
    # another question, another gold, another text of a response
    for changed in (
        more,
        record("u", "Name 5 animals", best=1),
        record("u", "Name 5 animals", responses=("1.ant", "1.dog 2.cow")),
    ):
        with pytest.raises(
            ValueError,
            match=r"run/records/test.jsonl has judgments, and 1 of its records are others now "
            r"\(.*/test.jsonl\), first 'u'. Bring them back, or",
        ):
            start(train, test=[changed])
        assert on_file.read_text() == before
    start(train, test=[record("u", "Name 5 animals"), record("v", "Name 6 animals")])
    assert len(on_file.read_text().splitlines()) == 3, "more records may be asked for"
    start(train)


def test_the_records_of_a_judged_benchmark_of_the_world_are_not_written_again(tmp_path):
    config = tiny_evaluate.get_config()
    world = {"kind": "world", "split": "test", "items": 4, "seed": 0}
    for benchmarks in (({**world},), ({**world, "items": 6},)):
        config.benchmarks = benchmarks
        (loaded,) = evaluation.benchmarks(config, tmp_path / "records")
    assert len(loaded.records) == 6
    (tmp_path / "judgments/grm/test").mkdir(parents=True)
    (tmp_path / "judgments/grm/test/greedy-seed0.jsonl").write_text("")
    before = (tmp_path / "records/test.jsonl").read_bytes()
    one = json.loads(before.splitlines()[0])
    one["conversation"][0]["content"] += " now"
    lines = b"".join([json.dumps(one).encode() + b"\n", *before.splitlines(keepends=True)[1:]])
    (tmp_path / "records/test.jsonl").write_bytes(lines)
    with pytest.raises(
        ValueError, match=f"1 of its records are others now .*, first {one['id']!r}"
    ):
        evaluation.benchmarks(config, tmp_path / "records")
    assert (tmp_path / "records/test.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    "field, value", [("sampling.rows", 16), ("eval.ks", (1, 2, 4)), ("log.example_every", 9)]
)
def test_what_changes_no_result_may_change(start, field, value):
    train = [record("a", "Name 1 animal")]
    start(train)
    start(train, **{field: value})


def test_too_many_records_left_out_are_an_error_before_compute(start):
    long = [record(f"long {i}", "Name animals " * 200) for i in range(3)]
    with pytest.raises(
        ValueError, match=r"3 of 4 records are longer than lengths\.prompt = 80 tokens, more than"
    ):
        start([record("a", "Name 1 animal"), *long])


@pytest.mark.parametrize(
    "script, preset, more",
    [
        ("spct_rl", "tests/experiments/micro.py", ()),
        ("reward_model", "tests/experiments/micro_reward_model.py", ()),
        ("evaluate", "experiments/configs/tiny_evaluate.py", ()),
        ("sweep", "tests/experiments/micro.py", ("--sweep.seed=0,1",)),
        ("paper", "experiments/configs/tiny_paper.py", ("--out=paper.md",)),
    ],
)
def test_no_script_shares_its_folder_with_another_process(
    processes, tmp_path, script, preset, more
):
    folder = tmp_path / "run"
    hold(folder)
    hold(folder)  # this process has it already
    job = processes.start(REPO / preset, folder, *more, script=script)
    assert processes.finish(job) == 1
    last = pathlib.Path(f"{folder}.log").read_text().splitlines()[-1]
    assert f"{folder} is in use by process {os.getpid()} on {socket.gethostname()}, for " in last
    assert last.rstrip(".").endswith("Wait for it, or choose another --workdir")
    assert [path.name for path in folder.iterdir()] == [".lock"], "nothing is written"


@pytest.mark.parametrize("preset", [tiny, tiny_reward_model])
@pytest.mark.parametrize("random_init", [False, True])
def test_texts_longer_than_the_model_has_positions_are_refused_before_training(preset, random_init):
    config = preset.get_config()
    if random_init:
        sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8}
        sizes |= {"d_ff": 24, "max_positions": 1024}
        config.model.update(path=None, random_init=ml_collections.ConfigDict(sizes))
    tokenizer, mesh = load_tokenizer(model_folder("tiny_base")), make_mesh(replica=-1, fsdp=1)
    config.lengths.update(prompt=1000, completion=24)
    assert _model_config(config, tokenizer, mesh).max_positions == 1024
    config.lengths.completion = 25
    with pytest.raises(ValueError, match=r"lengths: .* 1000 \+ 25 tokens, the model has 1024 posi"):
        _model_config(config, tokenizer, mesh)


def test_a_mesh_that_the_model_cannot_be_split_over_is_refused_before_training(base):
    config, tokenizer = tiny.get_config(), load_tokenizer(base)
    config.model.path, mesh = str(base), make_mesh(replica=-1, fsdp=8)
    assert _model_config(config, tokenizer, mesh).d_model == 128
    stated = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(stated | {"hidden_size": 132}))
    with pytest.raises(ValueError, match="mesh.fsdp: .*fsdp = 8 does not divide 132 in shape"):
        _model_config(config, tokenizer, mesh)


def test_a_control_token_beyond_the_table_that_nothing_writes_is_no_reason_to_refuse_a_base(base):
    words = json.loads((base / "tokenizer.json").read_text())
    size = load_config(base).vocab_size
    words["added_tokens"].append(words["added_tokens"][0] | {"id": size, "content": "<image>"})
    (base / "tokenizer.json").write_text(json.dumps(words))
    config, mesh = tiny.get_config(), make_mesh(replica=-1, fsdp=1)
    config.model.path = str(base)
    assert _model_config(config, load_tokenizer(base), mesh).vocab_size == size
    stated = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(stated | {"pad_token": "<image>"}))
    with pytest.raises(ValueError, match=f"has {size + 1} ids, the model only {size} embeddings"):
        _model_config(config, load_tokenizer(base), mesh)


def test_a_run_begins_from_adapters_and_knows_them_and_what_they_are_upon(start, base, tmp_path):
    """They are merged. A change of either is seen, and that of a place is none."""
    cfg, lora = load_config(base, scan_layers=True), LoraConfig(2, 4.0, ("q", "down"))
    drawn, rng = init_adapters(cfg, lora, jax.random.key(0)), np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype("f"), drawn)
    save_adapters(tmp_path / "adapters", drawn, cfg, lora, base)
    path = tmp_path / "adapters/adapter_config.json"
    said = json.loads(path.read_text())

    def begun(**fields):
        path.write_text(json.dumps(said | fields))
        return start(
            [record("a", "Name 1 animal")],
            **{"model.path": str(tmp_path / "adapters"), "model.dtype": "float32"},
        )

    wanted = merge(load_params(base, cfg), drawn, lora.scale)
    found = load_policy(begun(), "base")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, wanted)
    shutil.copytree(base, tmp_path / "elsewhere")
    begun(base_model_name_or_path=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="model.*weights|other inputs"):
        begun(lora_alpha=5.0)
    weights = tmp_path / "elsewhere/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="model.*weights|other inputs"):
        begun(base_model_name_or_path=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match='model.path: .*"base_model_name_or_path": .*nowhere'):
        begun(base_model_name_or_path="nowhere")
    head = {"backbone": drawn, "score": np.zeros((cfg.d_model, 1), "f")}
    save_adapters(tmp_path / "adapters", head, cfg, lora, base, architecture=SCALAR)
    said = json.loads(path.read_text())
    with pytest.raises(ValueError, match="modules_to_save|SEQ_CLS"):  # a Meta RM writes nothing
        begun()
