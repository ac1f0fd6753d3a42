"""The evaluation part of results.json from judgment rows, and the merge of several seeds into one
table.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence

from grm_jax.evaluation import scaling
from grm_jax.evaluation.scaling import Estimate, Pool
from grm_jax.judgment.voting import default_k_meta

SYSTEMS = ("base", "rft", "grm")  # the order of training, hence of the paired differences
SPLITS = ("test", "hard", "wide", "single")
FOCUS_K = 8  # the k of the paper's tables; the largest k where an evaluation has no 8
ROW_KEY = ("system", "split", "aggregation", "k", "k_meta")
FIGURES = (
    "accuracy",
    "strict_accuracy",
    "tie_rate",
    "parse_failure_rate",
    "all_failed_rate",
    "tokens_per_judgment",
    "chance",
)
# what a pool needs; texts stay on disk
KEPT = ("id", "domain", "sample", "scores", "rewards", "tokens", "meta_logit")


def eval_pools(rows: Iterable[dict]) -> dict[tuple[str, str], dict[str, Pool]]:
    """{(system, split): {"greedy": Pool of one, "sampled": Pool of K}} from judgment rows; rows of
    other stages are passed over.

    Greedy rows have temperature 0. Raises ValueError where the sampled rows of one system and split
    mix temperatures.
    """
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    temperatures: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["stage"] != "eval":
            continue
        where = (row["system"], row["split"])
        kind = "greedy" if row["temperature"] == 0 else "sampled"
        if (
            kind == "sampled"
            and temperatures.setdefault(where, row["temperature"]) != row["temperature"]
        ):
            raise ValueError(
                f"{where}: item {row['id']!r} was sampled at temperature {row['temperature']}, "
                f"others at {temperatures[where]}"
            )
        groups.setdefault(where, {}).setdefault(kind, []).append(
            {name: row.get(name) for name in KEPT}
        )
    ordered = sorted(groups, key=lambda where: (_rank(where[0], SYSTEMS), _rank(where[1], SPLITS)))
    return {
        where: {kind: scaling.make_pool(kept) for kind, kept in groups[where].items()}
        for where in ordered
    }


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Known names in their order, then the others by name."""
    return (known.index(name) if name in known else len(known), name)


