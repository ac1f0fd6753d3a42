"""Hugging Face folders: what we write loads again (here and in transformers), and every kind of
broken folder is named.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from grm_jax.checkpoint import huggingface
from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params, save_folder
from grm_jax.models import Decoder, ModelConfig, lm_logits
from grm_jax.models.config import alternating
from grm_jax.models.heads import scalar_logits
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.parallel.mesh import make_mesh, param_shardings

# LLVM's effort only: compiling is what these tests cost
QUICK = {"xla_backend_optimization_level": 0}
CFG = ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    layer_types=alternating(4),
    sliding_window=5,
    query_pre_attn_scalar=12.0,
    rope_theta=5000.0,
)
Q0 = "model.layers.0.self_attn.q_proj.weight"


def random_params(architecture=CAUSAL_LM, cfg=CFG):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        abstract_params(cfg, architecture),
    )


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", random_params(), CFG)
    return tmp_path / "model"


def rewrite(folder, change):
    """Apply `change` to the dict of tensors in model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_one_file_comes_back(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_config(folder) == CFG
    params = load_params(folder, CFG)
    assert_equal(params, random_params())
    assert all(
        isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in jax.tree.leaves(params)
    )


def test_several_files_with_an_index_come_back(tmp_path):
    save_folder(tmp_path / "model", random_params(), CFG, max_shard_bytes=6000)
    files = sorted(tmp_path.glob("model/*.safetensors"))
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == {path.name for path in files}
    assert index["metadata"]["total_size"] == 4 * sum(
        leaf.size for leaf in jax.tree.leaves(random_params())
    )
    assert all(path.stat().st_size < 6000 + 4096 for path in files)  # contents and header
    assert_equal(load_params(tmp_path / "model", CFG), random_params())


def test_straight_into_shards_and_back_to_files(folder, tmp_path):
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    shardings = param_shardings(mesh, abstract_params(CFG))
    params = load_params(folder, CFG, shardings)
    jax.tree.map(
        lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(), params, shardings
    )
    save_folder(tmp_path / "again", params, CFG)
    # the host's copies are gone once they are written
    assert all(leaf._npy_value is None for leaf in jax.tree.leaves(params))
    assert_equal(params, random_params())
    assert params["embedding"]._npy_value is not None  # which this would show
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_bfloat16_files_and_arrays(tmp_path):
    params = random_params()
    save_folder(tmp_path / "bf16", params, CFG, dtype="bfloat16")
    assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "bf16/model.safetensors", "np") as opened:
        assert opened.get_slice(Q0).get_dtype() == "BF16" and opened.metadata() == {"format": "pt"}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    half = load_params(tmp_path / "bf16", CFG, dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))
    assert_equal(half, rounded)
    assert_equal(
        load_params(tmp_path / "bf16", CFG),
        jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded),
    )


def test_scalar_head_comes_back(tmp_path):
    params = random_params(SCALAR)
    save_folder(tmp_path / "rm", params, CFG, architecture=SCALAR)
    assert_equal(load_params(tmp_path / "rm", CFG, architecture=SCALAR), params)
    with pytest.raises(
        ValueError,
        match=r"model.safetensors: 1 tensors .* the "
        r"first is score.weight",
    ):
        load_params(tmp_path / "rm", CFG)


def test_vocabulary_is_padded_or_cropped_only_when_asked(folder):
    embedding = random_params()["embedding"]
    shardings = param_shardings(
        make_mesh(fsdp=2, tensor=4), abstract_params(dataclasses.replace(CFG, vocab_size=72))
    )
    for placed in (None, shardings):
        padded = load_params(folder, load_config(folder, vocab_size=72), placed)["embedding"]
        np.testing.assert_array_equal(
            padded, np.concatenate([embedding, np.zeros((8, CFG.d_model))])
        )
    np.testing.assert_array_equal(
        load_params(folder, load_config(folder, vocab_size=60))["embedding"], embedding[:60]
    )
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"model.embed_tokens.weight": np.zeros((72, CFG.d_model), np.float32)}
        ),
    )
    with pytest.raises(
        ValueError,
        match=r"embed_tokens.weight has shape \(72, 16\); "
        r"config.json asks for \(64, 16\)",
    ):
        load_params(folder, CFG)


