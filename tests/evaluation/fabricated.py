"""Fabricates runs for the tests of the evaluation: invented judgments, never measured by a model.

They have the shape of a real run.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from grm_jax.evaluation.results import summarize
from grm_jax.judgment.rules import accept_hinted, accept_unhinted, is_correct

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
    """Makes `items` preference records in the JSONL schema.

    The first one is full of markup that a page must not run.
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
    stage: str = "eval",
    logits: bool = True,
    hinted: bool = False,
) -> dict:
    """One invented judgment row of the record."""
    rewards = record["rewards"]
    n = len(rewards)
    ease = random.Random(record["id"]).gauss(0, 1.2) - (
        0.9 * {"base": 1, "rft": 0.6, "grm": 0}[system] if split == "hard" else 0
    )
    chance = 1 / (
        1
        + math.exp(
            -(SKILL[system] * (1.3 if temperature == 0 else 1) + ease - 0.35 * max(0, n - 2))
        )
    )
    failure = rng.choice(REASONS) if rng.random() < FAILURE[system] else None
    best = max(range(n), key=rewards.__getitem__)
    right = rng.random() < chance
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
    critique = " ".join(
        f"Response {p + 1} "
        f"{rng.choice(['gives the right letters', 'drops a letter', 'is confident but unchecked'])}."
        for p in range(n)
    )
    boxed = ", ".join(str(scores[r]) for r in order)
    text = (
        "Specific Criteria: "
        + "; ".join(f"{name} ({weight})" for name, weight in principles)
        + (f"\nAnalysis: {critique}\nScores: \\boxed{{{boxed}}}")
    )
    correct = is_correct(None if failure else scores, rewards)
    row = {
        "id": record["id"],
        "domain": record["domain"],
        "split": split,
        "system": system,
        "stage": stage,
        "sample": sample,
        "order": order,
        "hinted": hinted,
        "temperature": temperature,
        "text": text[: len(text) // 2] if failure == "truncated" else text,
        "finish": "length" if failure == "truncated" else "stop",
        "tokens": 30 + 7 * n + rng.randrange(12),
        "scores": None if failure else scores,
        "failure": failure,
        "principles": [] if failure else principles,
        "critique": "" if failure else critique,
        "rewards": rewards,
        "correct": correct,
        "meta_logit": rng.gauss(1.1 if correct else -0.6, 1.3) if logits and temperature else None,
    }
    return row


def eval_rows(
    splits=SPLITS,
    systems=tuple(SKILL),
    items: int = 12,
    samples: int = 8,
    seed: int = 0,
    logits: bool = True,
) -> list[dict]:
    """Greedy and sampled evaluation rows of every system on every split."""
    found = []
    for split in splits:
        for record in records(split, items, seed):
            for system in systems:
                rng = random.Random(f"{seed}{record['id']}{system}")
                found.append(judgment(record, system, split, 0, 0.0, rng, logits=logits))
                found += [
                    judgment(record, system, split, sample, 1.0, rng, logits=logits)
                    for sample in range(samples)
                ]
    return found


def rft_rows(items: int) -> list[dict]:
    """Rejective-sampling rows with their accept and reject reasons."""
    found = []
    for record in records("train", items):
        rng = random.Random(record["id"])
        tried = [
            judgment(record, "base", "train", s, 1.0, rng, "rft_sample", False) for s in range(3)
        ]
        tried.append(
            judgment(record, "base", "train", 3, 1.0, rng, "rft_sample", False, hinted=True)
        )
        verdicts = accept_unhinted(
            [row["correct"] for row in tried[:3]], [row["failure"] for row in tried[:3]]
        )
        verdicts.append(
            accept_hinted(
                tried[3]["correct"], tried[3]["failure"], too_easy=verdicts[0].reason == "too_easy"
            )
        )
        found += [row | verdict._asdict() for row, verdict in zip(tried, verdicts)]
    return found


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


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def workdir(path: Path, items: int = 12, samples: int = 8, ks=(1, 2, 4, 8), note: str = "") -> Path:
    """A whole fabricated work folder, results.json made from its rows."""
    rows = eval_rows(items=items, samples=samples)
    for split in SPLITS:
        write_jsonl(path / "records" / f"{split}.jsonl", records(split, items))
    write_jsonl(
        path / "records" / "general.jsonl",
        [{"prompt": "not a record", "response": "instruction data"}],
    )
    for system in SKILL:
        write_jsonl(
            path / "judgments" / f"eval_{system}.jsonl",
            [row for row in rows if row["system"] == system],
        )
    write_jsonl(path / "judgments" / "rft.jsonl", rft_rows(10 * items))
    write_jsonl(path / "metrics.jsonl", metrics())
    config = {
        "seed": 0,
        "note": note,
        "model": {"path": "assets/tiny_base", "dtype": "float32"},
        "eval": {"ks": list(ks), "temperature": 1.0},
        "rl": {"loss": "grpo", "beta": 0.02, "group_size": 4, "custom": "<b>not markup</b>"},
    }
    results = {
        "config": config,
        "seed": 0,
        "timings_s": {
            "rft_sample": 41.0,
            "rft": 35.5,
            "rl": 301.2,
            "meta_sample": 22.4,
            "meta": 88.0,
            "eval": 140.7,
        },
        **summarize(rows, ks),
    }
    (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path
