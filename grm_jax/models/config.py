"""Describes a Gemma-2 model: its sizes, from a Hugging Face `config.json` or as published."""

import dataclasses
import difflib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from grm_jax.json_files import read_object, shown, wrong_fields
from grm_jax.settings import Rule, SettingsError, build, check, one_of

LOCAL, GLOBAL = "sliding_attention", "full_attention"  # the names `layer_types` uses in config.json
ATTENTIONS = ("reference", "blocked", "splash", "splash_interpreted", "tokamax")
MOST = 2**31 - 1  # of a size: positions and ids are int32
MOST_LAYERS = 10_000
_SIZE: Rule = (f"an integer from 1 to {MOST:,}", lambda x: 1 <= x <= MOST)
_SCALE: Rule = ("a number > 0, in the range of float32", lambda x: 1.2e-38 <= x <= 3.4e38)
_NUMERICS: dict[str, Rule] = {
    "dtype": one_of(("float32", "bfloat16")),
    "remat": one_of(("none", "full", "dots")),
}


def tokamax_is_installed() -> bool:
    """Says whether the package tokamax is there; it is imported where it is first called."""
    return importlib.util.find_spec("tokamax") is not None


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes: the fields of `Gemma2Config` that are not in its config.json.

    attention may also be "auto" here: "splash" on TPU, "tokamax" on GPU where that package is
    installed, else "blocked" (`resolve`).
    """

    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        check(self, _NUMERICS | {"attention": one_of(("auto", *ATTENTIONS))})

    def resolve(self, platform: str) -> dict[str, Any]:
        """The fields of `Gemma2Config` for a platform (`jax.Device.platform`).

        Raises ValueError where kernels are asked for that the platform cannot run, and for
        "tokamax" where the package is missing.
        """
        needed = {"splash": "tpu", "tokamax": "gpu"}.get(self.attention, platform)
        if needed != platform:
            raise ValueError(
                f"model.attention: {self.attention!r} needs a {needed.upper()}, the platform is "
                f"{platform}; expected 'auto' or 'reference'"
            )
        if self.attention == "tokamax" and not tokamax_is_installed():
            raise ValueError(
                "model.attention: 'tokamax' needs the package tokamax; expected 'auto', or "
                "pip install 'grm_jax[gpu]'"
            )
        on_platform = {"tpu": "splash"}
        if tokamax_is_installed():
            on_platform["gpu"] = "tokamax"
        attention = self.attention
        if attention == "auto":
            attention = on_platform.get(platform, "blocked")
        return dataclasses.asdict(self) | {"attention": attention}


@dataclasses.dataclass(frozen=True)
class Gemma2Config:
    """Holds sizes and numerics of one Gemma-2 model.

    query_pre_attn_scalar: q, queries are scaled by q**-0.5 (2b and 9b: q = 256 = head_dim; 27b:
        q = 144 = D / N).
    layer_types: one a layer, LOCAL (keys at distance < sliding_window) or GLOBAL.
    attn_softcap, final_softcap: None switches that cap off.
    dtype: the compute type; norms, softmax, logits and RoPE are float32 whatever it is.
    scan_layers: compile one block of layers and scan it (small programs, fast compile); unrolled
        is faster on CPU.
    remat: what the backward pass recomputes, "none", "full" (everything inside a block) or "dots"
        (all but matmuls).
    attention: what computes the attention of a call over its own keys alone (training,
        log-probabilities, prefill): "reference" (models/attention.py), "blocked"
        (models/blocked.py), "splash" on TPU (models/splash.py), "tokamax" on GPU (models/gpu.py),
        or "splash_interpreted", splash's kernels as plain JAX, for tests on any platform. All but
        the first take position t at index t of a row and padding behind it, or rows packed as
        `grm_jax.models.attention.Packed` says, as all batches of this package have it.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    layer_types: tuple[str, ...]
    sliding_window: int = 4096
    attn_softcap: float | None = 50.0
    final_softcap: float | None = 30.0
    query_pre_attn_scalar: float = 256.0
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    max_positions: int = 8192
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "reference"

    def __post_init__(self):
        check(
            self,
            _NUMERICS
            | {
                "vocab_size d_model n_heads n_kv_heads d_ff sliding_window max_positions": _SIZE,
                "n_layers": (
                    f"an integer from 1 to {MOST_LAYERS:,}",
                    lambda layers: 1 <= layers <= MOST_LAYERS,
                ),
                "head_dim": (
                    f"an even integer from 2 to {MOST:,}",
                    lambda size: 2 <= size <= MOST and size % 2 == 0,
                ),
                "query_pre_attn_scalar rope_theta norm_eps": _SCALE,
                "attn_softcap final_softcap": (f"{_SCALE[0]}, or None for off", _SCALE[1]),
                "attention": one_of(ATTENTIONS),
                "layer_types": (
                    f"{LOCAL!r} or {GLOBAL!r} for each layer",
                    lambda layer_types: set(layer_types) <= {LOCAL, GLOBAL},
                ),
            },
            [
                (
                    "n_heads n_kv_heads",
                    "a multiple of n_kv_heads = {n_kv_heads}",
                    lambda heads, kv_heads: heads % kv_heads == 0,
                ),
                (  # transformers refuses others
                    "d_model n_heads",
                    "a multiple of n_heads = {n_heads}",
                    lambda size, heads: size % heads == 0,
                ),
                (
                    "layer_types n_layers",
                    "one for each of the n_layers = {n_layers} layers",
                    lambda layer_types, layers: len(layer_types) == layers,
                ),
            ],
        )

    @property
    def block(self) -> tuple[str, ...]:
        """Returns the layer types of the shortest block whose repetition gives the whole stack.

        (LOCAL, GLOBAL) for Gemma-2.
        """
        for size in range(1, self.n_layers + 1):
            if self.n_layers % size == 0 and self.layer_types == self.layer_types[:size] * (
                self.n_layers // size
            ):
                return self.layer_types[:size]
        raise AssertionError("size = n_layers always repeats")

    @property
    def n_blocks(self) -> int:
        return self.n_layers // len(self.block)