def test_a_copy_of_the_tied_embedding_is_let_pass(folder):
    rewrite(
        folder,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}),
    )
    assert_equal(load_params(folder, CFG), random_params())
    half = load_file(folder / "model.safetensors")["lm_head.weight"].astype(np.float16)
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": half, "model.embed_tokens.weight": half.astype(np.float32)}
        ),
    )
    np.testing.assert_array_equal(load_params(folder, CFG)["embedding"], half)


@pytest.mark.parametrize("row", [0, 40, 63])
def test_another_head_than_the_embedding_that_it_is_tied_to_is_refused(folder, row, monkeypatch):
    """It was thrown away; which of the two the model was trained with, no one can say."""
    monkeypatch.setattr(huggingface, "READ_BYTES", 4 * CFG.d_model * 10)  # rows at once

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][row, 3] += 1e-3

    rewrite(folder, change)
    with pytest.raises(ValueError, match="model.safetensors: lm_head.weight differs from the emb"):
        load_params(folder, CFG)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": np.zeros((2, 3), "f")}))
    with pytest.raises(ValueError, match="model.safetensors: lm_head.weight differs from the emb"):
        load_params(folder, CFG)


def test_frequencies_that_older_folders_store_are_left_out(folder):
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    stored = {name.format(i): np.ones(4, np.float16) for i in range(CFG.n_layers)}
    rewrite(folder, lambda tensors: tensors.update(stored))
    assert_equal(load_params(folder, CFG), random_params())
    assert huggingface.stored_dtypes(folder) == ["float32"]


