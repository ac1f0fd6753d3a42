"""python -m examples.best_of_n: the best of many responses, and how often that is right.

The records are of the checkable world, so the gold is known: best of n by votes of k judgments,
beside a response at random.
"""

import grm_jax
from grm_jax.data.world import make_records

ITEMS = 40

judge = grm_jax.load("tiny")
records = [r for r in make_records("test", 2 * ITEMS, seed=3) if len(r.responses) > 1][:ITEMS]
chance = sum(1 / len(record.responses) for record in records) / ITEMS
print(f"at random: {chance:.0%} right")

for k in (1, 8):
    verdicts = list(judge.many(records, k=k, progress=False))
    right, unjudged = 0, 0
    for record, verdict in zip(records, verdicts, strict=True):
        if verdict.best is None:  # say so, rather than take any
            unjudged += 1
        else:
            right += record.rewards[verdict.best] == max(record.rewards)
    print(f"k = {k}: {right / ITEMS:.0%} right, {unjudged} without a verdict")
    assert right / ITEMS > chance

best = records[0].responses[verdicts[0].best]
print("\nasked:", records[0].conversation[-1].content, "\nbest: ", best)
