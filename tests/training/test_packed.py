"""Packed rows, each prompt once: loss, every metric and every gradient are those of rows that hold
one padded sequence each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.data.packing import pack_examples
from grm_jax.losses import LOSSES, LossConfig
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.lora import LoraConfig, init_adapters
from grm_jax.parallel.mesh import make_mesh, param_shardings, place_batch, shares
from grm_jax.reward_models.scalar import pair_example
from grm_jax.training import loop
from grm_jax.training.metrics import read_metrics
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.rollouts import (
    packed_batching,
    packed_rollouts,
    padded_batching,
    rollout_batch,
    sampler_gap,
)
from grm_jax.training.settings import FitConfig, PackingConfig
from grm_jax.training.state import abstract_state, init_state
from grm_jax.training.step import (
    adapted,
    make_train_step,
    meta_loss,
    normalizer_of,
    preference_loss,
    rft_loss,
    rl_loss,
)

CFG = ModelConfig(
    vocab_size=48,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(2),
    sliding_window=6,  # shorter than the prompts
    query_pre_attn_scalar=8.0,
    scan_layers=False,
)
GROUPS = (4, 1, 3, 8)  # rollouts of each prompt
B, COMPLETION, LENGTHS = sum(GROUPS), 14, (64, 96)
TEMPERATURE = 0.8
LORA = LoraConfig(rank=2, alpha=4.0)
# hands the gradient out as its state
GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _, params: (jax.tree.map(jnp.zeros_like, params), grads),
)


@functools.cache
def policy():
    return init_params(CFG, jax.random.key(0))


@functools.cache
def scalar():
    return init_scalar_params(CFG, policy(), jax.random.key(1))


@functools.cache
def rollouts():
    """(prompts, completions, log-probabilities of the sampler) of all rollouts, group by group."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 48, rng.integers(8, 24)).tolist() for _ in GROUPS]
    prompts_B = [prompt for prompt, size in zip(prompts, GROUPS) for _ in range(size)]
    completions_B = [
        rng.integers(0, 48, rng.integers(1, COMPLETION + 1)).tolist() for _ in range(B)
    ]
    logps_B = [rng.normal(-3.5, 0.5, len(completion)) for completion in completions_B]
    return prompts_B, completions_B, logps_B


def per_rollout():
    """Advantages, and of which rollouts the objective consists: one group is dropped."""
    rng = np.random.default_rng(1)
    counted_B = np.repeat([1.0, 1.0, 0.0, 1.0], GROUPS).astype(np.float32)
    return rng.choice([-1.0, 0.7], B).astype(np.float32), counted_B


def padded_batch():
    batch = rollout_batch(*rollouts(), buckets=(48,))
    advantages_B, counted_B = per_rollout()
    batch["ref_logp"] = batch["old_logp"] - 0.3 * batch["mask"]
    batch["sampler_logp"] = batch["old_logp"] - 0.1 * batch["tokens"] % 2 * batch["mask"]
    batch["mask"] = batch["mask"] * counted_B[:, None]
    return batch | {"advantages": advantages_B}


def packed_batch(rows):
    keys = np.repeat(np.arange(len(GROUPS)), GROUPS).tolist()
    laid, batch = packed_rollouts(*rollouts(), keys, LENGTHS, rows)
    advantages_B, counted_B = per_rollout()
    batch["ref_logp"] = batch["old_logp"] - 0.3 * batch["wanted"]
    batch["sampler_logp"] = batch["old_logp"] - 0.1 * batch["tokens"] % 2 * batch["wanted"]
    batch["mask"] = laid.in_slots(counted_B)
    return laid, batch | {"advantages": laid.in_slots(advantages_B)}


def every_loss(inputs, cfg):
    """All losses at once, so that one program compares them."""
    total, metrics = 0.0, {}
    for weight, (name, loss) in enumerate(LOSSES.items(), 1):
        value, of_loss = loss(inputs, cfg)
        total += weight * value
        metrics |= {f"{name}/{metric}": x for metric, x in of_loss.items()}
        metrics[f"{name}/loss"] = value
    nothing = jnp.zeros(())
    return total, metrics | {"kl_loss": nothing, "importance_weight_mean": nothing}


def run(loss_fn, params, batch, micro_batches=1, mesh=None, frozen=None):
    """(metrics, gradient) of a step."""
    shardings = None
    if mesh is not None:
        shardings = param_shardings(mesh, abstract_state(params, GRADIENT))
        batch = place_batch(mesh, batch, axis=1)
    step = make_train_step(loss_fn, GRADIENT, micro_batches, shardings, LENGTHS)
    state, metrics = step(init_state(params, GRADIENT, shardings), batch, frozen)
    return jax.device_get((metrics, state.opt_state))


