"""config.json as transformers reads it: each key is honored, or refused by its name."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.models.config import ModelConfig
from grm_jax.models.families import FAMILIES, TOKEN_IDS, WITHOUT_EFFECT, known, only
from grm_jax.models.hf_config import from_hf_dict, load_config, read_config, to_hf_dict
from tests.json_values import JSON

SMALL = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "sliding_window": 3,
    "query_pre_attn_scalar": 8,
    "bos_token_id": 2,
    "eos_token_id": [1, 5],
    "pad_token_id": 0,
}
# as google/gemma-2-27b has it
PUBLISHED = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "initializer_range": 0.02,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
    "_attn_implementation": "eager",
}
LAYERS = ["full_attention", "sliding_attention"]
LINEAR = {"rope_type": "linear", "factor": 2.0}
# what transformers computes something else for, what it fails at, and what nobody can know
REFUSED = [
    ("rope_scaling", LINEAR, "rope_scaling.rope_type"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling.type"),
    ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_scaling.type"),
    ("rope_scaling", {"factor": 2.0}, "rope_scaling.factor"),
    ("rope_scaling", [LINEAR], "rope_scaling"),
    ("rope_parameters", LINEAR, "rope_parameters.rope_type"),
    ("rope_parameters", {"type": "yarn", "factor": 4.0}, "rope_parameters.type"),
    ("rope_parameters", {"rope_type": "default", "type": "linear"}, "rope_parameters.type"),
    ("rope_parameters", {"full_attention": {}}, "rope_parameters.full_attention"),
    ("rope_parameters", {"rope_theta": None}, "rope_parameters.rope_theta"),
    ("rope_parameters", "default", "rope_parameters"),
    ("rope_theta", None, "rope_theta"),
    ("rope_theta", 0, "rope_theta"),
    ("rope_theta", "10000", "rope_theta"),
    ("rope_theta", 1e300, "rope_theta"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
    ("sliding_window", None, "sliding_window"),
    ("sliding_window", 0, "sliding_window"),
    ("sliding_window", -1, "sliding_window"),
    ("sliding_window", 3.0, "sliding_window"),
    ("sliding_window_size", 4, "sliding_window_size"),
    ("use_sliding_window", False, "use_sliding_window"),
    ("attn_logit_softcapping", 0, "attn_logit_softcapping"),
    ("attn_logit_softcapping", -50.0, "attn_logit_softcapping"),
    ("final_logit_softcapping", False, "final_logit_softcapping"),
    ("final_logit_softcapping", math.inf, "final_logit_softcapping"),
    ("query_pre_attn_scalar", None, "query_pre_attn_scalar"),
    ("query_pre_attn_scalar", 0, "query_pre_attn_scalar"),
    ("head_dim", None, "head_dim"),
    ("head_dim", 7, "head_dim"),
    ("num_key_value_heads", None, "num_key_value_heads"),
    ("num_key_value_heads", 3, "num_attention_heads"),
    ("num_attention_heads", 3, "hidden_size"),
    ("num_hidden_layers", True, "num_hidden_layers"),
    ("num_hidden_layers", 10**9, "num_hidden_layers"),
    ("hidden_size", [16], "hidden_size"),
    ("vocab_size", 10**400, "vocab_size"),
    ("rms_norm_eps", "1e-6", "rms_norm_eps"),
    ("rms_norm_eps", 0.0, "rms_norm_eps"),
    ("max_position_embeddings", 0, "max_position_embeddings"),
    ("hidden_activation", None, "hidden_activation"),
    ("hidden_activation", "gelu", "hidden_activation"),
    ("hidden_act", "silu", "hidden_act"),
    ("attention_bias", True, "attention_bias"),
    ("attention_bias", 0, "attention_bias"),
    ("mlp_bias", True, "mlp_bias"),
    ("attention_dropout", 0.1, "attention_dropout"),
    ("tie_word_embeddings", False, "tie_word_embeddings"),
    ("tie_word_embeddings", None, "tie_word_embeddings"),
    ("use_bidirectional_attention", True, "use_bidirectional_attention"),
    ("is_causal", False, "is_causal"),
    ("layer_types", [], "layer_types"),
    ("layer_types", ["full_attention"] * 3, "layer_types"),
    ("layer_types", ["full_attention", "chunked_attention"], "layer_types"),
    ("layer_types", "full_attention", "layer_types"),
    ("per_layer_config", {"0": {"head_dim": 4}}, "per_layer_config"),
    ("quantization_config", {"bits": 4}, "quantization_config"),
    ("pad_token_id", "0", "pad_token_id"),
    ("eos_token_id", [], "eos_token_id"),
    ("architectures", "Gemma2ForCausalLM", "architectures"),
    ("torch_dtype", 32, "torch_dtype"),
    ("model_type", "gemma4_text", "model_type"),
    ("sliding_windows", 3, "sliding_windows"),
    ("logit_scale", 0.5, "logit_scale"),
    ("use_qk_norm", False, "use_qk_norm"),
]
# and what changes nothing, or what is honored
HONORED = [
    {},
    {"attn_logit_softcapping": None},
    {"final_logit_softcapping": None},
    {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    {"rope_theta": 50.0},
    {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 50.0, "type": "default"}, "rope_theta": 50},
    {"rope_scaling": {"type": "default", "rope_theta": 50.0}},
    {"rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": None},
    {"layer_types": LAYERS},
    {"layer_types": None},
    {"head_dim": 4, "query_pre_attn_scalar": 30},
    {"rms_norm_eps": 0.1},
    {"hidden_act": "gelu_pytorch_tanh", "mlp_bias": None, "is_causal": True},
    {"use_cache": False, "_name_or_path": "x", "unsloth_fixed": True, "temperature": 0.6},
    {"an_unknown_key": None},
]


def lines(error: pytest.ExceptionInfo, where: str = "config.json") -> list[str]:
    """The fields that an error names; each of its lines names one."""
    start = f'{where}: field "'
    found = str(error.value).splitlines()
    assert all(line.startswith(start) and '": ' in line for line in found), found
    return [json.JSONDecoder().raw_decode(line, len(start) - 1)[0] for line in found]


@pytest.mark.parametrize("key, value, named", REFUSED, ids=lambda x: str(x)[:30])
def test_what_changes_the_model_is_refused_by_name(key, value, named):
    with pytest.raises(ValueError) as error:
        from_hf_dict(SMALL | {key: value})
    assert named in lines(error)
    assert "got" in str(error.value) or "unknown" in str(error.value)


def test_places_of_the_rotary_base_that_disagree_are_refused():
    """One version of transformers reads the first of these, another the second."""
    for place in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ValueError) as error:
            from_hf_dict(SMALL | {"rope_theta": 500.0, place: {"rope_theta": 100.0}})
        assert lines(error) == [f"{place}.rope_theta"]
    assert "expected rope_theta = 500.0, got 100.0" in str(error.value)


def test_all_wrong_fields_are_named_at_once_with_the_nearest_of_a_misspelt_one():
    wrong = {"head_dim": None, "rms_norm_eps": "x", "sliding_windows": 3, "rope_scaling": LINEAR}
    with pytest.raises(ValueError, match="did you mean 'sliding_window'") as error:
        from_hf_dict(SMALL | wrong)
    assert set(lines(error)) == {
        "head_dim",
        "rms_norm_eps",
        "sliding_windows",
        "rope_scaling.rope_type",
        "rope_scaling.factor",
    }


def test_a_published_config_is_read_and_written_back_as_it_was():
    cfg = from_hf_dict(PUBLISHED)
    assert (cfg.n_layers, cfg.query_pre_attn_scalar, cfg.sliding_window) == (46, 144, 4096)
    assert from_hf_dict(to_hf_dict(cfg)) == cfg
    written = to_hf_dict(from_hf_dict(SMALL | {"attn_logit_softcapping": 50, "rms_norm_eps": 1}))
    # transformers takes no integers for these
    assert isinstance(written["attn_logit_softcapping"], float)
    assert isinstance(written["rms_norm_eps"], float)


@pytest.mark.torch
@pytest.mark.parametrize("change", HONORED, ids=lambda x: " ".join(x)[:60])
def test_what_is_accepted_gives_the_logits_of_transformers(change):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from grm_jax.models import Decoder, lm_logits
    from grm_jax.models.table import find_row, flatten, hf_names, is_stacked, to_hf
    from tests.models.gemma2_cases import quick_jit, random_params

    hf = SMALL | change
    cfg = from_hf_dict(hf, scan_layers=False)
    params = random_params(cfg, factor=3.0)
    theirs = transformers.Gemma2Config(**copy.deepcopy(hf))
    theirs._attn_implementation = "eager"
    model = transformers.Gemma2ForCausalLM(theirs).eval()
    state = {}
    for path, leaf in flatten(params).items():
        for block, name in enumerate(hf_names(path, cfg)):
            array = leaf[block] if is_stacked(path) else leaf
            state[name] = torch.tensor(np.array(to_hf(array, find_row(path).inputs)))
    model.load_state_dict(state, strict=False)
    tokens = np.arange(3, 15)[None]
    hidden, _ = quick_jit(Decoder(cfg).apply)({"params": params}, tokens, np.arange(12)[None])
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(lm_logits(params, cfg, hidden), expected, atol=1e-4)


GEMMA2 = FAMILIES["gemma2"]
KEYS = st.sampled_from(sorted(known(GEMMA2))) | st.text(min_size=1, max_size=6)
# an error may name the other one of two fields that do not fit
PARTNERS = {
    "num_attention_heads": "hidden_size",
    "num_key_value_heads": "num_attention_heads",
    "num_hidden_layers": "layer_types",
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_any_config_is_read_as_transformers_reads_it_or_refused_by_name(changes):
    hf = SMALL | changes
    try:
        cfg = from_hf_dict(copy.deepcopy(hf))
    except ValueError:
        with pytest.raises(ValueError) as error:
            from_hf_dict(copy.deepcopy(hf))
        blamed = {*changes, *(PARTNERS[key] for key in changes if key in PARTNERS)}
        assert all(field in blamed or field.partition(".")[0] in blamed for field in lines(error))
        return
    assert set(changes) <= known(GEMMA2) | {
        key for key, value in changes.items() if value is None or key.startswith(("_", "unsloth"))
    }
    read = as_transformers(hf)
    assert {field: getattr(cfg, field) for field in read} == read


def as_transformers(hf: dict) -> dict:
    """Fields of `ModelConfig` as transformers' own class reads the file."""
    transformers = pytest.importorskip("transformers")
    hf = copy.deepcopy(hf)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps"):
        if isinstance(hf.get(key), int):  # which it refuses
            hf[key] = float(hf[key])
    if isinstance(hf.get("query_pre_attn_scalar"), float):
        hf["query_pre_attn_scalar"] = 8
    known = {key: value for key, value in hf.items() if key not in WITHOUT_EFFECT}
    theirs = transformers.Gemma2Config(**known)
    fields = {
        field: getattr(theirs, key)
        for field, (key, _) in GEMMA2.fields.items()
        if key not in ("query_pre_attn_scalar", "rope_theta")
    }
    # before transformers 5 a field of its own, beside which the newer file's place has no meaning
    rope = getattr(theirs, "rope_parameters", None) or {"rope_theta": theirs.rope_theta}
    return fields | {"layer_types": tuple(theirs.layer_types), "rope_theta": rope["rope_theta"]}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_lists_of_keys_do_not_overlap(family):
    read = {key for key, _ in family.fields.values()}
    groups = [read, set(only(family)), set(TOKEN_IDS), set(WITHOUT_EFFECT)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert all(key in known(family) for group in groups for key in group)
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {*family.fields, *family.same} <= fields and not family.fields.keys() & family.same


TEXT = json.dumps(SMALL)
BROKEN = {
    "cut off": TEXT[: len(TEXT) // 2].encode(),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 12345\n",
    "got \\[": f"[{TEXT}]".encode(),
    "got 'gemma2'": b'"gemma2"',
    "empty": b"",
    "UTF-16": TEXT.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00rest",
    "an HTML or XML page": b"<!DOCTYPE html><html><body>404</body></html>",
    "0xe4 at .* is not UTF-8": TEXT.encode().replace(b"gemma2", b"gemma\xe4"),
    "stands twice": (TEXT[:-1] + ', "head_dim": 4}').encode(),
    "zeros": bytes(300),
    "NaN": TEXT.replace("24", "NaN").encode(),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_file_is_named_with_what_it_looks_like(tmp_path, words):
    path = tmp_path / "config.json"
    path.write_bytes(BROKEN[words])
    with pytest.raises(ValueError, match=words) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_bytes(("\ufeff" + TEXT).encode())
    assert load_config(tmp_path) == from_hf_dict(SMALL)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_no_damage_to_the_file_is_passed_over(tmp_path_factory, data):
    """Cut anywhere, or with any bytes put in: the object as it was, or an error with the path."""
    whole = TEXT.encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=4))
    folder = tmp_path_factory.mktemp("damaged")
    for damaged in (whole[:at], whole[:at] + put + whole[at:]):
        (folder / "config.json").write_bytes(damaged)
        try:
            assert isinstance(read_config(folder), dict)
            config = load_config(folder)
        except ValueError as error:
            assert str(error).startswith(f"{folder / 'config.json'}: ")
        else:
            assert isinstance(config, ModelConfig) and len(damaged) >= len(whole)
