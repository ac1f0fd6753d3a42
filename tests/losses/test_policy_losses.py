"""Every policy loss against a NumPy computation written token by token, with the gradient derived
by hand.

Most tests run the losses op by op, without jit: the compiled ops are shared by all losses, which is
four times faster here. The scan, shard_map and pytree tests go through jit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import LOSSES, LossConfig, LossInputs, combine, count, policy_loss

MAX_LENGTH = 16
PUBLISHED = {  # loss: (clip_low, clip_high, aggregation)
    "grpo": (0.2, 0.2, "sequence_mean"),
    "dr_grpo": (0.2, 0.2, "constant"),
    "dapo": (0.2, 0.28, "token_mean"),
    "gspo": (3e-4, 4e-4, "sequence_mean"),
    "rloo": (None, None, "constant"),
    "reinforce_pp": (0.2, 0.2, "token_mean"),
    "cispo": (1.0, 4.0, "token_mean"),
}


def batch(seed=0, rows=8, width=12, drift=0.5):
    """Random arrays with ragged lengths; the padding holds garbage, -inf and nan, which must not
    leak.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, rows)
    lengths[0], lengths[1] = width, 1
    mask = (np.arange(width) < lengths[:, None]).astype(np.float64)
    mask[2, 0] = 0.0  # a hole at the start, as a masked prompt tail would leave
    mask[2, 1:3] = 1.0
    old = -rng.exponential(2.0, (rows, width))
    logp = np.minimum(old + drift * rng.normal(size=(rows, width)), -1e-3)
    ref = np.minimum(old + 0.5 * rng.normal(size=(rows, width)), -1e-3)
    advantages = rng.normal(size=rows)
    outside = mask == 0
    logp[outside], old[outside], ref[outside] = -np.inf, np.nan, 1e30
    return logp, old, ref, advantages, mask


def inputs_of(logp, old, ref, advantages, mask):
    """What a loss gets, in fp32; without the entropy, which no loss here reads."""
    arrays = (None if x is None else jnp.asarray(x, jnp.float32) for x in (logp, old, ref))
    return LossInputs(*arrays, None, *(jnp.asarray(x, jnp.float32) for x in (advantages, mask)))


def step_of(name):
    """f(inputs, cfg) -> ((loss, metrics), gradient with respect to logp)."""

    def step(inputs, cfg):
        return jax.value_and_grad(
            lambda logp: LOSSES[name](inputs._replace(logp=logp), cfg), has_aux=True
        )(inputs.logp)

    return step


def token_weights(mask, aggregation):
    """Weight of each token in the aggregate, so that aggregate(x) = sum(weights * x)."""
    rows = mask.shape[0]
    if aggregation == "token_mean":
        return mask / mask.sum()
    if aggregation == "sequence_mean":
        return mask / mask.sum(axis=1, keepdims=True) / rows
    return mask / (rows * MAX_LENGTH)


def expected(name, logp, old, ref, advantages, mask, beta, kl):
    """Loss, its gradient with respect to logp, and the tokens cut at each bound: loops over tokens,
    no shared code.
    """
    low, high, aggregation = PUBLISHED[name]
    weights = token_weights(mask, aggregation)
    loss, grad = 0.0, np.zeros_like(logp)
    cut_low, cut_high = np.zeros_like(mask), np.zeros_like(mask)
    for b in range(mask.shape[0]):
        tokens = np.flatnonzero(mask[b])
        log_s = sum(logp[b, t] - old[b, t] for t in tokens) / len(tokens)
        for t in tokens:
            a, w = advantages[b], weights[b, t]
            r = np.exp(log_s) if name == "gspo" else np.exp(logp[b, t] - old[b, t])
            if name == "rloo":
                loss -= w * a * logp[b, t]
                grad[b, t] -= w * a
            elif name == "cispo":
                bounded = min(max(r, 1 - low), 1 + high)
                loss -= w * bounded * a * logp[b, t]
                grad[b, t] -= w * bounded * a
                cut_low[b, t], cut_high[b, t] = r < 1 - low, r > 1 + high
            else:
                cut_high[b, t], cut_low[b, t] = (a > 0 and r > 1 + high), (a < 0 and r < 1 - low)
                value = (
                    a * (1 + high) if cut_high[b, t] else a * (1 - low) if cut_low[b, t] else a * r
                )
                slope = 0.0 if cut_high[b, t] or cut_low[b, t] else a * r
                loss -= w * value
                if name == "gspo":  # one s for the sequence: each token moves log s by 1/|o|
                    grad[b, tokens] -= w * slope / len(tokens)
                else:
                    grad[b, t] -= w * slope
            d = ref[b, t] - logp[b, t]
            loss += beta * w * {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - 1 - d}[kl]
            grad[b, t] += beta * w * {"k1": 1.0, "k2": -d, "k3": 1 - np.exp(d)}[kl]
    return loss, grad, cut_low, cut_high