BROKEN = {
    "missing": (
        lambda tensors: tensors.pop(Q0),
        f"model: missing 1 of 46 tensors, the first is {Q0}",
    ),
    "unexpected": (
        lambda tensors: tensors.update({"model.layers.4.x": np.zeros(1)}),
        r"model.safetensors: 1 tensors .* "
        r"model.layers.4.x",
    ),
    "shape": (
        lambda tensors: tensors.update({Q0: np.zeros((32, 15), np.float32)}),
        rf"model.safetensors: {Q0} has shape "
        r"\(32, 15\).*\(32, 16\)",
    ),
    "dtype": (
        lambda tensors: tensors.update({Q0: np.zeros((32, 16), np.int8)}),
        f"model.safetensors: {Q0} has dtype I8",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_wrong_tensors_are_named_with_their_file(folder, kind):
    change, message = BROKEN[kind]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_params(folder, CFG)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "architecture, tensor, index",
    [
        (CAUSAL_LM, "model.embed_tokens.weight", (63, 2)),
        (CAUSAL_LM, "model.layers.3.input_layernorm.weight", (5,)),
        (CAUSAL_LM, "model.norm.weight", (0,)),
        (CAUSAL_LM, Q0, (17, 3)),
        (CAUSAL_LM, "model.layers.2.mlp.down_proj.weight", (1, 23)),
        (SCALAR, "score.weight", (0, 7)),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, architecture, tensor, index, value):
    save_folder(tmp_path / "m", random_params(architecture), CFG, architecture=architecture)
    path = tmp_path / "m" / "model.safetensors"
    tensors = {name: huggingface._DTYPES[dtype].type(x) for name, x in load_file(path).items()}
    tensors[tensor][index] = value
    save_file(tensors, path)
    mesh = make_mesh(fsdp=2, tensor=2, replica=-1)
    shardings = param_shardings(mesh, abstract_params(CFG, architecture))
    for where in (None, shardings):
        with pytest.raises(ValueError) as error:
            load_params(tmp_path / "m", CFG, where, architecture=architecture)
        assert str(error.value) == (
            f"{path}: tensor {tensor} holds {value:g} at [{', '.join(map(str, index))}]; expected "
            "finite numbers"
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_every_pattern_of_16_bits_is_finite_or_not_as_numpy_says(dtype):
    numbers = np.arange(2**16, dtype=np.uint16).view(np.dtype(dtype))
    finite = np.isfinite(numbers.astype(np.float32))
    assert huggingface.all_finite(numbers[finite])
    assert [huggingface.all_finite(numbers[i : i + 1]) for i in range(2**16)] == finite.tolist()
    many = np.ones(3 * huggingface.READ_BYTES, numbers.dtype)
    assert huggingface.all_finite(many)
    many[-1] = np.inf
    assert not huggingface.all_finite(many) and huggingface.all_finite(many[:-1])


def test_a_number_that_the_dtype_cannot_hold_is_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[Q0][4, 1] = 1e5
    save_file(tensors, path)
    assert load_params(folder, CFG)["blocks"]
    with pytest.raises(
        ValueError, match=r"holds 100000 at \[4, 1\]; expected finite numbers that float16 can hold"
    ):
        load_params(folder, CFG, dtype="float16")


def test_weights_that_are_not_finite_are_never_written(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    params = random_params()
    params["final_norm"]["scale"][3] = np.nan
    with pytest.raises(ValueError, match=r"model.safetensors: tensor model.norm.weight holds nan"):
        save_folder(folder, params, CFG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_of_several_files_that_is_cut_or_missing_is_named(tmp_path):
    save_folder(tmp_path / "model", random_params(), CFG, max_shard_bytes=6000)
    third = sorted(tmp_path.glob("model/*.safetensors"))[2]
    content = third.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 100, 0):
        third.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{third.name}: truncated"):
            load_params(tmp_path / "model", CFG)
    third.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=f"{third.name}: no such file, but model.safetensors.index.json names it",
    ):
        load_params(tmp_path / "model", CFG)


def test_the_index_says_which_file_counts(tmp_path):
    """A tensor that two files hold is read from the one that the index names."""
    save_folder(tmp_path / "model", random_params(), CFG, max_shard_bytes=6000)
    weight_map = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    for path in tmp_path.glob("model/*.safetensors"):
        if path.name != weight_map[Q0]:
            save_file(load_file(path) | {Q0: np.zeros((32, 16), np.float32)}, path)
    assert_equal(load_params(tmp_path / "model", CFG), random_params())


def test_one_file_counts_before_an_index_that_was_there(tmp_path):
    """As transformers has it, whose save_pretrained leaves the index of a larger save there."""
    older = jax.tree.map(np.zeros_like, random_params())
    save_folder(tmp_path / "shards", older, CFG, max_shard_bytes=6000)
    save_folder(tmp_path / "model", random_params(), CFG, dtype="bfloat16")
    for path in (tmp_path / "shards").iterdir():
        if path.name != "config.json":
            path.rename(tmp_path / "model" / path.name)
    assert np.any(load_params(tmp_path / "model", CFG)["embedding"])
    assert huggingface.stored_dtypes(tmp_path / "model") == ["bfloat16"]
    next((tmp_path / "model").glob("model-0*.safetensors")).unlink()
    assert np.any(load_params(tmp_path / "model", CFG)["embedding"])


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weight_map": None},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": {Q0: 5}},
        {"weight_map": {Q0: "../model.safetensors"}},
        {"weight_map": {Q0: "/model.safetensors"}},
        {"weight_map": {Q0: ""}},
    ],
    ids=str,
)
def test_an_index_that_names_no_files_of_its_folder_is_refused(folder, content):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match='index.json: field "weight_map": expected an object'):
        load_params(folder, load_config(folder))


@pytest.mark.parametrize(
    "data, words",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n",
            "Git LFS pointer",
        ),
        (b"<html>not found</html>", "an HTML or XML page"),
        (b"", "empty"),
        (bytes(4096), "zeros alone"),
        (b"PK\x03\x04rest", "a zip archive"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_weights_that_are_no_safetensors_are_named_with_what_they_look_like(folder, data, words):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=f"model.safetensors: .*{words}"):
        load_params(folder, load_config(folder))


