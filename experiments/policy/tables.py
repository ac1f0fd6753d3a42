"""The figures of docs/policy.md as Markdown tables: mean over seeds, and its standard error."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.policy.plot import NAMES, arms_of, mean_and_error


def cell(values_S: Sequence[float]) -> str:
    """In percent."""
    mean, error = mean_and_error([[100 * value] for value in values_S])
    return f"{mean[0]:.1f}" + (f" ± {error[0]:.1f}" if len(values_S) > 1 else "")


def make_tables(found: Mapping) -> str:
    """Gold and score of the best of n; gold and score before RL and after it, by judge."""
    seeds = list(found["seeds"].values())
    best = [seed["best_of_n"] for seed in seeds]
    ns = best[0]["ns"]
    lines = [f"| judge | of the best | {' | '.join(f'n = {n}' for n in ns)} |"]
    lines.append("|---" * (len(ns) + 2) + "|")
    for judge in best[0]["judges"]:
        for value in ("gold", "score"):
            rows = np.array([one["judges"][judge][value] for one in best])
            cells = " | ".join(cell(rows[:, i]) for i in range(len(ns)))
            lines.append(f"| {NAMES.get(judge, judge)} | {value} | {cells} |")
    oracle = np.array([one["oracle"] for one in best])
    lines.append(f"| the gold itself | gold | {' | '.join(map(cell, oracle.T))} |")
    header = "| RL with | seeds | gold before | gold after | its score before | its score after | "
    lines += ["", header + "gap before | gap after | KL, nats | tokens |", "|---" * 10 + "|"]
    for arm in arms_of(seeds):
        have = [seed for seed in seeds if arm in seed["rl"]]
        own = "grm" if arm == "trl" else arm
        before = [seed["before"] for seed in have]
        after = [seed["rl"][arm]["after"] for seed in have]
        last = [seed["rl"][arm]["steps"][-3:] for seed in have]
        kl = mean_and_error([[np.mean([row["kl"] for row in rows])] for rows in last])[0][0]
        tokens = (np.mean([one["tokens"] for one in when]) for when in (before, after))
        cells = [
            NAMES.get(arm, arm),
            str(len(have)),
            *(cell([one[name] for one in w]) for name in ("gold", own) for w in (before, after)),
            *(cell([one[own] - one["gold"] for one in when]) for when in (before, after)),
            f"{kl:.2f}",
            " → ".join(f"{x:.1f}" for x in tokens),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
