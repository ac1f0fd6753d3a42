"""Every family but Gemma-2 against transformers' torch implementation, and against itself: folders,
adapters, heads, sampler, engine, meshes, losses.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.checkpoint.peft import load_adapters, save_adapters
from grm_jax.models import blocked
from grm_jax.models.config import LOCAL
from grm_jax.models.families import FAMILIES as ALL_FAMILIES
from grm_jax.models.families import known
from grm_jax.models.hf_config import from_hf_dict, load_config, to_hf_dict
from grm_jax.models.lora import LoraConfig, init_adapters, merge
from grm_jax.models.table import SCALAR, flatten
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.sampling.chunks import Drawing
from grm_jax.sampling.engine import draw
from grm_jax.sampling.requests import Request
from grm_jax.sampling.sampler import SamplingConfig, sample, sample_key
from grm_jax.training.logprobs import token_logprobs, token_logprobs_reference
from tests.json_values import JSON
from tests.models import gemma2_cases
from tests.models.family_cases import CASES, FAMILIES, main_case
from tests.models.family_table import PAGE, switches
from tests.models.gemma2_cases import (
    NEW,
    STRIDE,
    T,
    case_of,
    greedy_prompts,
    inputs,
    jax_logits,
    jax_scalar_logits,
    logits_of,
    quick_jit,
    random_params,
    scalar_params,
    torch_greedy,
    torch_logits,
    torch_scalar_logits,
)

GOLDEN = np.load(pathlib.Path(__file__).with_name("golden.npz"))
TOLERANCE = 1e-4  # float32, absolute, on logits


def difference(name: str, theirs_BTV: np.ndarray, stride: int = 1) -> float:
    real_BT = inputs(case_of(name)[0])[1] >= 0
    return float(np.abs(jax_logits(name)[:, ::stride] - theirs_BTV)[real_BT[:, ::stride]].max())


def test_every_family_has_four_cases():
    assert {*FAMILIES, "gemma2"} == set(ALL_FAMILIES)
    for family in FAMILIES:
        assert sum(cfg.model_type == family for cfg, _ in CASES.values()) >= 4


def test_the_page_of_families_has_every_family_and_case():
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    measured = {row[1]: float(row[3]) for row in rows if len(row) == 6 and row[3][0].isdigit()}
    assert measured.keys() == {*CASES, *gemma2_cases.CASES}
    assert max(measured.values()) <= TOLERANCE and "**differs**" not in page
    for name, family in ALL_FAMILIES.items():
        assert f"| `{name}` | `{family.causal_lm}` | {switches(family)} |" in page


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_golden_values(name):
    assert difference(name, GOLDEN[name], STRIDE) <= TOLERANCE


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_torch(name):
    pytest.importorskip("torch")
    found = difference(name, torch_logits(name))
    print(f"{name}: max abs logit difference {found:.1e}")
    assert found <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_scalar_head_equals_the_golden_values(family):
    ours_B = jax_scalar_logits(main_case(family)[1])
    np.testing.assert_allclose(ours_B, GOLDEN[f"{family}_scalar_head"], atol=TOLERANCE)


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_scalar_head_and_greedy_text_equal_torch(family):
    pytest.importorskip("torch")
    cfg = main_case(family)[1]
    np.testing.assert_allclose(jax_scalar_logits(cfg), torch_scalar_logits(cfg), atol=TOLERANCE)
    np.testing.assert_array_equal(torch_greedy(cfg), GOLDEN[f"{family}_greedy"])


@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_and_engine_write_the_greedy_text_of_transformers(family):
    cfg, prompts = main_case(family)[1], None
    params, prompts = random_params(cfg), greedy_prompts(cfg)
    scfg = SamplingConfig(max_new_tokens=NEW, temperature=0.0)
    tokens_PT = np.stack([np.pad(prompt, (0, T - len(prompt))) for prompt in prompts])
    lengths_P = np.array([len(prompt) for prompt in prompts], np.int32)
    keys_Pk2 = np.stack([sample_key(0, str(i), 0)[None] for i in range(len(prompts))])
    run = quick_jit(sample, static_argnums=(1, 2))
    out = run(params, cfg, scfg, tokens_PT, lengths_P, keys_Pk2)
    np.testing.assert_array_equal(out["tokens"][:, 0], GOLDEN[f"{family}_greedy"])
    # the full forward's choice of every one of these, and its log-probability
    full_PT = np.concatenate([tokens_PT[1, : lengths_P[1]], out["tokens"][1, 0]])[None]
    logits_TV = np.asarray(logits_of(params, cfg, full_PT, np.arange(full_PT.shape[1])[None]))[0]
    at = slice(lengths_P[1] - 1, -1)
    np.testing.assert_array_equal(logits_TV[at].argmax(-1), out["tokens"][1, 0])
    # a greedy token's log-probability is that of the distribution at temperature 1
    requests = [Request(prompt.tolist(), str(i)) for i, prompt in enumerate(prompts)]
    for _, completions in draw(Drawing(cfg, scfg, chunk=5), params, requests, 0, [T], 2):
        for completion in completions:
            index = int(completion.item_id)
            np.testing.assert_array_equal(completion.token_ids, out["tokens"][index, 0])


@pytest.mark.parametrize("name", CASES)
def test_a_config_is_written_as_it_is_read(name):
    cfg = CASES[name][0]
    assert from_hf_dict(json.loads(json.dumps(to_hf_dict(cfg)))) == cfg


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_load_in_transformers_and_come_back(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, cfg = main_case(family)
    params = random_params(cfg, factor=case_of(name)[1])
    save_folder(tmp_path / "m", params, cfg)
    assert load_config(tmp_path / "m") == cfg
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "m", cfg), params)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager", dtype="float32"
    ).eval()
    assert type(model).__name__ == cfg.family.causal_lm
    tokens_BT, pos_BT = inputs(cfg)
    with torch.no_grad():
        theirs_BTV = model(
            torch.from_numpy(tokens_BT).long(), attention_mask=torch.from_numpy(pos_BT >= 0).long()
        ).logits.numpy()
    assert difference(name, theirs_BTV) <= TOLERANCE
    # written by transformers, in its own form of config.json
    model.save_pretrained(tmp_path / "theirs")
    cfg_back = load_config(tmp_path / "theirs")
    assert cfg_back == cfg
    back = load_params(tmp_path / "theirs", cfg)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    # a scalar model has no head for tokens
    scalar = scalar_params(cfg)
    save_folder(tmp_path / "rm", scalar, cfg, architecture=SCALAR)
    model, lacking = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "rm", output_loading_info=True
    )
    assert type(model).__name__ == cfg.family.classifier
    assert not lacking["missing_keys"] and not lacking["unexpected_keys"]
    back = load_params(tmp_path / "rm", cfg, architecture=SCALAR)
    jax.tree.map(np.testing.assert_array_equal, back, scalar)


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_adapters_and_gives_the_merged_logits(family, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    cfg = main_case(family)[1]
    params, lora = random_params(cfg), LoraConfig(rank=2, alpha=3.0)
    adapters = jax.tree.map(
        lambda x: x + 0.05, init_adapters(cfg, lora, jax.random.key(0))
    )  # B is 0 at first
    save_folder(tmp_path / "base", params, cfg)
    save_adapters(tmp_path / "adapter", adapters, cfg, lora, tmp_path / "base")
    back, read = load_adapters(tmp_path / "adapter", cfg)
    assert dataclasses.replace(read, targets=lora.targets) == lora
    assert set(read.targets) == set(lora.targets)
    jax.tree.map(np.testing.assert_array_equal, back, adapters)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens_BT, pos_BT = inputs(cfg)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens_BT[:1]).long()).logits.numpy()
    merged = merge(params, adapters, lora.scale)
    ours = np.asarray(logits_of(merged, cfg, tokens_BT, pos_BT))[:1]
    assert np.abs(ours - jax_logits(main_case(family)[0])[:1]).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mesh_of_eight_devices_gives_the_same_logits(family):
    name, cfg = main_case(family)
    params, mesh = random_params(cfg, factor=case_of(name)[1]), make_mesh(2, 2, 2)
    tokens_BT, pos_BT = (np.repeat(x, 2, axis=0) for x in inputs(cfg))
    placed = jax.device_put(params, param_shardings(mesh, params))
    found = np.asarray(logits_of(placed, cfg, tokens_BT, pos_BT))[::2]
    real_BT = inputs(cfg)[1] >= 0
    np.testing.assert_allclose(found[real_BT], jax_logits(name)[real_BT], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_read_the_head_and_their_gradients_reach_every_parameter(family):
    """Log-probabilities in chunks against whole logits, and gradients of all parameters."""
    cfg = main_case(family)[1]
    params, (tokens_BT, pos_BT) = random_params(cfg), inputs(cfg)

    def loss(function):
        def total(params):
            logp_BT, _ = function(params, cfg, tokens_BT, pos_BT)
            return jnp.sum(jnp.where(pos_BT > 0, logp_BT, 0.0))

        return quick_jit(jax.value_and_grad(total))(params)

    (found, gradient), (right, expected) = map(loss, (token_logprobs, token_logprobs_reference))
    np.testing.assert_allclose(found, right, rtol=1e-5)
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, flatten(expected)[path], atol=2e-3, err_msg=path)
        assert np.abs(leaf).max() > 0, path
    assert ("lm_head" in params) != cfg.tied_head


@pytest.mark.parametrize("attention", ["blocked", "splash_interpreted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_give_the_logits_of_attention_as_written(monkeypatch, family, attention):
    monkeypatch.setattr(blocked, "TILE", 8)
    name, cfg = main_case(family)
    params = random_params(cfg, factor=case_of(name)[1])
    found = np.asarray(
        logits_of(params, dataclasses.replace(cfg, attention=attention), *inputs(cfg))
    )
    real_BT = inputs(cfg)[1] >= 0
    np.testing.assert_allclose(found[real_BT], jax_logits(name)[real_BT], atol=5e-5)


def test_windows_are_shorter_than_the_text():
    for name, (cfg, _) in CASES.items():
        if LOCAL in cfg.layer_types:
            assert cfg.sliding_window < T, name


@pytest.mark.parametrize("name", CASES)
def test_every_switch_of_a_case_is_felt(name):
    """Left out, a scaling, a second base or a norm of queries changes the logits."""
    cfg, factor = CASES[name]
    changed = []
    if cfg.rope_scaling is not None:
        changed.append(dataclasses.replace(cfg, rope_scaling=None))
    if cfg.local_rope_theta is not None:
        changed.append(dataclasses.replace(cfg, local_rope_theta=cfg.rope_theta * 7))
    for other in changed:
        found = np.asarray(logits_of(random_params(cfg, factor=factor), other, *inputs(cfg)))
        assert difference(name, found) > 1e-2


# as SmolLM2-135M-Instruct, Llama-3.2-1B, Qwen2.5-0.5B, Qwen3-0.6B,
# Mistral-7B-v0.1 and gemma-3-270m have them
PUBLISHED = {
    "smollm2": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "use_cache": True,
        "vocab_size": 49152,
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "gemma3": {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "use_bidirectional_attention": False,
        "vocab_size": 262144,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
    transformers = pytest.importorskip("transformers")
    hf = PUBLISHED[name]
    cfg = from_hf_dict(hf)
    assert from_hf_dict(to_hf_dict(cfg)) == cfg
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(hf)))
    heads = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert cfg.head_dim == heads and cfg.n_kv_heads == theirs.num_key_value_heads
    assert cfg.sliding_window == getattr(theirs, "sliding_window", None)
    assert cfg.tied_head == theirs.tie_word_embeddings
    types = getattr(theirs, "layer_types", None)
    assert types is None or tuple(types) == cfg.layer_types
    assert (LOCAL in cfg.layer_types) == (name in ("mistral", "gemma3"))
    assert (cfg.rope_scaling is None) == (name != "llama3")


LLAMA3_KEYS = PUBLISHED["llama3"]["rope_scaling"]
REFUSED = [
    ("smollm2", {"attention_bias": True}, "attention_bias"),
    ("smollm2", {"mlp_bias": True}, "mlp_bias"),
    ("smollm2", {"hidden_act": "gelu"}, "hidden_act"),
    ("smollm2", {"rope_interleaved": True}, "rope_interleaved"),
    ("smollm2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type"),
    ("smollm2", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.type"),
    ("smollm2", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    ("smollm2", {"rope_scaling": {"type": "linear", "factor": -1.0}}, "rope_scaling.factor"),
    (
        "smollm2",
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}},
        "rope_scaling.beta",
    ),
    ("smollm2", {"sliding_window": 4}, "sliding_window"),
    ("smollm2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("smollm2", {"layer_types": ["full_attention"] * 30}, "layer_types"),
    ("smollm2", {"tie_word_embeddings": None}, "tie_word_embeddings"),
    ("smollm2", {"num_key_value_heads": 4}, "num_attention_heads"),
    ("smollm2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("smollm2", {"model_type": "phi3"}, "model_type"),
    ("smollm2", {"model_type": ["llama"]}, "model_type"),
    ("smollm2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    (
        "llama3",
        {"rope_scaling": LLAMA3_KEYS | {"high_freq_factor": 1.0}},
        "rope_scaling.high_freq_factor",
    ),
    (
        "llama3",
        {"rope_scaling": LLAMA3_KEYS | {"low_freq_factor": None}},
        "rope_scaling.low_freq_factor",
    ),
    ("llama3", {"rope_parameters": {"rope_type": "default"}}, "rope_scaling"),
    ("qwen2", {"attention_bias": False}, "attention_bias"),
    ("qwen2", {"use_sliding_window": None}, "use_sliding_window"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen2", {"max_window_layers": "all"}, "max_window_layers"),
    ("qwen3", {"head_dim": None}, "head_dim"),
    ("qwen3", {"layer_types": [LOCAL] * 28}, "sliding_window"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("mistral", {"layer_types": [LOCAL] * 32}, "layer_types"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"rope_local_base_freq": None}, "rope_local_base_freq"),
    ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma3", {"rope_scaling": LLAMA3_KEYS}, "rope_scaling.rope_type"),
    ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta"),
    (
        "gemma3",
        {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}},
        f"rope_parameters.{LOCAL}.rope_type",
    ),
]


@pytest.mark.parametrize("name, change, named", REFUSED, ids=lambda x: str(x)[:40])
def test_what_no_model_of_the_family_has_is_refused_by_name(name, change, named):
    with pytest.raises(ValueError) as error:
        from_hf_dict(PUBLISHED[name] | change)
    fields = [line.split(": ")[1] for line in str(error.value).splitlines()]
    assert f'field "{named}"' in fields


KEYS = sorted(set().union(*map(known, ALL_FAMILIES.values())))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PUBLISHED)),
    st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3),
)
def test_any_config_of_any_family_is_read_or_refused_by_name(name, changes):
    try:
        cfg = from_hf_dict(PUBLISHED[name] | changes)
    except ValueError as error:
        assert all(line.startswith('config.json: field "') for line in str(error).splitlines())
    else:
        assert from_hf_dict(to_hf_dict(cfg)) == cfg