def summarize(rows: Iterable[dict], ks: Sequence[int], *, shuffles: int = 8, seed: int = 0) -> dict:
    """{"rows", "k_meta_sweep", "paired", "meta_rm"} of results.json from the evaluation's judgment
    rows.

    Meta-guided rows appear where the sampled judgments carry Meta RM logits. `seed` draws the
    subsets of the pools.
    """
    pools = eval_pools(rows)
    estimates: dict[tuple, Estimate] = {}
    sweep, areas = [], []
    for (system, split), kinds in pools.items():
        if "greedy" in kinds:
            estimates[system, split, "greedy", 1] = scaling.estimate(
                kinds["greedy"], system, split, 1, greedy=True
            )
        if "sampled" not in kinds:
            continue
        pool = kinds["sampled"]
        judged = {"shuffles": shuffles, "seed": seed}
        has_meta = has_logits(pool)
        for k in ks:
            estimates[system, split, "vote", k] = scaling.estimate(pool, system, split, k, **judged)
            if has_meta:
                estimates[system, split, "meta", k] = scaling.estimate(
                    pool, system, split, k, default_k_meta(k), **judged
                )
        if has_meta:
            k = max(ks)
            for k_meta in sorted({1, *(max(1, k // part) for part in (8, 4, 2, 1))}):
                sweep.append(
                    scaling.result_row(scaling.estimate(pool, system, split, k, k_meta, **judged))
                )
            areas.append({"system": system, "split": split, **scaling.meta_auc(pool)})
    return {
        "rows": [scaling.result_row(e) for e in estimates.values()],
        "k_meta_sweep": sweep,
        "paired": claims(estimates, ks),
        "meta_rm": {"auc": areas},
    }


def has_logits(pool: Pool) -> bool:
    """Whether the Meta RM has scored this pool; a pool scored in part is an error that the vote
    raises.
    """
    return bool((pool.valid_IK & (pool.meta_IK == pool.meta_IK)).any())


def claims(estimates: dict[tuple, Estimate], ks: Sequence[int]) -> list[dict]:
    """Paired differences of everything that was judged on the same items: training stages, k,
    greedy, Meta RM.
    """
    focus, most = (FOCUS_K if FOCUS_K in ks else max(ks)), max(ks)
    systems = list(dict.fromkeys(key[0] for key in estimates))
    splits = list(dict.fromkeys(key[1] for key in estimates))
    wanted = []
    for aggregation, k in (("greedy", 1), ("vote", focus)):
        for before, after in zip(systems, systems[1:]):
            wanted.append(((after, aggregation, k), (before, aggregation, k)))
    for system in systems:
        wanted += [
            ((system, "vote", focus), (system, "vote", 1)),
            ((system, "vote", most), (system, "vote", focus)),
            ((system, "vote", most), (system, "greedy", 1)),
        ]
        wanted += [((system, "meta", k), (system, "vote", k)) for k in ks if k > 1]
        wanted.append(((system, "meta", most), (system, "greedy", 1)))
    found = []
    for (system_a, how_a, k_a), (system_b, how_b, k_b) in dict.fromkeys(wanted):
        for split in splits:
            a, b = (
                estimates.get((system_a, split, how_a, k_a)),
                estimates.get((system_b, split, how_b, k_b)),
            )
            if a is not None and b is not None and a is not b:
                found.append(
                    scaling.paired(
                        a, b, f"{_name(system_a, how_a, k_a)} - {_name(system_b, how_b, k_b)}"
                    )
                )
    return found


def _name(system: str, aggregation: str, k: int) -> str:
    return f"{system} greedy" if aggregation == "greedy" else f"{system} {aggregation}@{k}"


def merge_seeds(paths: Sequence[str | os.PathLike]) -> dict:
    """One table from the results.json of several seeds.

    Every row and paired difference present in all files gets "mean", "seed_stderr" (spread between
    seeds / sqrt(seeds), None for one seed) and "item_stderr" (the mean of the seeds' errors over
    items: right where the seeds judge the same items and agree on them, too large where they do
    not). Raises ValueError if two files have the same seed or a file lacks rows that another has.
    """
    if not paths:
        raise ValueError("no results.json given")
    runs = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            runs.append(json.load(file))
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"the files have the seeds {seeds}: each must differ")
    merged: dict = {"seeds": seeds}
    for part in ("rows", "k_meta_sweep"):
        merged[part] = [
            {
                **dict(zip(ROW_KEY, key)),
                "items": [row["items"] for row in rows],
                **_merge_values([row["accuracy"] for row in rows], [row["stderr"] for row in rows]),
                **{name: sum(row[name] for row in rows) / len(rows) for name in FIGURES[1:]},
            }
            for key, rows in _aligned([run.get(part, []) for run in runs], ROW_KEY, part, paths)
        ]
    areas = _aligned(
        [run.get("meta_rm", {}).get("auc", []) for run in runs],
        ("system", "split"),
        "meta_rm",
        paths,
    )
    merged["meta_rm"] = [
        {
            "system": system,
            "split": split,
            **{
                name: _mean([row[name] for row in rows])
                for name in ("auc", "auc_within_item", "correct_rate")
            },
        }
        for (system, split), rows in areas
    ]
    merged["paired"] = [
        {
            "claim": claim,
            "split": split,
            "items": [row["items"] for row in rows],
            **_merge_values([row["difference"] for row in rows], [row["stderr"] for row in rows]),
        }
        for (claim, split), rows in _aligned(
            [run.get("paired", []) for run in runs], ("claim", "split"), "paired", paths
        )
    ]
    return merged


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def _merge_values(values: list[float], errors: list[float]) -> dict:
    seeds = len(values)
    mean = sum(values) / seeds
    spread = (
        math.sqrt(sum((value - mean) ** 2 for value in values) / (seeds - 1) / seeds)
        if seeds > 1
        else None
    )
    return {
        "mean": mean,
        "seed_stderr": spread,
        "item_stderr": sum(errors) / seeds,
        "values": values,
    }


def _aligned(
    tables: list[list[dict]], names: Sequence[str], part: str, paths: Sequence
) -> list[tuple[tuple, list[dict]]]:
    """[(key, the row of every table with that key)] in the order of the first table."""
    indexed = [{tuple(row[name] for name in names): row for row in table} for table in tables]
    for path, index in zip(paths, indexed):
        different = set(index) ^ set(indexed[0])
        if different:
            raise ValueError(
                f"{path}: {part} differ from those of {paths[0]}, for example "
                f"{sorted(different, key=str)[0]}"
            )
    return [(key, [index[key] for index in indexed]) for key in indexed[0]]


def markdown(merged: dict) -> str:
    """The merged seeds as Markdown tables by split: accuracies, paired differences, k_meta, the
    Meta RM's AUC, parse failures and ties.
    """
    seeds = len(merged["seeds"])
    most = max(row["k"] for row in merged["rows"])
    single = [
        row
        for row in merged["rows"]
        if row["aggregation"] == "greedy"
        or (row["aggregation"], row["k"]) in (("vote", 1), ("vote", most))
    ]

    def named(row: dict) -> str:
        return _name(row["system"], row["aggregation"], row["k"])

    tables = (
        ("accuracy, %", [(named(row), row["split"], _cell(row)) for row in merged["rows"]]),
        (
            "paired difference, points",
            [(row["claim"], row["split"], _cell(row)) for row in merged["paired"]],
        ),
        (
            f"accuracy of the guided vote of {most}, %",
            [
                (f"{row['system']}, k_meta = {row['k_meta']}", row["split"], _cell(row))
                for row in merged["k_meta_sweep"]
            ],
        ),
        (
            "AUC of the Meta RM, all (within an item)",
            [
                (
                    row["system"],
                    row["split"],
                    f"{_share(row['auc'])} ({_share(row['auc_within_item'])})",
                )
                for row in merged["meta_rm"]
            ],
        ),
        (
            "parse failures, % of judgments",
            [
                (named(row), row["split"], f"{100 * row['parse_failure_rate']:.2f}")
                for row in single
            ],
        ),
        (
            "ties, % of verdicts",
            [(named(row), row["split"], f"{100 * row['tie_rate']:.1f}") for row in single],
        ),
    )
    lines = [
        f"Mean over {seeds} seed{'s' if seeds > 1 else ''}, ± standard error over seeds (in "
        "brackets: over items).",
        "",
    ]
    for title, cells in tables:
        splits = list(dict.fromkeys(split for _, split, _ in cells))
        by_place = {(label, split): cell for label, split, cell in cells}
        if cells:
            lines += [f"| {title} | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
            lines += [
                f"| {label} | "
                + " | ".join(by_place.get((label, split), "") for split in splits)
                + " |"
                for label in dict.fromkeys(label for label, _, _ in cells)
            ]
            lines.append("")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cell(row: dict) -> str:
    spread = "" if row["seed_stderr"] is None else f" ± {100 * row['seed_stderr']:.1f}"
    return f"{100 * row['mean']:.1f}{spread} ({100 * row['item_stderr']:.1f})"
