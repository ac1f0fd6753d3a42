"""python -m examples.write_a_reward: a reward of your own for RL, on judgments of a real judge.

A run takes it by name:

    python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/margin \\
        --config.rl.reward=examples.write_a_reward:margin
"""

import grm_jax
from grm_jax.data.world import make_records
from grm_jax.judgment.rules import is_correct, rule_reward


def margin(judgment, record):
    """How far the best response is ahead of the second, from -1 to 1; the rule where it cannot say.

    judgment: a dict with `scores` in the record's order (None where the text could not be parsed),
        `correct`, `text`, ... record: conversation, responses, and rewards, the gold.
    """
    if judgment["scores"] is None or len(record.responses) == 1:
        return rule_reward(judgment, record)
    best = record.rewards.index(max(record.rewards))
    others = [score for i, score in enumerate(judgment["scores"]) if i != best]
    return (judgment["scores"][best] - max(others)) / 9


def main():
    judge = grm_jax.load("tiny", meta=False)
    records = make_records("test", 4, seed=3)
    rewards = []
    for record, verdict in zip(records, judge.many(records, k=4, progress=False), strict=True):
        for drawn in verdict.judgments:
            judgment = {
                "scores": drawn.scores,
                "correct": is_correct(drawn.scores, record.rewards),
                "text": drawn.text,
            }
            rewards.append((rule_reward(judgment, record), margin(judgment, record)))
        print(record.id, "rule, margin:", [f"{a:+.0f} {b:+.2f}" for a, b in rewards[-4:]])
    # it goes the same way as the paper's rule, and says by how much
    assert all((rule > 0) == (own > 0) for rule, own in rewards)


if __name__ == "__main__":
    main()
