"""Makes the one optimizer step of pretraining, RFT, RL and every reward model, and its losses.

A batch is a dict of arrays with a leading batch axis B: `mask` (fp32[B, T], or fp32[B] where a row
is the unit; 1 where the loss counts) and whatever else the loss reads.

A loss is `loss_fn(params, batch) -> (scalar, metrics)`. Inside a step it sees one micro-batch, in
which `batch["normalizer"]` holds the counts of the whole batch (`losses.aggregation.count` of the
mask). It returns sums divided by these counts, so that micro-batches add up to the loss of the
batch however it is cut; metrics likewise, but names ending in `_min` or `_max` are reduced by
minimum or maximum. Called outside a step, without a normalizer, it takes the batch that it is given
for the whole.

A batch of packed rows (data/packing.py) is one with `parts`: arrays [M, R, ...], of whose M parts
the first `parts` are real, each a micro-batch. There `mask` is fp32[M, R, S], of the units in the
slots of a row, and `length` int32[M, R, S], how many tokens of each count.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grm_jax.losses.aggregation import Normalizer, count
from grm_jax.losses.config import LossConfig
from grm_jax.losses.kl import kl_penalty
from grm_jax.losses.metrics import combine
from grm_jax.losses.policy import LossInputs
from grm_jax.losses.preference import bradley_terry
from grm_jax.losses.supervised import bce, cross_entropy
from grm_jax.models.attention import Packed
from grm_jax.models.config import ModelConfig
from grm_jax.models.heads import packed_scalar_logits, scalar_logits
from grm_jax.models.lora import adapt
from grm_jax.models.placement import gather_width
from grm_jax.training.logprobs import token_logprobs
from grm_jax.training.state import TrainState

Batch = dict[str, Any]  # of arrays, and inside a step the Normalizer and the frozen tree
# of packed rows, a value for each token: cut to the length of the part
LOGPS = ("old_logp", "ref_logp", "sampler_logp")
PER_TOKEN = ("tokens", "positions", "segment", "branch", "wanted", *LOGPS)
LOOP = ("parts", "sizes")  # of packed rows, what the loop over parts reads
LossFn = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]
WITHOUT_KL = (
    "the loss reports no kl_loss, so it seems to leave out the KL that beta = {beta:g} asks for: "
    "add it (losses.policy.objective does), or set beta to 0"
)
UNWEIGHTED = (
    "the loss reports no importance_weight_mean, so it seems to leave out the weights that "
    "importance_sampling_cap = {cap:g} asks for: multiply by them (losses.policy.objective does), "
    "or switch the correction off"
)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    state_shardings: TrainState | None = None,
    row_lengths: Sequence[int] = (),
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

    Packed rows bring their parts along: `micro_batches` says nothing of them, `row_lengths` does,
    the lengths among which a part's `sizes` chooses.

    Metrics (fp32 scalars): loss, those of the loss function, grad_norm before clipping, param_norm
    and update_norm (global L2 norms), and nonfinite, 1 if the loss or a gradient is not finite: see
    `metrics.check_finite`.
    """

    def step(state, batch, frozen=None):
        placed = None if state_shardings is None else state_shardings.params
        loss, grads, metrics = _accumulate(
            loss_fn, state.params, batch, micro_batches, frozen, placed, row_lengths
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
    return lambda adapters, batch: loss_fn(adapt(batch["frozen"], adapters, scale), batch)


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


def _accumulate(loss_fn, params, batch, micro_batches, frozen, placed, row_lengths):
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

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    if "parts" in batch:

        def add_part(total, m, part):
            loss_and_grads, metrics = value_and_grad(part)
            both = {name: jnp.stack([total[1][name], x]) for name, x in metrics.items()}
            return jax.tree.map(jnp.add, total[0], loss_and_grads), combine(both)

        first = {name: x[0] for name, x in batch.items() if name not in LOOP} | whole
        _, names = jax.eval_shape(loss_fn, params, first)
        nothing = {"_min": jnp.inf, "_max": -jnp.inf}
        none = {name: jnp.float32(nothing.get(name[-4:], 0.0)) for name in names}
        (loss, grads), metrics = fold_parts(add_part, (zeros, none), batch, row_lengths)
        return loss, grads, metrics
    if micro_batches == 1:
        (loss, grads), metrics = value_and_grad(batch)
        return loss, grads, metrics

    def add(total, part):
        loss_and_grads, metrics = value_and_grad(part)
        return jax.tree.map(jnp.add, total, loss_and_grads), metrics

    (loss, grads), metrics_M = jax.lax.scan(add, zeros, _parts(batch, micro_batches))
    return loss, grads, combine(metrics_M)


def fold_parts(
    function: Callable[[Any, jax.Array, Batch], Any],
    start: Any,
    batch: Batch,
    row_lengths: Sequence[int],
) -> Any:
    """Folds `function(so far, m, part m)` over the real parts of packed rows.

    The function is traced once for each of `row_lengths`, and sees rows of the part's length. How
    many parts there are, and how long each is, is read from the batch while it runs.
    """
    rows = {name: x for name, x in batch.items() if name not in LOOP}

    def of_length(length, so_far, m):
        part = {name: jax.lax.dynamic_index_in_dim(x, m, 0, False) for name, x in rows.items()}
        cut = {name: x[:, :length] for name, x in part.items() if name in PER_TOKEN}
        return function(so_far, m, part | cut)

    turns = [functools.partial(of_length, length) for length in row_lengths]

    def turn(m, so_far):
        return jax.lax.switch(batch["sizes"][m], turns, so_far, m)

    return jax.lax.fori_loop(0, batch["parts"], turn, start)


def normalizer_of(batch: Batch) -> Normalizer:
    """Returns the counts that a loss divides by.

    Those of the whole batch where the step has put them in, else those of this batch.
    """
    if "normalizer" in batch:
        return batch["normalizer"]
    mask = batch["mask"]
    if "segment" not in batch:
        return count(mask.reshape(mask.shape[0], -1))
    return Normalizer(
        tokens=(batch["length"] * mask).sum(), sequences=((batch["length"] > 0) * mask).sum()
    )


def packed_of(batch: Batch) -> Packed | None:
    """Returns what says which tokens of a row see each other; None where a row is one sequence."""
    return Packed(batch["segment"], batch["branch"]) if "segment" in batch else None


def rft_loss(cfg: ModelConfig) -> LossFn:
    """Makes the masked next-token cross-entropy, for RFT and pretraining.

    - Batch: tokens, positions int32[B, T] (right-padded, position -1 in padding); mask fp32[B, T],
      1 on tokens to be learned.
    - Packed rows: tokens, positions, segment, branch int32[R, T]; wanted fp32[R, T], 1 on tokens to
      be learned.
    - Metrics: entropy (mean over the masked positions).

    The loss is in nats per token.
    """

    def loss_fn(params, batch):
        normalizer, packed = normalizer_of(batch), packed_of(batch)
        mask_BT = batch["mask" if packed is None else "wanted"]
        logp_BT, entropy_BT = token_logprobs(
            params, cfg, batch["tokens"], batch["positions"], packed=packed, wanted_BT=mask_BT
        )
        loss, metrics = cross_entropy(logp_BT, mask_BT, normalizer)
        return loss, metrics | {"entropy": _token_mean(entropy_BT, mask_BT, normalizer)}

    return loss_fn


def rl_loss(
    cfg: ModelConfig,
    policy_loss: Callable,
    loss_cfg: LossConfig,
    temperature: float,
    completion: int | None = None,
) -> LossFn:
    """Puts a loss (`losses.policy_loss`) on the policy's log-probabilities at a temperature.

    completion: tokens of the longest completion, the C of the loss in packed rows; None: as many as
        a row has.

    - Batch: tokens, positions int32[B, T]; mask fp32[B, T], 1 on completion tokens, the stop token
      included (`losses.advantages.objective_mask`); old_logp fp32[B, T]; advantages fp32[B];
      ref_logp fp32[B, T], which may be missing where loss_cfg.beta is 0; sampler_logp fp32[B, T]
      where loss_cfg.importance_sampling_cap is a number.
    - Packed rows: tokens, positions, segment, branch int32[R, T]; wanted fp32[R, T], 1 on
      completion tokens; old_logp, ref_logp, sampler_logp fp32[R, T]; start, length int32[R, S], of
      each completion in its row; mask, advantages fp32[R, S]. The loss gets each completion as a
      row of [R S, C].
    - Metrics: those of the loss, and entropy.

    Warns, once, of a loss that does not report the `kl_loss` or the weights that loss_cfg asks for.
    """
    said: set[str] = set()  # Python's own "once" ends with a change of filters, which JAX may make

    def warn(words: str) -> None:
        if words not in said:
            said.add(words)
            warnings.warn(words, stacklevel=1)

    def loss_fn(params, batch):
        normalizer, packed = normalizer_of(batch), packed_of(batch)
        logp_BT, entropy_BT = token_logprobs(
            params,
            cfg,
            batch["tokens"],
            batch["positions"],
            temperature,
            packed=packed,
            wanted_BT=batch["mask" if packed is None else "wanted"],
        )
        arrays: dict[str, Any] = {"logp": logp_BT, "entropy": entropy_BT}
        arrays |= {name: batch.get(name) for name in LOGPS}
        if packed is None:
            mask = batch["mask"]
        else:
            mask, arrays = completions(batch, arrays, completion)
        inputs = LossInputs(advantages=batch["advantages"].reshape(-1), mask=mask, **arrays)
        loss, metrics = policy_loss(inputs, dataclasses.replace(loss_cfg, normalizer=normalizer))
        if loss_cfg.beta and loss_cfg.kl_in == "loss" and "kl_loss" not in metrics:
            warn(WITHOUT_KL.format(beta=loss_cfg.beta))
        cap = loss_cfg.importance_sampling_cap
        if cap is not None and "importance_weight_mean" not in metrics:
            warn(UNWEIGHTED.format(cap=cap))
        return loss, metrics | {"entropy": _token_mean(inputs.entropy, mask, normalizer)}

    return loss_fn


def completions(
    part: Batch, arrays: dict[str, jax.Array | None], most: int | None = None
) -> tuple[jax.Array, dict]:
    """Takes the completions out of packed rows: [R, T] -> [R S, C], a row for each slot.

    part: start, length int32[R, S] and mask fp32[R, S].
    most: C, None for T.

    Returns the mask fp32[R S, C], and the arrays (None stays None).
    """
    start, (R, T) = part["start"], part["tokens"].shape
    at_C = jnp.arange(min(most or T, T))
    inside_RSC = at_C < part["length"][..., None]
    index_RX = jnp.where(inside_RSC, start[..., None] + at_C, 0).reshape(R, -1)

    def of_slots(x_RT):
        return jnp.take_along_axis(x_RT, index_RX, axis=1).reshape(-1, len(at_C))

    mask_BC = (inside_RSC * part["mask"][..., None]).reshape(-1, len(at_C))
    return mask_BC, {name: None if x is None else of_slots(x) for name, x in arrays.items()}


def meta_loss(cfg: ModelConfig) -> LossFn:
    """Makes the binary cross-entropy of the scalar head, for the Meta RM and PairRM.

    params: {"backbone", "score"} of `models.heads`.
    - Batch: tokens, positions int32[B, T]; labels fp32[B], 1 for a correct judgment (PairRM: where
      the response shown first is the better one); mask fp32[B], 0 on padding rows.
    - Packed rows: tokens, positions, segment, branch int32[R, T]; labels, mask fp32[R, S]; last
      int32[R, S, 1], the index of each sequence's last token in its row.
    - Metrics: accuracy (of logit > 0), label_mean.
    """

    def loss_fn(params, batch):
        logits_B = _logits(params, cfg, batch)
        labels_B, mask_B = batch["labels"].reshape(-1), batch["mask"].reshape(-1)
        return bce(logits_B, labels_B, mask_B, normalizer_of(batch))

    return loss_fn


def preference_loss(cfg: ModelConfig, center: float = 0.0) -> LossFn:
    """Makes the Bradley-Terry loss of the scalar head, for scalar and CLoud reward models.

    params: {"backbone", "score"} of `models.heads`.
    - Batch: better_tokens, better_positions, worse_tokens, worse_positions int32[B, T], both
      sequences of pair b in row b; mask fp32[B], 0 on padding rows.
    - Packed rows: tokens, positions, segment, branch int32[R, T]; mask fp32[R, S] of pairs; last
      int32[R, S, 2], the index of the last token of both, the better one first.
    center: see `losses.preference.bradley_terry`, as the metrics.
    """

    def loss_fn(params, batch):
        # [2B, T]; the two of a pair stay neighbors, so a batch sharded over B is not moved
        def both(name):
            pair_B2T = jnp.stack([batch[f"better_{name}"], batch[f"worse_{name}"]], axis=1)
            return pair_B2T.reshape(-1, pair_B2T.shape[2])

        if "segment" not in batch:
            batch = batch | {name: both(name) for name in ("tokens", "positions")}
        rewards_B2 = _logits(params, cfg, batch).reshape(-1, 2)
        mask_B = batch["mask"].reshape(-1)
        return bradley_terry(
            rewards_B2[:, 0], rewards_B2[:, 1], mask_B, center, normalizer_of(batch)
        )

    return loss_fn


def _logits(params, cfg, batch):
    """The scalar head's logits of all sequences in turn, those of empty slots too."""
    tokens, positions, packed = batch["tokens"], batch["positions"], packed_of(batch)
    if packed is None:
        return scalar_logits(params, cfg, tokens, positions)
    R, S, N = batch["last"].shape
    last_BS = batch["last"].reshape(R, S * N)
    return packed_scalar_logits(params, cfg, tokens, positions, packed, last_BS).reshape(-1)


def make_logprob_fn(
    cfg: ModelConfig, temperature: float = 1.0, micro_batches: int = 1
) -> Callable[..., jax.Array]:
    """Makes the jitted `f(params, tokens_BT, pos_BT, wanted_BT=None) -> logp_BT`.

    For the reference policy, or the policy before an update; see `token_logprobs`.

    The rows are run in `micro_batches` equal parts one after the other, cut as in
    `make_train_step`; ValueError unless it divides B.
    """

    def logprobs(params, tokens_BT, pos_BT, wanted_BT=None):
        params = _cast_embedding(params, cfg)
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


def make_packed_logprob_fn(
    cfg: ModelConfig, temperature: float, row_lengths: Sequence[int]
) -> Callable[[Any, Batch], jax.Array]:
    """Makes the jitted `f(params, batch of packed rows) -> logp [M, R, T]`.

    0 where the batch's `wanted` is 0.
    """
    names = ("tokens", "positions", "segment", "branch", "wanted", *LOOP)

    def logprobs(params, batch):
        params = _cast_embedding(params, cfg)

        def add_part(logp_MRT, m, part):
            logp_RT, _ = token_logprobs(
                params,
                cfg,
                part["tokens"],
                part["positions"],
                temperature,
                packed=packed_of(part),
                wanted_BT=part["wanted"],
            )
            return jax.lax.dynamic_update_slice(logp_MRT, logp_RT[None], (m, 0, 0))

        return fold_parts(add_part, jnp.zeros_like(batch["wanted"]), batch, row_lengths)

    function = jax.jit(logprobs)
    return lambda params, batch: function(params, {name: batch[name] for name in names})


def make_penalty_fn(
    loss_cfg: LossConfig, completion: int | None = None
) -> Callable[[Batch], jax.Array]:
    """Makes the jitted `f(batch of packed rows) -> kl_penalty [M, R, S]` of each completion.

    The batch is that of `rl_loss`.
    """
    names = ("tokens", "start", "length", "mask", "old_logp", "ref_logp")

    def of_part(part):
        arrays = {name: part.get(name) for name in ("old_logp", "ref_logp")}
        mask_BC, arrays = completions(part, arrays, completion)
        penalty_B = kl_penalty(arrays["old_logp"], arrays["ref_logp"], mask_BC, loss_cfg)
        return penalty_B.reshape(part["mask"].shape)

    function = jax.jit(lambda batch: jax.lax.map(of_part, batch))
    return lambda batch: function({name: batch[name] for name in names if name in batch})


def _cast_embedding(params, cfg):
    """Once, before a loop over parts; every use casts it so. A head of its own likewise."""
    tables = [name for name in ("embedding", "lm_head") if name in params]
    return params | {name: gather_width(params[name].astype(cfg.dtype)) for name in tables}


def _token_mean(x_BT, mask_BT, normalizer):
    return jnp.sum(x_BT * mask_BT) / jnp.maximum(normalizer.tokens, 1)
