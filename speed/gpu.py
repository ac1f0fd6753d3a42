"""Measures one accelerator: MFU of training steps, and decoding against its copy bandwidth.

    python -m speed.gpu [--shape=2b|tiny] [--length=4096] [--rows=1] [--attention=auto]

Random weights, bfloat16 compute, float32 master weights and AdamW. Prints lines of JSON:

    gpu copy    bytes a second of x + 1 over 1 GiB, read and written
    gpu rft     a step on `rows` sequences of `length` tokens, loss on all
    gpu rl      a step on `rows` packed rows of `length` tokens: a prompt of half of it and four
                completions that share the rest; loss on completions
    gpu decode  seconds of a decode step of 8 and of 32 rows upon one prompt of 512 tokens, from
                two runs of which one draws twice as many tokens

mfu: model FLOPs (`grm_jax.models.flops`, no recomputation) over seconds and the chip's peak.
of_copy_bandwidth: bytes that a decode step must read (weights once, the prompt's keys and values
once, each row's own) over its seconds and the copy bandwidth of this run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from grm_jax.compile_cache import enable_compile_cache
from grm_jax.losses import LossConfig, policy_loss
from grm_jax.models import flops as model_flops
from grm_jax.models.config import GEMMA2_2B, LOCAL, Numerics, from_sizes
from grm_jax.models.decoder import cast_weights, init_params
from grm_jax.parallel.hardware import peak_flops
from grm_jax.parallel.mesh import make_mesh, place_batch
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig, sample_key
from grm_jax.training.loop import make_step
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.rollouts import packed_batching
from grm_jax.training.settings import FitConfig
from grm_jax.training.state import init_state
from grm_jax.training.step import rft_loss, rl_loss
from speed import turns, work

SHAPE = flags.DEFINE_enum("shape", "2b", ["2b", "tiny"], "Gemma-2 2B, or one that a CPU runs.")
LENGTH = flags.DEFINE_integer("length", 4096, "Tokens of a row.")
ROWS = flags.DEFINE_integer("rows", 1, "Rows of a step.")
ATTENTION = flags.DEFINE_string("attention", "auto", "As model.attention.")
REMAT = flags.DEFINE_enum("remat", "full", ["none", "full", "dots"], "As model.remat.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed calls.")
COPIED = flags.DEFINE_integer("copied_mib", 1024, "Size of the array that is copied.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens of the shorter decoding.")
PROMPT, GROUP = 512, 4


def config(dtype_numerics):
    if SHAPE.value == "2b":
        import dataclasses

        return dataclasses.replace(GEMMA2_2B, **dtype_numerics)
    sizes = dict(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128)
    return from_sizes(sizes, 512, **dtype_numerics)


def usual(call) -> float:
    """Returns the median of the rounds behind a first call."""
    return turns.spread(turns.measure(call, ROUNDS.value)[1])["median"]


def copy_bandwidth() -> float:
    """Returns bytes read and written a second."""
    x = jnp.zeros((COPIED.value, 2**20), jnp.uint8)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call():
        nonlocal x
        x = jax.block_until_ready(add(x))

    return 2 * x.nbytes / usual(call)


def train(task, cfg, mesh, params) -> tuple[float, float, int]:
    """Returns seconds of a step, its model FLOPs, and the tokens that it computes."""
    B, T = ROWS.value, LENGTH.value
    rng = np.random.default_rng(0)
    loss_cfg = LossConfig(beta=0.0)
    if task == "rft":
        tokens_BT = rng.integers(work.SMALLEST_ID, cfg.vocab_size, (B, T)).astype(np.int32)
        pos_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
        batch = {"tokens": tokens_BT, "positions": pos_BT, "mask": np.ones((B, T), np.float32)}
        loss, lengths, batch = rft_loss(cfg), (), place_batch(mesh, batch)
        computed, count = B * T, 3 * B * model_flops.forward_flops(cfg, T, logits=T)
    else:
        # each completion also repeats the prompt's last token
        prompt, completion = T // 2, (T // 2 + 1) // GROUP - 1
        rows = [{"prompt": prompt, "completion": completion}]
        made = work.groups(rows, B, GROUP, cfg.vocab_size)
        pairs = [(front, rest) for front, rests in made for rest in rests]
        batching = packed_batching(cfg, mesh, loss_cfg, 1.0, completion, (T,))
        prompts, rests = zip(*pairs)
        laid = batching.lay(prompts, rests, [np.zeros(len(rest)) for rest in rests], GROUP)
        values = {
            "advantages": work.advantages(len(pairs), GROUP),
            "mask": np.ones(len(pairs), np.float32),
        }
        batch, computed = laid.batch | laid.of_rollouts(values), laid.computed
        loss, lengths = rl_loss(cfg, policy_loss("grpo", {}), loss_cfg, 1.0, completion), (T,)
        logits = sum(map(len, rests))
        count = 3 * model_flops.token_flops(cfg, laid.positions, logits)
        batch["old_logp"] = batching.logprobs(params, batch)
    settings = FitConfig(learning_rate=1e-6, batch_size=B, micro_batch=1, steps=10**6)
    step, _, optimizer, placed = make_step(
        mesh, OptimizerConfig(), params, loss, settings, settings.updates, lengths
    )
    state = init_state(params, optimizer, jax.tree.map(lambda leaf: leaf.sharding, placed))

    def call():
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)

    seconds = usual(call)
    jax.tree.map(lambda x: x.delete(), state)
    return seconds, count, computed


def decode(cfg, params, rows) -> tuple[float, float]:
    """Returns seconds of a decode step, and the bytes that it must read."""
    ids_1T = np.array([work.prompt(PROMPT, cfg.vocab_size)], np.int32)
    keys = np.array([[sample_key(0, "0", j) for j in range(rows)]])
    seconds = []
    for new_tokens in (NEW_TOKENS.value, 2 * NEW_TOKENS.value):
        sampler = make_sampler(cfg, SamplingConfig(new_tokens, temperature=1.0))
        arguments = params, ids_1T, np.array([PROMPT], np.int32), keys
        seconds.append(usual(lambda s=sampler, a=arguments: jax.block_until_ready(s(*a))))
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    middle = 3 * NEW_TOKENS.value / 2  # own tokens of a row, on average over the difference
    a_key = 2 * cfg.n_kv_heads * cfg.head_dim * jnp.dtype(cfg.dtype).itemsize
    seen = 0.0
    for layer_type in cfg.layer_types:
        window = cfg.sliding_window if layer_type == LOCAL else float("inf")
        seen += min(PROMPT, window) + rows * min(middle, window)
    return (seconds[1] - seconds[0]) / NEW_TOKENS.value, weights + a_key * seen


def main(_):
    enable_compile_cache()
    device = jax.devices()[0]
    numerics = Numerics("bfloat16", True, REMAT.value, ATTENTION.value).resolve(device.platform)
    cfg, mesh = config(numerics), make_mesh(devices=[device])
    params = jax.jit(functools.partial(init_params, cfg))(jax.random.key(0))
    peak = peak_flops([device], cfg.dtype)
    line = {"contender": "grm_jax", "device": device.device_kind, "attention": cfg.attention}
    copied = copy_bandwidth()
    size = f"{COPIED.value} MiB"
    seconds = 2 * COPIED.value * 2**20 / copied
    said = {"case": "gpu copy", "shape": size, "seconds": seconds, "bytes_per_s": copied}
    turns.write(line | said)
    narrow = jax.jit(functools.partial(cast_weights, cfg=cfg))(params)
    for rows in (8, 32):
        seconds, needed = decode(cfg, narrow, rows)
        said = {"case": "gpu decode", "shape": f"{SHAPE.value}, {rows} rows", "seconds": seconds}
        share = needed / seconds / copied if seconds > 0 else None
        turns.write(line | said | {"bytes_needed": needed, "of_copy_bandwidth": share})
    del narrow
    for task in ("rft", "rl"):
        seconds, count, computed = train(task, cfg, mesh, params)
        shape = f"{SHAPE.value}, {ROWS.value} x {LENGTH.value}"
        said = {"case": f"gpu {task}", "shape": shape, "seconds": seconds, "flops": count}
        mfu = None if peak is None else count / seconds / peak
        turns.write(line | said | {"mfu": mfu, "computed_tokens": int(computed)})


if __name__ == "__main__":
    app.run(main)
