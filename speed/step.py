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

--packed: sequences packed into rows of --row_lengths times the longest sequence, a prompt that
several share once; false lays each sequence in a row of its own, padded to the longest. --rounds=0
counts tokens and computes nothing. Prints one line of JSON for each task:

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
from grm_jax.data.examples import supervised_example
from grm_jax.data.packing import pack_examples
from grm_jax.losses import LossConfig, policy_loss
from grm_jax.models.config import Numerics
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.hf_config import load_config
from grm_jax.parallel.mesh import make_mesh, place_batch, shares
from grm_jax.reward_models.description import model_folder
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig, sample_key
from grm_jax.training.loop import make_step
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.rollouts import packed_batching, padded_batching
from grm_jax.training.settings import FitConfig, PackingConfig
from grm_jax.training.state import init_state
from grm_jax.training.step import meta_loss, preference_loss, rft_loss, rl_loss
from speed import turns, work

MODEL = flags.DEFINE_string("model", "tiny_base", "Hugging Face folder of a Gemma-2.")
TASKS = flags.DEFINE_multi_enum(
    "task", ["rft"], ["rft", "rl", "bradley_terry", "meta"], "What is trained; one line for each."
)
LENGTHS = flags.DEFINE_string("lengths", None, "JSON list of lengths.", required=True)
PACKED = flags.DEFINE_bool("packed", True, "Sequences packed into rows.")
ROW_LENGTHS = flags.DEFINE_list("row_lengths", ["1.0", "1.4", "1.7"], "As config packing.rows.")
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
MULTIPLE = 64  # to which the width of unpacked rows is rounded up


