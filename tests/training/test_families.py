"""Training on packed rows, each prompt once, for every family: losses, metrics and gradients of
policies and of scalar heads are those of padded rows.
"""

import jax
import numpy as np
import pytest

from grm_jax.data.packing import pack_examples
from grm_jax.losses import LOSSES, LossConfig
from grm_jax.models import init_params
from grm_jax.models.config import GLOBAL, LOCAL, from_sizes
from grm_jax.models.heads import init_scalar_params
from grm_jax.training.step import meta_loss, rft_loss, rl_loss
from tests.models.family_cases import FAMILIES, LLAMA3
from tests.training import test_packed as packed

# windows shorter than the prompts, a rest behind two blocks, a head of its own
SIZES = dict(vocab_size=48, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32)
OF_FAMILY = {
    "llama": dict(rope_scaling=LLAMA3, tied_head=False),
    "mistral": dict(sliding_window=6),
    "qwen2": dict(sliding_window=6, layer_types=(GLOBAL, LOCAL), tied_head=True),
    "qwen3": dict(n_kv_heads=1),
    "gemma3_text": dict(n_layers=5, layer_types=(LOCAL, GLOBAL) * 2 + (LOCAL,), sliding_window=6),
}


def config(family):
    sizes = SIZES | {"model_type": family} | OF_FAMILY[family]
    vocab_size = sizes.pop("vocab_size")
    return from_sizes(sizes, vocab_size)


def test_every_family_is_here():
    assert [*OF_FAMILY] == FAMILIES


# biases, windows, norms of queries, two bases and a rest are in these two
QUICK = ("qwen2", "gemma3_text")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES]
)
def test_grpo_on_packed_rollouts_is_that_of_padded_ones(family):
    cfg = config(family)
    params = init_params(cfg, jax.random.key(0))
    loss = rl_loss(
        cfg,
        LOSSES["grpo"],
        LossConfig(max_length=packed.COMPLETION, beta=0.1),
        packed.TEMPERATURE,
        packed.COMPLETION,
    )
    got = packed.run(loss, params, packed.packed_batch(1)[1])
    packed.assert_same(got, packed.run(loss, params, packed.padded_batch()))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rft", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_supervised_stages_packed_and_padded(family, stage):
    cfg = config(family)
    params, rng = init_params(cfg, jax.random.key(0)), np.random.default_rng(3)
    rows, loss = packed.examples(rng), rft_loss(cfg)
    if stage == "meta":
        rows = [row | {"labels": float(rng.integers(2))} for row in rows]
        for row in rows:
            del row["mask"]
        params, loss = init_scalar_params(cfg, params, jax.random.key(1)), meta_loss(cfg)
    batch = pack_examples(rows, packed.LENGTHS, 1)["batch"]
    packed.assert_same(
        packed.run(loss, params, batch), packed.run(loss, params, packed.padded(rows))
    )
