"""What a training run carries from step to step: a plain pytree."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec


@struct.dataclass
class TrainState:
    """step: int32 scalar, updates made so far. params: float32 master weights. opt_state: state of the optax optimizer."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation, shardings: TrainState | None = None) -> TrainState:
    """State before the first step. `params` are copied, because the train step donates its state: the caller's arrays (a reference
    policy, say) stay valid. `shardings` as from `state_shardings`; None leaves the placement to jit."""

    def build(params):
        return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), optimizer.init(params))

    return jax.jit(build, out_shardings=shardings)(params)


def abstract_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state's shapes and dtypes, from arrays or from `jax.ShapeDtypeStruct`s; computes nothing."""
    return jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), params)


def state_shardings(param_shardings: Any, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Sharding of every leaf of the state: the optimizer's moments lie as their parameters do, all else is replicated.

    param_shardings: tree of NamedSharding over one mesh, of the same structure as `params` (arrays or their shapes).
    """
    replicated = NamedSharding(jax.tree.leaves(param_shardings)[0].mesh, PartitionSpec())
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract_state(params, optimizer).opt_state, param_shardings,
        transform_non_params=lambda _: replicated,
    )  # fmt: skip
    return TrainState(replicated, param_shardings, opt_state)
