"""Computes the figures of one system on one benchmark, for every way to judge with it.

A way is greedy, a vote of k, or a vote that a Meta RM guides. All systems of a benchmark are laid
out over the same items and resampled alike, so that `grm_jax.evaluation.differences` may pair any
two. An item that a system cannot judge (a list, or a single response, that it does not accept) is
not applicable: NaN in every array, no part of any mean, and counted. An item whose judgments all
failed is worth a guess, and its share is said beside the figure; where no item has a judgment with
scores there is no figure at all.

A benchmark says how its figures come of its items (`Benchmark.summarize`): a mean over sections,
say, whose means weigh subsets. In accuracy that is a weighted mean of the items; `weights` finds
the weights once, and then a resample costs one product.

Letters: I items of the benchmark, K samples of an item, V votes, B resamples.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.benchmarks.base import Benchmark, prompt_of
from grm_jax.evaluation import bootstrap, votes
from grm_jax.evaluation.store import Rows
from grm_jax.evaluation.votes import Estimate, Pool
from grm_jax.judgment.records import Record
from grm_jax.judgment.voting import default_k_meta

SHUFFLES = 8  # of an item's pool, for votes of k < K
AREA_VOTES = 8  # at most so many votes of an item enter a ROC area's mean
HALVES = 100  # resamples of a figure that is no weighted mean: each computes it anew
GUESSES = 10  # pairs of opposite random judges, whose mean is the chance of such a figure
WEIGHTS_AT_ONCE = 512
OVERALL = "overall"
Way = tuple[str, int, int | None]  # (aggregation, k, k_meta); aggregation: greedy, vote, meta


class Judged(NamedTuple):
    """Holds all judgments of one system on one benchmark, and the files they lie in.

    rows: {"greedy" | "swapped" | "sampled": [Rows of each seed]}; paths likewise.
    sampled: `RewardModel.sampled`; where it is False there are greedy judgments only, and a vote of
        any k is the greedy verdict.
    accepted: ids of the records that the system can judge.
    least: sampled judgments that every item has at least, where items may have been left early;
        None where all have the same number.
    """

    name: str
    sampled: bool
    accepted: frozenset[str]
    rows: dict[str, list[Rows]]
    paths: dict[str, list]
    least: int | None = None

    def even(self, samples: int) -> int:
        """Returns how many of so many samples every item has, for what is no verdict of a vote."""
        return samples if self.least is None else min(samples, self.least)


@dataclasses.dataclass(frozen=True)
class Field:
    """Holds the items of a benchmark, by id, and their resamples.

    prompt_I: index of each item's prompt, which is resampled as a whole.
    longest_I: index of the longest response in characters, -1 where several are.
    """

    benchmark: Benchmark
    records: tuple[Record, ...]
    ids: tuple[str, ...]
    count_BI: np.ndarray
    half_BI: np.ndarray
    prompt_I: np.ndarray
    longest_I: np.ndarray
    weights: dict[bytes, dict[str, np.ndarray]]  # of `weights`, by the items in a figure
    areas: dict[tuple, dict[str, np.ndarray]]  # of `area_draws`, by first votes and items
    chances: dict[bytes, float | None]  # of `area_chance`, by items


@dataclasses.dataclass(frozen=True)
class Figure:
    """Holds what one way of judging with one system gives on one benchmark, mean over seeds.

    All arrays are over the benchmark's items, NaN where not applicable. Their meaning is that of
    `votes.Estimate`.

    flat: the greedy figure of a system that does not sample, at some k.
    applicable_I, parsed_I: bool, items that the system can judge, and those of them with a judgment
        that gave scores, among all that the figure draws from.
    credit_I, strict_I, tie_I: NaN as well for single responses where the system gives them scores
        other than 0 and 1, which have no threshold.
    score_IV: what votes give to the single response of an item (NaN where a vote has none), only
        where the metric is "roc_auc".
    agree_I: expected agreement with choosing the longest response, NaN where no response is.
    seeds: mean credit of each seed.
    """

    system: str
    way: Way
    flat: bool
    applicable_I: np.ndarray
    parsed_I: np.ndarray
    credit_I: np.ndarray
    strict_I: np.ndarray
    tie_I: np.ndarray
    lost_I: np.ndarray
    failed_I: np.ndarray
    tokens_I: np.ndarray
    samples_I: np.ndarray
    spent_I: np.ndarray
    chance_I: np.ndarray
    agree_I: np.ndarray
    seeds: tuple[float | None, ...]
    score_IV: np.ndarray | None

    @property
    def used_I(self) -> np.ndarray:
        """Marks the items that the figure is over, bool; none where no judgment gave scores."""
        known_I = np.isfinite(self.credit_I if self.score_IV is None else self.failed_I)
        return known_I & (self.parsed_I & self.applicable_I).any()


ITEM_ARRAYS = (
    "credit_I",
    "strict_I",
    "tie_I",
    "lost_I",
    "failed_I",
    "tokens_I",
    "samples_I",
    "spent_I",
    "chance_I",
    "agree_I",
)


def make_field(benchmark: Benchmark, draws: int, seed: int) -> Field:
    """Lays out a benchmark, with `draws` resamples.

    The resamples are a function of (seed, name, number of items) alone.
    """
    records = tuple(sorted(benchmark.records, key=lambda record: record.id))
    longest = []
    for record in records:
        lengths = [len(response) for response in record.responses]
        longest.append(
            lengths.index(max(lengths))
            if len(lengths) > 1 and lengths.count(max(lengths)) == 1
            else -1
        )
    state = int.from_bytes(hashlib.sha256(f"{seed}|{benchmark.name}".encode()).digest()[:8], "big")
    prompts = [prompt_of(benchmark, record) for record in records]
    count_BI, half_BI = (
        bootstrap.resamples(prompts, draws, state),
        bootstrap.halves(prompts, HALVES, state),
    )
    return Field(
        benchmark,
        records,
        tuple(record.id for record in records),
        count_BI,
        half_BI,
        bootstrap.groups_of(prompts),
        np.array(longest),
        {},
        {},
        {},
    )


def make_pools(field: Field, judged: Judged, kind: str, samples: int) -> list[Pool]:
    """Collects one pool a seed, of the first `samples` samples, or of those up to a stop.

    [] where the system was not asked in this way, or accepts no item of the benchmark.
    """
    pools = []
    for rows in judged.rows.get(kind, ()):
        judgments = [
            rows[item, s]
            for item in field.ids
            if item in judged.accepted
            for s in range(samples)
            if (item, s) in rows
        ]
        if judgments:
            ragged = kind == "sampled" and judged.even(samples) < samples
            pools.append(votes.make_pool(field.records, judgments, samples if ragged else None))
    return pools


def figures(field: Field, judged: Judged, ks: Sequence[int], seed: int) -> dict[Way, Figure]:
    """Makes the figure of every way of judging that the judgments allow.

    A system without sampling has its greedy figure at every k, marked `flat`. The Meta RM keeps the
    half of k; of the largest k also an eighth, a quarter, one and all. Where items were left early
    that half alone, which the stop knows of, and no k between what all items have and the largest.
    """
    of_way: dict[Way, Figure] = {}
    if pools := make_pools(field, judged, "greedy", 1):
        greedy = _figure(field, judged, pools, ("greedy", 1, None), seed)
        of_way[greedy.way] = greedy
        if not judged.sampled:
            for k in ks:
                way = ("vote", k, None)
                of_way[way] = dataclasses.replace(greedy, way=way, flat=True)
    if judged.sampled and (pools := make_pools(field, judged, "sampled", max(ks))):
        even = judged.even(max(ks))
        first = pools if even == max(ks) else make_pools(field, judged, "sampled", even)
        for k in ks:
            if even < k < max(ks):
                continue
            ways: list[Way] = [("vote", k, None)]
            if all(map(votes.has_logits, pools)):
                kept = {default_k_meta(k)}
                if k == max(ks) == even:
                    kept |= {1, *(max(1, k // part) for part in (8, 4, 1))}
                ways += [("meta", k, k_meta) for k_meta in sorted(kept)]
            for way in ways:
                of_k = pools if k == max(ks) else first
                of_way[way] = _figure(field, judged, of_k, way, seed)
    return of_way


def _figure(field: Field, judged: Judged, pools: list[Pool], way: Way, seed: int) -> Figure:
    _, k, k_meta = way
    how = {"shuffles": SHUFFLES, "seed": seed}
    arrays, scores = collections.defaultdict(list), []
    applicable_I = np.isin(field.ids, list(judged.accepted))
    parsed_I = np.zeros(len(field.ids), bool)
    for pool in pools:
        estimate = votes.estimate(pool, k, k_meta, **how)
        at_J = np.searchsorted(field.ids, pool.ids)  # both are sorted by id
        # scores of single responses answer if all are 0 and 1: else they are on another scale
        single_JK = pool.valid_IK & (pool.n_I == 1)[:, None]
        binary_J = (pool.n_I > 1) | np.isin(pool.scores_IKN[..., 0][single_JK], (0, 1)).all()
        parsed_I[at_J] |= pool.valid_IK.any(axis=1)
        if field.benchmark.metric == "accuracy":
            applicable_I[at_J[~binary_J]] = False
        agree_J = _agreement(pool, estimate, field.longest_I[at_J], way, how)
        for name in ITEM_ARRAYS:
            values_I = np.full(len(field.ids), np.nan)
            values_I[at_J] = agree_J if name == "agree_I" else getattr(estimate, name)
            if name in ("credit_I", "strict_I", "tie_I"):
                values_I[at_J[~binary_J]] = np.nan
            arrays[name].append(values_I)
        if field.benchmark.metric == "roc_auc":
            shuffles = 1 if k in (1, pool.samples) else SHUFFLES
            shown = min(AREA_VOTES, pool.samples // k * shuffles)
            score_IV = np.full((len(field.ids), shown), np.nan)
            score_IV[at_J] = votes.single_scores(pool, k, k_meta, **how)[:, :shown]
            scores.append(score_IV)
    mean = {name: np.mean(values, axis=0) for name, values in arrays.items()}
    return Figure(
        judged.name,
        way,
        False,
        applicable_I,
        parsed_I,
        **mean,
        seeds=tuple(finite_mean(values_I) for values_I in arrays["credit_I"]),
        score_IV=np.concatenate(scores, axis=1) if scores else None,
    )


def _agreement(
    pool: Pool, estimate: Estimate, longest_J: np.ndarray, way: Way, how: dict
) -> np.ndarray:
    """Gives credit against the longest response in place of the gold, among votes not lost.

    NaN where there is no longest response.
    """
    other = dataclasses.replace(pool, gold_I=np.maximum(longest_J, 0))
    credit_J = votes.estimate(other, way[1], way[2], **how).credit_I
    there_J = (longest_J >= 0) & (estimate.lost_I < 1)
    return np.divide(
        credit_J - estimate.lost_I * estimate.chance_I,
        1 - estimate.lost_I,
        out=np.full(len(credit_J), np.nan),
        where=there_J,
    )


def finite_mean(values_I: np.ndarray) -> float | None:
    """Averages the values that are finite; None where none is."""
    values_I = values_I[np.isfinite(values_I)]
    return float(values_I.mean()) if len(values_I) else None


def summarize(field: Field, values_I: np.ndarray, used_I: np.ndarray) -> dict[str, float]:
    """Computes the benchmark's figures over the items used.

    A NaN among their values is a score that no judgment gave.
    """
    values = {
        field.ids[i]: None if np.isnan(values_I[i]) else float(values_I[i])
        for i in np.flatnonzero(used_I)
    }
    return field.benchmark.summarize(values) if values else {}


def weights(field: Field, used_I: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {figure: weight_I}: what the credit of each item adds to each figure.

    For a benchmark of accuracy. Its figures are weighted means, so `summarize` gives the weights
    when, in place of credits, it gets the columns of an identity matrix.
    """
    key = used_I.tobytes()
    if key not in field.weights:
        items = np.flatnonzero(used_I)
        of_figure = collections.defaultdict(lambda: np.zeros(len(field.ids)))
        for start in range(0, len(items), WEIGHTS_AT_ONCE):
            chunk = items[start : start + WEIGHTS_AT_ONCE]
            values = dict.fromkeys((field.ids[i] for i in items), np.zeros(len(chunk)))
            values |= {field.ids[i]: unit for i, unit in zip(chunk, np.eye(len(chunk)))}
            for name, weight in field.benchmark.summarize(values).items():
                of_figure[name][chunk] = weight
        field.weights[key] = dict(of_figure)
    return field.weights[key]


