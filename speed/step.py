"""Measures a training step on a batch with the lengths of a file.

    python -m speed.step --model=FOLDER --task=rft|rl|bradley_terry|meta --lengths=FILE
        [--packed=true|false] [--rows=32 | --prompts=8 --group=4] [--rounds=5]

--lengths: a JSON list of {"prompt": tokens, "completion": tokens}. Tokens are drawn at random.

    rft             `rows` sequences, loss on completions
    rl              `prompts` prompts of `group` completions each: one update, given the rollouts;
                    with --rollout a whole step: rollouts of the longest completion's length, the
                    reference's log-probabilities, the update
    bradley_terry   `rows` / 2 pairs, a prompt with two completions each
    meta            `prompts` prompts of `group` judgments each, one label for each judgment

--packed: sequences packed into rows, a prompt that several share once; false lays each sequence in
a row of its own, padded to the longest. Prints one line of JSON:

    seconds            of a step, the median of the rounds; seconds_rounds has all
    computed_tokens    positions that the update runs over, padding included
    needed_tokens      tokens that it needs: a prompt once where its completions share it
    loss, grad_norm, entropy    of the first step: equal for packed and unpacked, and for a peer
"""

import time

import jax
import numpy as np
from absl import app, flags

from grm_jax.checkpoint.huggingface import load_params
from grm_jax.compile_cache import enable_compile_cache
from grm_jax.losses import LossConfig, policy_loss
from grm_jax.models.config import Numerics, load_config
from grm_jax.models.heads import init_scalar_params
from grm_jax.parallel.mesh import make_mesh, place_batch
from grm_jax.reward_models.description import model_folder
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig, sample_key
from grm_jax.training.loop import make_step
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.rollouts import rollout_batch
from grm_jax.training.settings import FitConfig
from grm_jax.training.state import init_state
from grm_jax.training.step import make_logprob_fn, meta_loss, preference_loss, rft_loss, rl_loss
from speed import turns, work

