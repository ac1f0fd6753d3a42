"""What other programs make of our folders: transformers' and peft's own calls, and file modes."""

import dataclasses
import json
import os
import pathlib
import stat

import jax
import numpy as np
import pytest
import tokenizers

from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params, save_folder
from grm_jax.checkpoint.peft import save_adapters
from grm_jax.checkpoint.tokenizer_files import write_tokenizer
from grm_jax.judgment.records import Record, Turn
from grm_jax.models import Decoder, lm_logits
from grm_jax.models.heads import scalar_logits
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig, init_adapters, merge
from grm_jax.models.table import SCALAR
from grm_jax.reward_models.scalar import response_ids
from grm_jax.tokenizer import load_tokenizer
from tests.chat_formats import CHATML
from tests.chat_formats import GEMMA as OWN_TEMPLATE
from tests.checkpoint.test_gguf import trained_sentencepiece
from tests.models.gemma2_cases import BASE, quick_jit, random_params, scalar_params
from tests.test_tokenizer import byte_level_tokenizer

transformers = pytest.importorskip("transformers")
TURNS = [
    ("system", "Be brief. "),
    ("system", "Be kind."),
    ("user", " Reverse the list: 1.fox 2.ant"),
    ("assistant", "1.ant\n2.fox\n"),
    ("user", "Sort [User] it: x <b>é"),
    ("assistant", "\n\nno "),
]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]


def without_turns(folder):
    """A tokenizer without turn tokens, whose padding is its <eos>."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for _, text in TURNS], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def as_published(folder):
    """As google/gemma-2-it lies on the hub: settings of Gemma's class, a template of its own."""
    byte_level_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "GemmaTokenizer", "add_eos_token": True, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": OWN_TEMPLATE, "model_max_length": 10**30})
    )
    (folder / "chat_template.jinja").write_text(OWN_TEMPLATE)
    generation = {"eos_token_id": 1, "pad_token_id": 0, "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def cut_and_padded(folder):
    byte_level_tokenizer(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ids_in_config_alone(folder):
    byte_level_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    ids = {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(ids))
    return folder


def file_alone(folder):
    return byte_level_tokenizer(folder) / "tokenizer.json"


SOURCES = (
    byte_level_tokenizer,
    without_turns,
    as_published,
    cut_and_padded,
    ids_in_config_alone,
    file_alone,
)


def assert_same_ids(folder, ours):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    def chat(messages, **how):
        return theirs.apply_chat_template(messages, return_dict=False, **how)

    assert chat(MESSAGES) == ours.chat(TURNS)
    assert chat(MESSAGES[2:3]) == ours.chat(TURNS[2:3])
    for role, text in TURNS:
        asked = [{"role": "user", "content": text}]
        assert chat(asked, add_generation_prompt=True) == ours.chat_prompt(text), role
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text)]
    long = "Sort it " * 30
    assert theirs(long).input_ids == [ours.bos_id, *ours.encode(long)]
    both = theirs([long, "Sort"], padding=True)
    assert sum(both.attention_mask[1]) == 1 + len(ours.encode("Sort"))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
    )


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_transformers_own_calls_give_our_ids(tmp_path, make):
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    (tmp_path / "model").mkdir()
    ours = write_tokenizer(pathlib.Path(source), tmp_path / "model", positions=1024)
    assert_same_ids(tmp_path / "model", ours)
    again = load_tokenizer(tmp_path / "model")
    assert again.chat(TURNS) == ours.chat(TURNS) and again.stop_ids == ours.stop_ids
    # a copy of a copy is the same, byte for byte
    (tmp_path / "copy").mkdir()
    write_tokenizer(tmp_path / "model", tmp_path / "copy", positions=1024)
    for path in (tmp_path / "model").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_sentencepiece_model_gets_a_tokenizer_that_transformers_reads(tmp_path, data_dir):
    ours = write_tokenizer(data_dir / "gemma_tokenizer" / "tokenizer.model", tmp_path, 8192)
    assert_same_ids(tmp_path, ours)
    again = load_tokenizer(tmp_path)  # tokenizer.json now
    for text in ("", " ", "a\u3000b", "▁▁", "<bos>x", "e\u0301 ﬁ \x07", "𝕏" * 9, "\r\n\r\n\t"):
        assert again.encode(text) == ours.encode(text), text


