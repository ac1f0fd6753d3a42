"""Says what the models of a family have in common: the decoder's switches, and its config.json.

A family is what config.json calls a `model_type`. What differs between its models is a field of
`grm_jax.models.config.ModelConfig`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

LOCAL, GLOBAL = "sliding_attention", "full_attention"  # the names `layer_types` uses in config.json
Sizes = Mapping[str, Any]  # fields of a model's config


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Holds the switches of one family, and how its models are written down.

    causal_lm, classifier: transformers' classes of a model that writes and of one with a head.
    pattern: the layer types of a model from its other fields, where its config.json names none.
    fields: {field: (key of config.json, what transformers takes where the key is absent)}.
    same: {field: the value of all models of the family}; their config.json has no key for it.
    derived: fields that null, or no key, leaves to others: head_dim to d_model / n_heads,
        n_kv_heads to n_heads.
    only: {key of config.json: its one value, and others that mean the same}.
    layer_types: config.json may name each layer's type.
    switched_window: config.json has a window only where it says `use_sliding_window`, for the
        layers from number `max_window_layers` on.
    ropes: the scalings of the rotary embedding.
    pad_id: the token of padding where config.json names none.
    activation: of the gate, as config.json names it, under the key `activation_key`.
    unit_offset: norms scale by 1 + w, and w starts at 0; else by w, which starts at 1.
    scaled_embedding: embeddings are multiplied by d_model ** 0.5.
    post_norms: attention and MLP have a norm behind them too.
    qk_norm: queries and keys are normed, head by head, before the rotary embedding.
    qkv_bias: the maps to queries, keys and values add a bias.
    """

    causal_lm: str
    classifier: str
    pattern: Callable[[Sizes, Mapping[str, Any]], tuple[str, ...]]
    fields: Mapping[str, tuple[str, Any]]
    same: Mapping[str, Any]
    derived: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    layer_types: bool = True
    switched_window: bool = False
    ropes: tuple[str, ...] = ("default", "linear", "llama3")
    pad_id: int | None = None
    activation: str = "silu"
    activation_key: str = "hidden_act"
    unit_offset: bool = False
    scaled_embedding: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False


def alternating(n_layers: int) -> tuple[str, ...]:
    """Returns Gemma-2's pattern: layer 0 is local, then global, local, ..."""
    return tuple(LOCAL if layer % 2 == 0 else GLOBAL for layer in range(n_layers))


def _all_of_one_type(sizes: Sizes, _) -> tuple[str, ...]:
    layer_type = GLOBAL if sizes.get("sliding_window") is None else LOCAL
    return (layer_type,) * sizes["n_layers"]


PATTERN = "sliding_window_pattern"  # of Gemma-3: each layer of this number is global


