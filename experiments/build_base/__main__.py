"""Builds the tiny base model that ships with the package: tokenizer, pretraining, folder.

    python -m experiments.build_base --workdir=runs/tiny_base --out=grm_jax/assets/tiny_base

The model is pretrained on the checkable world and written as a Hugging Face folder. `--width` makes
it in another size, for the comparison of model sizes (experiments/paper/__main__.py). Fixed seed;
resumes from its last saved state. The learning rate is constant after a warmup and falls linearly
to zero over the last `--decay_steps`, so a run can be ended early from any saved state by giving a
smaller `--steps`.
"""

import collections
import pathlib
import pickle
import random
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import config_flags
from experiments.build_base.tokenizer import save_tokenizer, train_tokenizer
from grm_jax import locks
from grm_jax.chat import BUILT_IN_CHAT
from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.data.world import corpus, judge, records, tasks
from grm_jax.judgment.prompts import load_template, render_prompt
from grm_jax.models import Decoder, ModelConfig, init_params, lm_logits
from grm_jax.models.config import alternating
from grm_jax.reward_models.description import Description, write_description
from grm_jax.tokenizer import Tokenizer, load_tokenizer
from grm_jax.whole_files import write_whole

_WORKDIR = flags.DEFINE_string("workdir", "runs/tiny_base", "state and log of the pretraining")
_STEPS = flags.DEFINE_integer("steps", 8000, "optimizer steps")
_OUT = flags.DEFINE_string("out", "grm_jax/assets/tiny_base", "Hugging Face folder to write")
_DECAY = flags.DEFINE_integer(
    "decay_steps", 1600, "last steps, over which the learning rate falls to zero"
)
_WIDTH = flags.DEFINE_integer(
    "width", 128, "d_model, a multiple of 32; heads and d_ff grow with it"
)

SEED = 0
VOCAB = 768
PEAK_LR = 3e-3
WARMUP = 100
TOKENS_PER_BATCH = 4096
BUCKETS = (24, 40, 56, 72, 104, 192)
POOL = 8192  # documents that are sorted into length buckets together


