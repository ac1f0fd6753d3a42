"""Turns a batch of rollouts into arrays, rewards and metrics, in NumPy.

The train step adds further metrics: loss, entropy, kl, clip_ratio/*, ratio_*, grad_norm.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from grm_jax.data.packing import Rows, Text, pack
from grm_jax.data.pipeline import bucket_length
from grm_jax.judgment.records import Record
from grm_jax.losses import LossConfig, kl_penalty
from grm_jax.models.config import ModelConfig
from grm_jax.parallel.mesh import place_batch, shares
from grm_jax.parallel.processes import to_host
from grm_jax.training.step import Batch, make_logprob_fn, make_packed_logprob_fn, make_penalty_fn

LARGEST = float(np.finfo(np.float32).max)  # the losses compute in fp32


class Laid(NamedTuple):
    """Holds a batch of B rollouts in rows, without rewards.

    batch: the arrays of `training.step.rl_loss` on the devices, but for advantages and ref_logp.
    sampled: of which token the sampler chose, by name in the batch.
    of_rollouts: {name: value of each rollout [B]} -> the same on the devices, laid as the batch is;
        the mask of the batch times "mask".
    to_rollouts: values of each rollout, laid as `penalty` gives them -> [B] on the host.
    positions: of all rows on the host, -1 in padding.
    computed: tokens of the rows that are run.
    """

    batch: dict[str, jax.Array]
    sampled: str
    of_rollouts: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]
    to_rollouts: Callable[[jax.Array], np.ndarray]
    positions: np.ndarray
    computed: int


class Batching(NamedTuple):
    """Says how rollouts become batches: in packed rows, or each as a padded row of its own.

    lay: (prompts_B, completions_B, logps_B, group_size) -> Laid.
    logprobs: (params, batch) -> the log-probability of each sampled token, as old_logp lies.
    penalty: batch -> `losses.kl_penalty` of each rollout, for `Laid.to_rollouts`.
    """

    lay: Callable[..., Laid]
    logprobs: Callable[[Any, Batch], jax.Array]
    penalty: Callable[[Batch], jax.Array]


def packed_batching(
    model_cfg: ModelConfig,
    mesh: Mesh,
    loss_cfg: LossConfig,
    temperature: float,
    completion: int,
    row_lengths: Sequence[int],
) -> Batching:
    """Lays rollouts into packed rows, the prompt of a group once.

    completion: tokens of the longest one.
    row_lengths: see `data.packing.pack`.
    """
    place = functools.partial(place_batch, mesh, axis=1)

    def lay(prompts_B, completions_B, logps_B, group_size):
        groups_B = [b // group_size for b in range(len(prompts_B))]
        rows, batch = packed_rollouts(
            prompts_B, completions_B, logps_B, groups_B, row_lengths, shares(mesh)
        )
        return Laid(
            place(batch),
            "wanted",
            lambda values: place({name: rows.in_slots(x_B) for name, x_B in values.items()}),
            lambda values: rows.of_units(to_host(values)),
            rows.positions,
            rows.computed,
        )

    return Batching(
        lay,
        make_packed_logprob_fn(model_cfg, temperature, row_lengths),
        make_penalty_fn(loss_cfg, completion),
    )


def padded_batching(
    model_cfg: ModelConfig,
    mesh: Mesh,
    loss_cfg: LossConfig,
    temperature: float,
    buckets: Sequence[int],
    micro_batches: int,
) -> Batching:
    """Lays each rollout into a row of its own, padded to one of `buckets`: the slow twin.

    micro_batches: parts of the batch, one after the other.
    """
    place = functools.partial(place_batch, mesh)
    of_rows = make_logprob_fn(model_cfg, temperature, micro_batches)

    def lay(prompts_B, completions_B, logps_B, group_size):
        batch = rollout_batch(prompts_B, completions_B, logps_B, buckets)

        def of_rollouts(values):
            masks = {"mask": batch["mask"] * values["mask"][:, None]} if "mask" in values else {}
            return place({**values, **masks})

        pos_BT = batch["positions"]
        return Laid(place(batch), "mask", of_rollouts, to_host, pos_BT, pos_BT.size)

    return Batching(
        lay,
        lambda params, batch: of_rows(params, batch["tokens"], batch["positions"], batch["mask"]),
        lambda batch: kl_penalty(batch["old_logp"], batch.get("ref_logp"), batch["mask"], loss_cfg),
    )


def rollout_batch(
    prompts_B: Sequence[Sequence[int]],
    completions_B: Sequence[Sequence[int]],
    logps_B: Sequence[Sequence[float]],
    buckets: Sequence[int],
) -> dict[str, np.ndarray]:
    """Lays B rollouts side by side, right-padded to the narrowest of `buckets` that holds them all.

    prompts_B, completions_B: token ids, the stop token included.
    logps_B: of the completion's tokens, under the policy that sampled them.

    Returns tokens, positions int32[B, T] (position -1 in padding), mask fp32[B, T], 1 on completion
    tokens, and old_logp fp32[B, T], 0 elsewhere.
    """
    lengths = [len(prompt) + len(rest) for prompt, rest in zip(prompts_B, completions_B)]
    shape = (len(lengths), bucket_length(max(lengths), buckets))
    tokens, positions = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    mask, old_logp = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for b, (prompt, completion, logp) in enumerate(
        zip(prompts_B, completions_B, logps_B, strict=True)
    ):
        start, end = len(prompt), lengths[b]
        tokens[b, :start], tokens[b, start:end] = prompt, completion
        positions[b, :end] = np.arange(end)
        mask[b, start:end], old_logp[b, start:end] = 1.0, logp
    return {"tokens": tokens, "positions": positions, "mask": mask, "old_logp": old_logp}


def packed_rollouts(
    prompts_B: Sequence[Sequence[int]],
    completions_B: Sequence[Sequence[int]],
    logps_B: Sequence[Sequence[float]],
    groups_B: Sequence[int],
    lengths: Sequence[int],
    rows: int,
) -> tuple[Rows, dict[str, Any]]:
    """Packs B rollouts into rows, the prompt of a group once; `rollout_batch` is its slow twin.

    groups_B: the number of each rollout's group, whose prompts are equal.
    lengths, rows: see `data.packing.pack`.

    Returns where they are, and the batch: what attention and the loop over parts read
    (`Rows.arrays`); wanted fp32[M, R, T], 1 on completion tokens, and old_logp fp32[M, R, T], 0
    elsewhere; start, length int32[M, R, S] of each completion in its row; mask fp32[M, R, S], 1 in
    the slots of rollouts.
    """
    units = [
        (Text(np.array([*prompt, *completion]), len(prompt)),)
        for prompt, completion in zip(prompts_B, completions_B, strict=True)
    ]
    laid = pack(units, groups_B, lengths, rows)
    first_B = [len(prompt) for prompt in prompts_B]
    length_B = [len(completion) for completion in completions_B]
    return laid, laid.arrays() | {
        "wanted": laid.at_tokens(first_B, [np.ones(n, np.float32) for n in length_B]),
        "old_logp": laid.at_tokens(first_B, [np.asarray(logp) for logp in logps_B]),
        "start": laid.in_slots((laid.offset_UN[:, 0] + np.array(first_B)).astype(np.int32)),
        "length": laid.in_slots(np.array(length_B, np.int32)),
        "mask": laid.in_slots(np.ones(len(units), np.float32)),
    }


def rewards_of(
    reward: Callable[[Mapping, Record], float],
    judgments_B: Sequence[Mapping],
    records_B: Sequence[Record],
) -> list[float]:
    """Rewards each judgment of its record.

    Raises ValueError, naming the record, where the reward is no finite number (of float32).
    """
    rewards = []
    for judgment, record in zip(judgments_B, records_B, strict=True):
        value = reward(judgment, record)
        try:
            rewards.append(float(value))
        except (TypeError, ValueError):
            rewards.append(math.nan)
        if not abs(rewards[-1]) <= LARGEST:
            raise ValueError(
                f"record {record.id!r}, sample {judgment['sample']}: the reward is {value!r}; "
                "expected a finite number"
            )
    return rewards


def consistency_rewards(judgments_B: Sequence[Mapping], group_size: int) -> list[float]:
    """Gives each right judgment the share of right ones among those of the other order, 0 to 1.

    judgments_B: with order and correct (Eq 10). Rows come in pairs of groups, the G of an order of
        the responses and the G of its reverse. Wrong judgments get 0, also where both orders agree
        on what is wrong (J1, arXiv 2505.10320: a pair counts where both orders are right). So do
        judgments of a single response, which has one order.

    The other order is judged by G samples, so its share is an estimate of how often it is right;
    J1 looks at one.
    """
    G, shares = group_size, []
    for start in range(0, len(judgments_B), 2 * G):
        pair = judgments_B[start : start + G], judgments_B[start + G : start + 2 * G]
        for own, other in (pair, pair[::-1]):
            share = sum(judgment["correct"] for judgment in other) / G
            lists = len(own[0]["order"]) > 1
            shares += [share if judgment["correct"] and lists else 0.0 for judgment in own]
    return shares


def rollout_metrics(
    judgments_B: Sequence[Mapping], prompt_tokens_B: Sequence[int], group_size: int
) -> dict[str, float]:
    """Describes B = prompts * group_size rollouts; rows i*G to i*G + G - 1 belong to prompt i.

    Args:
      judgments_B: with tokens (of the completion, the stop token included), finish ("length" where
        it hit its limit), reward, correct (Eq 10), scores or None, and failure, the reason where
        scores are None.
      prompt_tokens_B: lengths in tokens.

    Returns, where their denominator is not zero:
      num_tokens: prompt and completion tokens of the batch.
      completions/{mean, min, max}_length: of completions, in tokens.
      completions/{mean, min, max}_terminated_length: of completions that ended by themselves.
      completions/clipped_ratio: the truncated share.
      reward/mean, reward/std: over the batch; std is that of a population.
      reward/group_std: mean over groups.
      frac_reward_zero_std: share of groups whose rewards are all equal.
      correct@1: share of correct completions.
      oracle@G: share of prompts with a correct one.
      parse_failure_rate, parse_failure/<reason>: shares of all completions, of the reasons that
        occur.
      tie_rate: share of the judged lists (n >= 2) whose highest score is shared.
      score_share/<s>: share of score s in the scores of judged lists, of each criterion where they
        are judged by a rubric.

    Raises ValueError if the lengths differ or B is no multiple of group_size.
    """
    B = len(judgments_B)
    if B == 0 or B % group_size or len(prompt_tokens_B) != B:
        raise ValueError(
            f"expected judgments and prompts of one number, a multiple of {group_size}; got {B} "
            f"and {len(prompt_tokens_B)}"
        )
    rewards_B, correct_B, scores_B, failures_B = (
        [judgment[name] for judgment in judgments_B]
        for name in ("reward", "correct", "scores", "failure")
    )
    lengths_B = np.array([judgment["tokens"] for judgment in judgments_B])
    truncated_B = np.array([judgment["finish"] == "length" for judgment in judgments_B])
    rewards_NG = np.asarray(rewards_B, np.float64).reshape(-1, group_size)
    correct_NG = np.asarray(correct_B, bool).reshape(-1, group_size)
    lists = [scores for scores in scores_B if scores is not None and len(scores) > 1]
    # by a rubric these are the scores of its criteria, whose means are no whole numbers
    written = [
        scores
        for judgment in judgments_B
        if judgment["scores"] is not None and len(judgment["scores"]) > 1
        for scores in judgment.get("criteria") or [judgment["scores"]]
    ]
    score_counts = Counter(score for scores in written for score in scores)
    failure_counts = Counter(reason for reason in failures_B if reason is not None)
    metrics = {
        "num_tokens": np.sum(prompt_tokens_B) + lengths_B.sum(),
        **_spread(lengths_B, "length"),
        **_spread(lengths_B[~truncated_B], "terminated_length"),
        "completions/clipped_ratio": truncated_B.mean(),
        "reward/mean": rewards_NG.mean(),
        "reward/std": rewards_NG.std(),
        "reward/group_std": rewards_NG.std(axis=1).mean(),
        "frac_reward_zero_std": (rewards_NG.max(axis=1) == rewards_NG.min(axis=1)).mean(),
        "correct@1": correct_NG.mean(),
        f"oracle@{group_size}": correct_NG.any(axis=1).mean(),
        "parse_failure_rate": failure_counts.total() / B,
        **{f"parse_failure/{reason}": n / B for reason, n in sorted(failure_counts.items())},
        **{
            f"score_share/{score}": n / score_counts.total()
            for score, n in sorted(score_counts.items())
        },
    }
    if lists:
        metrics["tie_rate"] = np.mean([list(scores).count(max(scores)) > 1 for scores in lists])
    return {name: float(value) for name, value in metrics.items()}


def sampler_gap(
    sampler_logp_BT: np.ndarray, trainer_logp_BT: np.ndarray, mask_BT: np.ndarray
) -> dict[str, float]:
    """Measures how far the trainer's log-probabilities are from the sampler's, where mask is 1.

    Nothing is clamped. Empty where no token has mask 1.

    sampling/logp_difference/{mean, max}: of |trainer - sampler|.
    sampling/importance_ratio/{min, mean, max}: of exp(trainer - sampler).
    sampling/token_mult_prob_error: mean of exp |trainer - sampler|; 1.0 if both agree.
    """
    inside_BT = to_host(mask_BT) > 0
    difference = (
        to_host(trainer_logp_BT).astype(np.float64)[inside_BT]
        - to_host(sampler_logp_BT).astype(np.float64)[inside_BT]
    )
    if not difference.size:
        return {}
    gap, ratio = np.abs(difference), np.exp(difference)
    return {
        "sampling/logp_difference/mean": float(gap.mean()),
        "sampling/logp_difference/max": float(gap.max()),
        "sampling/importance_ratio/min": float(ratio.min()),
        "sampling/importance_ratio/mean": float(ratio.mean()),
        "sampling/importance_ratio/max": float(ratio.max()),
        "sampling/token_mult_prob_error": float(np.exp(gap).mean()),
    }


def _spread(lengths, name):
    if not len(lengths):
        return {}
    return {
        f"completions/{kind}_{name}": value
        for kind, value in (
            ("mean", lengths.mean()),
            ("min", lengths.min()),
            ("max", lengths.max()),
        )
    }