def resampled(field: Field, used_I: np.ndarray) -> bool:
    """Says whether a figure over these items can be resampled: they have two or more prompts."""
    return len(np.unique(field.prompt_I[used_I])) > 1


def figure_draws(
    field: Field, name: str, values_I: np.ndarray, used_I: np.ndarray, value: float
) -> np.ndarray:
    """Returns the resamples (B,) of a figure of accuracy whose value is `value`.

    NaN where its items have one prompt.
    """
    weight_I = weights(field, used_I)[name]
    total = weight_I[used_I] @ values_I[used_I]
    if not np.isclose(total, value, atol=1e-6):
        raise ValueError(
            f"benchmark {field.benchmark.name!r}: figure {name!r} is {value}, but {total} as a "
            "weighted mean of its items"
        )
    if not resampled(field, used_I & (weight_I > 0)):
        return np.full(len(field.count_BI), np.nan)
    return bootstrap.weighted_means(field.count_BI, values_I, weight_I) * weight_I.sum()


def area_draws(field: Field, figure: Figure) -> dict[str, np.ndarray]:
    """Computes every figure on random halves of the prompts, less the figure on all of them.

    Of shape (HALVES,), by the first vote of each item; NaN where a half lacks it, and where the
    items have one prompt.
    """
    key = (figure.score_IV[:, 0].tobytes(), figure.used_I.tobytes())
    if key not in field.areas:
        whole, *parts = (
            summarize(field, figure.score_IV[:, 0], figure.used_I & inside_I)
            for inside_I in (np.array(True), *field.half_BI)
        )
        field.areas[key] = {
            name: np.array([part.get(name, np.nan) for part in parts])
            - (value if resampled(field, figure.used_I) else np.nan)
            for name, value in whole.items()
        }
    return field.areas[key]


