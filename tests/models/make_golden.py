"""Writes golden.npz: logits of transformers' torch Gemma-2 for every case of gemma2_cases.py.

    python -m tests.models.make_golden

Machines without torch compare with it. Weights and tokens come from numpy seeds; only the reference
results need torch. Run it again after changing a case.
"""

import pathlib

import numpy as np

from tests.models.gemma2_cases import CASES, STRIDE, inputs, torch_logits, torch_scalar_logits

GOLDEN = pathlib.Path(__file__).with_name("golden.npz")


def main():
    arrays = {}
    for name, (cfg, _) in CASES.items():
        logits_BTV = torch_logits(name)
        logits_BTV[inputs(cfg)[1] < 0] = 0.0  # padding
        arrays[name] = logits_BTV[:, ::STRIDE]
    arrays["scalar_head"] = torch_scalar_logits()
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
