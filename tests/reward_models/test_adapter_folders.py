"""Adapter folders in peft's form are models: a GRM and its Meta RM over a named base."""

import json
import logging
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

import grm_jax
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.checkpoint.peft import load_adapted, load_adapters, save_adapters
from grm_jax.models.config import Numerics
from grm_jax.models.decoder import without_head
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig, init_adapters, merge
from grm_jax.models.table import SCALAR, flatten
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import (
    TINY_BASE,
    Description,
    layers_of,
    model_folder,
    read_description,
    write_description,
)
from grm_jax.reward_models.spec import POLICIES, folder_of
from grm_jax.reward_models.system import Asking
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.tokenizer import load_tokenizer
from tests.chat_formats import chat_folder

CFG = load_config(TINY_BASE)
LORA = LoraConfig(3, alpha=5.0, targets=("down", "o", "q"))
TASK, RESPONSES = "Reverse the list: 1.fox 2.ant 3.hen", ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"]


def random_adapters(seed, lora=LORA):
    rng = np.random.default_rng(seed)
    drawn = init_adapters(CFG, lora, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.02, drawn)


def described(kind="pointwise_grm", **fields):
    said = read_description(model_folder("tiny"))
    lengths = {"prompt": 512, "completion": 96}
    meta = read_description(model_folder("tiny", ("meta",)))
    templates = meta.templates if kind == "meta_rm" else said.templates
    return Description(kind, templates, lengths=lengths, temperature=0.7, **fields)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """grm and meta, adapters of "tiny_base", and beside them the same models whole."""
    folder = tmp_path_factory.mktemp("adapted")
    grm = random_adapters(1)
    score = np.random.default_rng(2).normal(size=(CFG.d_model, 1)).astype(np.float32)
    meta = {"backbone": random_adapters(3), "score": score}
    save_adapters(folder / "grm", grm, CFG, LORA, "tiny_base")
    save_adapters(folder / "meta", meta, CFG, LORA, "tiny_base", architecture=SCALAR)
    mesh = make_mesh(devices=jax.devices()[:1])
    for name, kind, architecture in (
        ("grm", "pointwise_grm", "causal_lm"),
        ("meta", "meta_rm", SCALAR),
    ):
        write_description(folder / name, described(kind))
        params = load_adapted((TINY_BASE, folder / name), CFG, mesh, architecture)
        save_folder(folder / "whole" / name, params, CFG, TINY_BASE, architecture)
        write_description(folder / "whole" / name, described(kind))
    return folder, grm, meta


def test_adapters_are_the_textbook_sum_and_come_back(adapted):
    folder, grm, meta = adapted
    base, merged = flatten(load_params(TINY_BASE, CFG)), load_params(folder / "whole/grm", CFG)
    low = flatten(grm)
    for path, weight in flatten(merged).items():
        wanted = np.asarray(base[path])
        if f"{path}/lora_a" in low:
            a, b = low[f"{path}/lora_a"], low[f"{path}/lora_b"]
            a = a.reshape(a.shape[0], -1, LORA.rank)
            product = np.einsum("lir,lro->lio", a, b.reshape(b.shape[0], LORA.rank, -1))
            wanted = wanted + 5.0 / 3 * product.reshape(wanted.shape)
            assert not np.allclose(weight, base[path], atol=1e-4)
        np.testing.assert_allclose(weight, wanted, atol=1e-6, err_msg=path)
    for name, adapters, architecture in (("grm", grm, "causal_lm"), ("meta", meta, SCALAR)):
        found, lora = load_adapters(folder / name, CFG, architecture)
        assert lora == LORA
        jax.tree.map(np.testing.assert_array_equal, found, adapters)


def test_a_judge_of_adapters_is_that_of_the_whole_model(adapted, caplog):
    folder, *_ = adapted
    mesh = make_mesh(devices=jax.devices()[:1])
    with caplog.at_level(logging.WARNING):
        judges = [grm_jax.load(folder / part, mesh=mesh) for part in ("grm", "whole/grm")]
    assert [r.getMessage() for r in caplog.records if "guessed" in r.getMessage()] == []
    verdicts = [judge(TASK, RESPONSES, k=4) for judge in judges]
    assert verdicts[0] == verdicts[1] and judges[0].guided and judges[1].guided
    assert len({judgment.text for judgment in verdicts[0].judgments}) > 1
    assert judges[0].asked()["model"] != judges[1].asked()["model"]
    # alpha changes what is computed, and so who it is
    config = json.loads((folder / "grm/adapter_config.json").read_text())
    before = judges[0].asked()["model"]
    try:
        changed = json.dumps(config | {"lora_alpha": 6.0})
        (folder / "grm/adapter_config.json").write_text(changed)
        assert grm_jax.load(folder / "grm", mesh=mesh).asked()["model"] != before
    finally:
        (folder / "grm/adapter_config.json").write_text(json.dumps(config))
    assert grm_jax.load(folder / "grm", mesh=mesh).asked()["model"] != judges[1].asked()["model"]


