"""Times attention over a packed row of RL groups, in turns with other ways over the same tokens.

    python -m speed.attention --lengths=FILE [--tokens=8192] [--window=0] [--rounds=5] [--reference]

The row holds as many groups as fit, at most three: a prompt once and four completions each. One
line of JSON: seconds (median) of "packed" (blocked attention of that row), "dense" (the same of one
sequence as long as the row) and, where asked for, "reference" (`attend` of the packed row: logits
of all pairs, 16 bytes a pair and head and more), forward and with gradients; their ratios to
"packed" in the same round; temporaries in MiB.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.models.attention import Packed, attend
from grm_jax.models.blocked import blocked_attend, make_tiles
from speed.work import read_lengths

GROUP = 4


def lay_out(rows: list[dict], tokens: int):
    """(pos_BT, Packed, groups, tokens used) of one row."""
    pos_T, segment_T = np.full((2, tokens), -1, np.int32)
    branch_T, end, groups = np.zeros(tokens, np.int32), 0, 0
    for row in rows:
        # a branch begins with the prompt's last token
        sizes = [row["prompt"] - 1, *[row["completion"] + 1] * GROUP]
        if groups == 3 or end + sum(sizes) > tokens:
            continue
        for branch, size in enumerate(sizes):
            at = slice(end, end + size)
            pos_T[at] = (sizes[0] if branch else 0) + np.arange(size)
            segment_T[at], branch_T[at] = groups, branch
            end += size
        groups += 1
    pos_BT, segment_BT, branch_BT = (jnp.asarray(x)[None] for x in (pos_T, segment_T, branch_T))
    return pos_BT, Packed(segment_BT, branch_BT), groups, end


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--lengths", required=True)
    for name, default in dict(tokens=8192, window=0, rounds=5, heads=12, kv_heads=4).items():
        flags.add_argument(f"--{name}", type=int, default=default)
    flags.add_argument("--reference", action="store_true")
    flag = flags.parse_args()
    T, window = flag.tokens, flag.window or None
    pos_BT, packed, groups, used = lay_out(read_lengths(flag.lengths), T)
    rng = np.random.default_rng(0)
    qkv = [
        jnp.asarray(rng.normal(size=(1, T, heads, 64)), jnp.float32)
        for heads in (flag.heads, flag.kv_heads, flag.kv_heads)
    ]
    dense_BT = jnp.arange(T, dtype=jnp.int32)[None]

    def reference(q, k, v):
        return attend(q, pos_BT, [{"k": k, "v": v, "pos": pos_BT}], window, 50.0, packed)

    ways = {
        "packed": lambda q, k, v: blocked_attend(q, k, v, make_tiles(pos_BT, packed, window), 50.0),
        "dense": lambda q, k, v: blocked_attend(q, k, v, make_tiles(dense_BT, None, window), 50.0),
    } | ({"reference": reference} if flag.reference else {})
    line = {"tokens": T, "used": used, "groups": groups, "window": flag.window}
    for kind in ("forward", "gradient"):
        calls = {}
        for name, way in ways.items():
            fn = way
            if kind == "gradient":
                fn = jax.grad(lambda *qkv, way=way: jnp.sum(jnp.sin(way(*qkv))), (0, 1, 2))
            calls[name] = jax.jit(fn).lower(*qkv).compile()
            jax.block_until_ready(calls[name](*qkv))
        seconds = {name: [] for name in calls}
        for _ in range(flag.rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                jax.block_until_ready(call(*qkv))
                seconds[name].append(time.perf_counter() - start)
        line[kind] = {
            name: {
                "seconds": round(statistics.median(taken), 4),
                "ratio": round(
                    statistics.median(x / y for x, y in zip(taken, seconds["packed"])), 2
                ),
                "temp_mib": calls[name].memory_analysis().temp_size_in_bytes >> 20,
            }
            for name, taken in seconds.items()
        }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