# the rules of benchmarks.credit.CREDIT, as means over votes; n_I: responses of each item
CREDITS = {
    "expected": lambda figure, n_I: figure.credit_I,
    "strict": lambda figure, n_I: figure.strict_I,
    "parsed": lambda figure, n_I: figure.credit_I - figure.lost_I * figure.chance_I,
    "parsed_or_strict": lambda figure, n_I: np.where(
        n_I == 2, figure.credit_I - figure.lost_I * figure.chance_I, figure.strict_I
    ),
}


def credit_values(field: Field, figure: Figure, credit: str) -> np.ndarray:
    """Returns the credit of each item by a rule of CREDITS."""
    return CREDITS[credit](figure, np.array([len(record.responses) for record in field.records]))


def values_of(field: Field, figure: Figure, credit: str = "expected") -> dict[str, float]:
    """Computes all figures of the benchmark, by name.

    `credit` names a rule of CREDITS where the metric is accuracy.
    """
    if figure.score_IV is None:
        return summarize(field, credit_values(field, figure, credit), figure.used_I)
    of_votes = [summarize(field, score_I, figure.used_I) for score_I in figure.score_IV.T]
    return {name: float(np.mean([values[name] for values in of_votes])) for name in of_votes[0]}


def draws_of(
    field: Field, figure: Figure, name: str, value: float, credit: str = "expected"
) -> np.ndarray:
    """Returns resamples of the figure `name` of `values_of`.

    As many as the field's where the metric is accuracy, else HALVES.
    """
    if figure.score_IV is None:
        return figure_draws(field, name, credit_values(field, figure, credit), figure.used_I, value)
    return area_draws(field, figure)[name] + value