def alternating(n_layers: int) -> tuple[str, ...]:
    """Returns Gemma-2's pattern: layer 0 is local, then global, local, ..."""
    return tuple(LOCAL if layer % 2 == 0 else GLOBAL for layer in range(n_layers))


def from_sizes(sizes: Mapping[str, Any], vocab_size: int, **numerics: Any) -> Gemma2Config:
    """Make the Gemma2Config of a randomly initialized model with Gemma-2's pattern of layers.

    sizes: fields of `Gemma2Config`, without the vocabulary, which is the tokenizer's.
    """
    layers = sizes.get("n_layers")
    pattern = {"layer_types": alternating(layers) if isinstance(layers, int) else ()}
    return build(Gemma2Config, pattern | {"vocab_size": vocab_size} | dict(sizes) | numerics)


# Gemma2Config field <- config.json key, and the value transformers assumes where the key is absent
_HF_FIELDS = {
    "vocab_size": ("vocab_size", 256_000),
    "d_model": ("hidden_size", 2304),
    "n_layers": ("num_hidden_layers", 26),
    "n_heads": ("num_attention_heads", 8),
    "n_kv_heads": ("num_key_value_heads", 4),
    "head_dim": ("head_dim", 256),
    "d_ff": ("intermediate_size", 9216),
    "sliding_window": ("sliding_window", 4096),
    "attn_softcap": ("attn_logit_softcapping", 50.0),
    "final_softcap": ("final_logit_softcapping", 30.0),
    "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "max_positions": ("max_position_embeddings", 8192),
}


# Keys of which this model has one value (the first; the others mean the same). Other values change
# what is computed, and are refused.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh", None),  # for other programs than transformers
    "attention_bias": (False,),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, 0, None),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (False, None),
    "is_causal": (True, None),
    "use_sliding_window": (True, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0, 1, None),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
