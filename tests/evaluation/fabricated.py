"""Fabricated evaluations for tests: invented judgments with the shape of a real run's, never given
by a model.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

from grm_jax.benchmarks import Benchmark, load_benchmark
from grm_jax.evaluation.comparisons import compare_systems
from grm_jax.evaluation.figures import Judged
from grm_jax.judgment.rules import is_correct

# log-odds that a judgment puts the best response on top, before the item's own ease
SKILL = {"base": 0.15, "rft": 0.9, "grm": 1.7}
FAILURE = {"base": 0.11, "rft": 0.02, "grm": 0.006}
SPLITS = ("test", "hard", "wide", "single")
DOMAINS = (
    "sort letters",
    "reverse a word",
    "count vowels",
    "date order",
    "unit price",
    "cost in $ and $",
)
REASONS = ("no_box", "wrong_count", "out_of_range", "not_an_integer", "truncated")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x "
    "onerror=\"document.title='owned'\"> \u2028 {{ 7*7 }}"
)


def records(split: str, items: int, seed: int = 0) -> list[dict]:
    """`items` preference records in the JSONL schema, the first one full of markup that a page must
    not run.
    """
    rng = random.Random(f"{split}{seed}")
    found = []
    for i in range(items):
        domain = DOMAINS[i % len(DOMAINS)]
        n = {"single": 1, "wide": 4 + i % 3}.get(split, 2 + (i % 3 == 0))
        word = "".join(rng.choice("abcdefghij") for _ in range(5))
        rewards = [float(rng.random() < 0.5)] if n == 1 else [0.0] * n
        if n > 1:
            rewards[rng.randrange(n)] = 1.0
        found.append(
            {
                "id": f"{split}-{i:04d}",
                "domain": domain,
                "rewards": rewards,
                "conversation": [
                    {"role": "system", "content": "Answer briefly."},
                    {"role": "user", "content": f"{domain.capitalize()}: {word}, please."},
                ],
                "responses": [
                    "I am quite sure: the answer is "
                    f"{''.join(sorted(word))}{j}." + " Here is why, at length." * rng.randrange(6)
                    for j in range(n)
                ],
            }
        )
    found[0] |= {
        "conversation": [{"role": "user", "content": HOSTILE}],
        "responses": [HOSTILE] * len(found[0]["responses"]),
    }
    return found


def judgment(
    record: dict,
    system: str,
    split: str,
    sample: int,
    temperature: float,
    rng: random.Random,
    logits: bool = True,
) -> dict:
    """One invented judgment of the record."""
    rewards = record["rewards"]
    n = len(rewards)
    ease = random.Random(record["id"]).gauss(0, 1.2) - (
        0.9 * {"base": 1, "rft": 0.6, "grm": 0}[system] if split == "hard" else 0
    )
    sharpness = 1.3 if temperature == 0 else 1
    log_odds = SKILL[system] * sharpness + ease - 0.35 * max(0, n - 2)
    failure = rng.choice(REASONS) if rng.random() < FAILURE[system] else None
    best = max(range(n), key=rewards.__getitem__)
    right = rng.random() < 1 / (1 + math.exp(-log_odds))
    if n == 1:
        scores = [int(rewards[0]) if right else 1 - int(rewards[0])]
    else:
        scores = [rng.randint(2, 7) for _ in range(n)]
        winner = best if right else rng.randrange(n)
        scores[winner] = min(10, max(scores) + rng.randint(0, 3))
    order = rng.sample(range(n), n)
    principles = [["Correct result", 60.0], ["Follows the request", 30.0], ["Length", None]][
        : rng.randint(1, 3)
    ]
    says = ("gives the right letters", "drops a letter", "is confident but unchecked")
    critique = " ".join(f"Response {p + 1} {rng.choice(says)}." for p in range(n))
    criteria = "; ".join(f"{name} ({weight})" for name, weight in principles)
    boxed = ", ".join(str(scores[r]) for r in order)
    text = f"Specific Criteria: {criteria}\nAnalysis: {critique}\nScores: \\boxed{{{boxed}}}"
    correct = is_correct(None if failure else scores, rewards)
    return {
        "id": record["id"],
        "domain": record["domain"],
        "sample": sample,
        "order": order,
        "temperature": temperature,
        "text": text[: len(text) // 2] if failure == "truncated" else text,
        "tokens": 30 + 7 * n + rng.randrange(12),
        "scores": None if failure else scores,
        "failure": failure,
        "principles": [] if failure else principles,
        "critique": "" if failure else critique,
        "rewards": rewards,
        "meta_logit": rng.gauss(1.1 if correct else -0.6, 1.3) if logits and temperature else None,
        "seconds": 0.01,
        "prompt_tokens": 40,
        "cost": None,
    }


def evaluation(
    folder: Path,
    splits=SPLITS,
    systems=tuple(SKILL),
    items: int = 12,
    samples: int = 8,
    seed: int = 0,
    logits: bool = True,
) -> tuple[list[Benchmark], dict[str, dict[str, Judged]]]:
    """(benchmarks, judged) of a fabricated evaluation, its records and judgments on file."""
    benchmarks, judged = [], {system: {} for system in systems}
    for split in splits:
        path = folder / "records" / f"{split}.jsonl"
        write_jsonl(path, records(split, items, seed))
        benchmarks.append(load_benchmark({"kind": "records", "name": split, "path": str(path)}))
        for system in systems:
            of_kind = {"greedy": [], "sampled": []}
            for record in records(split, items, seed):
                rng = random.Random(f"{seed}{record['id']}{system}")
                asked = {"greedy": range(1), "sampled": range(samples)}
                for kind, at in asked.items():
                    of_kind[kind] += [
                        judgment(record, system, split, s, float(kind == "sampled"), rng, logits)
                        for s in at
                    ]
            judged[system][split] = on_file(folder / "judgments" / system / split, system, of_kind)
    return benchmarks, judged


def on_file(folder: Path, system: str, of_kind: dict[str, list[dict]]) -> Judged:
    """The hand-over of judgments to the figures, with the files that hold them."""
    rows, paths = {}, {}
    for kind, judgments in of_kind.items():
        path = folder / f"{kind}-seed0.jsonl"
        offsets = write_jsonl(path, judgments)
        rows[kind] = [
            {
                (j["id"], j["sample"]): j | {"offset": offset}
                for j, offset in zip(judgments, offsets)
            }
        ]
        paths[kind] = [path]
    ids = frozenset(item for of_seed in rows.values() for item, _ in of_seed[0])
    return Judged(system, True, ids, rows, paths)


def metrics(rl_steps: int = 60) -> list[dict]:
    """Training curves of the three trained stages."""
    rng, found = random.Random(0), []
    for step in range(40):
        found.append(
            {
                "stage": "rft",
                "step": step,
                "time_s": 2.0 * step,
                "loss": 1.4 * math.exp(-step / 12) + 0.4 + rng.gauss(0, 0.03),
                "grad_norm": 1 + rng.random(),
                "learning_rate": 5e-4 * (1 - step / 40),
            }
        )
    for step in range(rl_steps):
        t = 1 - math.exp(-step / 25)
        found.append(
            {
                "stage": "rl",
                "step": step,
                "time_s": 3.0 * step,
                "reward/mean": -0.1 + 0.9 * t + rng.gauss(0, 0.08),
                "reward/std": 0.9 - 0.3 * t,
                "correct@1": 0.45 + 0.4 * t + rng.gauss(0, 0.04),
                "oracle@4": 0.8 + 0.15 * t + rng.gauss(0, 0.02),
                "kl": 0.1 * t + abs(rng.gauss(0, 0.006)),
                "entropy": 0.34 - 0.13 * t + rng.gauss(0, 0.01),
                "completions/mean_length": 31 + 6 * t + rng.gauss(0, 0.6),
                "frac_reward_zero_std": 0.18 + 0.35 * t + rng.gauss(0, 0.04),
                "parse_failure_rate": max(0, 0.03 - 0.025 * t + rng.gauss(0, 0.004)),
                "tie_rate": 0.11 - 0.08 * t,
                "clip_ratio/high": abs(rng.gauss(0, 0.004)),
                "clip_ratio/low": abs(rng.gauss(0, 0.003)),
                "parse_failure/no_box": abs(rng.gauss(0, 0.004)),
                "parse_failure/truncated": abs(rng.gauss(0, 0.002)),
                "tokens_per_s": 8000 + rng.gauss(0, 300),
                "step_s": 3.0,
                "score_share/8": 0.2,
                "sampling/logp_difference/max": None,
                "ratio_max": 1 + abs(rng.gauss(0, 0.2)),
                "policy_loss": rng.gauss(0, 0.02),
                "grad_norm": 0.6 + 0.3 * rng.random(),
                "learning_rate": 3e-4,
            }
        )
    for step in range(50):
        found.append(
            {
                "stage": "meta",
                "step": step,
                "time_s": step,
                "loss": 0.45 + 0.24 * math.exp(-step / 18) + rng.gauss(0, 0.015),
                "auc": 0.82 - 0.3 * math.exp(-step / 14),
                "learning_rate": 8e-4,
            }
        )
    return found


def write_jsonl(path: Path, rows: list[dict]) -> list[int]:
    """Writes a file, and says where each line of it begins, in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join(lines))
    return [0, *itertools.accumulate(map(len, lines))][: len(lines)]


FUNNEL = {
    "unhinted": {"accepted": 120, "incorrect": 200, "too_easy": 31, "parse_failure:no_box": 9},
    "hinted": {"accepted": 60, "hinted_too_easy": 10, "incorrect": 50},
}
TIMINGS = {"rft_sample": 41.0, "rft": 35.5, "rl": 301.2, "meta": 88.0, "eval_grm_test": 140.7}


def results_of(
    benchmarks, judged, ks=(1, 2, 4, 8), note: str = "", draws: int = 200, **about
) -> dict:
    """What results.json of such an evaluation holds, as spct_rl writes it."""
    config = {
        "seed": 0,
        "note": note,
        "model": {"path": "tiny_base", "dtype": "float32"},
        "eval": {"ks": list(ks), "temperature": 1.0},
        "rl": {"loss": "grpo", "beta": 0.02, "group_size": 4, "custom": "<b>not markup</b>"},
    }
    notes = [note] if note else []
    return {
        **{"config": config, "seed": 0, "timings_s": TIMINGS, "notes": notes, "funnel": FUNNEL},
        **{"version": "1.0", "inputs": {}},
        **about,
        **compare_systems(benchmarks, judged, ks, draws=draws, seed=0),
    }
