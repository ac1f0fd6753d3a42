"""Makes tiny Gemma-2 configs that each stress one part of the numerics, with weights and inputs.

From numpy seeds (no torch, no JAX random).
"""

import dataclasses
import functools

import jax
import numpy as np

from grm_jax.models import Decoder, ModelConfig, lm_logits
from grm_jax.models.config import GLOBAL, LOCAL, alternating
from grm_jax.models.decoder import without_head
from grm_jax.models.heads import scalar_logits
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params

BASE = ModelConfig(
    vocab_size=97,
    d_model=32,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=48,
    layer_types=alternating(4),
    sliding_window=7,
    query_pre_attn_scalar=16.0,
)


def _vary(**changes) -> ModelConfig:
    return dataclasses.replace(BASE, **changes)


# name -> (config, factor on the q, k and embedding weights)
CASES = {
    "window_shorter_than_sequence": (_vary(), 1.0),
    "published_caps_bite": (_vary(), 5.0),
    "small_caps_bite": (_vary(attn_softcap=1.5, final_softcap=1.0), 1.0),
    "query_scale_is_not_head_dim": (
        _vary(n_heads=8, head_dim=8, n_kv_heads=4, query_pre_attn_scalar=27.0),
        1.0,
    ),
    "one_kv_head": (_vary(n_layers=2, layer_types=alternating(2), n_kv_heads=1), 1.0),
    "kv_head_per_query_head": (
        _vary(n_layers=2, layer_types=alternating(2), n_kv_heads=4, sliding_window=2),
        1.0,
    ),
    "odd_layer_count": (_vary(n_layers=3, layer_types=alternating(3), rope_theta=500.0), 1.0),
    "own_layer_types": (
        _vary(n_layers=6, layer_types=(GLOBAL, LOCAL, LOCAL) * 2, sliding_window=3),
        1.0,
    ),
    "no_caps_all_global": (
        _vary(layer_types=(GLOBAL,) * 4, attn_softcap=None, final_softcap=None, norm_eps=1e-3),
        1.0,
    ),
}
B, T, SHORT = 2, 24, 17  # row 1 has SHORT tokens, then padding
STRIDE = 4  # golden.npz keeps every fourth position


def random_params(cfg: ModelConfig, seed: int = 0, factor: float = 1.0) -> dict:
    """Draws numpy float32 parameters.

    Matrices with std fan_in**-0.5 (q, k and embedding times `factor`), norms about w = 0 +- 0.3.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            center = 0.0 if cfg.family.unit_offset else 1.0
            return rng.normal(center, 0.3, leaf.shape).astype(np.float32)
        fan_in = {"o": cfg.n_heads * cfg.head_dim, "down": cfg.d_ff}.get(name, cfg.d_model)
        boost = factor if name in ("q", "k", "embedding") else 1.0
        return (rng.normal(0.0, boost * fan_in**-0.5, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(cfg))


def inputs(cfg: ModelConfig, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """tokens_BT without id 0, and pos_BT; row 1 is right-padded with id 0 and position -1."""
    tokens_BT = np.random.default_rng(seed).integers(3, cfg.vocab_size, (B, T)).astype(np.int32)
    pos_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)).copy()
    tokens_BT[1, SHORT:], pos_BT[1, SHORT:] = 0, -1
    return tokens_BT, pos_BT


# LLVM's effort only: the same HLO, hence the same rounding, and less than half of the compile time,
# which is what these tests cost
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(quick_jit, static_argnums=1)
def logits_of(params, cfg, tokens_BT, pos_BT):
    return lm_logits(params, cfg, Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT)[0])


def case_of(name: str) -> tuple[ModelConfig, float]:
    """(config, factor) of a case of any family."""
    from tests.models import family_cases

    return (CASES | family_cases.CASES)[name]


@functools.cache
def jax_logits(name: str) -> np.ndarray:
    """logits_BTV of a case, computed once for a test session."""
    cfg, factor = case_of(name)
    return np.asarray(logits_of(random_params(cfg, factor=factor), cfg, *inputs(cfg)))


def torch_model(params: dict, cfg: ModelConfig, architecture: str = CAUSAL_LM):
    """transformers' eager float32 model with these weights, loaded by name (not through a file)."""
    import torch
    import transformers
    from flax.traverse_util import flatten_dict

    from grm_jax.models.hf_config import to_hf_dict
    from grm_jax.models.table import find_row, hf_names, is_stacked, to_hf

    hf = to_hf_dict(cfg, architecture) | {"pad_token_id": 0, "num_labels": 1}
    name = getattr(cfg.family, architecture)
    config = getattr(transformers, name).config_class(**hf)
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config).eval()
    state = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        for block, name in enumerate(hf_names(path, cfg)):
            array = to_hf(
                np.asarray(leaf[block] if is_stacked(path) else leaf), find_row(path).inputs
            )
            state[name] = torch.from_numpy(np.array(array, np.float32))
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def torch_logits(name: str) -> np.ndarray:
    """logits_BTV of a case from transformers; values in padding mean nothing."""
    import torch

    cfg, factor = case_of(name)
    tokens_BT, pos_BT = inputs(cfg)
    model = torch_model(random_params(cfg, factor=factor), cfg)
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(tokens_BT).long(),
            attention_mask=torch.from_numpy(pos_BT >= 0).long(),
        ).logits.numpy()


def scalar_params(cfg: ModelConfig) -> dict:
    """{"backbone", "score"} from a numpy seed."""
    score_D1 = np.random.default_rng(2).normal(0.0, 1.0, (cfg.d_model, 1)).astype(np.float32)
    return {"backbone": without_head(random_params(cfg)), "score": score_D1}


@functools.cache
def jax_scalar_logits(cfg: ModelConfig = BASE) -> np.ndarray:
    """logits_B of the scalar head."""
    return np.asarray(
        quick_jit(scalar_logits, static_argnums=1)(scalar_params(cfg), cfg, *inputs(cfg))
    )


def torch_scalar_logits(cfg: ModelConfig = BASE) -> np.ndarray:
    """logits_B of the family's class for sequence classification."""
    import torch

    tokens_BT, pos_BT = inputs(cfg)
    model = torch_model(scalar_params(cfg), cfg, SCALAR)
    with torch.no_grad():
        return (
            model(
                input_ids=torch.from_numpy(tokens_BT).long(),
                attention_mask=torch.from_numpy(pos_BT >= 0).long(),
            )
            .logits[:, 0]
            .numpy()
        )


def torch_greedy(cfg: ModelConfig) -> np.ndarray:
    """tokens_BC that transformers writes greedily after each of the prompts of `greedy_prompts`."""
    import torch

    model = torch_model(random_params(cfg), cfg)
    written = []
    for prompt_T in greedy_prompts(cfg):
        tokens_1T = torch.from_numpy(prompt_T[None]).long()
        out = model.generate(tokens_1T, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        written.append(out[0, len(prompt_T) :].numpy())
    return np.stack(written).astype(np.int32)


NEW = 12  # tokens that `torch_greedy` writes


def greedy_prompts(cfg: ModelConfig) -> list[np.ndarray]:
    """Two prompts of different lengths, the rows of `inputs`."""
    tokens_BT, pos_BT = inputs(cfg)
    return [tokens_T[pos_T >= 0] for tokens_T, pos_T in zip(tokens_BT, pos_BT)]
