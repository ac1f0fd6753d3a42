"""Says what every reward model is: a name and one function from records to judgments.

That is what the evaluator sees.

A judgment is one opinion on one record, the same JSON object for every paradigm (`StoredJudgment`).
A vote over k judgments is the SUM of their scores in every paradigm, so one evaluator serves all
(Eq 12-14 of arXiv 2504.02495):

- A pointwise GRM writes 1..10 per response.
- A scalar model writes its reward, and a mean of scalars ranks as their sum.
- A pairwise judge gives 1 to the response that it chose and 0 to the other, so the sum is the
  majority.
- TokenProb gives the choice its probability.

A pairwise model faces a list of n > 2 through all its pairs, and the scores are the pairs won: the
best response of a list has n - 1 exactly when it wins against each other one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

from grm_jax.judgment.records import Record, response_order


class StoredJudgment(TypedDict, total=False):
    """Holds one judgment as a model gives it and the store keeps it (evaluation/store.py).

    id, domain, rewards: of the record.
    sample, order: which sample, and the order in which it showed the responses.
    temperature: 0 is greedy.
    scores: n numbers in the record's order, or None with the reason in `failure`.
    text: what was generated ("" for a scalar model).
    tokens, prompt_tokens: generated, and read.
    principles, critique: what was parsed of the text.
    meta_logit: the Meta RM's.
    hinted: whether the prompt told the best response.
    correct: Eq 10.
    record, seconds: put in by the store.
    step, reward: of a rollout.
    strict: {"scores", "failure"} of the strict reading, where scores are read as released.

    Paradigms add what explains their scores: "pairs", "critiques", "preference", "error", "cost".
    """

    id: str
    domain: str
    rewards: list[float] | None
    sample: int
    order: list[int]
    temperature: float
    scores: list[float] | None
    failure: str | None
    text: str
    tokens: int
    prompt_tokens: int | None
    principles: list
    critique: str
    meta_logit: float | None
    hinted: bool
    correct: bool | None
    record: str
    seconds: float
    step: int
    reward: float
    strict: dict


TOO_LONG = "too_long"  # the failure of a record whose input no bucket holds: nothing is cut


class Judge(Protocol):
    """Yields judgments, block by block: `judge(records, samples, temperature, swapped)`.

    There is one for every record and sample index. That of (record, sample) depends on the model's
    seed, the record and the sample index alone, never on the other records.

    temperature: 0 is greedy.
    swapped: shows the responses in the reverse of the order they would have had: what a position
        bias changes.

    A model without sampling or without positions ignores what does not apply to it.
    """

    def __call__(
        self,
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        """Yields the judgments of the records, a block at a time."""
        ...


class RewardModel(NamedTuple):
    """Holds a reward model: a name and a judge, and what it can do.

    name: as in tables.
    judge: see `Judge`.
    sampled: whether samples differ (False: the k-curve is flat by construction).
    accepts: whether the model can judge a record of n responses at all (a pairwise model has
        nothing to say on n = 1).
    span: for kinds of one's own, n -> the largest difference of two scores in a judgment of n
        responses (`System.span`); None where nothing is known of them.
    """

    name: str
    judge: Judge
    sampled: bool
    accepts: Callable[[int], bool]
    span: Callable[[int], float | None] | None = None


def shown_order(seed: int, record: Record, sample: int, swapped: bool) -> tuple[int, ...]:
    """Returns the order in which `sample` shows the responses; reversed if `swapped`."""
    order = response_order(seed, record.id, sample, len(record.responses))
    return order[::-1] if swapped else order


def new_judgment(
    record: Record,
    sample: int,
    order: Sequence[int],
    temperature: float,
    scores: Sequence[float] | None,
    **evidence: Any,
) -> dict:
    """Makes a judgment, a `StoredJudgment`.

    `evidence` may hold "failure" (needed where scores is None), "text", "tokens" and whatever
    explains the scores. Critiques that no head has read have neither scores nor a failure.
    """
    unread = scores is None and evidence.get("critiques") is not None
    if (scores is None) == (evidence.get("failure") is None) and not unread:
        raise ValueError(
            f"record {record.id!r}: a judgment has either scores or the reason why not, got "
            f"{scores} and {evidence.get('failure')!r}"
        )
    return {
        "id": record.id,
        "domain": record.domain,
        "sample": sample,
        "order": list(order),
        "temperature": temperature,
        "rewards": None if record.rewards is None else list(record.rewards),
        "scores": None if scores is None else list(scores),
        "failure": None,
        "text": "",
        "tokens": 0,
        "prompt_tokens": None,
    } | evidence


def pairs(n: int) -> list[tuple[int, int]]:
    """Returns all unordered pairs (i < j) of n responses."""
    return [(i, j) for i in range(n) for j in range(i + 1, n)]
