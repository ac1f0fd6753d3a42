"""Aggregations by hand on a small ragged batch."""

import jax.numpy as jnp
import numpy as np

from grm_jax.losses import AGGREGATIONS, LossConfig, Normalizer, count

X = jnp.array([[1.0, 2.0, 4.0, 7.0], [3.0, 99.0, 99.0, 99.0], [99.0, 99.0, 99.0, 99.0]])
MASK = jnp.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_count_leaves_out_empty_sequences():
    assert [float(n) for n in count(MASK)] == [4.0, 2.0]


def test_values():
    want = {"token_mean": 10 / 4, "sequence_mean": (7 / 3 + 3) / 2, "constant": 10 / (2 * 4)}
    assert set(want) == set(AGGREGATIONS)
    for name, value in want.items():
        np.testing.assert_allclose(
            AGGREGATIONS[name](X, MASK, LossConfig()), value, rtol=1e-6, err_msg=name
        )
    np.testing.assert_allclose(
        AGGREGATIONS["constant"](X, MASK, LossConfig(max_length=10)), 10 / (2 * 10), rtol=1e-6
    )


def test_the_normalizer_of_the_config_is_the_divisor():
    cfg = LossConfig(normalizer=Normalizer(tokens=jnp.array(40.0), sequences=jnp.array(5.0)))
    want = {"token_mean": 10 / 40, "sequence_mean": (7 / 3 + 3) / 5, "constant": 10 / (5 * 4)}
    for name, value in want.items():
        np.testing.assert_allclose(AGGREGATIONS[name](X, MASK, cfg), value, rtol=1e-6, err_msg=name)


def test_padding_the_width_changes_only_the_constant_without_max_length():
    wide_x, wide_mask = jnp.pad(X, ((0, 0), (0, 4))), jnp.pad(MASK, ((0, 0), (0, 4)))
    for name, aggregate in AGGREGATIONS.items():
        cfg = LossConfig(max_length=4)
        assert aggregate(wide_x, wide_mask, cfg) == aggregate(X, MASK, cfg), name