def chance_of(field: Field, used_I: np.ndarray) -> float | None:
    """Returns the overall figure of a guess on these items; None where there is none."""
    if field.benchmark.metric == "roc_auc":
        return area_chance(field, used_I)
    n_I = np.array([len(record.responses) for record in field.records])
    chance_I = np.where(n_I == 1, 0.5, 1 / n_I)
    return summarize(field, chance_I, used_I & field_gold(field)).get(OVERALL)


def field_gold(field: Field) -> np.ndarray:
    """Tells which records have gold, bool (I,)."""
    return np.array([record.rewards is not None for record in field.records])


def area_chance(field: Field, used_I: np.ndarray) -> float | None:
    """Averages the overall figure over random judges of single responses.

    Each comes with the judge that gives the opposite scores, so that the chance of a ROC area is
    one half exactly.
    """
    key = used_I.tobytes()
    if key not in field.chances:
        rng = np.random.default_rng(0)
        guesses = rng.random((GUESSES, len(field.ids)))
        of_judge = [summarize(field, score_I, used_I) for score_I in (*guesses, *-guesses)]
        values = [of[OVERALL] for of in of_judge if OVERALL in of]
        field.chances[key] = float(np.mean(values)) if len(values) == len(of_judge) else None
    return field.chances[key]