def assert_same(got, want):
    (metrics, grads), (want_metrics, want_grads) = got, want
    assert metrics.keys() == want_metrics.keys()
    for name, value in want_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(want_grads), strict=True
    ):
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y), path
    assert np.linalg.norm(jax.tree.leaves(want_grads)[0]) > 0


# max_length: the longest completion, which the `constant` aggregation divides by
EVERY, GRPO = (
    rl_loss(
        CFG,
        loss,
        LossConfig(max_length=COMPLETION, importance_sampling_cap=1.05),
        TEMPERATURE,
        COMPLETION,
    )
    for loss in (every_loss, LOSSES["grpo"])
)


@functools.cache
def grpo_twin():
    return run(GRPO, policy(), padded_batch(), 2)


def test_every_policy_loss_metric_and_gradient():
    """In several parts of two lengths, prompts longer than the window, groups of 1 to 8."""
    laid, batch = packed_batch(1)
    assert laid.parts > 1 and set(laid.sizes[: laid.parts]) == {0, 1}
    prompts_B, completions_B, _ = rollouts()
    real = sum(map(len, prompts_B)) + sum(map(len, completions_B))
    assert laid.laid < 0.6 * real and laid.computed < len(GROUPS) * 96
    assert_same(run(EVERY, policy(), batch), run(EVERY, policy(), padded_batch()))


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_on_eight_devices(sizes):
    mesh = make_mesh(*sizes)
    laid, batch = packed_batch(shares(mesh))
    assert laid.tokens.shape[1] == shares(mesh)
    assert_same(run(GRPO, policy(), batch, mesh=mesh), grpo_twin())


def test_adapters():
    key = jax.random.key(2)
    adapters = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(key, x.shape), init_adapters(CFG, LORA, key)
    )
    loss = adapted(GRPO, LORA.scale)
    want = run(loss, adapters, padded_batch(), frozen=policy())
    assert_same(run(loss, adapters, packed_batch(2)[1], frozen=policy()), want)


def test_batches_of_the_rl_stage():
    """Log-probabilities of sampled tokens, and what a KL in the reward takes from each rollout."""
    cfg = LossConfig(beta=0.5, kl="k1", kl_in="reward")
    mesh, found = make_mesh(2, 2, 2), []
    params = jax.device_put(policy(), param_shardings(mesh, policy()))
    one = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    for on, batching in (
        (policy(), padded_batching(CFG, one, cfg, TEMPERATURE, (48,), 2)),
        (params, packed_batching(CFG, mesh, cfg, TEMPERATURE, COMPLETION, LENGTHS)),
    ):
        laid = batching.lay(*rollouts(), 4)
        batch = laid.batch | {"ref_logp": batching.logprobs(on, laid.batch)}
        gap = sampler_gap(batch["old_logp"], batch["ref_logp"], batch[laid.sampled])
        values = {"advantages": np.arange(B, dtype=np.float32), "mask": np.ones(B, np.float32)}
        counts = normalizer_of(batch | laid.of_rollouts(values))
        found.append((gap, jax.device_get(counts), laid.to_rollouts(batching.penalty(batch))))
        assert laid.computed > sum(map(len, rollouts()[1]))
    (gap, counts, penalty_B), (packed_gap, packed_counts, packed_penalty_B) = found
    for name, value in gap.items():
        np.testing.assert_allclose(packed_gap[name], value, rtol=1e-5)
    assert counts == packed_counts == (sum(map(len, rollouts()[1])), B)
    np.testing.assert_allclose(packed_penalty_B, penalty_B, rtol=1e-4)
    assert len(set(penalty_B.tolist())) == B


def examples(rng, count=24):
    """Sequences of a few records, some of which begin alike."""
    fronts = [rng.integers(0, 48, rng.integers(8, 20)) for _ in range(4)]
    found = []
    for _ in range(count):
        record = int(rng.integers(4))
        ids = np.concatenate([fronts[record], rng.integers(0, 48, rng.integers(2, 16))])
        mask = (np.arange(len(ids)) >= len(fronts[record])).astype(np.float32)
        found.append(
            {"id": str(record), "tokens": ids, "positions": np.arange(len(ids)), "mask": mask}
        )
    return found