def _global_every(sizes: Sizes, hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Gemma-3's pattern: five local layers, then a global one, unless config.json has a number."""
    period = hf.get(PATTERN, 6)
    period = period if isinstance(period, int) and period > 0 else 6
    return tuple(LOCAL if layer % period else GLOBAL for layer in range(1, sizes["n_layers"] + 1))


MAX_WINDOW_LAYERS = 28  # what transformers takes where config.json has no `max_window_layers`


def _last_layers_local(sizes: Sizes, hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Qwen's pattern: layers are local from number `max_window_layers` on, if there is a window."""
    layers, first = sizes["n_layers"], hf.get("max_window_layers", MAX_WINDOW_LAYERS)
    if sizes.get("sliding_window") is None or not isinstance(first, int):
        first = layers
    return tuple(LOCAL if layer >= first else GLOBAL for layer in range(layers))


def _sizes(*values: Any) -> dict[str, tuple[str, Any]]:
    """Fields that all families have, with what transformers takes where one is absent."""
    keys = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "d_ff": "intermediate_size",
        "max_positions": "max_position_embeddings",
    }
    fields = {field: (key, value) for (field, key), value in zip(keys.items(), values, strict=True)}
    return fields | {"norm_eps": ("rms_norm_eps", 1e-6)}


_GEMMA2 = Family(
    causal_lm="Gemma2ForCausalLM",
    classifier="Gemma2ForSequenceClassification",
    pattern=lambda sizes, _: alternating(sizes["n_layers"]),
    fields=_sizes(256_000, 2304, 26, 8, 4, 256, 9216, 8192)
    | {
        "sliding_window": ("sliding_window", 4096),
        "attn_softcap": ("attn_logit_softcapping", 50.0),
        "final_softcap": ("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
        "rope_theta": ("rope_theta", 10_000.0),
    },
    same={"tied_head": True, "local_rope_theta": None, "rope_scaling": None},
    only={
        "hidden_act": ("gelu_pytorch_tanh", None),  # for other programs than transformers
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False, None),
        "use_sliding_window": (True, None),
    },
    ropes=("default",),
    pad_id=0,
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    unit_offset=True,
    scaled_embedding=True,
    post_norms=True,
)
_GEMMA3 = Family(
    causal_lm="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    pattern=_global_every,
    fields=_sizes(262_208, 2304, 26, 8, 4, 256, 9216, 131_072)
    | {
        "sliding_window": ("sliding_window", 4096),
        "final_softcap": ("final_logit_softcapping", None),
        "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
        "rope_theta": ("rope_theta", 1_000_000.0),
        "local_rope_theta": ("rope_local_base_freq", 10_000.0),
    },
    same={"tied_head": True, "attn_softcap": None},
    only={
        "attn_logit_softcapping": (None,),  # which transformers reads and does not use
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False, None),
    },
    ropes=("default", "linear"),
    pad_id=0,
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    unit_offset=True,
    scaled_embedding=True,
    post_norms=True,
    qk_norm=True,
)
_PLAIN = {
    "attn_softcap": None,
    "final_softcap": None,
    "query_pre_attn_scalar": None,
    "local_rope_theta": None,
}
_WINDOW = {"sliding_window": ("sliding_window", 4096)}
_HEAD_AND_ROPE = {
    "tied_head": ("tie_word_embeddings", False),
    "rope_theta": ("rope_theta", 10_000.0),
}
_LLAMA = Family(
    causal_lm="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    pattern=_all_of_one_type,
    fields=_sizes(32_000, 4096, 32, 32, None, None, 11_008, 2048) | _HEAD_AND_ROPE,
    same=_PLAIN | {"sliding_window": None},
    layer_types=False,
    derived=("head_dim", "n_kv_heads"),
    only={"rope_interleaved": (False, None)},
)
_MISTRAL = Family(
    causal_lm="MistralForCausalLM",
    classifier="MistralForSequenceClassification",
    pattern=_all_of_one_type,
    fields=_sizes(32_000, 4096, 32, 32, 8, None, 14_336, 131_072) | _HEAD_AND_ROPE | _WINDOW,
    same=_PLAIN,
    layer_types=False,
    derived=("head_dim", "n_kv_heads"),
)
_QWEN2 = Family(
    causal_lm="Qwen2ForCausalLM",
    classifier="Qwen2ForSequenceClassification",
    pattern=_last_layers_local,
    fields=_sizes(151_936, 4096, 32, 32, 32, None, 22_016, 32_768) | _HEAD_AND_ROPE | _WINDOW,
    same=_PLAIN,
    derived=("head_dim", "n_kv_heads"),
    switched_window=True,
    only={"attention_bias": (True, None), "use_mrope": (False, None)},
    qkv_bias=True,
)
_QWEN3 = Family(
    causal_lm="Qwen3ForCausalLM",
    classifier="Qwen3ForSequenceClassification",
    pattern=_last_layers_local,
    fields=_sizes(151_936, 4096, 32, 32, 32, 128, 22_016, 32_768) | _HEAD_AND_ROPE | _WINDOW,
    same=_PLAIN,
    derived=("n_kv_heads",),
    switched_window=True,
    qk_norm=True,
)
FAMILIES: dict[str, Family] = {
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
}

# Keys of which every model has one value (the first; the others mean the same). Other values change
# what is computed, and are refused.
ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, 0, None),
    "is_causal": (True, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0, 1, None),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
ROPE = ("rope_parameters", "rope_scaling")  # the new name and the old
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that do not change the function: what was trained how, with which program, and how
# transformers generates (written there before generation_config.json was).
WITHOUT_EFFECT = frozenset(
    """
    architectures auto_map cache_implementation chunk_size_feed_forward dtype finetuning_task
    id2label initializer_range is_decoder is_llama_config label2id model_type name_or_path
    num_labels output_attentions output_hidden_states prefix pretraining_tp problem_type return_dict
    task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version use_bfloat16 use_cache
    cross_attention_hidden_size sep_token_id unk_token_id decoder_start_token_id
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)


def only(family: Family) -> dict[str, tuple[Any, ...]]:
    """Returns {key: values} of the keys that have one value in this family; the first is it."""
    return ONLY | {family.activation_key: (family.activation,)} | dict(family.only)


def known(family: Family) -> frozenset[str]:
    """Returns the keys of config.json that are read, or known to change nothing."""
    read = {key for key, _ in family.fields.values()}
    read |= {"layer_types"} if family.layer_types else set()
    read |= {"use_sliding_window", "max_window_layers"} if family.switched_window else set()
    read |= {PATTERN} if "local_rope_theta" in family.fields else set()
    read |= {"sliding_window_size"} if "sliding_window" in family.fields else set()
    return frozenset(read | {*only(family), *ROPE, *TOKEN_IDS, *WITHOUT_EFFECT})
