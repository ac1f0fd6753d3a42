"""Describes a model: its family, sizes and numerics. `hf_config` reads them from a config.json."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

from grm_jax.models.families import FAMILIES, GLOBAL, LOCAL, Family, alternating
from grm_jax.settings import ABOVE_ZERO, POSITIVE, Relation, Rule, build, check, one_of

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
    """How a model computes: the fields of `ModelConfig` that are not in its config.json.

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
        """The fields of `ModelConfig` for a platform (`jax.Device.platform`).

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
class RopeScaling:
    """Says how the rotary embedding is slowed down for texts longer than those of pretraining.

    rope_type: "linear" divides all frequencies by `factor`. "llama3" divides those with less than
        `low_freq_factor` turns in `original_max_positions`, leaves those with more than
        `high_freq_factor`, and goes from one to the other between; only it reads these three.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        rules = {
            "rope_type": one_of(("linear", "llama3")),
            "factor low_freq_factor high_freq_factor": ABOVE_ZERO,
            "original_max_positions": POSITIVE,
        }
        order: Relation = (
            "high_freq_factor low_freq_factor",
            "more than low_freq_factor = {low_freq_factor}",
            lambda high, low: high > low,
        )
        check(self, rules, [order])


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Holds family, sizes and numerics of one model.

    model_type: the family, whose switches are `family` (`grm_jax.models.families`).
    query_pre_attn_scalar: q, queries are scaled by q**-0.5 (Gemma-2 2b and 9b: q = 256 = head_dim;
        27b: q = 144 = D / N); None: head_dim.
    layer_types: one a layer, LOCAL (keys at distance < sliding_window) or GLOBAL.
    sliding_window: None where no layer is local.
    attn_softcap, final_softcap: None switches that cap off.
    rope_theta, rope_scaling: of the rotary embedding; local layers have the base local_rope_theta,
        and no scaling, where that is given.
    tied_head: the embedding is the head too.
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
    sliding_window: int | None = 4096
    attn_softcap: float | None = 50.0
    final_softcap: float | None = 30.0
    query_pre_attn_scalar: float | None = 256.0
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    tied_head: bool = True
    norm_eps: float = 1e-6
    max_positions: int = 8192
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "reference"
    model_type: str = "gemma2"

    def __post_init__(self):
        family = FAMILIES.get(self.model_type)
        given = {} if family is None else family.same
        check(
            self,
            _NUMERICS
            | {
                "model_type": one_of(FAMILIES),
                "vocab_size d_model n_heads n_kv_heads d_ff sliding_window max_positions": _SIZE,
                "n_layers": (
                    f"an integer from 1 to {MOST_LAYERS:,}",
                    lambda layers: 1 <= layers <= MOST_LAYERS,
                ),
                "head_dim": (
                    f"an even integer from 2 to {MOST:,}",
                    lambda size: 2 <= size <= MOST and size % 2 == 0,
                ),
                "query_pre_attn_scalar rope_theta local_rope_theta norm_eps": _SCALE,
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
                (
                    "sliding_window layer_types",
                    f"{_SIZE[0]}, as there are layers of type {LOCAL!r}",
                    lambda window, layer_types: window is not None or LOCAL not in layer_types,
                ),
                (
                    "query_pre_attn_scalar model_type",
                    f"{_SCALE[0]}, in models of {{model_type}}",
                    lambda scalar, _: scalar is not None or "query_pre_attn_scalar" in given,
                ),
                *(
                    (
                        f"{field} model_type",
                        f"{value}, as in all models of {{model_type}}",
                        lambda found, _, value=value: found == value,
                    )
                    for field, value in given.items()
                ),
            ],
        )

    @property
    def family(self) -> Family:
        """Returns the switches that all models of this family share."""
        return FAMILIES[self.model_type]

    @property
    def query_scale(self) -> float:
        """Returns what queries are multiplied by."""
        scalar = self.query_pre_attn_scalar
        return (self.head_dim if scalar is None else scalar) ** -0.5

    @property
    def block(self) -> tuple[str, ...]:
        """Returns the layer types of the block that the stack repeats, cut off at its end.

        The shortest that is there at least twice, or all layers. (LOCAL, GLOBAL) for Gemma-2.
        """
        for size in range(1, self.n_layers // 2 + 1):
            if self.layer_types[size:] == self.layer_types[:-size]:
                return self.layer_types[:size]
        return self.layer_types

    @property
    def n_blocks(self) -> int:
        """Returns how many blocks are whole."""
        return self.n_layers // len(self.block)

    @property
    def rest(self) -> tuple[str, ...]:
        """Returns the types of the layers behind the last whole block, fewer than a block has."""
        return self.layer_types[self.n_blocks * len(self.block) :]

    @property
    def stacks(self) -> dict[str, tuple[str, int]]:
        """Returns {layer_i: (its type, of how many layers)}: those of a block, then the rest.

        Arrays of a layer have an axis of that length in front.
        """
        counts = [self.n_blocks] * len(self.block) + [1] * len(self.rest)
        types = zip(self.block + self.rest, counts, strict=True)
        return {f"layer_{i}": of_layer for i, of_layer in enumerate(types)}


def from_sizes(sizes: Mapping[str, Any], vocab_size: int, **numerics: Any) -> ModelConfig:
    """Makes the ModelConfig of a randomly initialized model with its family's pattern of layers.

    sizes: fields of `ModelConfig`, without the vocabulary, which is the tokenizer's; rope_scaling
        as a mapping.
    """
    family = FAMILIES.get(sizes.get("model_type", "gemma2"), FAMILIES["gemma2"])
    values = {field: family.fields[field][1] for field in _OPTIONAL if field in family.fields}
    if family.switched_window:
        values["sliding_window"] = None  # unless the sizes have one
    values |= dict(family.same) | {"vocab_size": vocab_size} | dict(sizes) | numerics
    if isinstance(values.get("rope_scaling"), Mapping):
        values["rope_scaling"] = build(RopeScaling, values["rope_scaling"])
    layers = values.get("n_layers")
    countable = isinstance(layers, int) and 1 <= layers <= MOST_LAYERS
    return build(
        ModelConfig, {"layer_types": family.pattern(values, {}) if countable else ()} | values
    )


# fields with a default, which a family may have another one for
_OPTIONAL = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.default is not dataclasses.MISSING
)
GEMMA2_2B = ModelConfig(
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
GEMMA2_9B = ModelConfig(
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
GEMMA2_27B = ModelConfig(
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
# by their names on the hub, without the organization; <eos> and <end_of_turn> end their text
PUBLISHED = {"gemma-2-2b": GEMMA2_2B, "gemma-2-9b": GEMMA2_9B, "gemma-2-27b": GEMMA2_27B}
PUBLISHED_STOP_IDS = (1, 107)