@pytest.mark.parametrize(
    "name, kl",
    [(name, "k3") for name in sorted(LOSSES)] + [("grpo", "k1"), ("grpo", "k2"), ("rloo", "k2")],
)
def test_value_and_gradient(name, kl):
    logp, old, ref, advantages, mask = batch(seed=54, drift=1.0)
    loss, grad, cut_low, cut_high = expected(
        name, logp, old, ref, advantages, mask, beta=0.08, kl=kl
    )
    cfg = LossConfig(beta=0.08, kl=kl, max_length=MAX_LENGTH)
    (got, metrics), got_grad = step_of(name)(inputs_of(logp, old, ref, advantages, mask), cfg)
    np.testing.assert_allclose(got, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-4, atol=1e-6)
    inside = mask > 0
    ratio = np.exp(logp[inside] - old[inside])
    d = ref[inside] - logp[inside]
    want = {
        "ratio_mean": ratio.mean(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "abs_log_ratio": np.abs(np.log(ratio)).mean(),
        "ppo_kl": -np.log(ratio).mean(),
        "kl": (np.exp(d) - 1 - d).mean(),
    }
    if name != "rloo":
        want |= {
            "clip_ratio/low": cut_low[inside].mean(),
            "clip_ratio/high": cut_high[inside].mean(),
            "clip_ratio/region": (cut_low + cut_high)[inside].mean(),
        }
    assert set(metrics) == set(want) | {"policy_loss", "kl_loss"}
    for key, value in want.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(
        metrics["policy_loss"] + metrics["kl_loss"], loss, rtol=1e-5, atol=1e-6
    )


def test_the_oracle_batch_reaches_every_branch():
    """Tokens cut on both sides, tokens outside the bounds that their advantage keeps, CISPO weights
    above the cap.
    """
    logp, old, ref, advantages, mask = batch(seed=54, drift=1.0)
    _, _, cut_low, cut_high = expected("grpo", logp, old, ref, advantages, mask, 0.0, "k3")
    log_ratio = np.subtract(logp, old, where=mask > 0, out=np.zeros_like(mask))
    kept = (np.abs(log_ratio) > 0.3) & (cut_low + cut_high == 0)
    _, _, _, above_cap = expected("cispo", logp, old, ref, advantages, mask, 0.0, "k3")
    assert cut_low.sum() > 3 and cut_high.sum() > 3 and kept.sum() > 3 and above_cap.sum() > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_by_finite_differences(name):
    """In float64, where differences are good to 1e-6; off the kinks, which the oracle above
    covers.
    """
    logp, old, ref, advantages, mask = batch(seed=3, rows=4, width=5)
    # stop-gradient: the loss is not the antiderivative of its gradient unless the weight stays
    # fixed
    if name == "cispo":
        # every weight sits on the lower bound, so differences leave it alone
        old = np.where(mask > 0, logp + 10.0, old)
    with jax.enable_x64(True):
        cfg = LossConfig(max_length=MAX_LENGTH, clip_low=0.5 if name == "cispo" else None)
        arrays = (jnp.asarray(x) for x in (old, ref, advantages, mask))
        old, ref, advantages, ones = arrays

        def loss_of(logp):
            return LOSSES[name](LossInputs(logp, old, ref, None, advantages, ones), cfg)[0]

        tokens = np.argwhere(mask)
        steps = np.zeros((len(tokens), *mask.shape))
        steps[np.arange(len(tokens)), tokens[:, 0], tokens[:, 1]] = 1e-6
        value = jax.vmap(loss_of)
        differences = (value(jnp.asarray(logp + steps)) - value(jnp.asarray(logp - steps))) / 2e-6
        grad = jax.grad(loss_of)(jnp.asarray(logp))
        np.testing.assert_allclose(
            grad[tokens[:, 0], tokens[:, 1]], differences, rtol=1e-5, atol=1e-8
        )
        assert (np.asarray(grad)[mask == 0] == 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_micro_batches_add_up_to_the_batch(name):
    """Losses, gradients and metrics of micro-batches with uneven token counts combine to those of
    the batch.
    """
    inputs, step = inputs_of(*batch(seed=5)), step_of(name)
    (whole_loss, whole), whole_grad = step(inputs, LossConfig(max_length=MAX_LENGTH))
    cfg = LossConfig(max_length=MAX_LENGTH, normalizer=count(inputs.mask))
    parts = [step(jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], inputs), cfg) for i in range(4)]
    metrics = combine({key: jnp.stack([m[key] for (_, m), _ in parts]) for key in whole})
    for key in whole:
        np.testing.assert_allclose(metrics[key], whole[key], rtol=1e-5, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(
        sum(loss for (loss, _), _ in parts), whole_loss, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        jnp.concatenate([grad for _, grad in parts]), whole_grad, rtol=1e-5, atol=1e-7
    )


def test_scan_over_micro_batches_equals_the_batch():
    """As a train step does it: jit, scan, counts as traced leaves of the config."""
    inputs, step = inputs_of(*batch(seed=5)), step_of("grpo")

    @jax.jit
    def accumulated(inputs, cfg):
        inputs_M = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), inputs)
        _, ((loss_M, metrics_M), grad_M) = jax.lax.scan(
            lambda carry, micro: (carry, step(micro, cfg)), None, inputs_M
        )
        return loss_M.sum(), combine(metrics_M), grad_M.reshape(8, -1)

    (whole_loss, whole), whole_grad = step(inputs, LossConfig())
    loss, metrics, grad = accumulated(inputs, LossConfig(normalizer=count(inputs.mask)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (loss, metrics),
        (whole_loss, whole),
    )
    np.testing.assert_allclose(grad, whole_grad, rtol=1e-5, atol=1e-7)


def test_devices_add_up_to_the_batch():
    """Under shard_map each device sees its rows; psum of the counts, then of the losses, gives the
    loss of the batch.
    """
    inputs = inputs_of(*batch(seed=6))
    mesh = jax.make_mesh((8,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))

    def per_device(shard):
        cfg = LossConfig(normalizer=jax.lax.psum(count(shard.mask), "replica"))
        return jax.lax.psum(LOSSES["grpo"](shard, cfg)[0], "replica")

    spread = jax.shard_map(per_device, mesh=mesh, in_specs=jax.P("replica"), out_specs=jax.P())
    np.testing.assert_allclose(
        jax.jit(spread)(inputs), LOSSES["grpo"](inputs, LossConfig())[0], rtol=1e-5
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_on_policy_gradient_is_reinforce(name):
    """With old = current policy and beta 0, every loss has the gradient -A/(its divisor), and none
    clips.
    """
    inputs = inputs_of(*batch(seed=7))
    inputs = inputs._replace(old_logp=inputs.logp)
    (_, metrics), grad = step_of(name)(inputs, LossConfig(beta=0.0, aggregation="token_mean"))
    # GSPO too: it gives every token of a sequence the same weight
    want = -inputs.advantages[:, None] * inputs.mask
    np.testing.assert_allclose(grad * inputs.mask.sum(), want, rtol=1e-5, atol=1e-6)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0 and metrics["abs_log_ratio"] == 0.0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_left_is_zero_not_nan(name):
    inputs = inputs_of(*batch())
    (loss, metrics), grad = step_of(name)(inputs._replace(mask=inputs.mask * 0), LossConfig())
    assert loss == 0 and (grad == 0).all()
    assert metrics["ratio_min"] == np.inf and metrics["ratio_max"] == -np.inf


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_kl_in_the_reward_stays_out_of_the_loss(name):
    inputs = inputs_of(*batch(seed=8))
    loss, metrics = LOSSES[name](inputs, LossConfig(kl_in="reward", beta=0.5))
    without, _ = LOSSES[name](inputs, LossConfig(beta=0.0))
    assert loss == without and metrics["kl_loss"] == 0 and metrics["kl"] > 0


def test_reference_is_optional_only_without_kl():
    inputs = inputs_of(*batch())
    without = inputs._replace(ref_logp=None)
    loss, metrics = LOSSES["dapo"](without, LossConfig(beta=0.0))
    assert loss == LOSSES["dapo"](inputs, LossConfig(beta=0.0))[0] and "kl" not in metrics
    with pytest.raises(ValueError, match="ref_logp is None, but LossConfig.beta is 0.08"):
        LOSSES["dapo"](without, LossConfig())


def test_config_overrides_the_published_choices():
    inputs = inputs_of(*batch(seed=9))
    as_dapo = LossConfig(clip_high=0.28, aggregation="token_mean")
    assert LOSSES["grpo"](inputs, as_dapo)[0] == LOSSES["dapo"](inputs, LossConfig())[0]
    assert LOSSES["grpo"](inputs, LossConfig())[0] != LOSSES["dapo"](inputs, LossConfig())[0]


def test_config_names_every_field_that_is_wrong():
    wrong = {
        "beta": (-0.1, "a number >= 0, got -0.1"),
        "kl_in": ("losses", "one of loss, reward, got 'losses'"),
        "kl_clamp": (
            np.inf,
            "a number > 0, at most 80 (float32 holds no exponential above 88), got inf",
        ),
        "clip_low": (1.5, r"a number in (0, 1], or None for the loss's own, got 1.5"),
        "clip_high": (-1, "a number > 0, or None for the loss's own, got -1"),
        "max_length": (0, "a positive integer, or None for the width, got 0"),
        "zero_variance": ("skip", "one of keep, drop, got 'skip'"),
    }
    names = {"kl": ("k4", "unknown name 'k4'; did you mean"), "aggregation": ("no:x", "'no:x': no")}
    with pytest.raises(ValueError) as error:
        LossConfig(**{field: value for field, (value, _) in (wrong | names).items()})
    lines = str(error.value).splitlines()
    assert lines[:-2] == [f"{field}: expected {text}" for field, (_, text) in wrong.items()]
    for line, (field, (_, text)) in zip(lines[-2:], names.items(), strict=True):
        assert line.startswith(f"{field}: {text}")
    for field, (value, _) in (wrong | names).items():
        with pytest.raises(ValueError, match=rf"^{field}: [^\n]+$"):
            LossConfig(**{field: value})


def test_a_loss_has_settings_of_its_own():
    def scaled(inputs, cfg, scale, shift=0.0):
        return scale * inputs.logp.sum() + shift, {}

    inputs = inputs_of(*(np.ones((1, 2)),) * 3, np.ones(1), np.ones((1, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "scaled", scaled)
        assert policy_loss("scaled", {"scale": 3.0})(inputs, LossConfig())[0] == 6
        assert policy_loss("scaled", {"scale": 3, "shift": 1})(inputs, LossConfig())[0] == 7
        with pytest.raises(
            ValueError, match=r"no setting 'sclae'; did you mean scale\?\n.*needs the"
        ):
            policy_loss("scaled", {"sclae": 3.0})
    assert policy_loss("grpo", {}) is LOSSES["grpo"]
    with pytest.raises(ValueError, match="grpo has no setting 'clip'; known names: none"):
        policy_loss("grpo", {"clip": 0.1})


def test_config_is_a_pytree_whose_only_leaves_are_the_counts():
    cfg = LossConfig(normalizer=count(jnp.ones((2, 3))))
    assert len(jax.tree.leaves(LossConfig())) == 0 and [float(x) for x in jax.tree.leaves(cfg)] == [
        6.0,
        2.0,
    ]
    doubled = jax.jit(lambda c: jax.tree.map(lambda x: 2 * x, c))(cfg)
    assert doubled.beta == cfg.beta and float(doubled.normalizer.tokens) == 12.0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"gspo"}))
def test_importance_weights_of_tokens_that_older_weights_drew(name):
    """Truncated pi_old / pi_sampler, as constants, upon the policy loss of each token, not the KL;
    against NumPy.
    """
    logp, old, ref, advantages, mask = batch(seed=54, drift=1.0)
    sampler = np.where(mask > 0, old - np.random.default_rng(3).normal(0, 0.5, mask.shape), np.nan)
    ratio = np.exp(np.where(mask > 0, old - sampler, 0.0))
    weight, inside = np.minimum(ratio, 1.3), mask > 0
    cfg = LossConfig(beta=0.08, max_length=MAX_LENGTH, importance_sampling_cap=1.3)
    inputs = inputs_of(logp, old, ref, advantages, mask)
    weighed = inputs._replace(sampler_logp=jnp.asarray(sampler, jnp.float32))
    (loss, metrics), got_grad = step_of(name)(weighed, cfg)
    _, grad, *_ = expected(name, logp, old, ref, advantages, mask, 0.0, "k3")
    _, with_kl, *_ = expected(name, logp, old, ref, advantages, mask, 0.08, "k3")
    want_grad = weight * grad + (with_kl - grad)
    np.testing.assert_allclose(got_grad, want_grad, rtol=1e-4, atol=1e-6)
    if name == "dapo":
        r, a = np.exp(np.where(inside, logp - old, 0.0)), advantages[:, None]
        value = -np.minimum(r * a, np.clip(r, 0.8, 1.28) * a) * weight
        np.testing.assert_allclose(metrics["policy_loss"], value[inside].mean(), rtol=1e-4)
    assert metrics["importance_weight_mean"] == pytest.approx(weight[inside].mean(), rel=1e-5)
    assert metrics["importance_weight_max"] == pytest.approx(1.3)
    truncated = (ratio > 1.3)[inside].mean()
    assert metrics["importance_weight_truncated"] == pytest.approx(truncated) and truncated > 0.1
    # rollouts of the policy itself weigh 1: the loss as without
    same = inputs._replace(sampler_logp=inputs.old_logp)
    plain = LOSSES[name](inputs, cfg.replace(importance_sampling_cap=None))[0]
    assert LOSSES[name](same, cfg)[0] == plain
    with pytest.raises(
        ValueError, match="sampler_logp is None, but .*importance_sampling_cap is 1.3"
    ):
        LOSSES[name](inputs, cfg)
