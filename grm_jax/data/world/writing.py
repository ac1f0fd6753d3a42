"""Asks for responses, and grades them: queries for a policy to answer, and the gold of its answers.

A written response is read back strictly: what this world would not write, character for character,
is wrong. Distractors change nothing. Queries are for testing or for training by a hash of their
text, so that no query of one side is asked on the other.
"""

import hashlib
import random
import re

from grm_jax.data.world import records, tasks

_FORM = re.compile(
    r"(?P<filler>.*?:)?(?P<bold> ?\*\*)?(?P<items>(?: ?\d+\.[a-z]+)+)(?: \*\*)?"
    r"(?P<certain> Definitely!)?(?P<thanks> Thanks\.)?"
)


def read_response(text: str) -> records.Response | None:
    """Reads a response as it was written; None for a text that this world does not write."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    response = records.Response(
        items=tuple(re.findall(r"\d+\.([a-z]+)", form["items"])),
        thanks=form["thanks"] is not None,
        filler=form["filler"] or "",
        certain=form["certain"] is not None,
        bold=form["bold"] is not None,
    )
    if response.filler not in ("", *records.FILLERS) or not set(response.items) <= set(
        tasks.ANIMALS
    ):
        return None
    return response if response.text == text else None


def gold(query: tasks.Query, text: str) -> float:
    """Grades a text: 1 where it is a right response to the query, else 0."""
    response = read_response(text)
    return float(response is not None and records.is_right(query, response))


def make_queries(count: int, seed: int = 0, testing: bool = False) -> list[tasks.Query]:
    """Draws queries of the reward families, of one side; they may repeat."""
    rng, queries = random.Random(f"world/queries/{testing}/{seed}"), []
    while len(queries) < count:
        query = tasks.make_query(rng, rng.choice(tasks.REWARD_FAMILIES))
        if (hashlib.sha256(query.text.encode()).digest()[0] < 64) == testing:
            queries.append(query)
    return queries


def make_answers(count: int, seed: int = 0, p_right: float = 0.5) -> list[dict[str, str]]:
    """Writes what a policy of middling skill is fine-tuned on: {"id", "prompt", "completion"}.

    Queries of the training side, each with a response that is right with probability `p_right`.
    """
    rows = []
    for i, query in enumerate(make_queries(count, seed)):
        name = f"world/answers/{seed}/{i}"
        rng = random.Random(name)
        right = rng.random() < p_right
        response = records.dress(rng, tasks.right_items(rng, query), query.thanks, "free")
        while not right and records.is_right(query, response):
            response = records.wrong_response(rng, query, "free")
        rows.append({"id": name, "prompt": query.text, "completion": response.text})
    return rows
