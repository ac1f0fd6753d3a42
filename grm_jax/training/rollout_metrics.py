"""What a batch of rollouts looks like, in NumPy. The train step adds the rest: entropy, kl,
clip_ratio/*, ratio_*, grad_norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from grm_jax.parallel.processes import to_host


def rollout_metrics(
    group_size: int,
    prompt_tokens_B: Sequence[int],
    completion_tokens_B: Sequence[int],
    truncated_B: Sequence[bool],
    rewards_B: Sequence[float],
    correct_B: Sequence[bool],
    scores_B: Sequence[Sequence[int] | None],
    failures_B: Sequence[str | None],
) -> dict[str, float]:
    """Metrics of B = prompts * group_size completions; rows i*G to i*G + G - 1 belong to prompt i.

    Args:
      prompt_tokens_B, completion_tokens_B: lengths in tokens, the stop token included.
      truncated_B: the completion hit its length limit.
      rewards_B: of the rule, +1 or -1. correct_B: Eq 10.
      scores_B: parsed scores, or None. failures_B: the reason where scores are None, else None.

    Returns, where their denominator is not zero:
      num_tokens: prompt and completion tokens of the batch.
      completions/{mean, min, max}_length, the same of completions that ended by themselves as
      .../*_terminated_length, and completions/clipped_ratio, the truncated share.
      reward/mean, reward/std (population, over the batch), reward/group_std (mean over groups),
      frac_reward_zero_std: share of groups whose rewards are all equal.
      correct@1: share of correct completions. oracle@G: share of prompts with a correct one.
      parse_failure_rate, and parse_failure/<reason> for those that occur: shares of all
      completions. tie_rate: share of the judged lists (n >= 2) whose highest score is shared.
      score_share/<s>: share of score s in the scores of judged lists.
    Raises ValueError if a length differs from B or B is no multiple of group_size.
    """
    B = len(rewards_B)
    columns = (prompt_tokens_B, completion_tokens_B, truncated_B, correct_B, scores_B, failures_B)
    if B == 0 or B % group_size or any(len(column) != B for column in columns):
        raise ValueError(
            f"expected 7 columns of one length, a multiple of {group_size}; got {B} and "
            f"{[len(c) for c in columns]}"
        )
    lengths_B, truncated_B = np.asarray(completion_tokens_B), np.asarray(truncated_B, bool)
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
    """How far the trainer's log-probabilities of sampled tokens are from the sampler's, over tokens
    with mask 1, nothing clamped.

    sampling/logp_difference/{mean, max}: of |trainer - sampler|. sampling/importance_ratio/{min,
        mean, max}: of exp(trainer - sampler).
    sampling/token_mult_prob_error: mean of exp |trainer - sampler|; 1.0 if both agree. Empty where
        no token has mask 1.
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
