"""Holds the settings of the stages that train."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from grm_jax.judgment.rules import REWARDS
from grm_jax.losses import ADVANTAGES, LOSSES, LossConfig, policy_loss
from grm_jax.settings import (
    ABOVE_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    Relation,
    Rule,
    SettingsError,
    check,
    find_problems,
    function_in,
    one_of,
)

FIT_RULES: dict[str, Rule] = {"learning_rate": ABOVE_ZERO, "batch_size micro_batch steps": POSITIVE}
ROW_MULTIPLE = 128  # tokens: what attention kernels cut rows into
WHOLE: Rule = ("a whole number >= 0", lambda x: x >= 0)
FIT_RELATIONS: list[Relation] = [
    (
        "batch_size micro_batch",
        "a multiple of micro_batch = {micro_batch}",
        lambda batch, micro_batch: batch % micro_batch == 0,
    )
]
LOSS_FIELDS = ("beta", "kl", "kl_in", "clip_low", "clip_high", "aggregation", "zero_variance")


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Says how long the rows are that training sequences are packed into (data/packing.py).

    rows: lengths that a row may have, as multiples of the longest prompt and completion together;
        the last holds that. A tuple of one compiles soonest, one of three leaves the least padding.
        1.0 is a sequence of that length; 1.7 a group of four with a prompt four times as long as
        a completion.
        (): nothing is packed; each sequence is a row, padded, and each prompt of a group is there
        for each rollout: the slow twin.

    A device holds one row at a time: its length is what memory limits.
    """

    rows: tuple[float, ...] = (1.0, 1.4, 1.7)

    def __post_init__(self):
        words = "growing multiples of the longest sequence, the last at least 1, or ()"
        check(self, {"rows": (words, lambda rows: _growing_to_one(rows))})

    def lengths(self, longest: int) -> tuple[int, ...]:
        """Returns the lengths in tokens, multiples of ROW_MULTIPLE; () where nothing is packed.

        longest: tokens of the longest prompt and completion together.
        """
        lengths = [
            max(1, math.ceil(round(times * longest, 6) / ROW_MULTIPLE)) for times in self.rows
        ]
        return tuple(sorted({ROW_MULTIPLE * length for length in lengths}))


