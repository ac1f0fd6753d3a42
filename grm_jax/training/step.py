"""One optimizer step, shared by pretraining, RFT, RL and every reward model, and the losses that it differentiates.

A batch is a dict of arrays with a leading batch axis B: `mask` (fp32[B, T], or fp32[B] where a row is the unit; 1 where the loss
counts) and whatever else the loss reads.
A loss is `loss_fn(params, batch) -> (scalar, metrics)`. It sees one micro-batch, in which `batch["normaliser"]` holds the counts of
the whole batch (`losses.aggregation.count` of the mask). It returns sums divided by these counts, so that the micro-batches add up to
the loss of the batch however it is cut; metrics likewise, but names ending in `_min` or `_max` are reduced by minimum or maximum.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grm_jax.losses.aggregation import count
from grm_jax.losses.metrics import combine
from grm_jax.losses.supervised import cross_entropy
from grm_jax.models.config import Gemma2Config
from grm_jax.training.logprobs import token_logprobs
from grm_jax.training.state import TrainState

Batch = dict[str, jax.Array]
LossFn = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, micro_batches: int = 1, state_shardings: TrainState | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `step(state, batch) -> (state, metrics)`. The state that goes in is donated: use only the one that comes out.

    The gradient is accumulated over `micro_batches` equal parts one after the other. Part m takes rows m, m + M, m + 2M, ...: a batch
    sharded over its first axis is cut on each device, without moving a row. Runs on any mesh on which state and batch lie;
    `state_shardings` (of `state.state_shardings`) pins the outgoing state to the placement of the incoming one.

    Metrics (fp32 scalars): those of the loss, grad_norm before clipping, param_norm and update_norm (global L2 norms), and
    nonfinite, 1 if the loss or a gradient is not finite: see `metrics.check_finite`.
    """

    def step(state, batch):
        loss, grads, metrics = _accumulate(loss_fn, state.params, batch, micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.global_norm(grads)
        metrics = metrics | {
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            "nonfinite": 1.0 - (jnp.isfinite(loss) & jnp.isfinite(grad_norm)),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _accumulate(loss_fn, params, batch, micro_batches):
    """Loss, gradient and metrics of the batch, from its micro-batches."""
    rows = batch["mask"].shape[0]
    if rows % micro_batches:
        raise ValueError(f"micro_batches is {micro_batches}; expected a divisor of the batch of {rows} rows")
    normaliser = count(batch["mask"].reshape(rows, -1))

    def value_and_grad(part):
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part | {"normaliser": normaliser})
        return (loss, grads), metrics

    if micro_batches == 1:
        (loss, grads), metrics = value_and_grad(batch)
        return loss, grads, metrics

    def add(total, part):
        loss_and_grads, metrics = value_and_grad(part)
        return jax.tree.map(jnp.add, total, loss_and_grads), metrics

    parts = {name: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}
    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), metrics_M = jax.lax.scan(add, zeros, parts)
    return loss, grads, combine(metrics_M)


def rft_loss(cfg: Gemma2Config) -> LossFn:
    """Masked next-token cross-entropy, for RFT and pretraining.

    Batch: tokens, positions int32[B, T] (right-padded, position -1 in padding); mask fp32[B, T], 1 on tokens to be learned.
    Metrics: loss (nats per token), entropy (mean over the masked positions).
    """

    def loss_fn(params, batch):
        logp_BT, entropy_BT = token_logprobs(params, cfg, batch["tokens"], batch["positions"])
        loss, metrics = cross_entropy(logp_BT, batch["mask"], batch["normaliser"])
        return loss, metrics | {"entropy": _token_mean(entropy_BT, batch)}

    return loss_fn


def _token_mean(x_BT, batch):
    return jnp.sum(x_BT * batch["mask"]) / jnp.maximum(batch["normaliser"].tokens, 1)