def model_config(width: int) -> ModelConfig:
    """Four layers of the given width, with heads of 32."""
    heads = width // 32
    return ModelConfig(
        vocab_size=VOCAB,
        d_model=width,
        n_layers=4,
        n_heads=heads,
        n_kv_heads=max(1, heads // 2),
        head_dim=32,
        d_ff=2 * width,
        layer_types=alternating(4),
        sliding_window=64,
        query_pre_attn_scalar=32.0,
        max_positions=1024,
        scan_layers=False,
    )


MODEL_CARD = """---
license: apache-2.0
library_name: grm_jax
---
# Tiny base model

A Gemma-2 of {millions} million parameters (4 layers, width {width}) that plays the pretrained
checkpoint in the quick start of grm_jax. It knows only the checkable world of `grm_jax.data.world`
(docs/world.md): it can solve its tasks and check an answer, and as a judge it imitates a sloppy
one, which looks at length, confidence or formatting more often than at what was asked, and slips
now and then. It is not a language model for any other text.

Made by `python -m experiments.build_base --steps={steps} --decay_steps={decay} --width={width}`
(fixed seed, {steps} steps of about 4,096 tokens, random initialization, float32). Share of unseen
check documents that it writes without a mistake (greedy, teacher forced): {checks}.
"""
DESCRIPTION = Description(
    "pointwise_grm",
    {"pointwise": load_template("tiny_pointwise"), "single": load_template("tiny_single")},
    chat=BUILT_IN_CHAT,
    lengths={"prompt": 80, "completion": 128},
    temperature=1.0,
)


def renderer():
    """Write a world record with the tiny templates, exactly as the SPCT run will."""
    single, pointwise = load_template("tiny_single"), load_template("tiny_pointwise")
    return lambda record, order, hint: render_prompt(
        single if len(record.responses) == 1 else pointwise, record, order, hint
    )


def encode(tokenizer: Tokenizer, document: dict) -> tuple[list[int], int]:
    """Token ids of a document and where its completion starts."""
    if document["chat"]:
        context, completion = (
            tokenizer.chat_prompt(document["context"]),
            tokenizer.chat_completion(document["completion"]),
        )
    else:
        context = [tokenizer.bos_id, *tokenizer.encode(document["context"].strip())]
        completion = [*tokenizer.encode("\n" + document["completion"]), tokenizer.eos_id]
    return context + completion, len(context)


def pool_batches(tokenizer: Tokenizer, render, pool: int):
    """Batches of one pool of documents: rows of similar length, padded to a bucket, in a seeded
    order.
    """
    encoded = [
        encode(tokenizer, corpus.make_document(SEED, pool * POOL + i, render)) for i in range(POOL)
    ]
    by_bucket = collections.defaultdict(list)
    for ids, start in encoded:
        by_bucket[next(b for b in BUCKETS if len(ids) <= b)].append((ids, start))
    batches = []
    for bucket, rows in by_bucket.items():
        size = TOKENS_PER_BATCH // bucket
        for i in range(0, len(rows) - size + 1, size):
            tokens, mask = np.zeros((size, bucket), np.int32), np.zeros((size, bucket), np.float32)
            pos = np.full((size, bucket), -1, np.int32)
            for row, (ids, start) in enumerate(rows[i : i + size]):
                tokens[row, : len(ids)], mask[row, start : len(ids)], pos[row, : len(ids)] = (
                    ids,
                    1.0,
                    np.arange(len(ids)),
                )
            batches.append({"tokens": tokens, "pos": pos, "mask": mask})
    random.Random(f"{SEED}/{pool}").shuffle(batches)
    return batches


def loss_fn(cfg, params, batch):
    hidden, _ = Decoder(cfg).apply({"params": params}, batch["tokens"], batch["pos"])
    logp = jax.nn.log_softmax(lm_logits(params, cfg, hidden)[:, :-1])
    target, mask = batch["tokens"][:, 1:], batch["mask"][:, 1:]
    nll = -jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    hits = (jnp.argmax(logp, -1) == target) | (mask == 0)
    return (nll * mask).sum() / mask.sum(), hits.all(-1)


def probe_batches(tokenizer: Tokenizer) -> dict[str, dict]:
    """Clean check documents from the testing side, one batch a family: how many are written without
    a mistake?
    """
    probes = {}
    for family in tasks.FAMILIES:
        rng, rows = random.Random(f"probe/{family}"), []
        while len(rows) < 64:
            item = records.draw_item(rng, "test", (family,), testing=True, sizes={1: 1.0})
            text, _ = judge.check_lines(rng, item.query, list(item.responses), judge.CLEAN)
            context = f"[User] {item.query.text}\n[Response 1] {item.responses[0].text}\n"
            rows.append(
                encode(
                    tokenizer, {"context": context, "completion": f"Analysis:{text}", "chat": False}
                )
            )
        tokens, mask, pos = (
            np.zeros((64, 56), np.int32),
            np.zeros((64, 56), np.float32),
            np.full((64, 56), -1, np.int32),
        )
        for row, (ids, start) in enumerate(rows):
            tokens[row, : len(ids)], mask[row, start : len(ids)], pos[row, : len(ids)] = (
                ids,
                1.0,
                np.arange(len(ids)),
            )
        probes[family] = {"tokens": tokens, "pos": pos, "mask": mask}
    return probes


def learning_rate(step, steps, decay):
    warm = jnp.minimum(1.0, (step + 1) / WARMUP)
    return PEAK_LR * warm * jnp.clip((steps - step) / decay, 0.0, 1.0)


def main(_):
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        locks.hold(workdir / ".lock", str(workdir))
    except ValueError as error:
        sys.exit(f"{error}. Wait for it, or choose another --workdir.")
    render, cfg = renderer(), model_config(_WIDTH.value)
    if not (workdir / "hf" / "tokenizer.json").is_file():
        documents = [corpus.make_document(SEED, i, render) for i in range(20_000)]
        texts = (
            ["user\n" + d["context"].strip() for d in documents]
            + [d["completion"] for d in documents]
            + ["model\n", "\n"] * 1000
        )
        save_tokenizer(train_tokenizer(texts, VOCAB), workdir / "hf")
    tokenizer = load_tokenizer(workdir / "hf")

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda step: learning_rate(step, _STEPS.value, _DECAY.value),
            b1=0.9,
            b2=0.98,
            weight_decay=0.01,
        ),
    )

    @jax.jit
    def train_step(state, batch):
        params, opt_state = state
        (loss, _), grads = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)(cfg, params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    probe = jax.jit(lambda params, batch: loss_fn(cfg, params, batch)[1].mean())
    probes = probe_batches(tokenizer)
    params = init_params(cfg, jax.random.key(SEED))
    state, step, pool, at = (params, optimizer.init(params)), 0, 0, 0
    saved = sorted(workdir.glob("state_*.pkl"))
    saved = [
        p
        for p in saved
        if int(p.stem.split("_")[1]) <= max(0, _STEPS.value - _DECAY.value)
        or p == workdir / f"state_{_STEPS.value:06d}.pkl"
    ]
    if saved:
        state, step, pool, at = pickle.loads(saved[-1].read_bytes())
        print(f"resumed from {saved[-1]}", flush=True)
    losses, began, tokens_seen = [], time.time(), 0
    while step < _STEPS.value:
        batches = pool_batches(tokenizer, render, pool)
        while at < len(batches) and step < _STEPS.value:
            state, loss = train_step(state, batches[at])
            losses.append(loss)
            tokens_seen += batches[at]["tokens"].size
            step, at = step + 1, at + 1
            if step % 50 == 0:
                mean = float(np.mean(jax.device_get(losses)))
                losses = []
                rate = tokens_seen / (time.time() - began)
                print(f"step {step}/{_STEPS.value} loss {mean:.4f} {rate:.0f} tok/s", flush=True)
                if not np.isfinite(mean):
                    raise FloatingPointError(f"loss is {mean} at step {step}")
            if step % 250 == 0 or step == _STEPS.value:
                found = {family: float(probe(state[0], batch)) for family, batch in probes.items()}
                print(
                    "  clean checks without a "
                    "mistake: " + " ".join(f"{k} {v:.2f}" for k, v in found.items()),
                    flush=True,
                )
                path = workdir / f"state_{step:06d}.pkl"
                write_whole(path, pickle.dumps((jax.device_get(state), step, pool, at)))
        if at >= len(batches):
            pool, at = pool + 1, 0
    save_folder(_OUT.value, state[0], cfg, tokenizer_files_from=workdir / "hf")
    found = " ".join(
        f"{family} {float(probe(state[0], batch)):.2f}" for family, batch in probes.items()
    )
    millions = round(sum(x.size for x in jax.tree.leaves(state[0])) / 1e6, 2)
    card = MODEL_CARD.format(
        steps=_STEPS.value, decay=_DECAY.value, checks=found, width=_WIDTH.value, millions=millions
    )
    write_description(_OUT.value, DESCRIPTION)
    (pathlib.Path(_OUT.value) / "README.md").write_text(card, encoding="utf-8")
    print(f"written to {_OUT.value}", flush=True)


if __name__ == "__main__":
    config_flags.run(main)
