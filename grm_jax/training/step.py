"""Makes the one optimizer step of pretraining, RFT, RL and every reward model, and its losses.

A batch is a dict of arrays with a leading batch axis B: `mask` (fp32[B, T], or fp32[B] where a row
is the unit; 1 where the loss counts) and whatever else the loss reads.

A loss is `loss_fn(params, batch) -> (scalar, metrics)`. Inside a step it sees one micro-batch, in
which `batch["normalizer"]` holds the counts of the whole batch (`losses.aggregation.count` of the
mask). It returns sums divided by these counts, so that micro-batches add up to the loss of the
batch however it is cut; metrics likewise, but names ending in `_min` or `_max` are reduced by
minimum or maximum. Called outside a step, without a normalizer, it takes the batch that it is given
for the whole.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grm_jax.losses.aggregation import Normalizer, count
from grm_jax.losses.config import LossConfig
from grm_jax.losses.metrics import combine
from grm_jax.losses.policy import LossInputs
from grm_jax.losses.preference import bradley_terry
from grm_jax.losses.supervised import bce, cross_entropy
from grm_jax.models.config import Gemma2Config
from grm_jax.models.heads import scalar_logits
from grm_jax.models.lora import merge
from grm_jax.models.placement import gather_width
from grm_jax.training.logprobs import token_logprobs
from grm_jax.training.state import TrainState

Batch = dict[str, Any]  # of arrays, and inside a step the Normalizer and the frozen tree
LossFn = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]
WITHOUT_KL = (
    "the loss reports no kl_loss, so it seems to leave out the KL that beta = {beta:g} asks for: "
    "add it (losses.policy.objective does), or set beta to 0"
)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    state_shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the jitted `step(state, batch, frozen=None) -> (state, metrics)`.

    The state that goes in is donated: use only the one that comes out.

    `frozen` is a tree of arrays that the loss finds whole in `batch["frozen"]` and that no gradient
    is taken of (`adapted`).

    The gradient is accumulated over `micro_batches` equal parts one after the other. Part m takes
    rows m, m + M, m + 2M, ...: a batch sharded over its first axis is cut on each device, without
    moving a row. Runs on any mesh on which state and batch lie; `state_shardings` (as given to
    `state.init_state`) pins the outgoing state to the placement of the incoming one, and every
    gradient to that of its parameter: each part's is reduced and scattered as it is made, and no
    sum of parts is whole on a device.

    Metrics (fp32 scalars): loss, those of the loss function, grad_norm before clipping, param_norm
    and update_norm (global L2 norms), and nonfinite, 1 if the loss or a gradient is not finite: see
    `metrics.check_finite`.
    """

    def step(state, batch, frozen=None):
        placed = None if state_shardings is None else state_shardings.params
        loss, grads, metrics = _accumulate(
            loss_fn, state.params, batch, micro_batches, frozen, placed
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        metrics = metrics | {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
            "nonfinite": 1.0 - (jnp.isfinite(loss) & jnp.isfinite(grad_norm)),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def adapted(loss_fn: LossFn, scale: float) -> LossFn:
    """Makes the loss a function of LoRA adapters, to the step's `frozen` (models/lora.py)."""
    return lambda adapters, batch: loss_fn(merge(batch["frozen"], adapters, scale), batch)


def _parts(batch, micro_batches):
    """{name: [M, B/M, ...]}: part m holds rows m, m + M, m + 2M, ..."""
    rows = next(iter(batch.values())).shape[0]
    if rows % micro_batches:
        raise ValueError(
            f"micro_batches is {micro_batches}; expected a divisor of the batch of {rows} rows"
        )
    return {
        name: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()
    }


def _accumulate(loss_fn, params, batch, micro_batches, frozen, placed):
    """Computes loss, gradient and metrics of the batch, from its micro-batches.

    Gradients lie as `placed` says, if it is not None.
    """
    whole = {"normalizer": normalizer_of(batch)} | ({} if frozen is None else {"frozen": frozen})

    def value_and_grad(part):
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part | whole)
        return (
            loss,
            grads if placed is None else jax.lax.with_sharding_constraint(grads, placed),
        ), metrics

    if micro_batches == 1:
        (loss, grads), metrics = value_and_grad(batch)
        return loss, grads, metrics

    def add(total, part):
        loss_and_grads, metrics = value_and_grad(part)
        return jax.tree.map(jnp.add, total, loss_and_grads), metrics

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), metrics_M = jax.lax.scan(add, zeros, _parts(batch, micro_batches))
    return loss, grads, combine(metrics_M)


def normalizer_of(batch: Batch) -> Normalizer:
    """Returns the counts that a loss divides by.

    Those of the whole batch where the step has put them in, else those of this batch.
    """
    return (
        batch["normalizer"]
        if "normalizer" in batch
        else count(batch["mask"].reshape(batch["mask"].shape[0], -1))
    )


