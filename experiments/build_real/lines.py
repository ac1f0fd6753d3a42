"""Counts what a judge of real text says of single responses, and how its scores follow.

    python -m experiments.build_real.lines \\
        --judgments=runs/real/evaluate/judgments/GRM/constraints/greedy-seed0.jsonl,...

The files hold judgments as `experiments.evaluate` keeps them. Of a record of one requirement a line
"[Response i] ... (right)" is true where that response has the reward 1, which is what the program
found; records of two, and those with a rubric, are left out.
"""

import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from absl import flags

from experiments import config_flags
from experiments.build_real.draw import read_rows
from grm_jax.json_files import NULL

LINE = re.compile(r"^\[Response (\d+)\].*\((right|wrong)\)\s*$", re.MULTILINE)

_JUDGMENTS = flags.DEFINE_list("judgments", None, "files of judgments", required=True)


def main(_):
    print(table(counts(row for path in _JUDGMENTS.value for row in judged(pathlib.Path(path)))))


def judged(path: pathlib.Path) -> list[dict]:
    """Reads a file of judgments of records with gold; of one asked again the last counts."""
    kinds = {"id": str, "sample": int, "rewards": (list, NULL)}
    rows = {(row["id"], row["sample"]): row for row in read_rows(path, kinds)}
    for row in rows.values():
        if row["rewards"] is None:
            raise ValueError(f'{path}: record {row["id"]!r}: no gold; expected "rewards" or "best"')
    return list(rows.values())


def counts(rows: Iterable[Mapping]) -> dict:
    """Counts lines by kind, and pairs by whether their lines and scores tell the two apart."""
    lines: dict[str, Counter] = defaultdict(Counter)
    pairs, chosen, orders = Counter(), defaultdict(set), defaultdict(set)
    for row in rows:
        rewards, order, scores = row["rewards"], row["order"], row["scores"]
        # several requirements, or a rubric: what a line is about is not told
        if not set(rewards) <= {0, 1} or row.get("criteria"):
            continue
        said = {int(i): verdict == "right" for i, verdict in LINE.findall(row["text"])}
        for shown, right in said.items():
            if 1 <= shown <= len(order):
                true = rewards[order[shown - 1]] == 1
                lines[row["domain"]]["true" if right == true else "false"] += 1
        if scores is None or len(order) != 2 or scores[0] == scores[1]:
            continue
        best = int(scores[1] > scores[0])
        right = rewards[best] == max(rewards)
        pairs["judgments"] += 1
        pairs["first chosen"] += best == order[0]
        chosen[row["id"], row["sample"]].add(best)
        orders[row["id"], row["sample"]].add(tuple(order))
        if set(said) == {1, 2}:
            apart = said[1] != said[2]
            pairs["told apart" if apart else "not told apart"] += 1
            pairs["scores follow"] += apart and best == order[0 if said[1] else 1]
            pairs["right without"] += right and not apart
    both = [key for key in chosen if len(orders[key]) == 2]
    pairs["in both orders"] = len(both)
    pairs["decided alike"] = sum(len(chosen[key]) == 1 for key in both)
    return {"lines": {kind: dict(count) for kind, count in lines.items()}, "pairs": dict(pairs)}


def table(found: Mapping) -> str:
    """The counts as Markdown."""
    shares = []
    for kind, count in found["lines"].items():
        total = sum(count.values())
        shares.append((100 * count.get("true", 0) / total, total, kind))
    total, true = sum(n for _, n, _ in shares), sum(s * n for s, n, _ in shares)
    rows = [f"| {kind} | {n} | {share:.0f} |" for share, n, kind in sorted(shares, reverse=True)]
    head = ["| kind | lines | % true |", "|---|---|---|"]
    every = [f"| all | {total} | {true / max(total, 1):.1f} |", ""]
    return "\n".join([*head, *rows, *every, *(f"{k}: {n}" for k, n in found["pairs"].items())])


if __name__ == "__main__":
    config_flags.run(main)
