"""SPCT with adapters: every stage runs, what is saved is the start plus its adapters, and a resumed
run needs the adapters alone.
"""

import jax
import numpy as np
import pytest

from grm_jax.checkpoint.huggingface import load_params
from grm_jax.checkpoint.peft import load_adapted, load_adapters
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import merge
from grm_jax.models.table import SCALAR
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.description import layers_of, model_folder, read_description


@pytest.mark.slow
def test_the_whole_run_with_adapters(processes, micro, tmp_path):
    processes.run(
        micro,
        tmp_path / "run",
        "--config.lora.rank=2",
        "--config.lora.alpha=4",
        "--config.lora.targets=('q', 'o', 'down')",
    )
    cfg = load_config(model_folder("tiny_base"))
    start = load_params(model_folder("tiny_base"), cfg)
    for name in ("rft", "grm"):
        adapters, lora = load_adapters(tmp_path / "run/adapters" / name, cfg)
        assert (lora.rank, lora.scale) == (2, 2.0) and set(lora.targets) == {"q", "o", "down"}
        found, expected = (
            load_params(tmp_path / "run/models" / name, cfg),
            merge(start, adapters, lora.scale),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, expected
        )
        assert (
            np.abs(
                found["blocks"]["layer_0_attn"]["q"] - start["blocks"]["layer_0_attn"]["q"]
            ).max()
            > 0
        )
        assert (found["embedding"] == start["embedding"]).all()
        start = found
    for name in ("rft", "grm", "meta"):  # they say how they are asked, as the whole model does
        said = read_description(tmp_path / "run/adapters" / name)
        assert said is not None and said == read_description(tmp_path / "run/models" / name)
    saved = sum(
        path.stat().st_size
        for path in (tmp_path / "run/checkpoints/rl").rglob("*")
        if path.is_file()
    )
    # two train states of adapters
    assert saved < 0.5 * (model_folder("tiny_base") / "model.safetensors").stat().st_size
    # the Meta RM's, with its head, upon the last policy
    meta = load_adapted(
        layers_of(tmp_path / "run/adapters/meta"), cfg, make_mesh(devices=jax.devices()[:1]), SCALAR
    )
    whole = load_params(tmp_path / "run/models/meta", cfg, architecture=SCALAR)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), meta, whole)