def rft_loss(cfg: Gemma2Config) -> LossFn:
    """Makes the masked next-token cross-entropy, for RFT and pretraining.

    Batch: tokens, positions int32[B, T] (right-padded, position -1 in padding); mask fp32[B, T], 1
        on tokens to be learned.
    Metrics: entropy (mean over the masked positions).

    The loss is in nats per token.
    """

    def loss_fn(params, batch):
        normalizer = normalizer_of(batch)
        logp_BT, entropy_BT = token_logprobs(
            params, cfg, batch["tokens"], batch["positions"], wanted_BT=batch["mask"]
        )
        loss, metrics = cross_entropy(logp_BT, batch["mask"], normalizer)
        return loss, metrics | {"entropy": _token_mean(entropy_BT, batch["mask"], normalizer)}

    return loss_fn


def rl_loss(
    cfg: Gemma2Config, policy_loss: Callable, loss_cfg: LossConfig, temperature: float
) -> LossFn:
    """Puts a loss (`losses.policy_loss`) on the policy's log-probabilities at a temperature.

    Batch: tokens, positions int32[B, T]; mask fp32[B, T], 1 on completion tokens, the stop token
        included (`losses.advantages.objective_mask`); old_logp fp32[B, T]; advantages fp32[B];
        ref_logp fp32[B, T], which may be missing where loss_cfg.beta is 0.
    Metrics: those of the loss, and entropy.

    Warns, once, of a loss that does not report the `kl_loss` that loss_cfg asks for.
    """

    def loss_fn(params, batch):
        normalizer = normalizer_of(batch)
        logp_BT, entropy_BT = token_logprobs(
            params, cfg, batch["tokens"], batch["positions"], temperature, wanted_BT=batch["mask"]
        )
        inputs = LossInputs(
            logp_BT,
            batch["old_logp"],
            batch.get("ref_logp"),
            entropy_BT,
            batch["advantages"],
            batch["mask"],
        )
        loss, metrics = policy_loss(inputs, dataclasses.replace(loss_cfg, normalizer=normalizer))
        if loss_cfg.beta and loss_cfg.kl_in == "loss" and "kl_loss" not in metrics:
            warnings.warn(WITHOUT_KL.format(beta=loss_cfg.beta), stacklevel=1)
        return loss, metrics | {"entropy": _token_mean(entropy_BT, batch["mask"], normalizer)}

    return loss_fn


def meta_loss(cfg: Gemma2Config) -> LossFn:
    """Makes the binary cross-entropy of the scalar head, for the Meta RM and PairRM.

    params: {"backbone", "score"} of `models.heads`.
    Batch: tokens, positions int32[B, T]; labels fp32[B], 1 for a correct judgment (PairRM: where
        the response shown first is the better one); mask fp32[B], 0 on padding rows.
    Metrics: accuracy (of logit > 0), label_mean.
    """

    def loss_fn(params, batch):
        logits_B = scalar_logits(params, cfg, batch["tokens"], batch["positions"])
        return bce(logits_B, batch["labels"], batch["mask"], normalizer_of(batch))

    return loss_fn


def preference_loss(cfg: Gemma2Config, center: float = 0.0) -> LossFn:
    """Makes the Bradley-Terry loss of the scalar head, for scalar and CLoud reward models.

    params: {"backbone", "score"} of `models.heads`.
    Batch: better_tokens, better_positions, worse_tokens, worse_positions int32[B, T], both
        sequences of pair b in row b; mask fp32[B], 0 on padding rows.
    center: see `losses.preference.bradley_terry`, as the metrics.
    """

    def loss_fn(params, batch):
        # [2B, T]; the two of a pair stay neighbors, so a batch sharded over B is not moved
        def both(name):
            pair_B2T = jnp.stack([batch[f"better_{name}"], batch[f"worse_{name}"]], axis=1)
            return pair_B2T.reshape(-1, pair_B2T.shape[2])

        rewards_B2 = scalar_logits(params, cfg, both("tokens"), both("positions")).reshape(-1, 2)
        return bradley_terry(
            rewards_B2[:, 0], rewards_B2[:, 1], batch["mask"], center, normalizer_of(batch)
        )

    return loss_fn


def make_logprob_fn(
    cfg: Gemma2Config, temperature: float = 1.0, micro_batches: int = 1
) -> Callable[..., jax.Array]:
    """Makes the jitted `f(params, tokens_BT, pos_BT, wanted_BT=None) -> logp_BT`.

    For the reference policy, or the policy before an update; see `token_logprobs`.

    The rows are run in `micro_batches` equal parts one after the other, cut as in
    `make_train_step`; ValueError unless it divides B.
    """

    def logprobs(params, tokens_BT, pos_BT, wanted_BT=None):
        # once; every use casts it so
        params = params | {"embedding": gather_width(params["embedding"].astype(cfg.dtype))}
        batch = {"tokens": tokens_BT, "positions": pos_BT}
        batch |= {} if wanted_BT is None else {"wanted": wanted_BT}

        def of_part(part):
            return token_logprobs(
                params,
                cfg,
                part["tokens"],
                part["positions"],
                temperature,
                wanted_BT=part.get("wanted"),
            )[0]

        if micro_batches == 1:
            return of_part(batch)
        return (
            jax.lax.map(of_part, _parts(batch, micro_batches))
            .swapaxes(0, 1)
            .reshape(tokens_BT.shape)
        )

    return jax.jit(logprobs)


def _token_mean(x_BT, mask_BT, normalizer):
    return jnp.sum(x_BT * mask_BT) / jnp.maximum(normalizer.tokens, 1)
