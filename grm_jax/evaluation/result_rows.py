"""Writes the figures of `grm_jax.evaluation.figures` as the flat rows of results.json."""

from collections.abc import Sequence

import numpy as np

from grm_jax.evaluation import bootstrap
from grm_jax.evaluation.figures import (
    OVERALL,
    Field,
    Figure,
    chance_of,
    draws_of,
    finite_mean,
    resampled,
    values_of,
)


def row_of(field: Field, figure: Figure, official: str | None) -> dict:
    """Makes one flat row of results.json, shares in 0..1; docs/evaluation.md has its fields.

    "value" is the benchmark's overall figure. Where no judgment gave scores, or the benchmark has
    no gold, every figure of the row is None; what was asked and what failed is counted still.
    "stderr" is the standard error of the value over prompts: the standard deviation of its
    resamples, which draw items that share a prompt together (see bootstrap.py). Over items of
    prompts of their own it is that of a mean, standard deviation / sqrt(items).
    """
    value = values_of(field, figure).get(OVERALL)
    aggregation, k, k_meta = figure.way
    used_I, lists = figure.used_I, figure.score_IV is None
    tokens, samples = finite_mean(figure.tokens_I), finite_mean(figure.samples_I)
    in_all = finite_mean(figure.spent_I)
    if samples == k and tokens is not None:
        in_all = tokens * k
    domains = [cell["value"] for cell in domain_rows(field, figure)] if lists else []

    def named(credit: str | None) -> float | None:
        return values_of(field, figure, credit).get(OVERALL) if credit and lists else None

    def mean(values_I: np.ndarray) -> float | None:
        return finite_mean(values_I) if used_I.any() else None

    return {
        "system": figure.system,
        "benchmark": field.benchmark.name,
        "metric": field.benchmark.metric,
        "aggregation": aggregation,
        "k": k,
        "k_meta": k_meta,
        "flat_by_construction": figure.flat,
        "items": int(figure.applicable_I.sum()),
        "judged": int((figure.parsed_I & figure.applicable_I).sum()),
        "coverage": coverage(figure),
        "not_applicable": int((~figure.applicable_I).sum()),
        "value": value,
        **bootstrap.spread(
            np.array([]) if value is None else draws_of(field, figure, OVERALL, value)
        ),
        "strict": named("strict"),
        "official_credit": official,
        "official_value": named(official),
        "item_mean": mean(figure.credit_I),
        "seed_means": list(figure.seeds) if used_I.any() else [],
        "tie_rate": finite_mean(figure.tie_I) if figure.parsed_I.any() else None,
        "parse_failure_rate": finite_mean(figure.failed_I),
        "all_failed_rate": finite_mean(figure.lost_I),
        "chance": chance_of(field, figure.applicable_I),
        "length_agreement": finite_mean(figure.agree_I),
        "domains": len(domains),
        "domain_range": max(domains) - min(domains) if domains else None,
        "domain_std": float(np.std(domains)) if domains else None,
        "tokens_per_judgment": tokens,
        "tokens_per_item": in_all,
        "samples_per_item": samples,
    }


def coverage(figure: Figure) -> float | None:
    """Returns the share of the applicable items whose verdict rests on a judgment that gave scores.

    Mean over the votes of an item; None without such items.
    """
    if not figure.applicable_I.any():
        return None
    return float(np.nan_to_num(1 - figure.lost_I[figure.applicable_I]).mean())


def whole_row(
    whole: str, parts: Sequence[tuple[float, Field, Figure]], rows: Sequence[dict]
) -> dict:
    """Makes the row of a figure that several benchmarks make together, of one system and way.

    The sum of weight times value (`Benchmark.part`). Benchmarks are resampled apart, so their draws
    add up. rows: of the parts. What the parts do not tell is None.
    """
    values = [row["value"] for row in rows]
    value, draws_B = None, np.array([])
    if None not in values:
        value = sum(weight * v for (weight, _, _), v in zip(parts, values))
        draws = [
            weight * draws_of(field, figure, OVERALL, v)
            for (weight, field, figure), v in zip(parts, values)
        ]
        shortest = min(map(len, draws))
        draws_B = np.sum([draws_B[:shortest] for draws_B in draws], axis=0)
    items = sum(row["items"] for row in rows)
    chances = [row["chance"] for row in rows]

    def over_items(name: str) -> float | None:
        known = [(row["items"], row[name]) for row in rows if row[name] is not None]
        return sum(n * share for n, share in known) / items if items and known else None

    first = rows[0]
    same = ("system", "aggregation", "k", "k_meta", "flat_by_construction")
    return {
        **dict.fromkeys(first),
        **{name: first[name] for name in same},
        "benchmark": whole,
        "metric": "parts",
        "items": items,
        "judged": sum(row["judged"] for row in rows),
        "coverage": over_items("coverage"),
        "not_applicable": sum(row["not_applicable"] for row in rows),
        "value": value,
        **bootstrap.spread(draws_B),
        "seed_means": [],
        "parse_failure_rate": over_items("parse_failure_rate"),
        "all_failed_rate": over_items("all_failed_rate"),
        "samples_per_item": over_items("samples_per_item"),
        "chance": None
        if None in chances
        else sum(weight * chance for (weight, _, _), chance in zip(parts, chances)),
        "domains": 0,
    }


def named_rows(field: Field, figure: Figure, official: str | None) -> list[dict]:
    """Lists every figure of the benchmark by name: its sections and subsets.

    Under the paper's credit and, where it differs, the official one.
    """
    return [
        {
            "figure": name,
            "credit": credit,
            "value": value,
            **bootstrap.spread(draws_of(field, figure, name, value, credit)),
        }
        for credit in dict.fromkeys(("expected", official or "expected"))
        for name, value in values_of(field, figure, credit).items()
    ]


def domain_rows(field: Field, figure: Figure) -> list[dict]:
    """Lists the accuracy by the records' domain, in the order of their names.

    [] where no judgment gave scores.
    """
    domains_I = np.array([record.domain for record in field.records])
    known_I = figure.used_I & np.isfinite(figure.credit_I)
    rows = []
    for domain in sorted(set(domains_I[known_I])):
        weight_I = (known_I & (domains_I == domain)).astype(float)
        draws_B = bootstrap.weighted_means(field.count_BI, figure.credit_I, weight_I)
        if not resampled(field, weight_I > 0):
            draws_B = np.array([])
        rows.append(
            {
                "domain": str(domain),
                "items": int(weight_I.sum()),
                "value": finite_mean(figure.credit_I[weight_I > 0]),
                **bootstrap.spread(draws_B),
            }
        )
    return rows
