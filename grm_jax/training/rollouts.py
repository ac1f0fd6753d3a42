"""Turns a batch of rollouts into arrays, rewards and metrics, in NumPy.

The train step adds further metrics: loss, entropy, kl, clip_ratio/*, ratio_*, grad_norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grm_jax.data.pipeline import bucket_length
from grm_jax.judgment.records import Record
from grm_jax.parallel.processes import to_host

LARGEST = float(np.finfo(np.float32).max)  # the losses compute in fp32


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
      parse_failure_rate, and parse_failure/<reason> for those that occur: shares of all
        completions.
      tie_rate: share of the judged lists (n >= 2) whose highest score is shared.
      score_share/<s>: share of score s in the scores of judged lists.

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
    score_counts = Counter(score for scores in lists for score in scores)
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
