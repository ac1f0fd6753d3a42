"""Writes critiques of single responses as the sloppy judge does, to fine-tune a CLoud critic on."""

import random

from grm_jax.data.world.judge import judgment_text
from grm_jax.data.world.records import make_items
from grm_jax.judgment.records import Record, Turn


def make_critiques(count: int, seed: int = 0) -> list[Record]:
    """Criticizes every response of the first `count` training items.

    Records of one response with metadata {"critique": str}. Each is written as the base's own
    judgments are, without its scores: the judge looks at one response, may name a lazy criterion,
    and slips. The gold has no part in it, and the records hold none.
    """
    rows = []
    for i, item in enumerate(make_items("train", count, seed)):
        for r, response in enumerate(item.responses):
            name = f"world/critiques/{seed}/{i}/{r}"
            critique, _, _ = judgment_text(random.Random(name), item, (r,)).partition("\nScores:")
            turns = (Turn("user", item.query.text),)
            rows.append(
                Record(
                    name,
                    turns,
                    (response.text,),
                    domain=item.query.family,
                    metadata={"critique": critique},
                )
            )
    return rows
