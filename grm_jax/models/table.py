"""Says of each parameter how it lies on the mesh, its name and its layout in a Hugging Face folder.

Sharding, import, export and ahead-of-time compilation all read TABLE, so they cannot disagree.
Shapes come from `abstract_params`. A parameter without a row is an error.

Layout. A torch linear layer stores `weight` [out, in]; here the same map is stored [in..., out...]
with heads kept as axes of their own. `inputs` says how many leading axes of the parameter (not
counting the block axis) are the map's input:

    q, k, v   [D, N, H]   inputs 1   torch [N*H, D]
    o         [N, H, D]   inputs 2   torch [D, N*H]
    gate, up  [D, F]      inputs 1   torch [F, D]
    embedding, lm_head, norms, biases   inputs 0   stored as it is

Partitioning. Heads, d_ff and vocabulary over `tensor` (Megatron: one all-reduce after attention and
one after the MLP), the model width over `fsdp` (gathered layer by layer), norms replicated. The
leading axis of blocks stays whole: the scan walks along it.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import init_params, without_head

# architectures, named as the fields of `Family` that hold transformers' classes
CAUSAL_LM = "causal_lm"  # parameters as `init_params` makes them
SCALAR = "classifier"  # {"backbone": those but the head, "score": [D, 1]}; see models/heads.py


class Row(NamedTuple):
    """Describes the parameters whose "/"-joined path ends in the regular expression `path`.

    The expression's group, if any, is the layer's place in the block.

    without_post_norms: the name in families whose layers have none, where it is another.
    """

    path: str
    spec: P
    hf_name: str
    inputs: int
    without_post_norms: str | None = None


_LAYER = "model.layers.{layer}"
_PLACE = r"(?:blocks|rest)/layer_(\d+)"
TABLE = (
    Row(r"embedding", P("tensor", "fsdp"), "model.embed_tokens.weight", 0),
    Row(r"lm_head", P("tensor", "fsdp"), "lm_head.weight", 0),
    Row(rf"{_PLACE}_pre_attn/scale", P(), f"{_LAYER}.input_layernorm.weight", 0),
    Row(
        rf"{_PLACE}_attn/q", P(None, "fsdp", "tensor", None), f"{_LAYER}.self_attn.q_proj.weight", 1
    ),
    Row(
        rf"{_PLACE}_attn/k", P(None, "fsdp", "tensor", None), f"{_LAYER}.self_attn.k_proj.weight", 1
    ),
    Row(
        rf"{_PLACE}_attn/v", P(None, "fsdp", "tensor", None), f"{_LAYER}.self_attn.v_proj.weight", 1
    ),
    Row(rf"{_PLACE}_attn/q_bias", P(), f"{_LAYER}.self_attn.q_proj.bias", 0),
    Row(rf"{_PLACE}_attn/k_bias", P(), f"{_LAYER}.self_attn.k_proj.bias", 0),
    Row(rf"{_PLACE}_attn/v_bias", P(), f"{_LAYER}.self_attn.v_proj.bias", 0),
    Row(rf"{_PLACE}_attn/q_norm/scale", P(), f"{_LAYER}.self_attn.q_norm.weight", 0),
    Row(rf"{_PLACE}_attn/k_norm/scale", P(), f"{_LAYER}.self_attn.k_norm.weight", 0),
    Row(
        rf"{_PLACE}_attn/o", P(None, "tensor", None, "fsdp"), f"{_LAYER}.self_attn.o_proj.weight", 2
    ),
    Row(rf"{_PLACE}_post_attn/scale", P(), f"{_LAYER}.post_attention_layernorm.weight", 0),
    Row(
        rf"{_PLACE}_pre_mlp/scale",
        P(),
        f"{_LAYER}.pre_feedforward_layernorm.weight",
        0,
        f"{_LAYER}.post_attention_layernorm.weight",
    ),
    Row(rf"{_PLACE}_mlp/gate", P(None, "fsdp", "tensor"), f"{_LAYER}.mlp.gate_proj.weight", 1),
    Row(rf"{_PLACE}_mlp/up", P(None, "fsdp", "tensor"), f"{_LAYER}.mlp.up_proj.weight", 1),
    Row(rf"{_PLACE}_mlp/down", P(None, "tensor", "fsdp"), f"{_LAYER}.mlp.down_proj.weight", 1),
    Row(rf"{_PLACE}_post_mlp/scale", P(), f"{_LAYER}.post_feedforward_layernorm.weight", 0),
    Row(r"final_norm/scale", P(), "model.norm.weight", 0),
    Row(r"score", P("fsdp", None), "score.weight", 1),
)


def find_row(path: str) -> Row:
    """Finds the row of a parameter; no row raises KeyError.

    A prefix ("backbone/...", an optimizer's "0/mu/...") is allowed.
    """
    for row in TABLE:
        if re.fullmatch(rf"(?:.*/)?{row.path}", path):
            return row
    raise KeyError(
        f"parameter {path!r} has no row in grm_jax/models/table.py; add its partitioning, "
        "Hugging Face name and layout"
    )


def hf_names(path: str, cfg: ModelConfig) -> list[str]:
    """Names the tensors that make up one parameter, one for each block.

    Index i of block position j is layer i * len(cfg.block) + j; positions behind the block are the
    layers behind the last whole one.
    """
    row = find_row(path)
    position = re.fullmatch(rf"(?:.*/)?{row.path}", path).groups()
    name = row.hf_name
    if row.without_post_norms is not None and not cfg.family.post_norms:
        name = row.without_post_norms
    if not position:
        return [name]
    place, size = int(position[0]), len(cfg.block)
    if place >= size:
        return [name.format(layer=(cfg.n_blocks - 1) * size + place)]
    return [name.format(layer=i * size + place) for i in range(cfg.n_blocks)]


def is_stacked(path: str) -> bool:
    """Says whether the parameter has a leading axis of blocks."""
    return "{layer}" in find_row(path).hf_name


def to_hf(array: np.ndarray, inputs: int) -> np.ndarray:
    """Turns one parameter (without its block axis) into torch's layout; a view where numpy can."""
    return array if inputs == 0 else array.reshape(math.prod(array.shape[:inputs]), -1).T


def from_hf(tensor: np.ndarray, shape: tuple[int, ...], inputs: int) -> np.ndarray:
    """Inverts `to_hf`; works on the slice that `hf_slice` names too, given the slice's shape."""
    return tensor if inputs == 0 else tensor.T.reshape(shape)


def hf_shape(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """Returns the shape in torch's layout of a parameter of this shape (without its block axis)."""
    return shape if inputs == 0 else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def hf_slice(index: tuple[slice, ...], shape: tuple[int, ...], inputs: int) -> tuple[slice, ...]:
    """Says where the part `index` of a parameter (without its block axis) lies in torch's layout.

    Axes that torch joins (heads and head dimension) are contiguous only if the inner ones are
    whole; the table never splits those.
    """
    bounds = [piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True)]
    if inputs == 0:
        return tuple(slice(*bound) for bound in bounds)

    def joined(axes: range) -> slice:
        inner = math.prod(shape[axis] for axis in axes[1:])
        if any(bounds[axis] != (0, shape[axis]) for axis in axes[1:]):
            raise ValueError(
                f"index {index} splits an inner axis of shape {shape}; only axis {axes[0]} may "
                "be split"
            )
        return slice(bounds[axes[0]][0] * inner, bounds[axes[0]][1] * inner)

    return joined(range(inputs, len(shape))), joined(range(inputs))


# tracing the model takes as long as a small stage's work, and one run asks dozens of times
def flatten(tree: dict) -> dict[str, Any]:
    """Returns {"/"-joined path: leaf} of nested dicts."""
    return flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
    """Inverts `flatten`."""
    return unflatten_dict(flat, sep="/")


@functools.cache
def abstract_params(cfg: ModelConfig, architecture: str = CAUSAL_LM) -> dict:
    """Returns shapes and dtypes (float32) of all parameters; allocates nothing (`jax.eval_shape`).

    The same dict each time: do not change it.
    """
    backbone = jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
    if architecture == CAUSAL_LM:
        return backbone
    if architecture == SCALAR:
        score = jax.ShapeDtypeStruct((cfg.d_model, 1), np.float32)
        return {"backbone": without_head(backbone), "score": score}
    raise ValueError(f"architecture is {architecture!r}; expected {CAUSAL_LM!r} or {SCALAR!r}")
