"""Holds what a training run carries from step to step: a plain pytree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """Holds what a step takes and gives.

    step: int32 scalar, updates made so far.
    params: float32 master weights.
    opt_state: state of the optax optimizer.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
    donate: bool = False,
) -> TrainState:
    """Makes the state before the first step.

    `params` are copied, because the train step donates its state: the caller's arrays (a reference
    policy, say) stay valid.

    donate: `params` are taken over instead, and deleted.
    shardings: of every leaf, `parallel.mesh.param_shardings(mesh, abstract_state(params,
        optimizer))`, which lays the optimizer's moments as their parameters; None for a single
        device.
    """
    make = jax.jit(
        lambda p: _state(jax.tree.map(jnp.copy, p), optimizer),
        out_shardings=shardings,
        donate_argnums=0 if donate else (),
    )
    return make(params)


def abstract_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state's shapes and dtypes, of arrays or `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda p: _state(p, optimizer), params)


def _state(params, optimizer):
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