def official_credit(benchmark: Benchmark, judged: Judged) -> str | None:
    """Returns the rule of the benchmark's own runner for this system.

    That for generative judges where it samples, else that for scalar models.
    """
    return (
        None
        if benchmark.official is None
        else benchmark.official.generative
        if judged.sampled
        else benchmark.official.scalar
    )


def both_orders(field: Field, judged: Judged) -> float | None:
    """Computes the overall figure by the official rule for a judge that is asked in both orders.

    The rule is `Official.orders`, the verdicts greedy ones; mean over seeds. None where the rule
    does not hold for this system, where it was not asked in both, or where no judgment gave scores.
    """
    official = field.benchmark.official
    if official is None or official.orders is None or not judged.sampled:
        return None
    values = []
    for pools in zip(
        make_pools(field, judged, "greedy", 1), make_pools(field, judged, "swapped", 1)
    ):
        if not any(pool.valid_IK.any() for pool in pools):
            return None
        one, other = (
            {item: _verdict(pool, i) for i, item in enumerate(pool.ids)} for pool in pools
        )
        if official.orders == "verdicts":
            credit = {item: float(one[item] + other[item] > 0) for item in other}
        else:
            half = [
                {
                    item: (1 + verdict) / 2 if pool.valid_IK[i, 0] else 0.0
                    for i, (item, verdict) in enumerate(verdicts.items())
                }
                for pool, verdicts in zip(pools, (one, other))
            ]
            credit = {item: (half[0][item] + half[1][item]) / 2 for item in other}
        values.append(field.benchmark.summarize(credit).get(OVERALL))
    return float(np.mean(values)) if values and None not in values else None


def _verdict(pool: Pool, i: int) -> int:
    """Reads the first judgment of a pair: 1 where it has the better response on top, -1 the other.

    0 for a tie or no verdict.
    """
    first, second = pool.scores_IKN[i, 0, :2]
    return int(np.sign(first - second)) * (1 if pool.gold_I[i] == 0 else -1)
