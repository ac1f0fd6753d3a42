"""Says what GGUF files, llama.cpp's form of a model, call families, metadata and tensors.

What differs from transformers' layout: in models of the architecture "llama" the rows of queries
and keys alternate between the halves of each head that RoPE turns against each other; norms that
scale by 1 + w hold 1 + w; RoPE's scaling by frequencies is a tensor of divisors.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from grm_jax.json_files import shown
from grm_jax.models.config import ModelConfig, RopeScaling, from_sizes
from grm_jax.models.decoder import rope_frequencies
from grm_jax.models.families import FAMILIES, LOCAL
from grm_jax.models.table import abstract_params, find_row, flatten, hf_names, hf_shape, is_stacked
from grm_jax.settings import SettingsError

ROPE_DIVISORS = "rope_freqs.weight"
# last part of a parameter's path -> name in the file, behind that of the layer
_NAMES = {
    "embedding": "token_embd.weight",
    "lm_head": "output.weight",
    "final_norm/scale": "output_norm.weight",
    "pre_attn/scale": "attn_norm.weight",
    "attn/q": "attn_q.weight",
    "attn/k": "attn_k.weight",
    "attn/v": "attn_v.weight",
    "attn/q_bias": "attn_q.bias",
    "attn/k_bias": "attn_k.bias",
    "attn/v_bias": "attn_v.bias",
    "attn/q_norm/scale": "attn_q_norm.weight",
    "attn/k_norm/scale": "attn_k_norm.weight",
    "attn/o": "attn_output.weight",
    "post_attn/scale": "post_attention_norm.weight",
    "pre_mlp/scale": "ffn_norm.weight",
    "mlp/gate": "ffn_gate.weight",
    "mlp/up": "ffn_up.weight",
    "mlp/down": "ffn_down.weight",
    "post_mlp/scale": "post_ffw_norm.weight",
}
# fields of a config that the metadata may name, where the architecture reads them
_BASE = {"rope_theta": "rope.freq_base"}
_CAPS = {"attn_softcap": "attn_logit_softcapping", "final_softcap": "final_logit_softcapping"}
_LOCAL = {"sliding_window": "attention.sliding_window"}


class Architecture(NamedTuple):
    """Says what a GGUF architecture is.

    optional: {field of the config: name in the metadata}; absent, it is the family's own default.
    queries: query_pre_attn_scalar of (layers, width, heads, head dimension), which no file has.
    alternating_rows: of queries and keys.
    """

    model_type: str
    optional: Mapping[str, str] = _BASE
    queries: Callable[[int, int, int, int], int] | None = None
    alternating_rows: bool = False


def _by_head_but(layers_of_27b: int) -> Callable[[int, int, int, int], int]:
    """The 27B scales its queries by its width, the others by the width of a head."""
    return lambda layers, width, heads, head: width // heads if layers == layers_of_27b else head


ARCHITECTURES = {
    "llama": Architecture("llama", alternating_rows=True),  # and Mistral
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", _BASE | _LOCAL | _CAPS, _by_head_but(46)),
    "gemma3": Architecture(
        "gemma3_text", _BASE | _LOCAL | {"local_rope_theta": "rope.freq_base_swa"}, _by_head_but(62)
    ),
}


class _Metadata(dict):
    """The metadata of an architecture; one that is missing is named as the file has it."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str):
        own = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
        super().__init__(own)
        self.prefix = prefix

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"field {self.prefix + key!r}: missing")


def config_of(
    metadata: Mapping[str, Any], tied: bool, divisors: np.ndarray | None = None
) -> ModelConfig:
    """Makes the config of a file's metadata.

    tied: whether the file has no output matrix. divisors: ROPE_DIVISORS [head_dim / 2], if it is
    there.

    Raises ValueError, with the name, for a field that is missing or that no such model has.
    """
    name = metadata["general.architecture"]
    architecture = ARCHITECTURES[name]
    own = _Metadata(metadata, f"{name}.")
    layers, width, heads = (
        own[key] for key in ("block_count", "embedding_length", "attention.head_count")
    )
    sizes = {
        "model_type": architecture.model_type,
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length", width // heads),
        "d_ff": own["feed_forward_length"],
        "max_positions": own["context_length"],
        "norm_eps": _short(own["attention.layer_norm_rms_epsilon"]),
        "tied_head": tied,
        "rope_scaling": _linear(own),
    }
    sizes |= {
        field: _short(own[key]) if isinstance(own[key], float) else own[key]
        for field, key in architecture.optional.items()
        if key in own
    }
    if architecture.queries is not None:
        sizes["query_pre_attn_scalar"] = float(
            architecture.queries(layers, width, heads, sizes["head_dim"])
        )
    family = FAMILIES[architecture.model_type]
    if divisors is not None:
        sizes["rope_scaling"] = scaling_of(
            divisors, sizes.get("rope_theta", family.fields["rope_theta"][1])
        )
    _check_fixed(own, sizes)
    scaling = sizes["rope_scaling"]
    if scaling is not None and scaling.rope_type not in family.ropes:
        raise ValueError(f"RoPE has a scaling {scaling.rope_type!r}; no model of {name} has")
    try:
        return from_sizes(sizes, len(metadata["tokenizer.ggml.tokens"]))
    except SettingsError as error:
        raise ValueError("; ".join(error.problems)) from error