def test_a_tokenizer_of_more_ids_than_the_model_has_rows_is_refused(folder, tokenizer_folder):
    """JAX would read the last row for all of them."""
    words = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["one_more"] = CFG.vocab_size
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_bytes(
        (tokenizer_folder / "tokenizer_config.json").read_bytes()
    )
    with pytest.raises(ValueError, match=f"{CFG.vocab_size + 1} ids, but config.json says vocab_s"):
        load_own_tokenizer(folder, load_config(folder))
    cfg = load_config(folder, vocab_size=CFG.vocab_size + 1)
    assert load_own_tokenizer(folder, cfg).vocab_size == cfg.vocab_size


def test_control_tokens_that_nothing_writes_need_no_row(folder, tokenizer_folder):
    """Google's text folders of Gemma 3: <image_soft_token> is the id behind the last row."""
    spec = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    stated = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())

    def load(*tokens, **fields):
        added = [
            spec["added_tokens"][0] | {"id": CFG.vocab_size + i, "content": token}
            for i, token in enumerate(tokens)
        ]
        words = spec | {"added_tokens": spec["added_tokens"] + added}
        (folder / "tokenizer.json").write_text(json.dumps(words))
        (folder / "tokenizer_config.json").write_text(json.dumps(stated | fields))
        return load_own_tokenizer(folder, load_config(folder))

    tokenizer = load("<image_soft_token>")
    assert tokenizer.rows_needed == CFG.vocab_size == tokenizer.vocab_size - 1
    text = "w1 <image_soft_token> w2"
    assert (
        CFG.vocab_size
        in tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text()).encode(text).ids
    )  # the danger is real
    chats = tokenizer.chat([("system", text), ("user", text), ("assistant", text)])
    assert max(tokenizer.encode(text) + tokenizer.chat_prompt(text) + chats) < CFG.vocab_size
    writes = "{{ '<' + messages[0]['role'] + '>' }}{{ messages[0]['content'] }}"
    for tokens, fields in (
        (["<late>"], {"eos_token": "<late>"}),
        (["<late>", "<later>"], {"pad_token": "<late>"}),
        (["<late>"], {"chat_template": "<late>{{ messages[0]['content'] }}"}),
        (["<user>"], {"chat_template": writes}),  # which does not hold it whole
    ):
        with pytest.raises(ValueError, match=f"has {CFG.vocab_size + 1} ids, but config.json says"):
            load(*tokens, **fields)
    assert load("<tool>", chat_template=writes).rows_needed == CFG.vocab_size


def test_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: truncated"):
        load_params(folder, CFG)


def test_broken_index_is_named(tmp_path):
    save_folder(tmp_path / "model", random_params(), CFG, max_shard_bytes=6000)
    index = tmp_path / "model/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][Q0] = "model-00099-of-00099.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="model-00099-of-00099.safetensors: no such file"):
        load_params(tmp_path / "model", CFG)
    content["weight_map"][Q0] = content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"holds no tensor {Q0}"):
        load_params(tmp_path / "model", CFG)
    index.write_text("{")
    with pytest.raises(ValueError, match="index.json: not UTF-8 JSON: cut off"):
        load_params(tmp_path / "model", CFG)


def test_absent_folder_and_absent_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_params(tmp_path / "nowhere", CFG)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="expected model.safetensors or"):
        load_params(tmp_path, CFG)


def test_params_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    params = random_params()
    del params["blocks"]["layer_1_mlp"]["up"]
    with pytest.raises(ValueError, match="first at 'blocks/layer_1_mlp/up'"):
        save_folder(tmp_path / "model", params, CFG)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no config.json"):
        save_folder(tmp_path, random_params(), CFG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_mode_of_any_file_written_here(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_folder(tmp_path / "model", random_params(), CFG)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~umask)


def test_a_failed_save_leaves_the_old_folder_and_the_next_one_cleans_up(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    other = jax.tree.map(lambda leaf: leaf + 1, random_params())
    with monkeypatch.context() as patch:
        patch.setattr(
            huggingface,
            "save_file",
            lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")),
        )
        with pytest.raises(OSError, match="disk full"):
            save_folder(folder, other, CFG)
    assert (folder / "model.safetensors").read_bytes() == before
    save_folder(folder, other, CFG)
    assert_equal(load_params(folder, CFG), other)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.fixture
def tokenizer_folder(tmp_path) -> pathlib.Path:
    words = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        *(f"w{i}" for i in range(CFG.vocab_size - 6)),
    ]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(words[:6])
    path = tmp_path / "tokenizer"
    path.mkdir()
    model.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "notes.txt").write_text("not a tokenizer file")
    return path


