import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.training.optimizer import OptimizerConfig, make_optimizer


def config(**changes):
    return OptimizerConfig(**{"weight_decay": 0.1} | changes)


def rates(steps, **changes):
    _, schedule = make_optimizer(config(**changes), 1e-3, steps)
    return [float(schedule(step)) for step in range(steps)]


def test_schedules():
    np.testing.assert_allclose(rates(4), 1e-3)
    np.testing.assert_allclose(
        rates(6, warmup_steps=4), [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3], rtol=1e-6
    )
    linear = rates(11, schedule="linear", warmup_steps=1)
    # the warm-up's last step and the first after it are both at the peak
    np.testing.assert_allclose(linear[:2], 1e-3)
    np.testing.assert_allclose(np.diff(linear[1:]), -0.09e-3, rtol=1e-4)
    cosine = rates(101, schedule="cosine")
    assert (
        cosine[0] == pytest.approx(1e-3)
        and cosine[50] == pytest.approx(0.55e-3, rel=0.02)
        and cosine[100] < 0.101e-3
    )
    assert np.all(np.diff(cosine) <= 0)
    # the step behind the last would be at final_fraction
    for name in ("linear", "cosine"):
        decay = config(schedule=name, warmup_steps=3, final_fraction=0.2)
        _, schedule = make_optimizer(decay, 1e-3, 12)
        assert float(schedule(12)) == pytest.approx(0.2e-3) and schedule(11) > 0.201e-3


def test_the_schedule_is_the_one_the_optimizer_uses():
    """With Adam, constant gradients and no decay each update is -rate * sign(gradient)."""
    optimizer, schedule = make_optimizer(
        config(schedule="cosine", warmup_steps=2, weight_decay=0.0), 1e-2, 6
    )
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    for step in range(6):
        updates, state = optimizer.update({"w": jnp.array([0.1, -0.2, 0.3])}, state, params)
        np.testing.assert_allclose(updates["w"], -schedule(step) * np.array([1, -1, 1]), rtol=1e-4)


def test_gradient_is_clipped_and_norm_scales_are_not_decayed():
    optimizer, _ = make_optimizer(config(clip_norm=0.5), 1e-2, 1)
    params = {"q": jnp.ones(4), "norm": {"scale": jnp.ones(4)}}
    _, state = optimizer.update(
        {"q": jnp.full(4, 3.0), "norm": {"scale": jnp.zeros(4)}}, optimizer.init(params), params
    )
    # norm 6 scaled down to 0.5
    np.testing.assert_allclose(state[1][0].mu["q"], (1 - 0.9) * 0.25, rtol=1e-5)
    zero = {"q": jnp.zeros(4), "norm": {"scale": jnp.zeros(4)}}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["q"], -1e-2 * 0.1)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)


def test_errors_name_every_wrong_field():
    with pytest.raises(ValueError) as error:
        config(schedule="cosin", b1=1.0, clip_norm="1")
    assert str(error.value).splitlines() == [
        "3 wrong fields in OptimizerConfig",
        "  schedule: expected one of constant, cosine, linear, got 'cosin'",
        "  clip_norm: expected a number > 0, got '1'",
        "  b1: expected a number in [0, 1), got 1.0",
    ]


def test_a_warm_up_that_is_longer_than_the_stage_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps: expected at most 5, .* got 9"):
        make_optimizer(config(warmup_steps=9), 1e-3, 5)
