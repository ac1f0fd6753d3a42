"""Makes a tokenizer of characters, records that state their worth, and samplers that read it."""

import re

import numpy as np

from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import record_from_dict, response_order
from grm_jax.reward_models.grm import Ask, Prompter
from grm_jax.tokenizer import Tokenizer

PAD, EOS, BOS, FIRST = 0, 1, 2, 3
LONGEST = 200  # completion tokens

TOKENIZER = Tokenizer(
    vocab_size=FIRST + 0x250,
    pad_id=PAD,
    bos_id=BOS,
    eos_id=EOS,
    start_of_turn_id=None,
    end_of_turn_id=None,
    text_prefix="",
    encode=lambda text: [FIRST + ord(character) for character in text],
    decode=lambda ids: "".join(chr(int(i) - FIRST) for i in ids if i >= FIRST),
)
PROMPTER = Prompter(TOKENIZER, load_template("tiny_pointwise"), load_template("tiny_single"))


def record(name: str, worths, gold: bool = True, words: int = 3):
    """Makes a record whose response i is worth worths[i].

    The gold rewards are the same numbers, or 0/1 for a single response.
    """
    rewards = {"rewards": [float(w) for w in worths]} if gold else {}
    return record_from_dict(
        {
            "id": name,
            "domain": "worth",
            "conversation": [{"role": "user", "content": " ".join(["speak"] * words)}],
            "responses": [f"I am worth {w}." for w in worths],
            **rewards,
        },
        name,
    )


def judgment(scores, note: str = "") -> str:
    return (
        "Specific Criteria: Accuracy (Weight: 60%), Brevity (Weight: 40%)\nAnalysis: as they "
        f"say{note}.\nScores: \\boxed{{{', '.join(map(str, scores))}}}"
    )


def honest(prompt: str, key) -> tuple[str, bool]:
    """Answers (text, finished): the worths in the order in which the prompt shows them.

    The note makes samples differ, as their keys do.
    """
    return judgment(
        re.findall(r"I am worth (\d+)\.", prompt), note=f" [{key[0] % 1000}, {key[1] % 1000}]"
    ), True


def choose(prompt: str, key) -> tuple[str, bool]:
    """The number of the response that is worth most, as an LLM-as-a-Judge writes it."""
    worths = [int(worth) for worth in re.findall(r"I am worth (\d+)\.", prompt)]
    return (
        "Specific Criteria: Worth 10\nAnalysis: as they say.\nBest: "
        f"\\boxed{{{worths.index(max(worths)) + 1}}}"
    ), True


class FakeSampler:
    """Stands in for what `make_sampler` returns, and counts its calls.

    `answer(prompt, key) -> (text, finished)` is the model.
    """

    def __init__(self, answer=honest):
        self.answer, self.calls = answer, 0

    def __call__(self, params, prompts_PT, lengths_P, keys_Pk2):
        self.calls += 1
        P, k = keys_Pk2.shape[:2]
        out = {
            "tokens": np.zeros((P, k, LONGEST), np.int32),
            "logp": np.zeros((P, k, LONGEST), np.float32),
            "length": np.zeros((P, k), np.int32),
            "finished": np.zeros((P, k), bool),
        }
        for p in np.flatnonzero(lengths_P):
            prompt = TOKENIZER.decode(prompts_PT[p, : lengths_P[p]])
            for j in range(k):
                text, finished = self.answer(prompt, keys_Pk2[p, j])
                ids = TOKENIZER.encode(text) + [EOS] * finished
                out["tokens"][p, j, : len(ids)], out["length"][p, j], out["finished"][p, j] = (
                    ids,
                    len(ids),
                    finished,
                )
                out["logp"][p, j, : len(ids)] = -np.arange(1, len(ids) + 1) / 8
        return out


def shuffled_asks(records, samples: int, seed: int) -> list[Ask]:
    """`samples` judgments of every record, each with an order of the responses of its own."""
    return [
        Ask(one, response_order(seed, one.id, sample, len(one.responses)), (sample,), one.id)
        for one in records
        for sample in range(samples)
    ]