_ROPE = ("rope_parameters", "rope_scaling")  # the new name and the old
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that do not change the function: what was trained how, with which program, and how
# transformers generates (written there before generation_config.json was).
_WITHOUT_EFFECT = frozenset(
    """
    architectures auto_map cache_implementation chunk_size_feed_forward dtype finetuning_task
    id2label initializer_range is_decoder label2id model_type name_or_path num_labels
    output_attentions output_hidden_states prefix pretraining_tp problem_type return_dict
    task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class
    torch_dtype torchscript transformers_version use_bfloat16 use_cache cross_attention_hidden_size
    sep_token_id unk_token_id decoder_start_token_id
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)
_KNOWN = frozenset(
    {key for key, _ in _HF_FIELDS.values()}
    | {"rope_theta", "layer_types", "sliding_window_size"}
    | {*_FIXED, *_ROPE, *_TOKEN_IDS, *_WITHOUT_EFFECT}
)


def from_hf_dict(hf: dict[str, Any], where: str = "config.json", **overrides: Any) -> Gemma2Config:
    """Reads the contents of a Hugging Face `config.json`.

    An absent key has the value that transformers assumes; null is off where transformers reads it
    so (the softcaps, layer_types). Keys that begin with "_" or "unsloth" are notes of programs.

    `overrides` set dtype, scan_layers, remat, attention, vocab_size. Raises ValueError, one line
    for each wrong key that names `where` and the key, for another architecture, a value that the
    model has not, a key that is unknown and not null, and two keys that disagree.
    """
    if hf.get("model_type") != "gemma2":
        words = f"expected 'gemma2', got {shown(hf.get('model_type'))}"
        raise wrong_fields(where, {"model_type": words})
    problems = {
        key: f"expected {shown(values[0])}, got {shown(hf[key])}"
        for key, values in _FIXED.items()
        if key in hf and not any(_same(hf[key], value) for value in values)
    }
    problems |= {
        key: f"unknown, so that nothing says what it changes in the model; {_nearest(key)}"
        for key, value in hf.items()
        if key not in _KNOWN and value is not None and not key.startswith(("_", "unsloth"))
    }
    fields = {field: hf.get(key, default) for field, (key, default) in _HF_FIELDS.items()}
    old_window = hf.get("sliding_window_size")
    if old_window is not None and not _same(old_window, fields["sliding_window"]):
        problems["sliding_window_size"] = (
            f"expected sliding_window = {shown(fields['sliding_window'])}, got {shown(old_window)}"
        )
    theta_key, fields["rope_theta"] = _rope_theta(hf, problems)
    problems |= _wrong_annotations(hf)
    types, layers = hf.get("layer_types"), fields["n_layers"]
    if isinstance(types, list):
        fields["layer_types"] = tuple(types)
    elif types is None:
        countable = isinstance(layers, int) and 1 <= layers <= MOST_LAYERS
        fields["layer_types"] = alternating(layers) if countable else ()
    else:
        fields["layer_types"] = types
    keys = {field: key for field, (key, _) in _HF_FIELDS.items()} | {"rope_theta": theta_key}
    try:
        cfg = Gemma2Config(**(fields | overrides))
        if not problems:
            return cfg
    except SettingsError as error:
        for problem in error.problems:
            field, _, words = problem.partition(": ")
            problems.setdefault(keys.get(field, field), words)
    raise wrong_fields(where, problems)


def _rope_theta(hf: Mapping[str, Any], problems: dict[str, str]) -> tuple[str, Any]:
    """(key, value) of the base of the rotary position embedding; it may stand in three places.

    Adds to problems: another kind of rotary embedding, and places that disagree.
    """
    thetas = {"rope_theta": hf["rope_theta"]} if "rope_theta" in hf else {}
    for name in _ROPE:
        rope = hf.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems[name] = f"expected an object or null, got {shown(rope)}"
            continue
        for key, value in rope.items():
            if key == "rope_theta":
                thetas[f"{name}.{key}"] = value
            elif key in ("rope_type", "type"):
                if value != "default":
                    problems[f"{name}.{key}"] = f"expected 'default', got {shown(value)}"
            elif key == "partial_rotary_factor" and any(_same(value, x) for x in _FIXED[key]):
                pass
            else:
                problems[f"{name}.{key}"] = (
                    f"expected only rope_type 'default' and rope_theta, got {shown(value)}"
                )
    (first, theta), *others = thetas.items() or [("rope_theta", 10_000.0)]
    for name, other in others:
        if not _same(other, theta) and not _is_wrong_number(theta):
            problems[name] = f"expected {first} = {shown(theta)}, got {shown(other)}"
    return first, theta


def _is_wrong_number(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float))


def _wrong_annotations(hf: Mapping[str, Any]) -> dict[str, str]:
    """Problems of the keys that are read by others than the model: ids, names, labels."""
    problems = {}
    for key in _TOKEN_IDS:
        value = hf.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        right = value is None or bool(ids)
        for i in ids if value is not None else ():
            right &= isinstance(i, int) and not isinstance(i, bool) and -1 <= i <= MOST
        if not right:
            some = ", or a list of ids" if key == "eos_token_id" else ""
            problems[key] = f"expected the id of a token{some}, or null, got {shown(value)}"
    names = hf.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        problems["architectures"] = f"expected a list of names, got {shown(names)}"
    for key in ("dtype", "torch_dtype"):
        if hf.get(key) is not None and not isinstance(hf[key], str):
            problems[key] = f"expected the name of a dtype, got {shown(hf[key])}"
    return problems


def _same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are equal. True is not 1; 1 is 1.0."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.8)
    return f"did you mean {near[0]!r}?" if near else "take it out of the file if it changes nothing"


def to_hf_dict(cfg: Gemma2Config, architecture: str = "Gemma2ForCausalLM") -> dict[str, Any]:
    """Returns the `config.json` that `transformers` reads for this model.

    `checkpoint/huggingface.py` adds dtype and token ids.
    """
    hf = {key: getattr(cfg, field) for field, (key, _) in _HF_FIELDS.items()}
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps"):
        hf[key] = None if hf[key] is None else float(hf[key])  # transformers refuses an integer
    if cfg.query_pre_attn_scalar == int(cfg.query_pre_attn_scalar):
        # transformers refuses a float here
        hf["query_pre_attn_scalar"] = int(cfg.query_pre_attn_scalar)
    return hf | {
        "architectures": [architecture],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "rope_theta": float(cfg.rope_theta),
        "layer_types": list(cfg.layer_types),
    }


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """Reads the config.json of a Hugging Face folder, as it is.

    Raises FileNotFoundError where there is none, and ValueError where it is no JSON object.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a Hugging Face Gemma-2 folder with config.json"
        )
    return read_object(path)


