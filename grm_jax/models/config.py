"""Describes a Gemma-2 model: its sizes, from a Hugging Face `config.json` or as published."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from grm_jax.settings import Rule, build, check, one_of

LOCAL, GLOBAL = "sliding_attention", "full_attention"  # the names `layer_types` uses in config.json
ATTENTIONS = ("reference", "splash", "splash_interpreted")
_NUMERICS: dict[str, Rule] = {
    "dtype": one_of(("float32", "bfloat16")),
    "remat": one_of(("none", "full", "dots")),
}


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes: the fields of `Gemma2Config` that are not in its config.json.

    attention may also be "auto" here: "splash" on TPU, "reference" elsewhere (`resolve`).
    """

    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        check(self, _NUMERICS | {"attention": one_of(("auto", *ATTENTIONS))})

    def resolve(self, platform: str) -> dict[str, Any]:
        """The fields of `Gemma2Config` for a platform (`jax.Device.platform`).

        Raises ValueError where "splash" is asked for on another platform than "tpu", which cannot
        run the kernels.
        """
        if self.attention == "splash" and platform != "tpu":
            raise ValueError(
                f"model.attention: 'splash' needs a TPU, the platform is {platform}; expected "
                "'auto' or 'reference'"
            )
        on_platform = "splash" if platform == "tpu" else "reference"
        attention = on_platform if self.attention == "auto" else self.attention
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
        log-probabilities, prefill): "reference", or on TPU "splash" (models/splash.py), or
        "splash_interpreted", the same kernels as plain JAX, for tests on any platform. The last two
        take position t at index t of a row and padding behind it, as all batches of this package
        have it.
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


def from_hf_dict(hf: dict[str, Any], where: str = "config.json", **overrides: Any) -> Gemma2Config:
    """Reads the contents of a Hugging Face `config.json`.

    `overrides` set dtype, scan_layers, remat, attention. Raises ValueError, naming `where` and the
    key, for another architecture or a feature that Gemma-2 checkpoints do not use.
    """
    if hf.get("model_type") != "gemma2":
        raise ValueError(f"{where}: model_type is {hf.get('model_type')!r}; expected 'gemma2'")
    activation = hf.get("hidden_activation") or "gelu_pytorch_tanh"
    if activation != "gelu_pytorch_tanh":
        raise ValueError(
            f"{where}: hidden_activation is {activation!r}; expected 'gelu_pytorch_tanh'"
        )
    if hf.get("attention_bias"):
        raise ValueError(f"{where}: attention_bias is true; Gemma-2 has no attention biases")
    if hf.get("tie_word_embeddings") is False:
        raise ValueError(f"{where}: tie_word_embeddings is false; Gemma-2 ties its embeddings")
    fields = {field: hf.get(key, default) for field, (key, default) in _HF_FIELDS.items()}
    rope = hf.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"{where}: rope_parameters.rope_type is {rope['rope_type']!r}; expected 'default'"
        )
    fields["rope_theta"] = float(hf.get("rope_theta") or rope.get("rope_theta") or 10_000.0)
    types = hf.get("layer_types")
    fields["layer_types"] = tuple(types) if types else alternating(fields["n_layers"])
    return Gemma2Config(**(fields | overrides))


def to_hf_dict(cfg: Gemma2Config, architecture: str = "Gemma2ForCausalLM") -> dict[str, Any]:
    """Returns the `config.json` that `transformers` reads for this model.

    `checkpoint/huggingface.py` adds dtype and token ids.
    """
    hf = {key: getattr(cfg, field) for field, (key, _) in _HF_FIELDS.items()}
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
        "rope_theta": cfg.rope_theta,
        "layer_types": list(cfg.layer_types),
    }


def load_config(folder: str | pathlib.Path, **overrides: Any) -> Gemma2Config:
    """Reads the config of a Hugging Face folder; `overrides` as in `from_hf_dict`.

    Raises FileNotFoundError where there is none.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a Hugging Face Gemma-2 folder with config.json"
        )
    return from_hf_dict(json.loads(path.read_text()), where=str(path), **overrides)


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
