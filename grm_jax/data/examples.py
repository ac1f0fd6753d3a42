"""Makes examples of supervised training: token ids, positions, and a mask, 1 on what is learned."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grm_jax.judgment.records import Record, gold
from grm_jax.judgment.rules import best_index
from grm_jax.tokenizer import Tokenizer


def supervised_example(
    example_id: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> dict:
    """Makes an example of `training.step.rft_loss`: the completion is learned, the prompt is not.

    Returns "id", "tokens" and "positions" int[T], "mask" float32[T].
    """
    ids = np.array([*prompt_ids, *completion_ids])
    mask = (np.arange(len(ids)) >= len(prompt_ids)).astype(np.float32)
    return {"id": example_id, "tokens": ids, "positions": np.arange(len(ids)), "mask": mask}


def instruction_examples(tokenizer: Tokenizer, rows: Iterable[Mapping[str, str]]) -> list[dict]:
    """Makes examples of instruction data, rows of "id", "prompt" and "completion"."""
    return [
        supervised_example(
            row["id"],
            tokenizer.chat_prompt(row["prompt"]),
            tokenizer.chat_completion(row["completion"]),
        )
        for row in rows
    ]


def best_responses(records: Iterable[Record]) -> list[dict[str, str]]:
    """Makes instruction data of preference records: the best response answers the conversation.

    Wrong single responses are left out. Turns of a longer conversation stand under their roles.
    """
    rows = []
    for record in records:
        if len(record.responses) > 1 or gold(record)[0] == 1:
            turns = [
                turn.content if len(record.conversation) == 1 else f"{turn.role}: {turn.content}"
                for turn in record.conversation
            ]
            completion = record.responses[best_index(gold(record))]
            rows.append({"id": record.id, "prompt": "\n\n".join(turns), "completion": completion})
    return rows


def fitting(examples: Sequence[dict], limit: int) -> list[dict]:
    """Keeps the examples whose sequences all have at most `limit` tokens; nothing is cut.

    Sequences are the fields that end in "tokens".
    """
    return [
        example
        for example in examples
        if all(len(ids) <= limit for name, ids in example.items() if name.endswith("tokens"))
    ]