def load_config(folder: str | pathlib.Path, **overrides: Any) -> Gemma2Config:
    """Reads the config of a Hugging Face folder; `overrides` as in `from_hf_dict`.

    Raises FileNotFoundError where there is none, and ValueError as `from_hf_dict`.
    """
    path = pathlib.Path(folder) / "config.json"
    return from_hf_dict(read_config(folder), where=str(path), **overrides)


GEMMA2_2B = Gemma2Config(
    vocab_size=256_000,
    d_model=2304,
    n_layers=26,
    n_heads=8,
    n_kv_heads=4,
    head_dim=256,
    d_ff=9216,
    layer_types=alternating(26),
    query_pre_attn_scalar=256.0,
)
GEMMA2_9B = Gemma2Config(
    vocab_size=256_000,
    d_model=3584,
    n_layers=42,
    n_heads=16,
    n_kv_heads=8,
    head_dim=256,
    d_ff=14336,
    layer_types=alternating(42),
    query_pre_attn_scalar=256.0,
)
GEMMA2_27B = Gemma2Config(
    vocab_size=256_000,
    d_model=4608,
    n_layers=46,
    n_heads=32,
    n_kv_heads=16,
    head_dim=128,
    d_ff=36864,
    layer_types=alternating(46),
    query_pre_attn_scalar=144.0,
)