def _growing_to_one(rows: tuple[float, ...]) -> bool:
    return not rows or (
        rows[0] > 0 and 1 <= rows[-1] <= 64 and all(a < b for a, b in zip(rows, rows[1:]))
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Says how a stage trains, whatever its loss.

    learning_rate: peak of the schedule.
    batch_size: sequences of one update.
    micro_batch: sequences on all devices at once, where nothing is packed; the gradients of
        batch_size / micro_batch of them add up. Packed rows have parts of their own, one row for
        each of replica x fsdp.
    steps: batches.
    """

    learning_rate: float
    batch_size: int
    micro_batch: int
    steps: int

    def __post_init__(self):
        check(self, FIT_RULES, FIT_RELATIONS)

    @property
    def updates(self) -> int:
        """Returns the optimizer updates of the whole stage."""
        return self.steps

    def check_shares(self, stage: str, shares: int) -> None:
        """Raises ValueError unless a mesh can split every micro-batch into so many shares."""
        if self.micro_batch % shares:
            raise ValueError(
                f"{stage}.micro_batch: expected a multiple of replica x fsdp = {shares}, over "
                f"which every micro-batch is split, got {self.micro_batch}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RlConfig(FitConfig):
    """Says how rule-based online RL trains (arXiv 2504.02495, 3.2).

    loss, advantage, reward: functions by name (`grm_jax.losses`, `judgment.rules.REWARDS`), or as
        package.module:function.
    loss_args: the loss's own settings, by keyword.
    beta, kl, kl_in, clip_low, clip_high, aggregation, zero_variance: see `LossConfig`.
    group_size: rollouts of one prompt. batch_size counts rollouts.
    temperature: of the rollouts, and of the policy's log-probabilities.
    old_logp: whose log-probabilities are those before the update, the "trainer"'s or the
        "sampler"'s, which takes one forward pass less.
    updates_per_rollout: optimizer updates on each batch of rollouts.
    max_lag: how many steps older than the policy they train the weights that draw rollouts may be:
        so many batches more are drawn in one queue with each that is due. 0: none.
    importance_sampling_correction: weigh the policy loss of each token by pi_old / pi_sampler, at
        most by importance_sampling_cap (`losses.policy.importance_weights`).
    consistency: None draws each prompt in one order of its responses. A number draws it in two, an
        order and its reverse, which are one group, and is what a right judgment gets for its share
        of right ones in the other order (`training.rollouts.consistency_rewards`); 0 gives
        nothing for it, and keeps the groups.
    steps: 0 leaves the stage out: the final model is that of RFT.
    drop_easy_prompts: leave out the prompts whose unhinted RFT samples are all correct.
    """

    group_size: int
    loss: str = "grpo"
    loss_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reward: str = "rule"
    advantage: str = "group"
    aggregation: str | None = None
    kl: str = "k3"
    kl_in: str = "loss"
    beta: float = 0.08
    clip_low: float | None = None
    clip_high: float | None = None
    zero_variance: str = "keep"
    old_logp: str = "trainer"
    updates_per_rollout: int = 1
    max_lag: int = 0
    consistency: float | None = None
    importance_sampling_correction: bool = False
    importance_sampling_cap: float = 2.0
    temperature: float = 1.0
    drop_easy_prompts: bool = True

    def __post_init__(self):
        problems = find_problems(
            self,
            FIT_RULES
            | {
                "steps": WHOLE,
                "group_size": ("an integer of at least 2", lambda x: x >= 2),
                "loss": function_in(LOSSES),
                "reward": function_in(REWARDS),
                "advantage": function_in(ADVANTAGES),
                "old_logp": one_of(("trainer", "sampler")),
                "updates_per_rollout": POSITIVE,
                "max_lag": WHOLE,
                "consistency": NOT_NEGATIVE,
                "importance_sampling_cap": ABOVE_ZERO,
                "temperature": ABOVE_ZERO,
            },
            [
                *FIT_RELATIONS,
                (
                    "batch_size group_size",
                    "a multiple of group_size = {group_size}, as it counts rollouts",
                    lambda batch, group: batch % group == 0,
                ),
                (
                    "batch_size consistency group_size",
                    "a multiple of 2 x group_size = 2 x {group_size}, as consistency draws each "
                    "prompt in two orders",
                    lambda batch, term, group: term is None or batch % (2 * group) == 0,
                ),
                (
                    "old_logp importance_sampling_correction",
                    "'trainer', whose log-probabilities importance_sampling_correction compares "
                    "with the sampler's",
                    lambda old, corrected: old == "trainer" or not corrected,
                ),
                ("loss_args loss", "", lambda args, loss: bool(policy_loss(loss, args))),
            ],
        )
        # what the loss reads is checked by its own settings, where it has the right type
        wrong = {problem.split(":")[0] for problem in problems}
        try:
            LossConfig(**{name: getattr(self, name) for name in LOSS_FIELDS if name not in wrong})
        except ValueError as error:
            problems += str(error).splitlines()
        if problems:
            raise SettingsError(type(self).__name__, problems)

    @property
    def updates(self) -> int:
        """Returns the optimizer updates of the whole stage."""
        return self.steps * self.updates_per_rollout

    @property
    def orders(self) -> int:
        """Returns in how many orders of its responses a record is drawn in one step."""
        return 1 if self.consistency is None else 2

    def loss_config(self, max_length: int | None = None) -> LossConfig:
        """Returns the settings that the loss shares with the KL penalty and the mask.

        max_length: tokens of the longest completion.
        """
        fields = {name: getattr(self, name) for name in LOSS_FIELDS}
        cap = self.importance_sampling_cap if self.importance_sampling_correction else None
        return LossConfig(max_length=max_length, importance_sampling_cap=cap, **fields)
