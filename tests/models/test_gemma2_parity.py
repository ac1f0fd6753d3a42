"""The whole model against transformers' torch implementation: committed golden values, and live
where torch is installed.
"""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.models.gemma2_cases import (
    CASES,
    STRIDE,
    inputs,
    jax_logits,
    jax_scalar_logits,
    logits_of,
    random_params,
    torch_logits,
    torch_scalar_logits,
)

GOLDEN = np.load(pathlib.Path(__file__).with_name("golden.npz"))
TOLERANCE = 1e-4  # float32, absolute, on logits


def difference(name: str, theirs_BTV: np.ndarray, stride: int = 1) -> float:
    real_BT = inputs(CASES[name][0])[1] >= 0
    return float(np.abs(jax_logits(name)[:, ::stride] - theirs_BTV)[real_BT[:, ::stride]].max())


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_golden_values(name):
    assert difference(name, GOLDEN[name], STRIDE) <= TOLERANCE


def test_scalar_head_equals_the_golden_values():
    ours_B = jax_scalar_logits()
    assert ours_B.dtype == np.float32
    np.testing.assert_allclose(ours_B, GOLDEN["scalar_head"], atol=TOLERANCE)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_torch(name):
    pytest.importorskip("torch")
    found = difference(name, torch_logits(name))
    print(f"{name}: max abs logit difference {found:.1e}")
    assert found <= TOLERANCE


@pytest.mark.torch
def test_scalar_head_equals_torch():
    pytest.importorskip("torch")
    found = np.abs(jax_scalar_logits() - torch_scalar_logits()).max()
    print(f"scalar head: max abs difference {found:.1e}")
    assert found <= TOLERANCE


def test_the_published_caps_bite_in_their_case():
    cfg, factor = CASES["published_caps_bite"]
    assert (cfg.attn_softcap, cfg.final_softcap) == (50.0, 30.0)
    real_BT = inputs(cfg)[1] >= 0
    no_final = dataclasses.replace(cfg, attn_softcap=None, final_softcap=None)
    raw_BTV = np.asarray(logits_of(random_params(cfg, factor=factor), no_final, *inputs(cfg)))
    capped_raw = 30.0 * np.tanh(raw_BTV / 30.0)
    assert np.abs(raw_BTV)[real_BT].max() > 30.0
    # what the attention cap alone changes
    assert np.abs(capped_raw - jax_logits("published_caps_bite"))[real_BT].max() > 0.1


def test_bfloat16_stays_close_to_float32():
    """KL of next-token distributions; MaxText's gate for Gemma-2 checkpoints is a maximum of 0.015
    against float32.
    """
    cfg, _ = CASES["window_shorter_than_sequence"]
    bf16_BTV = np.asarray(
        logits_of(random_params(cfg), dataclasses.replace(cfg, dtype="bfloat16"), *inputs(cfg))
    )
    assert bf16_BTV.dtype == np.float32 and np.isfinite(bf16_BTV).all()

    def log_softmax(x):
        x = x.astype(np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    exact, rounded = log_softmax(jax_logits("window_shorter_than_sequence")), log_softmax(bf16_BTV)
    kl_BT = (np.exp(exact) * (exact - rounded)).sum(-1)[inputs(cfg)[1] >= 0]
    print(f"bfloat16: KL mean {kl_BT.mean():.1e}, max {kl_BT.max():.1e}")
    assert kl_BT.max() < 0.015
