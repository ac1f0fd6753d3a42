"""Writes the text that the tiny base is pretrained on: what an SPCT run can do at its start.

Three kinds of documents, each a dict {"kind", "context", "completion", "chat"}; only the completion
is trained on:

    judge  a judgment by the sloppy judge, with or without a hint, of 1-6 responses, of all families
    check  a query with one response, checked cleanly: the skill that a careful judgment needs
    solve  a query with a right response: general instruction data

Only content from the training side of the world's train/test border is used.
"""

import random
from collections.abc import Callable

from grm_jax.data.world import judge, records, tasks
from grm_jax.judgment.records import Record

KINDS = {"judge": 0.5, "check": 0.36, "solve": 0.14}
P_HINTED = 0.22
SIZES = {1: 0.15, 2: 0.42, 3: 0.15, 4: 0.13, 5: 0.08, 6: 0.07}

Render = Callable[[Record, tuple[int, ...], bool], str]  # (record, order, hint) -> user turn


def make_document(seed: int, index: int, render: Render) -> dict:
    """Writes document `index` of the corpus."""
    rng = random.Random(f"world/corpus/{seed}/{index}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    families = tuple(tasks.FAMILIES)
    if kind == "judge":
        item = records.draw_item(
            rng, rng.choice(("train", "train", "hard")), families, testing=False, sizes=SIZES
        )
        record = item.record(f"world/corpus/{seed}/{index}", "train")
        order = tuple(rng.sample(range(len(item.responses)), len(item.responses)))
        hinted = rng.random() < P_HINTED
        right = [item.right[i] for i in order]
        hint = None if not hinted else int(right[0]) if len(order) == 1 else right.index(True)
        text = judge.judgment_text(rng, item, order, hint=hint)
        return {
            "kind": kind,
            "context": render(record, order, hinted),
            "completion": text,
            "chat": True,
        }
    query = tasks.make_query(rng, rng.choice(families))
    if kind == "solve":
        response = records.dress(rng, tasks.right_items(rng, query), query.thanks, "free")
        return {"kind": kind, "context": query.text, "completion": response.text, "chat": True}
    make = tasks.right_items if rng.random() < 0.4 else tasks.wrong_items
    response = records.dress(rng, make(rng, query), query.thanks, "free")
    text, _ = judge.check_lines(rng, query, [response], judge.CLEAN)
    return {
        "kind": kind,
        "context": f"[User] {query.text}\n[Response 1] {response.text}\n",
        "completion": f"Analysis:{text}",
        "chat": False,
    }
