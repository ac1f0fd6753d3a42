"""Compares figures: paired differences on one benchmark and over all, and what a system can do."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.evaluation import bootstrap, figures
from grm_jax.evaluation.figures import OVERALL, Field, Figure, Judged, Way
from grm_jax.judgment.voting import default_k_meta

ALL_BENCHMARKS = "mean over benchmarks"
FOCUS_K = 8  # the k of the paper's tables; the largest k where an evaluation has no 8


class Difference(NamedTuple):
    """Holds figure a less figure b on the items that both could judge; draws_B: its resamples."""

    a: tuple[str, Way]
    b: tuple[str, Way]
    benchmark: str
    metric: str
    items: int
    value: float
    draws_B: np.ndarray


def difference(field: Field, a: Figure, b: Figure) -> Difference | None:
    """Subtracts figure b from figure a, the benchmark's overall ones.

    None where the shared items, or all resamples of them, do not give them.
    """
    shared_I = a.used_I & b.used_I
    if not shared_I.any():
        return None
    if a.score_IV is None:
        gap_I = np.where(shared_I, a.credit_I - b.credit_I, np.nan)
        value = figures.summarize(field, gap_I, shared_I).get(OVERALL)
        if value is None:
            return None
        draws_B = figures.figure_draws(field, OVERALL, gap_I, shared_I, value)
    else:
        a_shared, b_shared = (
            dataclasses.replace(side, failed_I=np.where(shared_I, side.failed_I, np.nan))
            for side in (a, b)
        )
        a_value = figures.values_of(field, a_shared).get(OVERALL)
        b_value = figures.values_of(field, b_shared).get(OVERALL)
        if a_value is None or b_value is None:
            return None
        value = a_value - b_value
        draws_B = figures.draws_of(field, a_shared, OVERALL, a_value) - figures.draws_of(
            field, b_shared, OVERALL, b_value
        )
    if not np.isfinite(draws_B).any():
        return None
    return Difference(
        (a.system, a.way),
        (b.system, b.way),
        field.benchmark.name,
        field.benchmark.metric,
        int(shared_I.sum()),
        value,
        draws_B,
    )


def wanted_pairs(
    systems: Mapping[str, Mapping[Way, Figure]], ks: Sequence[int]
) -> list[tuple[tuple[str, Way], tuple[str, Way]]]:
    """Lists which figures to compare.

    Every two systems, greedy and by their votes of the largest k; then what more samples add to
    each, and the Meta RM at every k.
    """
    most = max(ks)
    focus = FOCUS_K if FOCUS_K in ks else most
    greedy: Way = ("greedy", 1, None)
    one: Way = ("vote", 1, None)
    middle: Way = ("vote", focus, None)
    vote: Way = ("vote", most, None)
    meta: Way = ("meta", most, default_k_meta(most))
    pairs: list[tuple[tuple[str, Way], tuple[str, Way]]] = [
        ((a, way), (b, way))
        for way in (greedy, vote, meta)
        for a, b in itertools.combinations(systems, 2)
    ]
    gains: list[tuple[Way, Way]] = [(middle, one), (vote, middle), (vote, one), (vote, greedy)]
    gains += [(meta, one)]
    gains += [(("meta", k, default_k_meta(k)), ("vote", k, None)) for k in ks if k > 1]
    gains += [(meta, greedy)]
    for name in systems:
        pairs += [((name, x), (name, y)) for x, y in dict.fromkeys(gains) if x != y]
    return pairs


def over_benchmarks(differences: Sequence[Difference]) -> list[Difference]:
    """Averages each difference that two or more benchmarks have.

    Benchmarks are resampled apart, so their draws add up.
    """
    groups: dict[tuple, list[Difference]] = {}
    for difference in differences:
        groups.setdefault((difference.a, difference.b), []).append(difference)
    return [
        Difference(
            a,
            b,
            ALL_BENCHMARKS,
            ", ".join(dict.fromkeys(d.metric for d in many)),
            sum(d.items for d in many),
            float(np.mean([d.value for d in many])),
            _mean_draws(many),
        )
        for (a, b), many in groups.items()
        if len(many) > 1
    ]


def _mean_draws(many: Sequence[Difference]) -> np.ndarray:
    """Averages the draws; where benchmarks have different numbers, as many as the fewest."""
    draws = min(len(d.draws_B) for d in many)
    return np.mean([d.draws_B[:draws] for d in many], axis=0)


def difference_row(difference: Difference) -> dict:
    """Makes a flat row of results.json. "sign_share": see `bootstrap.sign_share`."""
    sides = {
        f"{side}_{name}": value
        for side, (system, way) in (("a", difference.a), ("b", difference.b))
        for name, value in zip(("system", "aggregation", "k", "k_meta"), (system, *way))
    }
    return sides | {
        "benchmark": difference.benchmark,
        "metric": difference.metric,
        "items": difference.items,
        "difference": difference.value,
        **bootstrap.spread(difference.draws_B),
        "sign_share": bootstrap.sign_share(difference.draws_B),
    }


SIZES = ("one", "two", "many")


def size_of(n: int) -> str:
    """Names the size of an item of n responses: one, two or many."""
    return SIZES[min(n, 3) - 1]


def capability(
    system: str,
    judged: Mapping[str, tuple[Field, Judged]],
    differences: Sequence[Difference],
    ks: Sequence[int],
) -> dict:
    """Says what the system did here: verdicts by the size of items, and what more samples gain.

    "one", "two", "many": {"items", "accepted", "verdicts"}, for items of one, two and many
        responses: of the benchmarks' items, those that it accepts and those on which some judgment
        gave scores.
    "input_flexible": it gave verdicts on all three sizes; None while a size that it accepts was not
        among the items.
    "scalable": whether the 95 % interval of the gain, mean over benchmarks, lies above 0. The gain
        is accuracy at the largest k less accuracy at k = 1; that of the guided vote stands apart.
    """
    sizes = {size: {"items": 0, "accepted": 0, "verdicts": 0} for size in SIZES}
    sampled = False
    for field, of_benchmark in judged.values():
        sampled |= of_benchmark.sampled
        parsed = {
            item
            for kinds in of_benchmark.rows.values()
            for rows in kinds
            for (item, _), judgment in rows.items()
            if judgment["scores"] is not None
        }
        for record in field.records:
            size = sizes[size_of(len(record.responses))]
            size["items"] += 1
            size["accepted"] += record.id in of_benchmark.accepted
            size["verdicts"] += record.id in parsed
    shown = {name: size["verdicts"] > 0 if size["items"] else None for name, size in sizes.items()}
    flexible = False if False in shown.values() else None if None in shown.values() else True
    most = max(ks)
    plain = _gain("", ("vote", most, None), system, differences, sampled)
    guided = _gain("meta_", ("meta", most, default_k_meta(most)), system, differences, sampled)
    return {
        "system": system,
        **sizes,
        "input_flexible": flexible,
        "sampled": sampled,
        **plain,
        **guided,
    }


def _gain(
    prefix: str, way: Way, system: str, differences: Sequence[Difference], sampled: bool
) -> dict:
    """Averages over benchmarks what `way` adds to one sample.

    "scalable" is None where nothing shows it.
    """
    many = [d for d in differences if (d.a, d.b) == ((system, way), (system, ("vote", 1, None)))]
    value = low = high = None
    scalable = False if many and not sampled else None
    if many and sampled:
        value, (low, high) = (
            float(np.mean([d.value for d in many])),
            bootstrap.interval(_mean_draws(many)),
        )
        scalable = low > 0
    return {
        f"{prefix}gain": value,
        f"{prefix}gain_low": low,
        f"{prefix}gain_high": high,
        f"{prefix}scalable": scalable,
    }
