"""Makes the work that contenders share, from lengths and a seed: NumPy alone, as peers import it.

A lengths file is a JSON list of {"prompt": tokens, "completion": tokens, ...}, as
`planning` reads it. Its order is shuffled once, by a fixed seed, as files come sorted by source.
"""

import json
import pathlib

import numpy as np

from speed import turns

SMALLEST_ID = 10  # below it are control tokens
CHECKED = 64  # tokens whose log-probability says that weights are the same


def read_lengths(path) -> list[dict]:
    """Reads the rows of a lengths file in the order in which they are taken."""
    rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def scaled(rows: list[dict], scale: float) -> list[dict]:
    """Multiplies every length; none is less than 2."""
    return [{name: max(2, round(scale * x)) for name, x in row.items()} for row in rows]


def needed(made) -> int:
    """Counts the tokens of (prompt, completions): a prompt once, however many share it."""
    return sum(len(prompt) + sum(map(len, rests)) for prompt, rests in made)


def groups(rows: list[dict], prompts: int, group: int, vocab: int) -> list[tuple[list, list]]:
    """Makes (prompt ids, [ids of each completion]) of `prompts` prompts.

    Completion g of prompt p has the length of row p * group + g, so those of a group differ.
    """
    rng, made = np.random.default_rng(1), []
    for p in range(prompts):
        lengths = [rows[(p * group + g) % len(rows)]["completion"] for g in range(group)]
        prompt = rng.integers(SMALLEST_ID, vocab, rows[p % len(rows)]["prompt"])
        made.append((prompt, [rng.integers(SMALLEST_ID, vocab, length) for length in lengths]))
    return made


def advantages(rows: int, group: int) -> np.ndarray:
    """Draws fp32 advantages of rollouts, those of a group scaled to mean 0 and spread 1."""
    rewards_PG = np.random.default_rng(2).normal(size=(rows // group, group))
    rewards_PG -= rewards_PG.mean(axis=1, keepdims=True)
    return (rewards_PG / rewards_PG.std(axis=1, keepdims=True)).astype(np.float32).reshape(-1)


def prompt(length: int, vocab: int) -> list[int]:
    """Draws the ids of one prompt."""
    return np.random.default_rng(0).integers(SMALLEST_ID, vocab, length).tolist()


def read_queue(path) -> list[dict]:
    """Reads JSON Lines of {"prompt_ids": [...], "stops": [tokens of each sample]}."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def queue_of(prompt_length: int, samples: int, new_tokens: int, vocab: int) -> list[dict]:
    """Returns one prompt, of which every sample has `new_tokens` tokens, as a queue."""
    return [{"prompt_ids": prompt(prompt_length, vocab), "stops": [new_tokens] * samples}]


def sample_flags(parser):
    """Reads the flags that programs of peers share with speed.sample, by argparse."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt_length", type=int, default=512)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--queue")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def sample_queue(flags, vocab: int) -> tuple[list[dict], str]:
    """Returns the queue that flags ask for, and what the case is called."""
    if flags.queue:
        return read_queue(flags.queue), "queue"
    shape = (flags.prompt_length, flags.samples, flags.new_tokens)
    return queue_of(*shape, vocab), "p{} k{} n{}".format(*shape)


def sample_line(contender, case, queue, first, taken, check) -> dict:
    """Returns what every contender says of sampling a queue."""
    asked = sum(sum(row["stops"]) for row in queue)
    usual = turns.spread(taken)["median"]
    return {
        "contender": contender,
        "case": case,
        "tokens_per_s": usual and asked / usual,
        "tokens_per_s_rounds": [asked / s for s in taken],
        "first_call_s": first,
        "peak_rss_gib": turns.rss_gib(),
        "needed_tokens": asked + sum(len(row["prompt_ids"]) for row in queue),
        "check": check,
    }
