"""Writes golden.npz: logits of transformers' torch models for every case of gemma2_cases.py and
family_cases.py, and what they write greedily.

    python -m tests.models.make_golden

Machines without torch compare with it. Weights and tokens come from numpy seeds; only the reference
results need torch. Run it again after changing a case.
"""

import pathlib

import numpy as np

from tests.models import family_cases
from tests.models.gemma2_cases import (
    CASES,
    STRIDE,
    inputs,
    torch_greedy,
    torch_logits,
    torch_scalar_logits,
)

GOLDEN = pathlib.Path(__file__).with_name("golden.npz")


def main():
    arrays = {}
    for name, (cfg, _) in (CASES | family_cases.CASES).items():
        logits_BTV = torch_logits(name)
        logits_BTV[inputs(cfg)[1] < 0] = 0.0  # padding
        arrays[name] = logits_BTV[:, ::STRIDE]
    arrays["scalar_head"] = torch_scalar_logits()
    for family in family_cases.FAMILIES:
        cfg = family_cases.main_case(family)[1]
        arrays[f"{family}_scalar_head"] = torch_scalar_logits(cfg)
        arrays[f"{family}_greedy"] = torch_greedy(cfg)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
