"""Says how systems are asked, and how figures are taken from the answers."""

import dataclasses
import difflib

from grm_jax.judgment.anytime import ROUND
from grm_jax.judgment.parsing import FAILURE_REASONS
from grm_jax.judgment.rubric import REASONS
from grm_jax.naming import nearest
from grm_jax.settings import ABOVE_ZERO, FRACTION, NOT_NEGATIVE, POSITIVE, check, growing

# a kind of one's own may have others; "request_failed:timeout" and the like begin with one of these
FAILURES = (*FAILURE_REASONS, *REASONS, "too_long", "request_failed", "refused")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Says how systems are asked, and how figures are taken from the answers.

    ks: samples in a vote, growing from 1, against which gains are measured.
    temperature: of everything that is sampled.
    samples_per_order: consecutive samples that share an order of the responses, and so a prompt;
        divides the largest k where that is larger.
    anytime: None draws the largest k for every item. 0 stops where no further sample can change the
        winner; a number above it also where a test says so, which errs for an item with at most
        this probability (judgment/anytime.py).
    greedy: ask once at temperature 0 too.
    swap: ask greedily once more with the responses in the reverse order.
    seeds: of response orders and of sampling; figures are means over them.
    retry: names of failures to ask again, such as "request_failed".
    bootstrap: resamples of each interval.
    report_items: items of each benchmark that can be read in the page; all judgments are on file.
    min_coverage: share of a benchmark's items that a system has to judge for its figures to stand
        without a warning.
    """

    ks: tuple[int, ...]
    temperature: float
    samples_per_order: int = 1
    anytime: float | None = None
    greedy: bool = True
    swap: bool = False
    seeds: tuple[int, ...] = (0,)
    retry: tuple[str, ...] = ()
    bootstrap: int = 2000
    report_items: int = 60
    min_coverage: float = 0.9

    def __post_init__(self):
        check(
            self,
            {
                "ks": (
                    "growing integers from 1, against which gains are measured",
                    lambda ks: growing(ks) and ks[:1] == (1,),
                ),
                "temperature": ABOVE_ZERO,
                "samples_per_order": POSITIVE,
                "anytime": ("a probability below 1", lambda error: 0 <= error < 1),
                "seeds": ("different integers", lambda seeds: len(set(seeds)) == len(seeds) > 0),
                "retry": ("a tuple of texts", _spelt_right),
                "bootstrap": ("at least 100 resamples", lambda x: x >= 100),
                "report_items": NOT_NEGATIVE,
                "min_coverage": FRACTION,
            },
            [
                (
                    "samples_per_order ks",
                    "a divisor of the largest of ks = {ks}",
                    lambda count, ks: ks[-1] % min(count, ks[-1]) == 0,
                ),
                (
                    "anytime samples_per_order",
                    "0, or samples_per_order=1, as the test needs samples that are drawn apart",
                    lambda error, count: not error or count == 1,
                ),
                (
                    "swap greedy",
                    "False, as it compares with greedy judgments and greedy is {greedy}",
                    lambda swap, greedy: greedy or not swap,
                ),
            ],
        )

    @property
    def round(self) -> int:
        """Samples between two looks at the verdict: a multiple of those that share an order."""
        return -(-ROUND // self.samples_per_order) * self.samples_per_order

    @property
    def shown_ks(self) -> tuple[int, ...]:
        """Votes that have figures.

        Where items are left early those between the first round, which all items have, and the
        largest k have none.
        """
        if self.anytime is None:
            return self.ks
        return tuple(k for k in self.ks if k <= self.round or k == self.ks[-1])


def _spelt_right(failures: tuple[str, ...]) -> bool:
    """Raises ValueError for what is nearly the name of a failure: it asks for nothing again."""
    for failure in failures:
        name = failure.partition(":")[0]
        if name not in FAILURES and difflib.get_close_matches(name, FAILURES, 1, 0.8):
            raise ValueError(f"{failure!r} names no failure; {nearest(name, FAILURES)}")
    return True