MODEL = flags.DEFINE_string("model", "tiny_base", "Hugging Face folder of a Gemma-2.")
TASKS = flags.DEFINE_multi_enum(
    "task", ["rft"], ["rft", "rl", "bradley_terry", "meta"], "What is trained; one line for each."
)
LENGTHS = flags.DEFINE_string("lengths", None, "JSON list of lengths.", required=True)
PACKED = flags.DEFINE_bool("packed", False, "Sequences packed into rows.")
SEQUENCES = flags.DEFINE_integer("rows", 32, "Sequences of a batch of rft and bradley_terry.")
PROMPTS = flags.DEFINE_integer("prompts", 8, "Prompts of a batch of rl and meta.")
GROUP = flags.DEFINE_integer("group", 4, "Completions of a prompt, of rl and meta.")
SCALE = flags.DEFINE_float("scale", 1.0, "Every length is multiplied by this.")
MICRO = flags.DEFINE_integer(
    "micro_tokens", 16_384, "Positions that are computed at once, at most."
)
ROLLOUT = flags.DEFINE_bool("rollout", False, "A whole RL step, rollouts included.")
BETA = flags.DEFINE_float("beta", 0.0, "Weight of the KL to the reference, of rl.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed steps.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "To compute in.")
SCAN = flags.DEFINE_bool("scan_layers", False, "One compiled block of layers, or all unrolled.")
REMAT = flags.DEFINE_enum("remat", "none", ["none", "full", "dots"], "As model.remat.")
MULTIPLE = 128  # to which the width of unpacked rows is rounded up


def sequences(task, rows, vocab):
    """Draws the batch as (prompt ids, ids of the completions that share it)."""
    if task == "rft":
        return work.groups(rows, SEQUENCES.value, 1, vocab)
    if task == "bradley_terry":
        return work.groups(rows, SEQUENCES.value // 2, 2, vocab)
    return work.groups(rows, PROMPTS.value, GROUP.value, vocab)


def unpacked(task, made):
    """Lays each sequence in a row of its own: the batch of the task's loss."""
    pairs = [(prompt, rest) for prompt, completions in made for rest in completions]
    longest = max(len(prompt) + len(rest) for prompt, rest in pairs)
    bucket = (-(-longest // MULTIPLE) * MULTIPLE,)
    prompts, rests = zip(*pairs)
    batch = rollout_batch(prompts, rests, [np.zeros(len(r)) for r in rests], bucket)
    batch.pop("old_logp")
    B = len(pairs)
    if task == "rl":
        batch["advantages"] = work.advantages(B, GROUP.value)
    elif task == "meta":
        batch |= {"labels": np.arange(B, dtype=np.float32) % 2, "mask": np.ones(B, np.float32)}
    elif task == "bradley_terry":
        batch = {
            f"{side}_{name}": batch[name][i::2]
            for i, side in enumerate(("better", "worse"))
            for name in ("tokens", "positions")
        } | {"mask": np.ones(B // 2, np.float32)}
    return batch


def loss_of(task, cfg):
    if task == "rl":
        return rl_loss(cfg, policy_loss("grpo", {}), LossConfig(beta=BETA.value), 1.0)
    losses = {"rft": rft_loss, "meta": meta_loss, "bradley_terry": preference_loss}
    return losses[task](cfg)


def counts(task, batch, made):
    """Counts (rows, positions of all rows, tokens that are needed)."""
    names = [name for name in batch if name.endswith("tokens")]
    needed = work.needed(made, task in ("rl", "meta"))
    return batch[names[0]].shape[0], sum(batch[name].size for name in names), needed


def main(_):
    enable_compile_cache()
    for task in TASKS.value:
        turns.write(measure(task))


def measure(task: str) -> dict:
    """Measures one task; returns its line."""
    began = time.perf_counter()
    numerics = Numerics(DTYPE.value, SCAN.value, REMAT.value).resolve(jax.default_backend())
    folder = model_folder(MODEL.value)
    cfg, mesh = load_config(folder, **numerics), make_mesh()
    params = jax.tree.map(jax.numpy.asarray, load_params(folder, cfg))
    rows = work.scaled(work.read_lengths(LENGTHS.value), SCALE.value)
    made = sequences(task, rows, cfg.vocab_size)
    batch = unpacked(task, made)
    n_rows, computed, needed = counts(task, batch, made)
    # the largest part of the batch that is within --micro_tokens
    fitting = [n for n in range(1, n_rows + 1) if n_rows % n == 0]
    micro = max([n for n in fitting if n * computed // n_rows <= MICRO.value], default=1)
    if task in ("meta", "bradley_terry"):
        params = init_scalar_params(cfg, params, jax.random.key(0))
    settings = FitConfig(learning_rate=1e-6, batch_size=n_rows, micro_batch=micro, steps=10**6)
    step, _, optimizer, placed = make_step(
        mesh, OptimizerConfig(), params, loss_of(task, cfg), settings, settings.updates
    )
    state = init_state(params, optimizer, jax.tree.map(lambda leaf: leaf.sharding, placed))
    batch = place_batch(mesh, batch)
    logprobs = make_logprob_fn(cfg, 1.0, n_rows // micro)
    if task == "rl":  # those of the policy that sampled: its own, before the first update
        batch["old_logp"] = logprobs(params, batch["tokens"], batch["positions"], batch["mask"])
        if BETA.value:
            batch["ref_logp"] = batch["old_logp"]
    first_metrics, phases = {}, []

    def update():
        nonlocal state
        state, metrics = step(state, batch)
        first_metrics.update(jax.device_get(metrics) if not first_metrics else {})
        jax.block_until_ready(state.params)

    if ROLLOUT.value:
        new_tokens = max(len(rest) for _, rests in made for rest in rests)
        sampler = make_sampler(cfg, SamplingConfig(new_tokens, temperature=1.0))
        lengths_P = np.array([len(prompt) for prompt, _ in made], np.int32)
        prompts_PT = np.zeros((len(made), max(lengths_P)), np.int32)
        for row, (prompt, _) in zip(prompts_PT, made):
            row[: len(prompt)] = prompt
        keys = [[sample_key(0, str(p), g) for g in range(GROUP.value)] for p in range(len(made))]

    def whole():
        nonlocal batch
        times = [time.perf_counter()]
        drawn = jax.device_get(sampler(state.params, prompts_PT, lengths_P, np.array(keys)))
        times.append(time.perf_counter())
        B = len(made) * GROUP.value
        host = rollout_batch(
            [prompt for prompt, _ in made for _ in range(GROUP.value)],
            drawn["tokens"].reshape(B, -1),
            drawn["logp"].reshape(B, -1),
            (batch["tokens"].shape[1],),
        )
        batch = batch | place_batch(mesh, host)
        if BETA.value:
            ref = logprobs(params, batch["tokens"], batch["positions"], batch["mask"])
            batch["ref_logp"] = jax.block_until_ready(ref)
        times.append(time.perf_counter())
        update()
        times.append(time.perf_counter())
        phases.append(np.diff(times))

    ready = time.perf_counter() - began
    first, taken = turns.measure(whole if ROLLOUT.value else update, ROUNDS.value)
    line = {
        "contender": "grm_jax",
        "case": f"{task}{' with rollouts' if ROLLOUT.value else ''}",
        "model": MODEL.value,
        "packed": PACKED.value,
        "seconds": turns.spread(taken)["median"],
        "seconds_rounds": taken,
        "computed_tokens": int(computed),
        "needed_tokens": int(needed),
        **{
            n: float(first_metrics[n])
            for n in ("loss", "grad_norm", "entropy")
            if n in first_metrics
        },
        "first_call_s": first,
        "ready_s": ready,
        "peak_rss_gib": turns.rss_gib(),
        "rows": n_rows,
        "micro_rows": micro,
        "device": jax.devices()[0].device_kind,
        "dtype": cfg.dtype,
    }
    if phases:
        names = ("rollout_s", "reference_s", "update_s")
        line |= dict(zip(names, np.median(phases[1:] or phases, axis=0).tolist()))
    if PACKED.value:
        line["note"] = "packed rows are not there yet: each sequence has a row of its own"
    return line


if __name__ == "__main__":
    app.run(main)
