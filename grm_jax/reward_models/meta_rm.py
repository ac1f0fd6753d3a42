"""Asks a Meta RM whether a judgment is correct.

A scalar model reads a record and one judgment of it, and says (as a logit) whether the judgment is
correct. Its input is the chat prompt of the `meta` template (conversation and responses, in the
order the judge saw) with the judgment's text as the model's turn; its label is Eq 10 (paper,
section 4 and C.1).
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from grm_jax.data.pipeline import bucket_length
from grm_jax.judgment.prompts import Template, render_meta_prompt
from grm_jax.judgment.reasoning import without_reasoning
from grm_jax.judgment.records import Record, gold
from grm_jax.judgment.rules import meta_label
from grm_jax.models.config import ModelConfig
from grm_jax.models.heads import scalar_logits
from grm_jax.parallel.processes import to_host
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.tokenizer import Tokenizer

TOO_LONG_FOR_META = "too_long_for_meta"


def meta_ids(tokenizer: Tokenizer, template: Template, record: Record, row: dict) -> list[int]:
    """Returns the token ids of a record with one of its judgments, without its reasoning.

    By the folder's own chat template they are a finished conversation of two turns, as transformers
    writes it, which is what released Meta RMs read; up to the token that the logit is read at
    (`scalar.response_ids`).
    """
    prompt = render_meta_prompt(template, record, row["order"])
    answer = without_reasoning(row["text"])
    if tokenizer.write_chat is None:
        return tokenizer.chat_prompt_with_answer(prompt, answer)
    ids = tokenizer.chat([("user", prompt), ("assistant", answer)])
    while ids[-1] == tokenizer.pad_id:
        ids.pop()
    return ids


def meta_examples(
    tokenizer: Tokenizer, template: Template, records: Mapping[str, Record], rows: Sequence[dict]
) -> list[dict]:
    """Makes training examples {"id", "tokens", "positions", "labels"} of judgments.

    Hinted ones are left out (the paper's data are unhinted).
    """
    examples = []
    for row in rows:
        if row["hinted"]:
            continue
        ids = meta_ids(tokenizer, template, records[row["id"]], row)
        label = meta_label(row["scores"], gold(records[row["id"]]))
        examples.append(
            {
                "id": row["id"],
                "tokens": np.array(ids),
                "positions": np.arange(len(ids)),
                "labels": float(label),
            }
        )
    return examples


def meta_prompt_length(tokenizer: Tokenizer, template: Template, record: Record) -> int:
    """Counts the tokens that the Meta RM reads of a record before any of a judgment."""
    order = range(len(record.responses))
    return len(tokenizer.chat_prompt(render_meta_prompt(template, record, order)))


@functools.cache
def make_scorer(cfg: ModelConfig) -> Callable:
    """Returns the jitted `(params, tokens_BT, positions_BT) -> logits_B`.

    Rows are shared among the data axes of the parameters' mesh, where those divide B.
    """
    return jax.jit(
        lambda params, tokens_BT, positions_BT: scalar_logits(params, cfg, tokens_BT, positions_BT)
    )


def score_sequences(
    scorer: Callable,
    params: dict,
    sequences: Sequence[Sequence[int]],
    buckets: Sequence[int],
    rows: int,
) -> list[float]:
    """Returns the logits of token sequences, in their order.

    They run in batches of `rows` sequences of similar length. Raises ValueError for a logit that is
    not finite.
    """
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    logits = [0.0] * len(sequences)
    for start in range(0, len(sequences), rows):
        chosen = by_length[start : start + rows]
        width = bucket_length(max(len(sequences[i]) for i in chosen), buckets)
        tokens_BT, positions_BT = (
            np.zeros((rows, width), np.int32),
            np.full((rows, width), -1, np.int32),
        )
        for row, i in enumerate(chosen):
            length = len(sequences[i])
            tokens_BT[row, :length], positions_BT[row, :length] = sequences[i], np.arange(length)
        for i, logit in zip(chosen, to_host(scorer(params, tokens_BT, positions_BT))):
            logits[i] = float(logit)
            if not math.isfinite(logits[i]):
                raise ValueError(
                    f"the logit of a sequence of {len(sequences[i])} tokens is {logits[i]}, not "
                    "finite; the weights, or the dtype that is computed in, are not those of a "
                    "model that works"
                )
    return logits


def add_logits(
    rows: Sequence[dict],
    records: Mapping[str, Record],
    scorer: Callable,
    params: dict,
    tokenizer: Tokenizer,
    template: Template,
    buckets: Sequence[int],
    batch: int,
) -> None:
    """Puts `meta_logit` into judgments, `batch` of them scored at once.

    Those that did not parse are not scored: no vote counts them. One that is too long for the Meta
    RM to read fails as TOO_LONG_FOR_META, for a vote that it guides has no place for it.
    """
    parsed, sequences = [], []
    for row in rows:
        if row["failure"] is None:
            ids = meta_ids(tokenizer, template, records[row["id"]], row)
            if len(ids) <= max(buckets):
                parsed.append(row)
                sequences.append(ids)
            else:
                row |= {"scores": None, "failure": TOO_LONG_FOR_META}
                if row["correct"] is not None:
                    row["correct"] = False
    for row, logit in zip(
        parsed, score_sequences(scorer, params, sequences, buckets, batch), strict=True
    ):
        row["meta_logit"] = logit


def of_size(blocks: Iterable[list[dict]], size: int) -> Iterator[list[dict]]:
    """Cuts judgments into blocks of `size`, the last one shorter.

    An engine gives a few at a time, and `score_sequences` pads its batches. What has come before an
    error is given first.
    """
    held: list[dict] = []
    try:
        for block in blocks:
            held += block
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def guided(
    model: RewardModel, rate: Callable[..., None], widths: Sequence[int], rows: int
) -> RewardModel:
    """Puts the Meta RM's logit beside every sampled judgment that parsed.

    Greedy ones are not voted on. rate, widths, rows: as in `system.Policy`.
    """

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        blocks = model.judge(records, samples, temperature, swapped)
        if temperature == 0:
            yield from blocks
            return
        by_id = {record.id: record for record in records}
        for block in of_size(blocks, rows):
            rate(block, by_id, widths, rows)
            yield block

    return model._replace(judge=judge)
