"""Measures the sampler's speed as a ratio to peers in the same process.

    python -m speed.sampler [--model=FOLDER] [--prompts=32] [--samples=8] [--prompt_length=48]
        [--new_tokens=64] [--repeats=3]

On the same weights and the same number of tokens: `transformers` generate in torch (left out where
torch is missing), our sampler without shared prefixes, and the obvious slow twin that runs the
whole text again for every token.
Every row is sampled at temperature 1 to its full length. Runs on whatever device JAX finds; torch
takes its GPU if it has one. The first call of each contender compiles and is not counted; the best
of `repeats` is.
"""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from grm_jax.checkpoint.huggingface import load_params
from grm_jax.models.config import load_config
from grm_jax.models.gemma2 import Gemma2, lm_logits
from grm_jax.reward_models.description import model_folder
from grm_jax.sampling.logits import choose_tokens
from grm_jax.sampling.sampler import SamplingConfig, sample, sample_key

MODEL = flags.DEFINE_string(
    "model", str(model_folder("tiny_base")), "Hugging Face folder of a Gemma-2."
)
PROMPTS = flags.DEFINE_integer("prompts", 32, "Prompts in a batch.")
SAMPLES = flags.DEFINE_integer("samples", 8, "Completions of each prompt.")
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 48, "Tokens of a prompt.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens of a completion.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each contender.")


def recompute(params, cfg, prompts_BT, keys_B2, new_tokens):
    """Samples without a cache, as the slow twin: a forward over the whole text for each token."""
    B, T = prompts_BT.shape
    tokens_BT = jnp.pad(prompts_BT, ((0, 0), (0, new_tokens)))

    def body(step, tokens_BT):
        positions_BT = jnp.broadcast_to(jnp.arange(T + new_tokens), tokens_BT.shape)
        hidden_BTD, _ = Gemma2(cfg).apply({"params": params}, tokens_BT, positions_BT)
        logits_BV = lm_logits(params, cfg, hidden_BTD[:, T + step - 1])
        return tokens_BT.at[:, T + step].set(choose_tokens(logits_BV, keys_B2, step, 1.0)[0])

    return jax.lax.fori_loop(0, new_tokens, body, tokens_BT)


def torch_generate(folder, prompts_BT, new_tokens):
    """Calls `transformers` generate on the same weights; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (
        AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        .to(device)
        .eval()
    )
    prompts = torch.tensor(np.asarray(prompts_BT), dtype=torch.long, device=device)

    def call():
        with torch.no_grad():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
            )
        return out.cpu()

    return call


def seconds(call) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS.value):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def main(_):
    P, k, T, C = PROMPTS.value, SAMPLES.value, PROMPT_LENGTH.value, NEW_TOKENS.value
    cfg = load_config(MODEL.value, dtype="float32", scan_layers=False)
    params = load_params(MODEL.value, cfg)
    scfg = SamplingConfig(C, temperature=1.0)
    prompts_PT = np.random.default_rng(0).integers(10, cfg.vocab_size, (P, T)).astype(np.int32)
    keys_Pk2 = np.array([[sample_key(0, str(p), j) for j in range(k)] for p in range(P)])
    rows_BT, keys_B2 = prompts_PT.repeat(k, axis=0), keys_Pk2.reshape(-1, 2)
    sampler = jax.jit(functools.partial(sample, cfg=cfg, scfg=scfg))
    slow = jax.jit(functools.partial(recompute, cfg=cfg, new_tokens=C))

    contenders = {
        "sampler, k samples share their prefix": lambda: sampler(
            params, prompts_PT=prompts_PT, lengths_P=np.full(P, T, np.int32), keys_Pk2=keys_Pk2
        ),
        "sampler, every row its own prefix": lambda: sampler(
            params,
            prompts_PT=rows_BT,
            lengths_P=np.full(P * k, T, np.int32),
            keys_Pk2=keys_B2[:, None],
        ),
        "no cache (slow twin)": lambda: slow(params, prompts_BT=rows_BT, keys_B2=keys_B2),
        "transformers generate, torch": torch_generate(MODEL.value, rows_BT, C),
    }
    first = None
    for name, call in contenders.items():
        if call is None:
            print(f"{name}: torch is not installed")
            continue
        took = seconds(call)
        first = first or took
        print(
            json.dumps(
                {
                    "contender": name,
                    "device": jax.devices()[0].device_kind,
                    "rows": P * k,
                    "seconds": round(took, 3),
                    "tokens_per_s": round(P * k * C / took),
                    "sampler_is_faster_by": round(took / first, 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
