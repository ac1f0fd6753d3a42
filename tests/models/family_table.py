"""Writes docs/families.md: every family and config of the tests beside transformers in torch.

    python -m tests.models.family_table

Needs torch; about two minutes on two cores.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np

from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.models.families import FAMILIES, LOCAL
from grm_jax.models.hf_config import load_config
from grm_jax.sampling.sampler import SamplingConfig, sample, sample_key
from tests.models import family_cases, gemma2_cases
from tests.models.gemma2_cases import (
    NEW,
    T,
    greedy_prompts,
    inputs,
    jax_logits,
    quick_jit,
    random_params,
    torch_greedy,
    torch_logits,
)

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "families.md"
HEAD = """\
# Families

One decoder runs six families. What they do differently is one row of switches each in
[models/families.py](../grm_jax/models/families.py); what their models differ in is a field of the
config. A Hugging Face folder of any of them is read, trained, sampled from, given a scalar head or
adapters, and written back.

| `model_type` | transformers' class | switches |
|---|---|---|
{families}

## Beside transformers

Random weights in float32, configs that bite: windows shorter than the text, one to all heads of
keys, odd scales. Layers: L local, G global. `max_abs`: the largest difference of a logit from
transformers in torch (eager attention) over {T} positions and a shorter row. `greedy`: {new} tokens
behind each of two prompts beside transformers'. `round trip`: a folder that is written and read
again, its config and every bit of its weights.

| family | config | layers | `max_abs` | `greedy` | `round trip` |
|---|---|---|---|---|---|
{rows}

Made by `.venv/bin/python -m tests.models.family_table`. `tests/models/` holds each difference
below 1e-4, by golden values on machines without torch too.

Real models, over 145 tokens of English, logits up to 34: `max_abs` from the same model of
transformers in float64 is 1.5e-04 for us, 5.8e-05 for transformers in float32 and 4.9e-05 with
"sdpa" (SmolLM2-135M-Instruct), and 9.6e-05, 1.1e-04 and 1.1e-04 (Gemma-3-270m): 1e-4 is what
float32 rounds there. A product of 1,536 terms by XLA on a CPU is 1.6 times as far off as
torch's (root mean square).
`.venv/bin/python -m tests.models.float64 FOLDER` says it of a folder.
"""
SWITCHES = ("unit_offset", "scaled_embedding", "post_norms", "qk_norm", "qkv_bias")


def switches(family) -> str:
    on = [name for name in SWITCHES if getattr(family, name)]
    return ", ".join([family.activation, *on])


def greedy(cfg) -> np.ndarray:
    """tokens_PC of the sampler behind the prompts of `greedy_prompts`."""
    prompts = greedy_prompts(cfg)
    tokens_PT = np.stack([np.pad(prompt, (0, T - len(prompt))) for prompt in prompts])
    lengths_P = np.array([len(prompt) for prompt in prompts], np.int32)
    keys_Pk2 = np.stack([sample_key(0, str(i), 0)[None] for i in range(len(prompts))])
    scfg = SamplingConfig(max_new_tokens=NEW, temperature=0.0)
    run = quick_jit(sample, static_argnums=(1, 2))
    out = run(random_params(cfg), cfg, scfg, tokens_PT, lengths_P, keys_Pk2)
    return np.asarray(out["tokens"][:, 0])


def comes_back(cfg) -> bool:
    params = random_params(cfg)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m"
        save_folder(path, params, cfg)
        back = load_config(path)
        pairs = zip(jax.tree.leaves(load_params(path, back)), jax.tree.leaves(params), strict=True)
        return back == cfg and all(np.array_equal(x, y) for x, y in pairs)


def row(name: str, cfg) -> dict:
    """What the table says of a case."""
    real_BT = inputs(cfg)[1] >= 0
    return {
        "family": cfg.model_type,
        "config": name,
        "layers": "".join("L" if of == LOCAL else "G" for of in cfg.layer_types),
        "max_abs": float(np.abs(jax_logits(name) - torch_logits(name))[real_BT].max()),
        "greedy": bool(np.array_equal(greedy(cfg), torch_greedy(cfg))),
        "round trip": comes_back(cfg),
    }


def line(found: dict) -> str:
    said = {True: "equal", False: "**differs**"}
    cells = [
        f"{x:.1e}" if isinstance(x, float) else said[x] if isinstance(x, bool) else x
        for x in found.values()
    ]
    return f"| {' | '.join(cells)} |"


def page(rows: list[dict]) -> str:
    families = [
        f"| `{name}` | `{family.causal_lm}` | {switches(family)} |"
        for name, family in FAMILIES.items()
    ]
    lines = map(line, rows)
    return HEAD.format(T=T, new=NEW, families="\n".join(families), rows="\n".join(lines))


def main():
    rows = []
    for name, (cfg, _) in (gemma2_cases.CASES | family_cases.CASES).items():
        rows.append(row(name, cfg))
        print(json.dumps(rows[-1]), flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
