"""Holds reward models that read no meaning.

They show what a benchmark gives to length, to chance and to constancy; an oracle tests protocols.
"""

from collections.abc import Callable, Iterator, Sequence

from grm_jax.judgment.records import Record, seeded_digest
from grm_jax.reward_models.protocol import RewardModel, new_judgment


def length_only() -> RewardModel:
    """Scores a response by its number of characters.

    On n = 1 the score has no threshold; its order, as in an ROC curve, has a meaning.
    """
    return _without_positions(
        "length-only", lambda record, sample: [len(response) for response in record.responses]
    )


def random_scores(seed: int) -> RewardModel:
    """Draws independent uniform scores in [0, 1).

    Each is a function of (seed, record id, sample index, place of the response in the record).
    """

    def scores(record: Record, sample: int) -> list[float]:
        digests = [
            seeded_digest("random_scores", seed, record.id, sample, i)
            for i in range(len(record.responses))
        ]
        return [(int.from_bytes(digest[:7], "big") >> 3) / 2**53 for digest in digests]

    return _without_positions("random", scores, sampled=True)


def constant() -> RewardModel:
    """Scores every response 1: all n are tied, and a single response is always called right."""
    return _without_positions("constant", lambda record, sample: [1] * len(record.responses))


def oracle() -> RewardModel:
    """Gives the gold itself, for tests of protocols.

    Raises ValueError for a record without it.
    """

    def scores(record: Record, sample: int) -> Sequence[float]:
        if record.rewards is None:
            raise ValueError(f"record {record.id!r} has no rewards for an oracle to give back")
        return record.rewards

    return _without_positions("oracle", scores)


def _without_positions(
    name: str, scores: Callable[[Record, int], Sequence[float]], sampled: bool = False
) -> RewardModel:
    """Makes a model of any n that sees responses in the record's order; each record is a block."""

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        for record in records:
            yield [
                new_judgment(
                    record,
                    sample,
                    range(len(record.responses)),
                    temperature,
                    scores(record, sample),
                )
                for sample in samples
            ]

    return RewardModel(name, judge, sampled, accepts=lambda n: n >= 1)