def padded(rows):
    """A padded batch of examples."""
    batch = {}
    for name, first in rows[0].items():
        if name == "id":
            continue
        if np.ndim(first) == 0:
            batch[name] = np.array([row[name] for row in rows], np.float32)
            continue
        fill, kind = (-1, np.int32) if name.endswith("positions") else (0, np.int32)
        kind = np.float32 if name == "mask" else kind
        batch[name] = np.full((len(rows), 48), fill, kind)
        for b, row in enumerate(rows):
            batch[name][b, : len(row[name])] = row[name]
    batch.setdefault("mask", np.ones(len(rows), np.float32))
    return batch


def supervised(masked):
    rows = examples(np.random.default_rng(3))
    if not masked:  # pretraining: all but the first token has one before it
        rows = [row | {"mask": np.ones(len(row["tokens"]))} for row in rows]
    return rft_loss(CFG), policy(), rows


def labeled():
    rng = np.random.default_rng(4)
    rows = [
        {name: x for name, x in row.items() if name != "mask"} | {"labels": float(rng.integers(2))}
        for row in examples(rng)
    ]
    return meta_loss(CFG), scalar(), rows


def pairs():
    rng = np.random.default_rng(5)
    rows = examples(rng, 48)
    by_record = sorted(rows, key=lambda row: row["id"])
    found = [
        pair_example(better["id"], better["tokens"], worse["tokens"])
        for better, worse in zip(by_record[::2], by_record[1::2])
    ]
    return preference_loss(CFG, center=0.01), scalar(), found


CASES = {
    "prompt masked": functools.partial(supervised, True),
    "all learned": functools.partial(supervised, False),
    "labels": labeled,
    "pairs": pairs,
}


@pytest.mark.parametrize("case", CASES)
def test_supervised_stages(case):
    """RFT, pretraining, Meta RM and PairRM, Bradley-Terry and CLoud; in several parts on a mesh."""
    loss, params, rows = CASES[case]()
    want = run(loss, params, padded(rows))
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    packed = pack_examples(rows, LENGTHS, 2)
    assert packed["batch"]["parts"] > 1
    assert packed["computed"] < 48 * len(rows) * (2 if case == "pairs" else 1)
    assert_same(run(loss, params, packed["batch"], mesh=mesh), want)


def test_more_or_fewer_rows_compile_nothing():
    rows = examples(np.random.default_rng(6))
    step = make_train_step(rft_loss(CFG), GRADIENT, row_lengths=LENGTHS)
    state, parts = init_state(policy(), GRADIENT), set()
    short = [{k: v if k == "id" else v[:9] for k, v in row.items()} for row in rows]
    for some in (rows, short, rows[::-1]):
        batch = pack_examples(some, LENGTHS, 1)["batch"]
        parts.add(int(batch["parts"]))
        state, _ = step(state, batch)
    assert len(parts) > 1 and step._cache_size() == 1


def test_a_stage_packed_and_padded(tmp_path):
    """Pairs, of which two do not fit a row of the config, over the steps of `fit`."""
    loss, params, rows = pairs()
    settings, found = FitConfig(learning_rate=1e-3, batch_size=8, micro_batch=8, steps=3), []
    for lengths in ((32,), ()):
        setup = loop.TrainSetup(
            folder=tmp_path / str(len(lengths)),
            mesh=make_mesh(2, 1, 1, devices=jax.devices()[:2]),
            model_cfg=CFG,
            optimizer=OptimizerConfig(warmup_steps=0),
            lora=LoraConfig(rank=0),
            seed=0,
            sequence_buckets=(48,),
            row_lengths=lengths,
            every=9,
            keep=1,
            digest="",
            sinks=("jsonl",),
        )
        start = jax.tree.map(jnp.copy, params)
        loop.fit(setup, "pairs", start, loss, {"pairs": rows}, {"pairs": 1.0}, settings)
        found.append(read_metrics(setup.folder / "metrics.jsonl"))
    for packed, padded_row in zip(*found, strict=True):
        for name in ("loss", "accuracy", "margin", "grad_norm"):
            np.testing.assert_allclose(packed[name], padded_row[name], rtol=1e-4, err_msg=name)
        assert packed["computed_tokens"] < padded_row["computed_tokens"]
        assert packed["needed_tokens"] <= packed["computed_tokens"]


def test_lengths_of_rows():
    assert PackingConfig().lengths(4096 + 1024) == (5120, 7168, 8704)
    assert PackingConfig((2.4,)).lengths(208) == (512,)
    assert PackingConfig((1.0, 1.1)).lengths(100) == (128,)  # both are 128
    assert PackingConfig(()).lengths(208) == ()
    for wrong in ((0.5,), (1.2, 1.1), (0.0, 1.0), (1e9,)):
        with pytest.raises(ValueError, match="rows: expected growing multiples"):
            PackingConfig(wrong)
