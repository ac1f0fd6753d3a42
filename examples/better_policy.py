"""python -m examples.better_policy: a policy that a judge makes better, by best of n and by RL.

The policy writes lists of animals, and is taught to be right half of the time. The judge never sees
the gold; the world computes it. docs/policy.md has curves over three seeds and several judges.
"""

import pathlib
import tempfile

import numpy as np

from experiments.policy import best_of_n, judges, loop
from experiments.policy import writer as writing
from grm_jax.data.world.writing import gold, make_queries
from grm_jax.training.settings import RlConfig

SFT_STEPS, RL_STEPS, PROMPTS, QUERIES, N, K = 60, 30, 16, 48, 8, 4

writer = writing.make_writer()
judge = judges.generative("grm", K)  # share of K judgments that call a response right
queries = make_queries(QUERIES, testing=True)
prompts = [query.text for query in queries]


def drawn_and_graded(params):
    """N responses to each query, and their gold [queries, N]."""
    drawn = writing.draw(writer, params, prompts, N, seed=0, name="test")
    texts = [[one.text for one in row] for row in drawn]
    return texts, np.array([[gold(q, t) for t in row] for q, row in zip(queries, texts)])


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    policy = writing.fine_tune(writer, folder / "sft", 0, SFT_STEPS, answers=4000, p_right=0.5)
    texts, gold_PN = drawn_and_graded(policy)
    print(f"policy: {gold_PN.mean():.0%} right, for example {prompts[0]!r} -> {texts[0][0]!r}")

    asked = [prompt for prompt in prompts for _ in range(N)]
    scores = judge(asked, [text for row in texts for text in row], 0)["grm"]
    for n in (2, 4, N):
        means = best_of_n.chosen_means(np.reshape(scores, gold_PN.shape), gold_PN, n)
        print(f"best of {n} by the judge: {means.mean():.0%} right")

    rl = RlConfig(
        steps=RL_STEPS,
        learning_rate=1e-3,
        batch_size=4 * PROMPTS,
        micro_batch=4 * PROMPTS,
        group_size=4,
        beta=0.02,
        old_logp="sampler",
    )
    tuned = loop.tune(writer, policy, lambda *batch: judge(*batch)["grm"], rl, folder / "rl", 0)
    print(f"after {RL_STEPS} steps of RL: {drawn_and_graded(tuned)[1].mean():.0%} right")
