"""Turns rewards into advantages: one number per sequence, the same for all of its tokens.

Rows are ordered by group: rows p*G ... p*G + G - 1 are the G rollouts of prompt p. Call these
functions on the global batch, before it is cut into micro-batches, and with real rows only (no
padding rows).

Every estimator has the signature `f(rewards_B, group_size, penalty_B=0.0) -> advantages_B`.
`penalty_B` is the KL penalty of `kl.kl_penalty` where `LossConfig.kl_in` is "reward", else zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grm_jax.losses.config import LossConfig

EPSILON = 1e-6


def group(rewards_B: jax.Array, group_size: int, penalty_B: jax.Array | float = 0.0) -> jax.Array:
    """Scales rewards by the mean and spread of their group (GRPO, arXiv 2402.03300; SPCT Eq 15).

        A = (r - mean_G r) / (std_G r + 1e-6), population std

    A group whose rewards are all equal gets zero; this is decided by max == min of the rewards, not
    by a rounded std. The penalty is centered in its group and subtracted after the division:
    dividing it would blow up its noise in groups with equal rewards.
    """
    r_PG = _by_group(rewards_B, group_size)
    centered_PG = r_PG - r_PG.mean(axis=1, keepdims=True)
    scaled_PG = centered_PG / (r_PG.std(axis=1, keepdims=True) + EPSILON)
    advantages_B = jnp.where(zero_variance(rewards_B, group_size), 0.0, scaled_PG.reshape(-1))
    penalty_PG = _by_group(jnp.broadcast_to(penalty_B, rewards_B.shape), group_size)
    return advantages_B - (penalty_PG - penalty_PG.mean(axis=1, keepdims=True)).reshape(-1)


def group_no_std(
    rewards_B: jax.Array, group_size: int, penalty_B: jax.Array | float = 0.0
) -> jax.Array:
    """Subtracts the mean of the group (Dr. GRPO, arXiv 2503.20783).

        A = x - mean_G x with x = r - penalty

    Nothing is divided by the std, so easy and hard prompts weigh as they are.
    """
    x_PG = _by_group(rewards_B - penalty_B, group_size)
    return (x_PG - x_PG.mean(axis=1, keepdims=True)).reshape(-1)


def rloo(rewards_B: jax.Array, group_size: int, penalty_B: jax.Array | float = 0.0) -> jax.Array:
    """Subtracts the mean of the others in the group (RLOO, arXiv 2402.14740).

        A_i = x_i - mean_{j != i} x_j with x = r - penalty

    The baseline is independent of sample i.
    """
    x_PG = _by_group(rewards_B - penalty_B, group_size)
    others_PG = (x_PG.sum(axis=1, keepdims=True) - x_PG) / (group_size - 1)
    return (x_PG - others_PG).reshape(-1)


def reinforce_pp(
    rewards_B: jax.Array, group_size: int, penalty_B: jax.Array | float = 0.0
) -> jax.Array:
    """Scales rewards by the mean and spread of the batch (REINFORCE++, arXiv 2501.03262).

        A = (x - mean_B x) / (std_B x + 1e-6) with x = r - penalty, over the global batch

    `group_size` has no part in it. The paper spreads the penalty over the tokens as returns-to-go;
    here the sequence carries its sum. A batch whose x are all equal gets zero.
    """
    del group_size
    x_B = jnp.asarray(rewards_B - penalty_B)
    return jnp.where(x_B.max() == x_B.min(), 0.0, (x_B - x_B.mean()) / (x_B.std() + EPSILON))


ADVANTAGES = {
    "group": group,
    "group_no_std": group_no_std,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
}


def zero_variance(rewards_B: jax.Array, group_size: int) -> jax.Array:
    """Marks the rows of groups whose rewards are all equal (all right or all wrong), bool[B].

    Its mean is the share to log.
    """
    r_PG = _by_group(rewards_B, group_size)
    return jnp.repeat(
        r_PG.max(axis=1) == r_PG.min(axis=1), group_size, total_repeat_length=rewards_B.shape[0]
    )


def objective_mask(
    mask_BC: jax.Array, rewards_B: jax.Array, group_size: int, cfg: LossConfig
) -> jax.Array:
    """Returns the mask [B, C] of the tokens that count in the objective.

    Use it for the loss and for the normalizer alike. `cfg.zero_variance` says what it does with
    groups whose rewards are all equal:

    "keep": the mask as it is; such groups have no policy gradient, but the KL acts on them and they
        count in the normalizer (the plain objective).
    "drop": their rows become 0, so neither holds.
    """
    if cfg.zero_variance == "keep":
        return mask_BC
    return jnp.where(zero_variance(rewards_B, group_size)[:, None], 0, mask_BC)


def _by_group(x_B, group_size):
    x_B = jnp.asarray(x_B)
    if group_size < 2 or x_B.shape[0] % group_size:
        raise ValueError(
            f"group_size: expected at least 2 and a divisor of the batch of {x_B.shape[0]} "
            f"sequences, got {group_size}"
        )
    return x_B.reshape(-1, group_size)
