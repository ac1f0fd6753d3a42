"""Trains a little, checkpoints every step, and goes on from where it was.

    python -m tests.checkpoint.save_loop FOLDER STEPS

Tests kill it.
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax

from grm_jax.checkpoint.state import checksum, open_checkpoints, restore_latest, save
from grm_jax.training.state import abstract_state, init_state
from grm_jax.training.step import make_train_step

SIZE = 1_000_000
DIGEST = f"size {SIZE}"
OPTIMIZER = optax.adamw(1e-2)


def loss_fn(params, batch):
    loss = jnp.mean(jnp.square(params["w"] - batch["x"])) + jnp.mean(
        jnp.abs(params["b"] - batch["x"][0, 0])
    )
    return loss, {"loss": loss}


def run(folder, steps):
    """Returns the final (state, checksum).

    The data come from a NumPy generator whose state is in the checkpoint.
    """
    rng, params = np.random.default_rng(0), {"w": jnp.zeros(SIZE), "b": jnp.ones((3, 5))}
    manager = open_checkpoints(folder, keep=2)
    restored = restore_latest(manager, abstract_state(params, OPTIMIZER), DIGEST)
    if restored is None:
        state = init_state(params, OPTIMIZER)
    else:
        state, extra = restored
        rng.bit_generator.state = extra["data"]
    step_fn = make_train_step(loss_fn, OPTIMIZER)
    print("first step", int(state.step), flush=True)
    for step in range(int(state.step) + 1, steps + 1):
        batch = {"x": rng.normal(size=(1, SIZE)).astype(np.float32), "mask": np.ones(1, np.float32)}
        state, _ = step_fn(state, batch)
        save(manager, step, state, {"stage": "test", "data": rng.bit_generator.state}, DIGEST)
    manager.close()
    return state, checksum(state)


if __name__ == "__main__":
    print("checksum", run(sys.argv[1], int(sys.argv[2]))[1], flush=True)
