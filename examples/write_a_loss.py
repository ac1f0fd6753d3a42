"""python -m examples.write_a_loss: a policy loss of your own, tried without a model.

A run takes it by name, with its setting:

    python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/tilted \\
        --config.rl.loss=examples.write_a_loss:tilted --config.rl.loss_args.down=0.5
"""

import jax
import jax.numpy as jnp

from grm_jax.losses import LOSSES, LossConfig, LossInputs, count
from grm_jax.losses.policy import clipped_surrogate, masked_log_ratio, objective


def tilted(inputs, cfg, down=1.0):
    """GRPO in which a judgment of negative advantage counts `down` times."""
    ratio_BC = jnp.exp(masked_log_ratio(inputs))
    surrogate_BC, clip = clipped_surrogate(ratio_BC, inputs, cfg, low=0.2, high=0.2)
    weight_B1 = jnp.where(inputs.advantages[:, None] < 0, down, 1.0)
    loss, metrics = objective(-weight_B1 * surrogate_BC, inputs, cfg, "sequence_mean")
    return loss, metrics | clip


def main():
    rows, width = 8, 5  # B sequences of C tokens
    logp_BC = -jax.random.exponential(jax.random.key(0), (rows, width))
    mask_BC = (jnp.arange(width) < jnp.array([5, 1, 3, 2, 4, 5, 1, 2])[:, None]) * 1.0
    advantages_B = jnp.array([1.0, -1.0] * 4)
    inputs = LossInputs(logp_BC + 0.1, logp_BC, logp_BC - 0.1, None, advantages_B, mask_BC)
    cfg = LossConfig(beta=0.02)

    assert tilted(inputs, cfg)[0] == LOSSES["grpo"](inputs, cfg)[0]  # down = 1 is GRPO
    for down in (1.0, 0.5, 0.0):
        loss, metrics = tilted(inputs, cfg, down)
        print(f"down {down}: loss {loss:.4f}, of it KL {metrics['kl_loss']:.4f}")

    # What a loss must keep to: in two halves of the batch it is the same, because it divides by the
    # counts of the whole.
    cfg = cfg.replace(normalizer=count(mask_BC))
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 4], inputs) for i in (0, 4)]
    in_parts = sum(tilted(half, cfg, 0.5)[0] for half in halves)
    print(f"in two halves: {in_parts:.4f}, whole: {tilted(inputs, cfg, 0.5)[0]:.4f}")
    assert jnp.allclose(in_parts, tilted(inputs, cfg, 0.5)[0], rtol=1e-5)


if __name__ == "__main__":
    main()