@pytest.mark.torch
def test_peft_reads_a_scalar_model_of_adapters(adapted):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    folder, *_ = adapted
    tokens = torch.tensor([[2, 17, 300, 44, 9]])
    scores = []
    for path in (TINY_BASE, folder / "whole/meta"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=torch.float32, attn_implementation="eager"
        )
        if path == TINY_BASE:
            model = peft.PeftModel.from_pretrained(model, str(folder / "meta"))
        with torch.no_grad():
            scores.append(float(model.eval()(tokens).logits[0, 0]))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_adapters_may_lie_upon_adapters(adapted, tmp_path):
    """A Meta RM upon the adapters of a GRM, in bfloat16: the sum of both, and known by both."""
    folder, grm, _ = adapted
    lora, mesh = LoraConfig(2, 4.0, ("k", "up")), make_mesh(devices=jax.devices()[:1])
    score = np.random.default_rng(5).normal(size=(CFG.d_model, 1)).astype(np.float32)
    meta = {"backbone": random_adapters(4, lora), "score": score}
    args = (CFG, lora, folder / "grm", None, SCALAR)
    save_adapters(tmp_path / "meta", meta, *args, dtype="bfloat16")
    write_description(tmp_path / "meta", described("meta_rm"))
    layers = layers_of(tmp_path / "meta")
    assert layers == (TINY_BASE, folder / "grm", tmp_path / "meta")

    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), meta)
    below = load_params(folder / "whole/grm", CFG)
    wanted = merge({"backbone": without_head(below), "score": score}, rounded, lora.scale)
    found = load_adapted(layers, CFG, mesh, SCALAR)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    sizes = [(path / "adapter_model.safetensors").stat().st_size for path in layers[1:]]
    assert sizes[1] < sizes[0] / 2

    # a judge is known by all layers of its Meta RM
    judge = grm_jax.load(folder / "grm", meta=tmp_path / "meta", mesh=mesh)
    assert judge.guided and judge(TASK, RESPONSES, k=2).judgments
    said = json.loads((folder / "grm/adapter_config.json").read_text())
    known = []
    try:
        for alpha in (5.0, 6.0, 5.0):
            changed = json.dumps(said | {"lora_alpha": alpha})
            (folder / "grm/adapter_config.json").write_text(changed)
            other = grm_jax.load(TINY_BASE, kind="pointwise_grm", meta=tmp_path / "meta", mesh=mesh)
            known.append(other.asked()["model"])
    finally:
        (folder / "grm/adapter_config.json").write_text(json.dumps(said))
    assert known[0] != known[1] and known[0] == known[2]


