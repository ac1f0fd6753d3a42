"""Says how far float32 is from float64 on a model folder: transformers' logits, and ours.

    python -m tests.models.float64 FOLDER

One JSON line. Needs torch, and 12 bytes a parameter.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import torch
import transformers

from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params
from grm_jax.model_check import COMPARED, TEXT, max_difference
from grm_jax.models.hf_config import load_config


def logits(folder: pathlib.Path, ids: list[int], dtype: torch.dtype, attention: str) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, local_files_only=True
    )
    with torch.no_grad():
        return model.eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def main(folder: pathlib.Path) -> None:
    cfg = load_config(folder)
    tokenizer = load_own_tokenizer(folder, cfg)
    ids = tokenizer.encode(tokenizer.text_prefix + TEXT)[:COMPARED]
    exact_TV = logits(folder, ids, torch.float64, "eager")
    found = {"tokens": len(ids), "largest_logit": float(np.abs(exact_TV).max())}
    for attention in ("eager", "sdpa"):
        theirs_TV = logits(folder, ids, torch.float32, attention)
        found[f"transformers_{attention}"] = float(np.abs(theirs_TV - exact_TV).max())
    with jax.default_matmul_precision("highest"):
        found["ours"] = max_difference(load_params(folder, cfg), cfg, ids, exact_TV)
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