def _check_fixed(own: _Metadata, sizes: Mapping[str, Any]) -> None:
    """Refuses what the metadata may say and the decoder does not do."""
    fixed: dict[str, tuple[Any, ...]] = {
        "rope.dimension_count": (sizes["head_dim"],),
        "attention.causal": (True,),
    }
    if sizes["model_type"] == "gemma3_text":
        _ = own["attention.sliding_window"]  # without it llama.cpp has other layers
        layer_types = FAMILIES[sizes["model_type"]].pattern(sizes, {})
        local = [layer_type == LOCAL for layer_type in layer_types]
        fixed |= {"attention.sliding_window_pattern": (6, local), "final_logit_softcapping": (0.0,)}
    for key, known in fixed.items():
        if key in own and own[key] not in known:
            raise ValueError(
                f"field {own.prefix + key!r}: expected {known[0]}, got {shown(own[key])}"
            )


def _short(value: float) -> float:
    """The shortest decimal of a float32: 1e-05 and not 9.99e-06."""
    return float(str(np.float32(value)))


def _linear(own: Mapping[str, Any]) -> RopeScaling | None:
    kind = own.get("rope.scaling.type", "linear")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear"))  # older files
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    if kind != "linear":
        raise ValueError(
            f"RoPE's scaling is {kind!r}; expected 'linear', 'none' or {ROPE_DIVISORS}"
        )
    return RopeScaling("linear", _short(factor))


PUBLISHED_SCALING: tuple[float, float, int] = (1.0, 4.0, 8192)  # low, high, original length


def scaling_of(divisors: np.ndarray, theta: float) -> RopeScaling | None:
    """Finds the scaling "llama3" that divides the frequencies of theta by these; None: all are 1.

    Low and high factor and length have one freedom, as only ratios count: unless they are the
    published ones the low factor is 1.

    Raises ValueError where none does.
    """
    half, factor = len(divisors), float(np.max(divisors))
    if np.all(divisors == 1.0):
        return None
    frequency = theta ** (-np.arange(half) / half)
    kept = (1 / divisors - 1 / factor) / (1 - 1 / factor) if factor > 1 else np.zeros(half)
    between = np.flatnonzero((kept > 1e-3) & (kept < 1 - 1e-3))
    tried = [PUBLISHED_SCALING]
    if len(between) > 1:  # kept = slope * frequency - 1 / (high - 1)
        first, last = between[0], between[-1]
        slope = float((kept[first] - kept[last]) / (frequency[first] - frequency[last]))
        offset = float(slope * frequency[last] - kept[last])
        if slope > 0 and offset > 0:
            length = round(2 * np.pi * slope / offset)
            tried.append((1.0, round(1 + 1 / offset, 3), length))
    for low, high, length in tried:
        scaling = RopeScaling("llama3", _short(factor), low, high, length) if factor > 1 else None
        if scaling is not None and np.allclose(
            rope_frequencies(half, theta, scaling) * divisors, frequency, rtol=1e-4, atol=0
        ):
            return scaling
    raise ValueError(f"tensor {ROPE_DIVISORS}: no scaling of the kind 'llama3' has these divisors")


def tensors(cfg: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names all weights: {name in the file: (name in a Hugging Face folder, shape in both)}."""
    wanted = {}
    for path, leaf in flatten(abstract_params(cfg)).items():
        stacked = is_stacked(path)
        shape = hf_shape(leaf.shape[1:] if stacked else leaf.shape, find_row(path).inputs)
        kind = path.partition("layer_")[2].partition("_")[2] if stacked else path
        for name in hf_names(path, cfg):
            layer = f"blk.{name.split('.')[2]}." if stacked else ""
            wanted[layer + _NAMES[kind]] = name, shape
    return wanted


def as_transformers_has_it(array: np.ndarray, name: str, cfg: ModelConfig, of: str) -> np.ndarray:
    """Turns a tensor of a file into transformers' layout, float32; `of` is its architecture."""
    part = name.split(".")[-2]
    if ARCHITECTURES[of].alternating_rows and part in ("attn_q", "attn_k"):
        rows, columns = array.shape
        array = array.reshape(rows // cfg.head_dim, -1, 2, columns).swapaxes(1, 2)
        array = array.reshape(rows, columns)
    return array - 1 if cfg.family.unit_offset and part.endswith("norm") else array