@pytest.mark.parametrize(
    "saved",
    [["score"], ["score", "classifier", "score"], ["classifier", "score", "classifier", "score"]],
)
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_scalar_adapters_as_peft_and_trl_state_them_are_read(adapted, tmp_path, saved, task):
    """peft adds to the list at each save; TRL states no task_type."""
    folder, _, meta = adapted
    source = folder / "meta"
    config = json.loads((source / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").hardlink_to(source / "adapter_model.safetensors")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config | {"modules_to_save": saved, "task_type": task}))
    found, _ = load_adapters(tmp_path, CFG, SCALAR)
    jax.tree.map(np.testing.assert_array_equal, found, meta)
    for other in ([], ["classifier"], [*saved, "lm_head"], "score", [*saved, 3]):
        path.write_text(json.dumps(config | {"modules_to_save": other, "task_type": task}))
        with pytest.raises(ValueError, match='field "modules_to_save": expected .*score.*, got '):
            load_adapters(tmp_path, CFG, SCALAR)


def test_a_model_with_adapters_in_its_own_folder_is_refused(adapted, tmp_path):
    """transformers would merge them; here the base alone would judge."""
    both, upon = shutil.copytree(TINY_BASE, tmp_path / "both"), tmp_path / "upon"
    shutil.copytree(adapted[0] / "grm", upon)
    config = json.loads((upon / "adapter_config.json").read_text())
    changed = json.dumps(config | {"base_model_name_or_path": str(both)})
    (upon / "adapter_config.json").write_text(changed)
    shutil.copy(adapted[0] / "grm/adapter_config.json", both)
    assert layers_of(both) == (both,)  # without weights these are none
    shutil.copy(adapted[0] / "grm/adapter_model.safetensors", both)
    for path in (both, upon):
        with pytest.raises(ValueError, match="both/config.json: a model, and adapter_model.safete"):
            layers_of(path)
        with pytest.raises(ValueError, match='"path": .*both/config.json: .*in a folder of their'):
            seen(path)


def test_what_adapters_cannot_be_is_named(adapted, tmp_path):
    folder, grm, _ = adapted

    def variant(name, kind="pointwise_grm", **fields):
        path = tmp_path / name
        path.mkdir()
        config = json.loads((folder / "grm/adapter_config.json").read_text()) | fields
        (path / "adapter_config.json").write_text(json.dumps(config))
        (path / "adapter_model.safetensors").hardlink_to(folder / "grm/adapter_model.safetensors")
        write_description(path, described(kind) if kind == "pointwise_grm" else Description(kind))
        return path

    field = 'adapter_config.json: field "base_model_name_or_path": '
    with pytest.raises(FileNotFoundError, match=f"{field}model 'tinybase': .*did you mean 'tiny_b"):
        grm_jax.load(variant("unknown", base_model_name_or_path="tinybase"))
    with pytest.raises(ValueError, match=f"{field}expected the name or folder of a model, got N"):
        grm_jax.load(variant("none", base_model_name_or_path=None))
    variant("b", base_model_name_or_path=str(tmp_path / "a"))
    for name, base in (("loop", "loop"), ("a", "b")):
        with pytest.raises(ValueError, match=f"{field}adapters upon themselves, through "):
            grm_jax.load(variant(name, base_model_name_or_path=str(tmp_path / base)))
    with pytest.raises(ValueError, match="meta.adapter_config.json: .*task_type.: expected 'CAUSA"):
        grm_jax.load(variant("headed", base_model_name_or_path=str(folder / "meta")))
    with pytest.raises(ValueError, match='field "r": expected an integer'):
        grm_jax.load(variant("rank", r=0))
    with pytest.raises(ValueError, match="task_type\": expected 'CAUSAL_LM', got 'SEQ_CLS'"):
        grm_jax.load(variant("scalar", task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="expected a whole model, got the adapters of .*bt"):
        grm_jax.load(variant("bt", kind="bradley_terry", task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="no tensor base_model.model.score.weight"):
        load_adapters(variant("headless", task_type="SEQ_CLS"), CFG, SCALAR)


@pytest.fixture
def upon_qwen(tmp_path):
    """Adapters with a tokenizer of their own upon a base whose tokenizer has no BOS."""
    base = tmp_path / "base"
    base.mkdir()
    chat_folder(base, "qwen3")
    stated = json.loads((base / "tokenizer_config.json").read_text()) | {"bos_token": None}
    (base / "tokenizer_config.json").write_text(json.dumps(stated))
    config = json.loads((TINY_BASE / "config.json").read_text())
    ids = {"bos_token_id": None, "eos_token_id": load_tokenizer(base).eos_id, "vocab_size": 800}
    (base / "config.json").write_text(json.dumps(config | ids))
    save_adapters(tmp_path / "grm", random_adapters(1), CFG, LORA, base, tokenizer_files_from=base)
    return base, tmp_path / "grm"


def seen(path, mesh=None):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    lengths = Lengths(prompt=80, completion=12, buckets=(80,))
    asking = Asking(mesh, Numerics(), lengths, Sampling(rows=8), {})
    return folder_of({"path": str(path)}, "path", asking, POLICIES)


def test_adapters_upon_a_base_without_bos_may_have_its_tokenizer(upon_qwen):
    base, grm = upon_qwen
    assert seen(grm).home_of_tokenizer == grm
    ours, theirs = seen(grm).tokenizer(), seen(base).tokenizer()
    for turns in ([("user", TASK)], [("system", "Be brief."), ("user", TASK), ("assistant", "A")]):
        assert ours.chat(turns) == theirs.chat(turns)
    assert ours.chat_prompt(TASK) == theirs.chat_prompt(TASK)
    assert ours.stop_ids == theirs.stop_ids


def test_ids_that_end_a_text_by_the_base_alone_end_those_of_its_adapters(upon_qwen):
    base, grm = upon_qwen
    plain, tokenizer = seen(grm).identity, seen(grm).tokenizer()
    more = [i for i in (7, 9) if i not in tokenizer.stop_ids]

    def states(folder, *ids):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ids] or None}))
        return seen(grm).tokenizer().stop_ids

    assert states(base, tokenizer.eos_id) == tokenizer.stop_ids and seen(grm).identity == plain
    assert states(base, tokenizer.eos_id, more[0]) == (*tokenizer.stop_ids, more[0])
    assert seen(grm).tokenizer().stop_ids == seen(base).tokenizer().stop_ids
    assert seen(grm).identity == plain | {"stop_ids": more[:1]}
    assert states(grm) == (*tokenizer.stop_ids, more[0])  # it states none
    assert states(grm, more[1]) == (*tokenizer.stop_ids, more[1])  # the nearest
    (grm / "generation_config.json").unlink()
    # and so with ids that config.json states, where the tokenizer's own files name none
    stated = json.loads((grm / "tokenizer_config.json").read_text())
    (grm / "tokenizer_config.json").write_text(json.dumps(stated | {"eos_token": None}))
    assert seen(grm).tokenizer().eos_id == tokenizer.eos_id