def test_tokenizer_files_are_copied_and_their_ids_stated(tmp_path, tokenizer_folder):
    save_folder(tmp_path / "model", random_params(), CFG, tokenizer_files_from=tokenizer_folder)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (
        0,
        2,
        [1, 5],
    )
    # from the folder that is replaced
    save_folder(tmp_path / "model", random_params(), CFG, tokenizer_files_from=tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == names


@pytest.mark.torch
def test_transformers_reads_our_folder_with_the_same_logits_and_greedy_text(
    tmp_path, tokenizer_folder
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params = jax.tree.map(jnp.asarray, random_params())
    save_folder(
        tmp_path / "model",
        params,
        CFG,
        tokenizer_files_from=tokenizer_folder,
        max_shard_bytes=20_000,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "Gemma2ForCausalLM" and model.dtype == torch.float32

    T, start, text = 32, 5, "w3 w1 w4 w1"  # and <bos>
    ids = tokenizer(text, return_tensors="pt").input_ids
    generated = model.generate(ids, max_length=T, do_sample=False, num_beams=1)[0].numpy()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def logits(tokens_1T):
        return lm_logits(
            params, CFG, Decoder(CFG).apply({"params": params}, tokens_1T, jnp.arange(T)[None])[0]
        )[0]

    tokens = np.zeros((1, T), np.int32)
    tokens[0, :start] = ids[0].numpy()
    length = start
    while length < T:
        tokens[0, length] = int(np.argmax(logits(tokens)[length - 1]))
        length += 1
        if tokens[0, length - 1] in (1, 5):
            break
    np.testing.assert_array_equal(tokens[0, :length], generated)
    assert length > start + 8  # a test of more than a few tokens
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens[:, :length]).long()).logits[0].numpy()
    assert np.abs(np.asarray(logits(tokens))[:length] - theirs).max() <= 1e-4


@pytest.mark.torch
def test_transformers_reads_our_reward_model(tmp_path, tokenizer_folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params = random_params(SCALAR)
    save_folder(
        tmp_path / "rm", params, CFG, tokenizer_files_from=tokenizer_folder, architecture=SCALAR
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "rm", attn_implementation="eager"
    )
    assert (
        type(model).__name__ == "Gemma2ForSequenceClassification" and model.config.num_labels == 1
    )
    tokens_BT = np.array([[2, 9, 10, 11, 12, 13], [2, 20, 21, 0, 0, 0]])
    pos_BT = np.where(tokens_BT == 0, -1, np.arange(6))
    with torch.no_grad():
        theirs_B = (
            model(torch.from_numpy(tokens_BT), attention_mask=torch.from_numpy(pos_BT >= 0).long())
            .logits[:, 0]
            .numpy()
        )
    ours_B = jax.jit(scalar_logits, static_argnums=1, compiler_options=QUICK)(
        params, CFG, tokens_BT, pos_BT
    )
    np.testing.assert_allclose(ours_B, theirs_B, atol=1e-4)


@pytest.mark.torch
def test_a_folder_that_transformers_wrote_comes_back(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        sliding_window=3,
        query_pre_attn_scalar=20,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
        initializer_range=0.3,
    )
    model = transformers.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    cfg = load_config(tmp_path)
    assert cfg.rope_theta == 777.0 and cfg.layer_types == alternating(3)
    params = load_params(tmp_path, cfg)
    tokens = np.random.default_rng(0).integers(3, 64, (1, 10))
    hidden, _ = jax.jit(Decoder(cfg).apply, compiler_options=QUICK)(
        {"params": params}, tokens, np.arange(10)[None]
    )
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(np.asarray(lm_logits(params, cfg, hidden)) - theirs).max() <= 1e-4
