"""Packed rows against one row for each sequence: hidden states and gradients of the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import Decoder, blocked
from grm_jax.models.attention import Packed
from grm_jax.models.config import GLOBAL, alternating
from tests.models.gemma2_cases import BASE, quick_jit, random_params
from tests.models.packed_cases import lay_out, random_rows

SMALL = dataclasses.replace(BASE, n_layers=2, layer_types=alternating(2))
ROWS = {
    "trunks about a window of 7": [
        [(20, (5, 9, 1)), (3, (6,)), (7, (2, 8))],
        [(6, (20,)), (9, ())],
    ],
    "a trunk of one token, and of none": [[(1, (4, 3)), (0, (11,)), (2, (1, 1, 1, 1))]],
    "one sequence and padding": [[(17, ())], [(0, (17,))]],
    "drawn": random_rows(0, B=2, T=72, longest=24),
}


def hidden_and_gradients(cfg, params, tokens_BT, pos_BT, weight_BT, packed):
    """hidden_BTD, and the gradients of a loss over its values at the tokens of weight 1."""

    def loss(params):
        hidden_BTD, _ = Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT, packed=packed)
        return jnp.sum(weight_BT[..., None] * jnp.sin(3.0 * hidden_BTD)), hidden_BTD

    (_, hidden_BTD), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(hidden_BTD), gradients


@pytest.mark.parametrize(
    "attention, rows, changes",
    [
        pytest.param(
            "reference", "trunks about a window of 7", {"attn_softcap": 1.5}, id="reference"
        ),
        pytest.param("blocked", "trunks about a window of 7", {"attn_softcap": 1.5}, id="blocked"),
        pytest.param(
            "blocked",
            "a trunk of one token, and of none",
            {"sliding_window": 2, "n_kv_heads": 4, "scan_layers": False},
            id="blocked, a window of 2, no scan",
        ),
        pytest.param(
            "blocked",
            "one sequence and padding",
            {"layer_types": (GLOBAL,) * 2},
            id="blocked, no window, no tree",
        ),
        pytest.param(
            "blocked", "drawn", {"sliding_window": 5, "remat": "full"}, id="blocked, drawn, remat"
        ),
        pytest.param(
            "splash_interpreted",
            "drawn",
            {"sliding_window": 9, "n_kv_heads": 1, "remat": "full"},
            id="splash, drawn, remat",
        ),
    ],
)
def test_packed_rows_are_their_sequences_run_one_by_one(monkeypatch, attention, rows, changes):
    monkeypatch.setattr(blocked, "TILE", 16)
    cfg = dataclasses.replace(SMALL, attention=attention, **changes)
    layout = lay_out(ROWS[rows], T=72)
    pos_BT, params = layout.pos_BT, random_params(cfg)
    tokens_BT = np.random.default_rng(1).integers(3, cfg.vocab_size, pos_BT.shape)
    hidden, gradients = hidden_and_gradients(
        cfg, params, tokens_BT, pos_BT, pos_BT >= 0, Packed(layout.segment_BT, layout.branch_BT)
    )
    # one row for each sequence; a trunk counts in the loss of its first branch alone
    longest = max(len(indices) for _, indices in layout.sequences)
    tokens_nT, pos_nT, weight_nT = np.zeros((3, len(layout.sequences), longest), np.int32)
    pos_nT[:] = -1
    for n, ((row, indices), first) in enumerate(zip(layout.sequences, layout.first)):
        tokens_nT[n, : len(indices)] = tokens_BT[row, indices]
        pos_nT[n, : len(indices)] = np.arange(len(indices))
        weight_nT[n, : len(indices)] = first
    slow = dataclasses.replace(cfg, attention="reference")
    expected, expected_gradients = hidden_and_gradients(
        slow, params, tokens_nT, pos_nT, weight_nT, None
    )
    for n, (row, indices) in enumerate(layout.sequences):
        np.testing.assert_allclose(
            hidden[row, indices], expected[n, : len(indices)], atol=2e-5, rtol=0
        )
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(
            got, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-5
        ),
        gradients,
        expected_gradients,
    )


def test_a_prefix_beside_packed_rows_is_refused():
    packed = Packed(*np.zeros((2, 1, 4), np.int32))
    with pytest.raises(ValueError, match="packed: expected None beside a prefix or a suffix"):
        Decoder(SMALL).apply(
            {"params": random_params(SMALL)},
            np.zeros((1, 4), np.int32),
            np.arange(4)[None],
            prefix={},
            packed=packed,
        )
