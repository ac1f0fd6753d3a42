"""Adapts frozen weights by LoRA (arXiv 2106.09685), W + (alpha / rank) A B, on parameter trees.

`merge` gives ordinary parameters, for sampling and export. `adapt` gives a step the same numbers
and keeps the adapters beside them, whose gradient then takes no product of the weights' size
(`grm_jax.models.linear`). A train state holds the adapters alone; the frozen weights are an
argument of the step, so gradients, optimizer moments and checkpoints have the adapters' size and
the reference policy is the frozen weights themselves.

    params    {"blocks": {"layer_0_attn": {"q": W}}}
    adapters  {"blocks": {"layer_0_attn": {"q": {"lora_a": A, "lora_b": B}}}}

    W [n_blocks, in..., out...]    A [n_blocks, in..., r]    B [n_blocks, r, out...]
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from grm_jax.models.config import ModelConfig
from grm_jax.models.linear import Adapted
from grm_jax.models.table import (
    CAUSAL_LM,
    abstract_params,
    find_row,
    flatten,
    is_stacked,
    unflatten,
)
from grm_jax.settings import ABOVE_ZERO, NOT_NEGATIVE, check, some_of

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Says what is adapted, and how much.

    rank: r, 0 for no adapters.
    alpha: the product is scaled by alpha / r.
    targets: which linear maps of every layer are adapted.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        check(self, {"rank": NOT_NEGATIVE, "alpha": ABOVE_ZERO, "targets": some_of(TARGETS)})

    @property
    def scale(self) -> float:
        """Returns what the product of the two factors is multiplied by."""
        return self.alpha / self.rank


def adapted_paths(cfg: ModelConfig, lora: LoraConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {"/"-joined path: shape and dtype} of the parameters that get an adapter."""
    flat = flatten(abstract_params(cfg, CAUSAL_LM))
    return {
        path: leaf
        for path, leaf in flat.items()
        if is_stacked(path) and path.rsplit("/", 1)[1] in lora.targets
    }


def init_adapters(cfg: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict:
    """Draws float32 adapters: A ~ N(0, 1 / inputs), B = 0, so that they change nothing at first."""
    flat = {}
    for number, (path, leaf) in enumerate(adapted_paths(cfg, lora).items()):
        blocks, ins, outs = _split(leaf.shape, find_row(path).inputs)
        std = math.prod(ins) ** -0.5
        flat[f"{path}/{A}"] = std * jax.random.normal(
            jax.random.fold_in(key, number), (*blocks, *ins, lora.rank), jnp.float32
        )
        flat[f"{path}/{B}"] = jnp.zeros((*blocks, lora.rank, *outs), jnp.float32)
    return unflatten(flat)


def start_adapters(cfg: ModelConfig, lora: LoraConfig, params: dict, key: jax.Array) -> dict:
    """Draws what a stage trains that starts from `params`: adapters.

    Of a scalar model {"backbone": adapters, "score": its head, trained whole}.
    """
    adapters = init_adapters(cfg, lora, key)
    return {"backbone": adapters, "score": params["score"]} if "score" in params else adapters


def merge(params: dict, adapters: dict, scale: float) -> dict:
    """Adds adapters to the parameters, in the parameters' dtype; the product is taken in float32.

    What the adapters' tree holds beside adapters (a head) takes the parameter's place.
    """
    return _with(params, adapters, lambda weight, a, b: _merged(weight, a, b, scale))


def adapt(params: dict, adapters: dict, scale: float) -> dict:
    """Adds adapters as `merge` does; the gradient by them is that of `merge`, by another road.

    The parameters themselves get none.
    """

    def adapted(weight, a, b):
        merged = jax.lax.stop_gradient(_merged(weight, a, b, scale))
        return Adapted(merged, a, b, scale)

    return _with(params, adapters, adapted)


def _with(params: dict, adapters: dict, added: Callable) -> dict:
    """The parameters with `added(weight, a, b)` in the place of each weight with an adapter."""
    flat, low = flatten(params), flatten(adapters)
    flat |= {path: leaf for path, leaf in low.items() if not path.endswith((A, B))}
    for path in {path.rsplit("/", 1)[0] for path in low if path.endswith(A)}:
        flat[path] = added(flat[path], low[f"{path}/{A}"], low[f"{path}/{B}"])
    return unflatten(flat)


def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    blocks, rank = a.shape[0], a.shape[-1]
    product = (a.reshape(blocks, -1, rank) @ b.reshape(blocks, rank, -1)).reshape(weight.shape)
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)


def stack(adapters: Sequence[tuple[dict, LoraConfig]]) -> tuple[dict, LoraConfig]:
    """Makes one set of adapters of several, each trained upon the weights with those before merged.

    Merging it is merging them one after the other; its rank is the sum of theirs, its scale that of
    the first. What a tree holds beside adapters (a head) is the last one's. Raises ValueError where
    they do not adapt the same.
    """
    targets = [set(lora.targets) for _, lora in adapters]
    if any(some != targets[0] for some in targets):
        raise ValueError(f"adapters of different targets: {', '.join(map(str, targets))}")
    trees, (_, first) = [flatten(tree) for tree, _ in adapters], adapters[0]
    flat = dict(trees[-1])
    for path in [path for path in flat if path.endswith((A, B))]:
        parts = [tree[path] for tree in trees]
        if path.endswith(B):
            parts = [x * (lora.scale / first.scale) for x, (_, lora) in zip(parts, adapters)]
        flat[path] = jnp.concatenate(parts, axis=-1 if path.endswith(A) else 1)
    rank = sum(lora.rank for _, lora in adapters)
    return unflatten(flat), dataclasses.replace(first, rank=rank, alpha=rank * first.scale)


def adapter_spec(path: str) -> P:
    """Says how one matrix of an adapter lies on the mesh: as its weight does, the rank whole."""
    weight, matrix = path.rsplit("/", 1)
    row = find_row(weight)
    blocks, ins, outs = _split(tuple(row.spec), row.inputs)
    return P(*blocks, *ins, None) if matrix == A else P(*blocks, None, *outs)


def _split(axes: tuple, inputs: int) -> tuple[tuple, tuple, tuple]:
    """(block axis, input axes, output axes) of a parameter's shape or spec."""
    return axes[:1], axes[1 : 1 + inputs], axes[1 + inputs :]