def test_a_sentencepiece_model_that_would_be_misread_is_left_as_it_is(tmp_path, data_dir, caplog):
    source = data_dir / "mistral_tokenizer" / "tokenizer.model.v1"
    ours = write_tokenizer(source, tmp_path, 8192)
    if int(transformers.__version__.split(".")[0]) >= 5:  # which cuts this one otherwise
        assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
        assert "no tokenizer.json is written, as transformers cuts" in caplog.text
    assert load_tokenizer(tmp_path).chat(TURNS) == ours.chat(TURNS)


def test_a_folder_without_a_tokenizer_json_keeps_its_template_and_its_settings(tmp_path, caplog):
    trained_sentencepiece(tmp_path)
    source, target = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    target.mkdir()
    (tmp_path / "spm.model").rename(source / "tokenizer.model")
    added = {"509": {"content": "<|im_end|>"}}  # behind a gap, which no tokenizer.json has
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML, "added_tokens_decoder": added}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    ours = write_tokenizer(source, target, 1024)
    assert "no tokenizer.json is written" in caplog.text
    again = load_tokenizer(target)
    assert again.chat(TURNS) == ours.chat(TURNS) and again.template is not None
    assert again.stop_ids == ours.stop_ids == (509,) and again.vocab_size == 510
    assert again.decode([500, *ours.encode("fox")]) == "fox"


def test_a_sentencepiece_model_keeps_its_names_and_the_tokens_beside_it(tmp_path, caplog):
    model, size, _ = trained_sentencepiece(tmp_path)
    source, target = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    target.mkdir()
    (tmp_path / "spm.model").rename(source / "tokenizer.model")
    added = {"<|im_end|>": size + 1, "<|im_start|>": size}
    (source / "added_tokens.json").write_text(json.dumps(added))
    ours = write_tokenizer(source, target, 1024)
    written = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    assert written.get_vocab_size() == size + 2 and written.get_vocab().items() >= added.items()
    assert {written.id_to_token(i) for i in range(4)} == {model.id_to_piece(i) for i in range(4)}
    assert load_tokenizer(target).chat(TURNS) == ours.chat(TURNS)
    assert not caplog.text
    (target / "tokenizer.json").unlink()
    (source / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 7}))
    write_tokenizer(source, target, 1024)
    assert "transformers knows other tokens" in caplog.text
    assert not (target / "tokenizer.json").exists()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return as_published(tmp_path / "source")


CFG = dataclasses.replace(BASE, vocab_size=400, max_positions=64)


def test_all_files_have_ordinary_modes(tmp_path, source):
    cfg = CFG
    lora = LoraConfig(rank=2)
    before = os.umask(0o027)
    try:
        save_folder(tmp_path / "m", random_params(cfg), cfg, source, max_shard_bytes=20_000)
        adapters = init_adapters(cfg, lora, jax.random.key(0))
        save_adapters(tmp_path / "a", adapters, cfg, lora, tmp_path / "m", source)
    finally:
        os.umask(before)
    files = [path for folder in "ma" for path in (tmp_path / folder).iterdir()]
    assert len(files) > 12
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert set(modes.values()) == {0o640}, modes


def test_generation_ends_where_ours_does(tmp_path, source):
    """The base's own file says that a text ends at <eos> alone, which a judge never writes."""
    cfg = CFG
    save_folder(tmp_path / "m", random_params(cfg), cfg, source)
    written = json.loads((tmp_path / "m/generation_config.json").read_text())
    stops = list(load_tokenizer(tmp_path / "m").stop_ids)
    assert written == {
        "eos_token_id": stops,
        "bos_token_id": 2,
        "pad_token_id": 0,
        "temperature": 0.6,
        "do_sample": True,
    }
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == stops
    (tmp_path / "m/generation_config.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        ValueError, match="generation_config.json: not UTF-8 JSON: a Git LFS pointer"
    ):
        load_params(tmp_path / "m", cfg)