def sequences(task, rows, vocab):
    """Draws the batch as (prompt ids, ids of the completions that share it)."""
    if task == "rft":
        return work.groups(rows, SEQUENCES.value, 1, vocab)
    if task == "bradley_terry":
        return work.groups(rows, SEQUENCES.value // 2, 2, vocab)
    return work.groups(rows, PROMPTS.value, GROUP.value, vocab)


def examples_of(task, made):
    """Returns the examples of a task that is no RL, as `training.loop.fit` takes them."""
    examples = []
    for i, (prompt, rests) in enumerate(made):
        rows = [supervised_example(str(i), prompt, rest) for rest in rests]
        if task == "bradley_terry":
            sides = zip(("better", "worse"), rows)
            names = ("tokens", "positions")
            pair = {f"{side}_{name}": row[name] for side, row in sides for name in names}
            examples.append({"id": str(i)} | pair)
        elif task == "meta":
            for j, row in enumerate(rows):
                row.pop("mask")
                examples.append(row | {"labels": float(j % 2)})
        else:
            examples += rows
    return examples


def padded(examples, width):
    """Lays each sequence in a row of its own."""
    batch = {}
    for name, first in examples[0].items():
        if name == "id":
            continue
        values = [example[name] for example in examples]
        if np.ndim(first):
            fill = -1 if name.endswith("positions") else 0
            values = [np.pad(x, (0, width - len(x)), constant_values=fill) for x in values]
        batch[name] = np.array(
            values, np.int32 if np.ndim(first) and "mask" != name else np.float32
        )
    return {"mask": np.ones(len(examples), np.float32)} | batch


def main(_):
    enable_compile_cache()
    for task in TASKS.value:
        turns.write(measure(task))


def measure(task: str) -> dict:
    """Measures one task; returns its line."""
    began = time.perf_counter()
    numerics = Numerics(DTYPE.value, SCAN.value, REMAT.value).resolve(jax.default_backend())
    folder, mesh = model_folder(MODEL.value), make_mesh()
    cfg = load_config(folder, **numerics)
    rows = work.scaled(work.read_lengths(LENGTHS.value), SCALE.value)
    made = sequences(task, rows, cfg.vocab_size)
    longest = max(len(prompt) + len(rest) for prompt, rests in made for rest in rests)
    longest = -(-longest // MULTIPLE) * MULTIPLE
    completion = max(len(rest) for _, rests in made for rest in rests)
    line = {
        "contender": "grm_jax",
        "case": f"{task}{' with rollouts' if ROLLOUT.value else ''}",
        "model": folder.name,
        "packed": PACKED.value,
    }
    # a batch: packed, or padded and cut into micro-batches of at most --micro_tokens
    row_lengths = ()
    if PACKED.value:
        row_lengths = PackingConfig(tuple(map(float, ROW_LENGTHS.value))).lengths(longest)
    n_rows = sum(len(rests) for _, rests in made)
    if task == "bradley_terry":
        n_rows //= 2
    wide = longest * (2 if task == "bradley_terry" else 1)
    fitting = [n for n in range(1, n_rows + 1) if n_rows % n == 0]
    micro = max([n for n in fitting if n * wide <= MICRO.value], default=1)
    loss_cfg = LossConfig(beta=BETA.value)
    batching = None
    if task == "rl":
        prompts = [prompt for prompt, rests in made for _ in rests]
        rests = [rest for _, rests in made for rest in rests]
        common = (cfg, mesh, loss_cfg, 1.0)
        if PACKED.value:
            batching = packed_batching(*common, completion, row_lengths)
        else:
            batching = padded_batching(*common, (longest,), n_rows // micro)

        def lay(rests, logps):
            laid = batching.lay(prompts, rests, logps, GROUP.value)
            values = {
                "advantages": work.advantages(len(rests), GROUP.value),
                "mask": np.ones(len(rests), np.float32),
            }
            return laid.batch | laid.of_rollouts(values), laid.computed

        batch, computed = lay(rests, [np.zeros(len(rest)) for rest in rests])
    elif PACKED.value:
        packed = pack_examples(examples_of(task, made), row_lengths, shares(mesh))
        batch, computed = place_batch(mesh, packed["batch"], axis=1), packed["computed"]
    else:
        batch = place_batch(mesh, padded(examples_of(task, made), longest))
        computed = sum(x.size for name, x in batch.items() if name.endswith("tokens"))
    line |= {"computed_tokens": int(computed), "needed_tokens": int(work.needed(made))}
    line |= {"row_lengths": row_lengths, "longest": longest}
    if not PACKED.value:
        line |= {"micro_rows": micro}
    if not ROUNDS.value and not turns.asked():
        return line
    params = jax.tree.map(jax.numpy.asarray, load_params(folder, cfg))
    if task in ("meta", "bradley_terry"):
        params = init_scalar_params(cfg, params, jax.random.key(0))
    if task == "rl":
        loss = rl_loss(cfg, policy_loss("grpo", {}), loss_cfg, 1.0, completion)
    else:
        losses = {"rft": rft_loss, "meta": meta_loss, "bradley_terry": preference_loss}
        loss = losses[task](cfg)
    settings = FitConfig(learning_rate=1e-6, batch_size=n_rows, micro_batch=micro, steps=10**6)
    step, _, optimizer, placed = make_step(
        mesh, OptimizerConfig(), params, loss, settings, settings.updates, row_lengths
    )
    state = init_state(params, optimizer, jax.tree.map(lambda leaf: leaf.sharding, placed))
    if task == "rl":  # those of the policy that sampled: its own, before the first update
        batch["old_logp"] = batching.logprobs(params, batch)
        if BETA.value:
            batch["ref_logp"] = batch["old_logp"]
    first_metrics, phases = {}, []

    def update():
        nonlocal state
        state, metrics = step(state, batch)
        first_metrics.update(jax.device_get(metrics) if not first_metrics else {})
        jax.block_until_ready(state.params)

    if ROLLOUT.value:
        sampler = make_sampler(cfg, SamplingConfig(completion, temperature=1.0))
        lengths_P = np.array([len(prompt) for prompt, _ in made], np.int32)
        prompts_PT = np.zeros((len(made), max(lengths_P)), np.int32)
        for row, (prompt, _) in zip(prompts_PT, made):
            row[: len(prompt)] = prompt
        keys = [[sample_key(0, str(p), g) for g in range(GROUP.value)] for p in range(len(made))]
        keys_Pk2 = np.array(keys)

    def whole():
        nonlocal batch
        times = [time.perf_counter()]
        drawn = jax.device_get(sampler(state.params, prompts_PT, lengths_P, keys_Pk2))
        times.append(time.perf_counter())
        tokens, logps = (drawn[name].reshape(n_rows, -1) for name in ("tokens", "logp"))
        batch, _ = lay(tokens, logps)
        if BETA.value:
            batch["ref_logp"] = jax.block_until_ready(batching.logprobs(params, batch))
        times.append(time.perf_counter())
        update()
        times.append(time.perf_counter())
        phases.append(np.diff(times))

    ready = time.perf_counter() - began
    first, taken = turns.measure(whole if ROLLOUT.value else update, ROUNDS.value)
    known = [name for name in ("loss", "grad_norm", "entropy") if name in first_metrics]
    line |= {
        "seconds": turns.spread(taken)["median"],
        "seconds_rounds": taken,
        **{name: float(first_metrics[name]) for name in known},
        "first_call_s": first,
        "ready_s": ready,
        "peak_rss_gib": turns.rss_gib(),
        "device": jax.devices()[0].device_kind,
        "dtype": cfg.dtype,
        **turns.precision(),
    }
    if phases:
        names = ("rollout_s", "reference_s", "update_s")
        line |= dict(zip(names, np.median(phases[1:] or phases, axis=0).tolist()))
    return line


if __name__ == "__main__":
    app.run(main)
