"""What several figures say together: paired differences on one benchmark and over all of them, and
what a system can do at all.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grm_jax.evaluation import bootstrap, compare
from grm_jax.evaluation.compare import OVERALL, Field, Figure, Judged, Way
from grm_jax.judgment.voting import default_k_meta

ALL_BENCHMARKS = "mean over benchmarks"


class Difference(NamedTuple):
    """Figure a less figure b on the items that both could judge; draws_B: its resamples."""

    a: tuple[str, Way]
    b: tuple[str, Way]
    benchmark: str
    metric: str
    items: int
    value: float
    draws_B: np.ndarray


def difference(field: Field, a: Figure, b: Figure) -> Difference | None:
    """The difference of the benchmark's overall figure; None where the shared items, or all
    resamples of them, do not give one.
    """
    shared_I = a.judged_I & b.judged_I
    if not shared_I.any():
        return None
    if a.score_IV is None:
        gap_I = np.where(shared_I, a.credit_I - b.credit_I, np.nan)
        value = compare.summarize(field, gap_I, shared_I).get(OVERALL)
        draws_B = (
            None if value is None else compare.figure_draws(field, OVERALL, gap_I, shared_I, value)
        )
    else:
        sides = [
            dataclasses.replace(one, failed_I=np.where(shared_I, one.failed_I, np.nan))
            for one in (a, b)
        ]
        values = [compare.values_of(field, one).get(OVERALL) for one in sides]
        value = None if None in values else values[0] - values[1]
        draws_B = (
            None
            if value is None
            else np.subtract(
                *(compare.draws_of(field, one, OVERALL, v) for one, v in zip(sides, values))
            )
        )
    if value is None or not np.isfinite(draws_B).any():
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
    found: Mapping[str, Mapping[Way, Figure]], ks: Sequence[int]
) -> list[tuple[tuple[str, Way], tuple[str, Way]]]:
    """Which figures to compare: every two systems, greedy and by their votes of the largest k; then
    what its samples and Meta RM add to each.
    """
    most = max(ks)
    greedy, one, vote, meta = (
        ("greedy", 1, None),
        ("vote", 1, None),
        ("vote", most, None),
        ("meta", most, default_k_meta(most)),
    )
    pairs = [
        ((a, way), (b, way))
        for way in (greedy, vote, meta)
        for a, b in itertools.combinations(found, 2)
    ]
    for name in found:
        pairs += [
            ((name, x), (name, y))
            for x, y in ((vote, one), (vote, greedy), (meta, one), (meta, vote), (meta, greedy))
            if x != y
        ]
    return pairs


def over_benchmarks(differences: Sequence[Difference]) -> list[Difference]:
    """The mean over benchmarks of each difference that two or more of them have; benchmarks are
    resampled apart, so their draws add up.
    """
    groups: dict[tuple, list[Difference]] = {}
    for one in differences:
        groups.setdefault((one.a, one.b), []).append(one)
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
    """The draws of the mean; where benchmarks have different numbers of draws, as many as the
    fewest.
    """
    draws = min(len(d.draws_B) for d in many)
    return np.mean([d.draws_B[:draws] for d in many], axis=0)


def difference_row(one: Difference) -> dict:
    """A flat row of results.json. "sign_share": see `bootstrap.sign_share`."""
    low, high = bootstrap.interval(one.draws_B)
    sides = {
        f"{side}_{name}": value
        for side, (system, way) in (("a", one.a), ("b", one.b))
        for name, value in zip(("system", "aggregation", "k", "k_meta"), (system, *way))
    }
    return sides | {
        "benchmark": one.benchmark,
        "metric": one.metric,
        "items": one.items,
        "difference": one.value,
        "ci_low": low,
        "ci_high": high,
        "sign_share": bootstrap.sign_share(one.draws_B),
    }


SIZES = ("one", "two", "many")


def size_of(n: int) -> str:
    return SIZES[min(n, 3) - 1]


def capability(
    system: str,
    judged: Mapping[str, tuple[Field, Judged]],
    differences: Sequence[Difference],
    ks: Sequence[int],
) -> dict:
    """What the system did here: verdicts on items of one, two and many responses, and accuracy at
    the largest k less accuracy at k = 1.

    "one", "two", "many": {"items", "accepted", "verdicts"}: of the benchmarks' items, those that it
        accepts and those on which some
    judgment gave scores. "input_flexible": it gave verdicts on all three sizes; None while a size
        that it accepts was not among the items.
    "scalable": whether the 95 % interval of the gain, mean over benchmarks, lies above 0; the gain
        of the guided vote stands apart.
    """
    sizes = {size: {"items": 0, "accepted": 0, "verdicts": 0} for size in SIZES}
    sampled = False
    for field, one in judged.values():
        sampled |= one.sampled
        parsed = {
            item
            for kinds in one.rows.values()
            for rows in kinds
            for (item, _), row in rows.items()
            if row["scores"] is not None
        }
        for record in field.records:
            size = sizes[size_of(len(record.responses))]
            size["items"] += 1
            size["accepted"] += record.id in one.accepted
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
    """The mean over benchmarks of what `way` adds to one sample; "scalable" is None where nothing
    shows it.
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