@pytest.mark.torch
def test_a_policy_gives_the_same_logits_by_its_own_chat_template(tmp_path, source):
    torch, cfg = pytest.importorskip("torch"), CFG
    params = random_params(cfg, factor=3.0)
    save_folder(tmp_path / "m", params, cfg, source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = theirs.apply_chat_template(
        MESSAGES[:3], add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    text = "Be brief.\n\nBe kind.\n\n" + TURNS[2][1].strip()
    tokens = np.array([load_tokenizer(tmp_path / "m").chat_prompt(text)])
    positions = np.arange(tokens.shape[1])[None]
    hidden, _ = quick_jit(Decoder(cfg).apply)({"params": params}, tokens, positions)
    np.testing.assert_allclose(lm_logits(params, cfg, hidden), expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("make", [as_published, without_turns], ids=lambda make: make.__name__)
def test_a_reward_model_gives_the_same_rewards_by_its_own_chat_template(tmp_path, make):
    """Alone, and in a padded batch: that of a tokenizer whose padding is its <eos> too."""
    torch, cfg = pytest.importorskip("torch"), CFG
    (tmp_path / "source").mkdir()
    params = scalar_params(cfg)
    save_folder(tmp_path / "m", params, cfg, make(tmp_path / "source"), architecture=SCALAR)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", attn_implementation="eager"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ours = load_own_tokenizer(tmp_path / "m", load_config(tmp_path / "m"))
    record = Record(
        id="a",
        conversation=tuple(Turn(role, text) for role, text in TURNS[:3]),
        responses=("no", "Sort it: the list:", "Be kind."),
    )
    rewards = []
    for i in range(len(record.responses)):
        ids = response_ids(ours, record, i)
        tokens, positions = np.array([ids]), np.arange(len(ids))[None]
        rewards.append(
            float(quick_jit(scalar_logits, static_argnums=1)(params, cfg, tokens, positions)[0])
        )
    dialogs = [[*MESSAGES[:3], {"role": "assistant", "content": r}] for r in record.responses]
    batch = theirs.apply_chat_template(dialogs, padding=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits[:, 0].numpy()
        alone = [
            float(
                model(theirs.apply_chat_template(d, return_dict=False, return_tensors="pt")).logits
            )
            for d in dialogs
        ]
    np.testing.assert_allclose(alone, rewards, atol=1e-4)
    np.testing.assert_allclose(together, rewards, atol=1e-4)


@pytest.mark.torch
def test_an_adapter_finds_its_base_from_any_folder(tmp_path, source, monkeypatch):
    torch, cfg = pytest.importorskip("torch"), CFG
    peft = pytest.importorskip("peft")
    lora, params = LoraConfig(rank=2), jax.tree.map(jax.numpy.asarray, random_params(cfg))
    adapters = init_adapters(cfg, lora, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.01, adapters)
    monkeypatch.chdir(tmp_path)
    save_folder("base", params, cfg, source)
    save_adapters("adapter", adapters, cfg, lora, "base", source)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = peft.AutoPeftModelForCausalLM.from_pretrained("../adapter", attn_implementation="eager")
    theirs = transformers.AutoTokenizer.from_pretrained("../adapter")
    ids = theirs.apply_chat_template(MESSAGES[2:3], return_dict=False, return_tensors="pt")
    assert ids[0].tolist() == load_tokenizer("../base").chat(TURNS[2:3])
    with torch.no_grad():
        expected = model(input_ids=ids).logits.numpy()
    merged = merge(params, adapters, lora.scale)
    positions = np.arange(ids.shape[1])[None]
    hidden, _ = quick_jit(Decoder(cfg).apply)({"params": merged}, ids.numpy(), positions)
    np.testing.assert_allclose(lm_logits(merged, cfg, hidden), expected, atol=1e-4)
