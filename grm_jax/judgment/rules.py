"""Says whether a judgment is correct (Eq 10 of arXiv 2504.02495), and what follows from it.

That is the reward of RL, the acceptance of RFT and the label of the Meta RM.
`scores` are a sample's integers in record order, or None where the completion could not be parsed;
such a sample is always wrong (the "otherwise" branch of Eq 11). `rewards` are the record's gold
rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grm_jax.judgment.records import Record


class Acceptance(NamedTuple):
    """Says whether a trajectory enters the RFT training set, and why.

    reason: "accepted", "incorrect", "parse_failure:<reason>", "too_easy" or "hinted_too_easy".
    """

    accepted: bool
    reason: str


def score_range(n: int) -> tuple[int, int]:
    """Returns the (lowest, highest) score that prompt and parser agree on.

    1..10 for a list, 0..1 (wrong, right) for a single response.
    """
    return (0, 1) if n == 1 else (1, 10)


def best_index(rewards: Sequence[float]) -> int:
    """Returns the index of the single largest reward.

    Raises ValueError when several are largest: Eq 10 is undefined there.
    """
    best = max(rewards)
    if list(rewards).count(best) > 1:
        raise ValueError(f"expected exactly one largest reward, got {tuple(rewards)}")
    return list(rewards).index(best)


def is_correct(scores: Sequence[int] | None, rewards: Sequence[float]) -> bool:
    """Tells whether a judgment is right (Eq 10).

    n >= 2: the best response scores strictly above every other, whatever the order of the rest.
    n = 1: S_1 = r_1.
    """
    if scores is None:
        return False
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards")
    if len(rewards) == 1:
        return scores[0] == rewards[0]
    j = best_index(rewards)
    return all(scores[j] > score for i, score in enumerate(scores) if i != j)


def rule_reward(judgment: Mapping, record: Record) -> float:
    """Rewards a correct judgment with +1.0, any other with -1.0 (Eq 11, of online RL).

    There is no format reward. The judgment has been graded (`correct`), so the record is not looked
    at.
    """
    return 1.0 if judgment["correct"] else -1.0


REWARDS = {"rule": rule_reward}  # rl.reward: reward(judgment, record) -> float


def meta_label(scores: Sequence[int] | None, rewards: Sequence[float]) -> float:
    """Returns what the Meta RM is to say: 1.0 for a correct trajectory, else 0.0."""
    return 1.0 if is_correct(scores, rewards) else 0.0


def is_too_easy(correct: Sequence[bool]) -> bool:
    """Tells whether all unhinted samples of a record are correct: it then teaches RFT nothing."""
    return len(correct) > 0 and all(correct)


def accept_unhinted(
    correct: Sequence[bool], failures: Sequence[str | None], drop_too_easy: bool = True
) -> list[Acceptance]:
    """Rejects among the N_RFT unhinted samples of ONE record (paper, section 3.2).

    The wrong ones are dropped, and all of them when all are correct.
    `failures[i]` is the parse failure of sample i, or None. `drop_too_easy=False` keeps the correct
    samples of easy records.
    """
    if drop_too_easy and is_too_easy(correct):
        return [Acceptance(False, "too_easy")] * len(correct)
    return [_by_correctness(c, f) for c, f in zip(correct, failures, strict=True)]


def accept_hinted(
    correct: bool, failure: str | None, too_easy: bool, keep_hinted_of_too_easy: bool = False
) -> Acceptance:
    """Rejects a record's hinted sample when it is wrong.

    The paper leaves open whether a record that is too easy for the unhinted samples (`too_easy`)
    may still contribute its hinted one; the default says no, because such a record was judged right
    without help.
    """
    by_correctness = _by_correctness(correct, failure)
    if by_correctness.accepted and too_easy and not keep_hinted_of_too_easy:
        return Acceptance(False, "hinted_too_easy")
    return by_correctness


def _by_correctness(correct: bool, failure: str | None) -> Acceptance:
    if failure is not None:
        if correct:
            raise ValueError(f"a sample that failed to parse ({failure}) cannot be correct")
        return Acceptance(False, f"parse_failure:{failure}")
    return Acceptance(True, "accepted") if correct else Acceptance(False, "incorrect")
