"""Makes tiny configs of every family but Gemma-2 that each stress one part of it.

Weights and inputs are those of `gemma2_cases`.
"""

from grm_jax.models import ModelConfig
from grm_jax.models.config import GLOBAL, LOCAL, RopeScaling, from_sizes

SIZES = dict(d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48)
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
VOCABULARY = 97


def _case(model_type: str, **sizes) -> ModelConfig:
    return from_sizes(SIZES | {"model_type": model_type} | sizes, VOCABULARY)


# name -> (config, factor on the q, k and embedding weights); the first of each family is its main
# case, which other tests take
CASES = {
    "llama_scaled_untied": (
        _case("llama", rope_scaling=LLAMA3, rope_theta=500.0, n_kv_heads=1, tied_head=False),
        1.0,
    ),
    "llama_of_smollm2": (
        _case(
            "llama", d_model=36, n_heads=9, n_kv_heads=3, head_dim=4, rope_theta=1e5, tied_head=True
        ),
        1.0,
    ),
    "llama_linear_wide_heads": (
        _case(
            "llama",
            rope_scaling=RopeScaling("linear", 3.7),
            n_kv_heads=4,
            head_dim=24,
            tied_head=False,
        ),
        1.0,
    ),
    "llama_large_weights": (
        _case("llama", n_layers=2, norm_eps=1e-3, n_heads=2, n_kv_heads=1, tied_head=True),
        2.0,
    ),
    "mistral_window_untied": (_case("mistral", sliding_window=7, n_kv_heads=1), 1.0),
    "mistral_no_window": (
        _case("mistral", sliding_window=None, head_dim=10, rope_theta=1e6, n_kv_heads=4),
        1.0,
    ),
    "mistral_window_scaled_tied": (
        _case("mistral", sliding_window=2, tied_head=True, rope_scaling=LLAMA3),
        1.0,
    ),
    "mistral_linear_one_head": (
        _case(
            "mistral",
            sliding_window=11,
            n_heads=1,
            n_kv_heads=1,
            head_dim=32,
            rope_scaling=RopeScaling("linear", 0.5),
            norm_eps=1e-3,
        ),
        2.0,
    ),
    "qwen2_window_in_the_last_layers_tied": (
        _case(
            "qwen2",
            n_layers=4,
            sliding_window=5,
            layer_types=(GLOBAL, GLOBAL, LOCAL, LOCAL),
            rope_theta=1e6,
            tied_head=True,
        ),
        1.0,
    ),
    "qwen2_no_window_untied": (_case("qwen2", n_kv_heads=1, head_dim=6), 2.0),
    "qwen2_linear": (_case("qwen2", n_kv_heads=4, rope_scaling=RopeScaling("linear", 4.0)), 1.0),
    "qwen2_all_local": (
        _case("qwen2", n_layers=2, sliding_window=3, layer_types=(LOCAL, LOCAL), norm_eps=1e-2),
        1.0,
    ),
    "qwen3_wide_heads_untied": (_case("qwen3", head_dim=24, n_kv_heads=1, rope_theta=1e6), 1.0),
    "qwen3_tied": (_case("qwen3", tied_head=True, n_heads=8, n_kv_heads=8, head_dim=4), 1.0),
    "qwen3_window": (
        _case(
            "qwen3",
            n_layers=4,
            sliding_window=4,
            layer_types=(GLOBAL, LOCAL, LOCAL, LOCAL),
            norm_eps=1e-3,
        ),
        1.0,
    ),
    "qwen3_scaled_large_weights": (
        _case("qwen3", n_layers=2, rope_scaling=LLAMA3, rope_theta=100.0),
        3.0,
    ),
    "gemma3_scaled_with_a_remainder": (
        _case(
            "gemma3_text",
            n_layers=7,
            layer_types=(LOCAL, LOCAL, GLOBAL) * 2 + (LOCAL,),
            sliding_window=5,
            rope_theta=1000.0,
            local_rope_theta=50.0,
            rope_scaling=RopeScaling("linear", 8.0),
            query_pre_attn_scalar=27.0,
            n_kv_heads=1,
        ),
        1.0,
    ),
    "gemma3_five_to_one": (
        _case("gemma3_text", n_layers=8, sliding_window=4, query_pre_attn_scalar=8.0, head_dim=16),
        1.0,
    ),
    "gemma3_final_softcap": (
        _case("gemma3_text", n_layers=6, final_softcap=1.5, sliding_window=3, n_kv_heads=4),
        1.0,
    ),
    "gemma3_shorter_than_its_pattern": (
        _case("gemma3_text", n_layers=2, sliding_window=9, local_rope_theta=20.0, norm_eps=1e-2),
        2.0,
    ),
}

FAMILIES = list(dict.fromkeys(cfg.model_type for cfg, _ in CASES.values()))


def main_case(model_type: str) -> tuple[str, ModelConfig]:
    """(name, config) of the first case of a family."""
    return next((name, cfg) for name, (cfg, _) in CASES.items() if cfg.model_type == model_type)
