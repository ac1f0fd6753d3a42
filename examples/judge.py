"""python -m examples.judge: one verdict, what it rests on, and what a failure looks like.

"tiny" is the judge of 0.7 million parameters in the package. Any folder or hub name stands in its
place; docs/judge.md has which.
"""

import grm_jax

judge = grm_jax.load("tiny")
question = "Reverse the list: 1.fox 2.ant 3.hen"
verdict = judge(question, ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"], k=8, seed=0)

print("best:", verdict.best, "totals:", verdict.scores, "margin:", verdict.margin)
for judgment in verdict.judgments:
    names = ", ".join(f"{name} {weight}" for name, weight in judgment.principles)
    said = judgment.scores or judgment.failure  # a failure has a name, and is never a score
    print(f"  kept {judgment.kept!s:5} scores {said} principles: {names}")
assert verdict.best == 0

# A judgment that cannot be parsed is left out of the vote. Where all are, there is no verdict.
too_long = judge("word " * 500, ["yes", "no"], k=4)
print("best:", too_long.best, "failure:", too_long.failure)
assert too_long.best is None and too_long.failure == "too_long"
