"""Measures judging from text to verdict: records a second, and the tokens that were computed.

    python -m speed.judge --model=FOLDER --records=FILE --samples=32 [--limit=8] [--rounds=3]

--records: JSON Lines of records (`grm_jax.judgment.records`), gold or not. Each is rendered,
tokenized, judged `samples` times in seeded response orders, parsed and voted over, as by
`grm_jax.load`. Prints one line of JSON:

    records_per_s       the median of the rounds; records_per_s_rounds has all
    prefilled_tokens    positions that prefill ran over in one call, padding included
    decoded_tokens      rows x steps of decoding in one call, finished rows included
    needed_tokens       distinct prefixes of all prompts (the nodes of their tree), each once, and
                        the tokens of all judgments
    needed_prefill, needed_decode    its two parts
"""

import itertools
import pathlib

import jax
from absl import app, flags

import grm_jax
from grm_jax.judgment.records import read_records
from grm_jax.reward_models import thinking
from speed import turns

MODEL = flags.DEFINE_string("model", "tiny", "Model folder with a grm.json.")
RECORDS = flags.DEFINE_string("records", None, "JSON Lines of records.", required=True)
SAMPLES = flags.DEFINE_integer("samples", 32, "Judgments of a record.")
LIMIT = flags.DEFINE_integer("limit", None, "Records that are judged; default: all.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls.")
ROWS = flags.DEFINE_integer("rows", None, "Completions at once; default: the library's own.")


def shared_nodes(prompts) -> int:
    """Counts the nodes of the tree of prompts: tokens of all, those of a common front once."""
    prompts = sorted(tuple(prompt) for prompt in prompts)
    nodes = sum(map(len, prompts))
    for left, right in itertools.pairwise(prompts):
        nodes -= sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], zip(left, right)))
    return nodes


class Watch:
    """Keeps the prompts that are asked for, and the counts of the engines that draw."""

    def __init__(self):
        self.clear()
        generate = thinking.generate

        def watched(sampler, params, requests, seed, buckets, rows, *_):
            self.prompts |= {tuple(request.prompt_ids) for request in requests}
            return generate(sampler, params, requests, seed, buckets, rows, self.count)

        thinking.generate = watched

    def count(self, counts):
        """Keeps an engine's counts, which it goes on with."""
        self.engines[id(counts)] = counts

    def clear(self):
        self.prompts, self.engines = set(), {}


def main(_):
    records = read_records(RECORDS.value)[: LIMIT.value]
    watch = Watch()
    judge = grm_jax.load(MODEL.value, meta=False, rows=ROWS.value)
    needed = 0

    def call():
        nonlocal needed
        watch.clear()
        verdicts = list(judge.many(records, SAMPLES.value, progress=False))
        needed = sum(judgment.tokens for v in verdicts for judgment in v.judgments)

    first, taken = turns.measure(call, ROUNDS.value)
    usual, prefill = turns.spread(taken)["median"], shared_nodes(watch.prompts)
    engines = list(watch.engines.values())
    turns.write(
        {
            "contender": "grm_jax",
            "case": f"judge k{SAMPLES.value}",
            "model": pathlib.Path(MODEL.value).name,
            "records": len(records),
            "records_per_s": usual and len(records) / usual,
            "records_per_s_rounds": [len(records) / s for s in taken],
            "prefilled_tokens": sum(counts.prefilled for counts in engines),
            "decoded_tokens": sum(counts.decoded for counts in engines),
            "needed_tokens": prefill + needed,
            "needed_prefill": prefill,
            "needed_decode": needed,
            "first_call_s": first,
            "peak_rss_gib": turns.rss_gib(),
            "engine": True,
            "device": jax.devices()[0].device_kind,
        }
    )


if __name__ == "__main__":
    app.run(main)
