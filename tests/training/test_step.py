"""The shared train step: micro-batches, losses, meshes, donation, and what happens when a number is
not finite.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses.aggregation import token_mean
from grm_jax.losses.config import LossConfig
from grm_jax.losses.grpo import grpo
from grm_jax.losses.policy import LossInputs
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.models.heads import init_scalar_params, scalar_logits
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from grm_jax.training.logprobs import token_logprobs
from grm_jax.training.metrics import check_finite
from grm_jax.training.optimizer import OptimizerConfig, make_optimizer
from grm_jax.training.settings import RlConfig
from grm_jax.training.state import abstract_state, init_state
from grm_jax.training.step import make_logprob_fn, make_train_step, meta_loss, rft_loss, rl_loss

CFG = ModelConfig(
    vocab_size=32,
    d_model=16,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(1),
    sliding_window=6,
    query_pre_attn_scalar=8.0,
    scan_layers=False,
)
B, T = 16, 12
OPTIMIZER, _ = make_optimizer(
    OptimizerConfig(
        schedule="constant",
        warmup_steps=0,
        final_fraction=1.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.01,
    ),
    learning_rate=3e-3,
    steps=10,
)


@functools.cache
def policy():
    return init_params(CFG, jax.random.key(0))


def rows():
    """Right-padded rows of very different completion lengths; the completion begins at position
    3.
    """
    rng = np.random.default_rng(0)
    lengths_B1 = rng.integers(4, T + 1, (B, 1))
    at_T = np.arange(T)[None]
    positions = np.where(at_T < lengths_B1, at_T, -1).astype(np.int32)
    mask = ((at_T >= 3) & (positions >= 0)).astype(np.float32)
    return {
        "tokens": rng.integers(0, CFG.vocab_size, (B, T)).astype(np.int32),
        "positions": positions,
        "mask": mask,
    }


@functools.cache
def rl_rows():
    """With log-probabilities of a policy that is a little off, so that ratios differ from 1 and
    some are clipped.
    """
    batch, rng = rows(), np.random.default_rng(1)
    logp = np.asarray(make_logprob_fn(CFG, 0.8)(policy(), batch["tokens"], batch["positions"]))
    return batch | {
        "old_logp": logp + rng.normal(0, 0.2, (B, T)).astype(np.float32),
        "ref_logp": logp + rng.normal(0, 0.2, (B, T)).astype(np.float32),
        "advantages": rng.choice([-1.0, 1.0], B).astype(np.float32),
    }


RL_LOSS = rl_loss(CFG, grpo, LossConfig(beta=0.08), temperature=0.8)


def train(loss_fn, params, batch, micro_batches=1, steps=3, mesh=None):
    """State, and the metrics of each step as floats."""
    shardings = None
    if mesh is not None:
        shardings = param_shardings(mesh, abstract_state(params, OPTIMIZER))
        batch = jax.device_put(batch, batch_sharding(mesh))
    state = init_state(params, OPTIMIZER, shardings)
    step = make_train_step(loss_fn, OPTIMIZER, micro_batches, shardings)
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    assert step._cache_size() == 1, "a later step was compiled again"
    return state, history


@functools.cache
def rl_on_one_device():
    return train(RL_LOSS, policy(), rl_rows())


def assert_same(run, reference, rtol=1e-5):
    (state, history), (want_state, want_history) = run, reference
    for metrics, want in zip(history, want_history, strict=True):
        assert metrics.keys() == want.keys()
        for name in metrics:
            np.testing.assert_allclose(
                metrics[name], want[name], rtol=rtol, atol=rtol, err_msg=name
            )
    for (path, x), want in zip(
        jax.tree.leaves_with_path(state.params), jax.tree.leaves(want_state.params), strict=True
    ):
        error = np.linalg.norm(np.asarray(x) - np.asarray(want)) / np.linalg.norm(want)
        assert error < rtol or np.abs(x - want).max() < 1e-7, (path, error)


def test_micro_batches_give_the_full_batch_step():
    """Lengths differ, so a mean of micro-batch means would not; ratio_min and ratio_max are reduced
    as such.
    """
    assert_same(train(RL_LOSS, policy(), rl_rows(), micro_batches=4), rl_on_one_device())
    history = rl_on_one_device()[1]
    assert history[0]["ratio_min"] < history[0]["ratio_mean"] < history[0]["ratio_max"]
    assert history[0]["clip_ratio/region"] > 0


@pytest.mark.parametrize("sizes, micro_batches", [((1, 8, 1), 1), ((2, 2, 2), 2)])
def test_meshes_give_the_same_steps(sizes, micro_batches):
    mesh = make_mesh(*sizes)
    run = train(RL_LOSS, policy(), rl_rows(), micro_batches, mesh=mesh)
    assert_same(run, rl_on_one_device())
    state = run[0]
    shardings = param_shardings(mesh, abstract_state(policy(), OPTIMIZER))
    jax.tree.map(
        lambda x, s: (
            x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding} is not {s}")
        ),
        state,
        shardings,
    )
    gate = state.opt_state[1][0].mu["blocks"]["layer_0_mlp"]["gate"]
    assert gate.addressable_shards[0].data.size == gate.size // (sizes[1] * sizes[2])


def test_rl_loss_is_the_policy_loss_of_the_trainer_log_probabilities():
    batch = rl_rows()
    logp, entropy = jax.jit(token_logprobs, static_argnums=1)(
        policy(), CFG, batch["tokens"], batch["positions"], 0.8
    )
    names = ("old_logp", "ref_logp", "entropy", "advantages", "mask")
    inputs = LossInputs(logp, *((batch | {"entropy": entropy})[name] for name in names))
    want, metrics = grpo(inputs, LossConfig(beta=0.08))
    first = rl_on_one_device()[1][0]
    assert first["loss"] == pytest.approx(float(want), rel=1e-5)
    assert first["kl"] == pytest.approx(float(metrics["kl"]), rel=1e-5)
    assert first["entropy"] == pytest.approx(
        float((entropy * batch["mask"]).sum() / batch["mask"].sum()), rel=1e-5
    )
    no_reference = {name: x for name, x in batch.items() if name != "ref_logp"}
    assert (
        "kl"
        not in jax.eval_shape(
            rl_loss(CFG, grpo, LossConfig(beta=0.0), 0.8), policy(), no_reference
        )[1]
    )


def reinforce(inputs, cfg):
    """A loss that knows nothing of a KL and reports the mean entropy that it was given."""
    loss = token_mean(-inputs.advantages[:, None] * inputs.logp, inputs.mask, cfg)
    return loss, {"seen_entropy": token_mean(inputs.entropy, inputs.mask, cfg)}


def test_a_loss_of_ones_own_gets_the_entropy_and_its_loss_is_reported():
    loss = rl_loss(CFG, reinforce, LossConfig(beta=0.0), 0.8)
    _, history = train(loss, policy(), rl_rows(), micro_batches=2, steps=1)
    (metrics,) = history
    assert metrics["loss"] == pytest.approx(
        float(jax.jit(loss)(policy(), rl_rows())[0]), rel=1e-5, abs=1e-6
    )
    assert metrics["seen_entropy"] == pytest.approx(metrics["entropy"], rel=1e-5)
    assert "kl" not in metrics and "kl_loss" not in metrics


def test_a_loss_that_leaves_out_the_kl_is_said_so_once():
    """At any number of traces; not where no KL is asked for, or where it is in the reward."""

    def warnings_of(policy_loss, **settings):
        loss = rl_loss(CFG, policy_loss, LossConfig(**settings), 0.8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for width in (T, T - 2):
                batch = {name: x[:, :width] if x.ndim == 2 else x for name, x in rl_rows().items()}
                jax.eval_shape(loss, policy(), batch)
        return [str(warning.message) for warning in caught]

    (message,) = warnings_of(reinforce, beta=0.02)
    assert "reports no kl_loss" in message and "beta = 0.02" in message
    assert warnings_of(reinforce, beta=0.0) == []
    assert warnings_of(reinforce, beta=0.02, kl_in="reward", kl="k1") == []
    assert warnings_of(grpo, beta=0.02) == []
    (message,) = warnings_of(reinforce, beta=0.0, importance_sampling_cap=2.0)
    assert (
        "reports no importance_weight_mean" in message and "importance_sampling_cap = 2" in message
    )


def test_the_correction_needs_the_trainers_log_probabilities():
    fields = dict(learning_rate=1e-3, batch_size=8, micro_batch=8, steps=1, group_size=4)
    corrected = RlConfig(**fields, importance_sampling_correction=True).loss_config()
    assert corrected.importance_sampling_cap == 2.0
    assert RlConfig(**fields).loss_config().importance_sampling_cap is None
    with pytest.raises(ValueError, match="old_logp: expected 'trainer', whose"):
        RlConfig(**fields, importance_sampling_correction=True, old_logp="sampler")
    with pytest.raises(ValueError, match="max_lag: expected a whole number"):
        RlConfig(**fields, max_lag=-1)


def test_two_orders_of_a_record_need_a_batch_of_both():
    fields = dict(learning_rate=1e-3, batch_size=8, micro_batch=8, steps=1, group_size=4)
    assert RlConfig(**fields).orders == 1
    assert RlConfig(**fields, consistency=0.0).orders == 2
    with pytest.raises(ValueError, match="consistency: expected a number >= 0"):
        RlConfig(**fields, consistency=-0.5)
    fields |= dict(batch_size=12, micro_batch=12)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 2 x group_size"):
        RlConfig(**fields, consistency=0.5)


def test_rft_learns_the_completion_and_only_that():
    batch = rows()
    state, history = train(rft_loss(CFG), policy(), batch, steps=30)
    losses = [metrics["loss"] for metrics in history]
    assert losses[-1] < 0.6 * losses[0]
    assert int(state.step) == 30
    logp = make_logprob_fn(CFG)(policy(), batch["tokens"], batch["positions"])
    assert losses[0] == pytest.approx(
        float(-(logp * batch["mask"]).sum() / batch["mask"].sum()), rel=1e-5
    )


def test_meta_loss():
    """BCE of the scalar head on real rows; padding rows (mask 0) change nothing."""
    batch = rows()
    labels = (np.arange(B) % 2).astype(np.float32)
    meta = {
        "tokens": batch["tokens"],
        "positions": batch["positions"],
        "labels": labels,
        "mask": np.ones(B, np.float32),
    }
    params = init_scalar_params(CFG, policy(), jax.random.key(3))
    _, history = train(meta_loss(CFG), params, meta, micro_batches=2, steps=12)
    logits = np.asarray(
        jax.jit(scalar_logits, static_argnums=1)(params, CFG, meta["tokens"], meta["positions"]),
        np.float64,
    )
    want = np.mean(np.log1p(np.exp(np.where(labels > 0, -logits, logits))))
    assert history[0]["loss"] == pytest.approx(want, rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx(np.mean((logits > 0) == (labels > 0)))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    meta["mask"][B // 2 :] = 0
    half = np.mean(np.log1p(np.exp(np.where(labels > 0, -logits, logits)))[: B // 2])
    assert float(jax.jit(meta_loss(CFG))(params, meta)[0]) == pytest.approx(half, rel=1e-5)


def quadratic(params, batch):
    """A loss without a model: sum over rows of mask * (w - x)^2 / rows."""
    error_B = jnp.square(params["w"] - batch["x"]) * batch["mask"]
    return error_B.sum() / batch["normalizer"].sequences, {}


def test_state_is_donated_and_the_callers_parameters_are_not():
    params = {"w": jnp.float32(2.0)}
    state = init_state(params, OPTIMIZER)
    batch = {"x": jnp.zeros(4), "mask": jnp.ones(4)}
    after, metrics = make_train_step(quadratic, OPTIMIZER)(state, batch)
    assert (
        state.params["w"].is_deleted()
        and not params["w"].is_deleted()
        and float(params["w"]) == 2.0
    )
    assert metrics["grad_norm"] == pytest.approx(4.0)  # before clipping to 1
    assert metrics["update_norm"] == pytest.approx(abs(float(after.params["w"]) - 2.0), rel=1e-4)
    assert metrics["param_norm"] == pytest.approx(float(after.params["w"]))


def test_parameters_that_are_handed_over_are_freed():
    params = {"w": jnp.float32(2.0)}
    state = init_state(params, OPTIMIZER, donate=True)
    assert params["w"].is_deleted() and float(state.params["w"]) == 2.0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_value_that_is_not_finite_stops_the_run(micro_batches):
    step = make_train_step(quadratic, OPTIMIZER, micro_batches)
    batch = {"x": np.array([0.0, 1.0, 2.0, 3.0], np.float32), "mask": np.ones(4, np.float32)}
    state, metrics = step(init_state({"w": jnp.float32(1.0)}, OPTIMIZER), batch)
    check_finite(0, metrics)
    _, metrics = step(state, batch | {"x": np.array([0.0, np.inf, 2.0, 3.0], np.float32)})
    with pytest.raises(FloatingPointError, match=r"step 7: loss inf.*items of the batch: a-1, b-2"):
        check_finite(7, jax.device_get(metrics), ["a-1", "b-2"])


def test_log_probabilities_in_micro_batches_are_those_of_the_whole_batch():
    batch = rows()
    parts, whole = (
        make_logprob_fn(CFG, 0.8, n)(policy(), batch["tokens"], batch["positions"]) for n in (4, 1)
    )
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    with pytest.raises(
        ValueError, match="micro_batches is 3; expected a divisor of the batch of 16 rows"
    ):
        make_logprob_fn(CFG, 0.8, 3)(policy(), batch["tokens"], batch["positions"])


def test_a_batch_that_does_not_divide_is_refused():
    batch = {"x": jnp.zeros(4), "mask": jnp.ones(4)}
    with pytest.raises(
        ValueError, match="micro_batches is 3; expected a divisor of the batch of 4 rows"
    ):
        make_train_step(quadratic, OPTIMIZER, 3)(
            init_state({"w": jnp.float32(1.0)}, OPTIMIZER), batch
        )
