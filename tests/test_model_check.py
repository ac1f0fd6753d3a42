"""The check of a model folder: what it says is right, and it fails where something is wrong."""

import copy
import json
import math
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from experiments import check_model as command
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.model_check import (
    check_model,
    cut_windows,
    logits_of,
    max_difference,
    puts_bos,
    text_of,
)
from grm_jax.models.config import from_sizes
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.reward_models.description import TINY_BASE
from grm_jax.tokenizer import load_tokenizer
from tests.models.family_cases import SIZES
from tests.models.gemma2_cases import random_params, scalar_params

TEXT = "Sort the list: 1.fox 2.ant 3.hen, and then write down the first of them. " * 3
FAMILIES = ("llama", "qwen3", "gemma3_text")


def config(family, **sizes):
    sizes = SIZES | {"n_layers": 2, "model_type": family, "max_positions": 128} | sizes
    return from_sizes(sizes, vocab_size=768)


def folder_of(tmp_path, cfg, params=None, name="m"):
    params = random_params(cfg) if params is None else params
    save_folder(tmp_path / name, params, cfg, tokenizer_files_from=TINY_BASE)
    return tmp_path / name


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_agrees_with_transformers_and_a_wrong_weight_does_not(tmp_path, family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = config(family)
    folder = folder_of(tmp_path, cfg)
    found = check_model(folder, TEXT, tokens=60)
    assert found["max_abs"] < 1e-4 and found["greedy_equal"] is True, found
    assert (found["model_type"], found["dtype"], found["windows"]) == (family, "float32", 1)
    assert found["compared"] == found["tokens"] + 1 == 61
    # the likelihood is transformers' own
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)[:60]]
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert found["nll_per_token"] == pytest.approx(float(loss), abs=1e-5)
    # one number of one matrix is another one
    params = load_params(folder, load_config(folder))
    params["blocks"]["layer_0_attn"]["q"] = params["blocks"]["layer_0_attn"]["q"].at[0, 3].add(1.0)
    assert max_difference(params, cfg, ids, logits_of(model, ids)) > 1e-2


def test_a_model_that_knows_nothing_has_the_likelihood_of_chance(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg = config("llama", tied_head=True, max_positions=32)
    params = jax.tree.map(np.zeros_like, random_params(cfg))
    folder, said = folder_of(tmp_path, cfg, params), []
    found = check_model(folder, TEXT, say=said.append)
    assert found["nll_per_token"] == pytest.approx(math.log(768), rel=1e-6)
    assert found["tokens"] == found["scored"] > 64 and found["bytes"] == len(TEXT)
    assert found["nll_per_byte"] == pytest.approx(found["tokens"] * math.log(768) / len(TEXT))
    assert found["windows"] == math.ceil(found["tokens"] / 31)
    n = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg)))
    assert found["parameters"] == n
    assert found["transformers"] is found["max_abs"] is found["greedy_equal"] is None
    assert "torch is not installed: nothing to compare with" in said
    assert check_model(folder, TEXT, tokens=5)["tokens"] == 5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("front", [[], [7]])
@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 40])
def test_windows_predict_every_token_once(n, front):
    ids = list(range(100, 100 + n))
    windows = list(cut_windows(ids, front, 10))
    assert max(map(len, windows)) <= 10
    assert [i for window in windows for i in window[1:]] == ids[not front :]
    before = [window[0] for window in windows]
    assert before == (front * len(windows) if front else [100, *range(109, 100 + n - 1, 9)])
    with pytest.raises(ValueError, match="a model of 1 position predicts nothing"):
        list(cut_windows(ids, front, 1))


def test_bos_is_put_where_the_tokenizer_puts_it(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((TINY_BASE / name).read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert puts_bos(tmp_path, tokenizer)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": None}))
    assert not puts_bos(tmp_path, tokenizer)


def test_what_cannot_be_checked_is_named(tmp_path):
    cfg = config("llama", tied_head=True)
    folder = folder_of(tmp_path, cfg)
    for text, n in (("", 0), ("a", 1)):
        with pytest.raises(ValueError, match=f"--text x: {n} tokens; expected a text of 2 or more"):
            check_model(folder, text, where="--text x")
    (tmp_path / "latin").write_bytes("Das Öl".encode("latin-1"))
    with pytest.raises(ValueError, match="latin: expected a text in UTF-8, got byte 0xd6 at 4"):
        text_of(tmp_path / "latin")
    with pytest.raises(FileNotFoundError, match=r"none/config.json: no such file; expected a Hugg"):
        check_model(tmp_path / "none")
    save_folder(tmp_path / "scalar", scalar_params(cfg), cfg, TINY_BASE, architecture=SCALAR)
    expected = 'field "architectures": expected LlamaForCausalLM, a model that writes, got LlamaFor'
    with pytest.raises(ValueError, match=expected):
        check_model(tmp_path / "scalar")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapters: adapters alone; expected the folder of a wh"):
        check_model(tmp_path / "adapters")
    (folder / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match=r"m: expected model.safetensors or model.safet"):
        check_model(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"model_type": "rwkv"}))
    with pytest.raises(ValueError, match="field \"model_type\": expected one of .*'llama'.*rwkv"):
        check_model(folder)


def test_the_commands_of_the_page_are_understood():
    page = (pathlib.Path(__file__).parents[1] / "docs/judge.md").read_text()
    commands = re.findall(r"^    python -m experiments.check_model (.*)$", page, re.MULTILINE)
    assert len(commands) >= 2
    for words in commands:
        # the flags of this command alone: others of the process may be required
        own = command.flags.FlagValues()
        for flag in command.flags.FLAGS.flags_by_module_dict()[command.__name__]:
            own[flag.name] = copy.deepcopy(flag)
        assert len(own(["check", *words.split()])) == 2, words


def test_the_command_prints_one_line(monkeypatch, capsys, tmp_path):
    asked = {}

    def check(folder, **how):
        asked.update(how, folder=folder)
        how["say"]("busy")
        return {"nll_per_token": 1.5, "prompt": "é"}

    monkeypatch.setattr("grm_jax.model_check.check_model", check)
    (tmp_path / "text").write_text("ein Öl", encoding="utf-8")
    monkeypatch.setattr(command, "TEXT", types.SimpleNamespace(value=str(tmp_path / "text")))
    monkeypatch.setattr(command, "TOKENS", types.SimpleNamespace(value=9))
    command.main(["check", "tiny_base"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"nll_per_token": 1.5, "prompt": "é"} and out.count("\n") == 1
    assert err == "busy\n" and asked["folder"] == pathlib.Path(TINY_BASE)
    assert (asked["text"], asked["tokens"]) == ("ein Öl", 9)
    with pytest.raises(command.app.UsageError, match="expected one model folder"):
        command.main(["check"])
