"""Figures of systems on benchmarks, against what a hand computes."""

import numpy as np
import pytest

from grm_jax.benchmarks.base import Benchmark, Official
from grm_jax.benchmarks.pairs import summarize_domains
from grm_jax.evaluation import compare
from grm_jax.evaluation.comparison import compare_systems
from grm_jax.judgment.records import Record, Turn


def record(name, n=2, best=0, domain="d", lengths=None):
    rewards = (float(best),) if n == 1 else tuple(float(i == best) for i in range(n))
    return Record(
        name,
        (Turn("user", f"prompt {name}"),),
        tuple("x" * (lengths[i] if lengths else i + 1) for i in range(n)),
        rewards,
        domain,
    )


def benchmark(records, metric="accuracy", summarize=summarize_domains, official=None, name="toy"):
    return Benchmark(
        name,
        "v1",
        "a protocol",
        tuple(records),
        metric,
        lambda values: summarize([r for r in records if r.id in values], values),
        official,
        {},
    )


def row(record, sample, scores, failure=None, meta=None, tokens=10):
    return {
        "id": record.id,
        "domain": record.domain,
        "sample": sample,
        "scores": scores,
        "rewards": list(record.rewards),
        "tokens": tokens,
        "meta_logit": meta,
        "failure": failure,
        "seconds": 0.5,
        "prompt_tokens": None,
        "cost": None,
        "offset": 0,
    }


def judged(name, greedy=None, sampled=None, swapped=None, accepted=None):
    """Each of the kinds as a list of rows."""
    rows = {
        kind: [{(r["id"], r["sample"]): r for r in given}]
        for kind, given in (("greedy", greedy), ("swapped", swapped), ("sampled", sampled))
        if given is not None
    }
    ids = accepted if accepted is not None else {item for of in rows.values() for item, _ in of[0]}
    return compare.Judged(name, sampled is not None, frozenset(ids), rows, {})


def test_every_figure_of_a_small_benchmark_is_the_one_counted_by_hand():
    a, b, c, d = items = [
        record("a", domain="x"),
        record("b", n=4, best=2, domain="x"),
        record("c", domain="y"),
        record("d", n=3, best=2, domain="y"),
    ]
    greedy = [
        row(a, 0, [3, 1]),
        row(b, 0, [1, 5, 5, 1]),
        row(c, 0, [2, 8]),
        row(d, 0, None, "no_box"),
    ]
    swapped = [row(a, 0, [1, 3]), row(b, 0, [0, 5, 5, 1]), row(c, 0, [2, 9]), row(d, 0, [1, 2, 3])]
    found = compare_systems(
        [benchmark(items, official=Official("strict", "parsed"))],
        {"s": {"toy": judged("s", greedy, swapped=swapped)}},
        (1, 4),
        draws=200,
        seed=0,
    )
    one, *votes = found["rows"]
    assert (
        one["value"] == one["item_mean"] == pytest.approx((1 + 0.5 + 0 + 1 / 3) / 4)
        and one["strict_item_mean"] == 0.25
    )
    assert one["official_credit"] == "strict" and one["official_value"] == 0.25, (
        "a system that does not sample is a scalar model"
    )
    assert one["tie_rate"] == 0.25 and one["parse_failure_rate"] == one["all_failed_rate"] == 0.25
    assert one["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2 + 1 / 3) / 4)
    assert one["length_agreement"] == pytest.approx((0 + 0 + 1) / 3), (
        "the longest is the last; d has no verdict"
    )
    assert (one["domains"], one["domain_range"], one["domain_std"]) == (
        2,
        pytest.approx(0.75 - 1 / 6),
        pytest.approx((0.75 - 1 / 6) / 2),
    )
    assert one["ci_low"] < one["value"] < one["ci_high"] and one["tokens_per_item"] == 10
    assert [
        (v["k"], v["value"], v["flat_by_construction"], v["tokens_per_item"]) for v in votes
    ] == [(1, one["value"], True, 10), (4, one["value"], True, 10)]
    (diagnostics,) = found["diagnostics"]
    assert diagnostics["position_swap"] == {
        "items": 3,
        "unparsed": 1,
        "consistent": pytest.approx(2 / 3),
        "both_right": 0.0,
    }
    assert (
        diagnostics["failures"] == {"no_box": 1}
        and diagnostics["judgments"] == 8
        and diagnostics["seconds_per_judgment"] == 0.5
    )
    named = {(f["figure"], f["credit"]): f["value"] for f in found["figures"]}
    assert named["subset/x", "expected"] == 0.75 and named["subset/y", "strict"] == 0
    assert [(m["domain"], m["value"]) for m in found["domains"]] == [
        ("x", 0.75),
        ("y", pytest.approx(1 / 6)),
    ]


@pytest.mark.parametrize(
    "orders, expected", [("verdicts", 3 / 5), ("mean", (1 + 0.75 + 0.5 + 0.5 + 0.5) / 5)]
)
def test_the_official_rule_of_judges_that_are_asked_in_both_orders(orders, expected):
    items = [record(name, best=best) for name, best in zip("abcde", (0, 1, 0, 1, 0))]
    both = {  # right twice; right and tied; once each way; right and no verdict; tied twice
        "a": ([3, 1], [2, 1]),
        "b": ([1, 2], [4, 4]),
        "c": ([3, 1], [1, 3]),
        "d": ([1, 2], None),
        "e": ([5, 5], [6, 6]),
    }
    greedy, swapped = (
        [row(r, 0, both[r.id][i], None if both[r.id][i] else "no_box") for r in items]
        for i in (0, 1)
    )
    sampled = [row(r, 0, [1, 2]) for r in items]
    toy = benchmark(items, official=Official("strict", "parsed", orders))
    found = compare_systems(
        [toy], {"s": {"toy": judged("s", greedy, sampled, swapped)}}, (1,), draws=200, seed=0
    )
    official = {
        r["aggregation"]: (r["official_credit"], r["official_value"]) for r in found["rows"]
    }
    assert (
        official["greedy"] == (f"parsed, both orders: {orders}", pytest.approx(expected))
        and official["vote"][0] == "parsed"
    )


def test_a_vote_and_a_guided_vote_are_sums_and_the_k_curve_counts_its_tokens():
    a, b = items = [record("a"), record("b", best=1)]
    sampled = [
        row(a, s, scores, meta=m)
        for s, (scores, m) in enumerate(
            zip([(1, 5), (5, 6), (8, 4), (7, 6)], [-1.0, -2.0, 3.0, 2.0])
        )
    ]
    sampled += [
        row(b, s, [1, 9] if s else None, None if s else "no_box", meta=1.0 if s else None)
        for s in range(4)
    ]
    found = compare_systems(
        [benchmark(items)], {"s": {"toy": judged("s", sampled=sampled)}}, (1, 4), draws=200, seed=0
    )
    rows = {(r["aggregation"], r["k"], r["k_meta"]): r for r in found["rows"]}
    assert rows["vote", 1, None]["value"] == pytest.approx((2 / 4 + (3 + 0.5) / 4) / 2)
    assert rows["vote", 4, None]["value"] == pytest.approx((0.5 + 1) / 2), (
        "21 : 21 ties, and a failure is left out"
    )
    assert rows["meta", 4, 2]["value"] == 1.0 and rows["vote", 4, None]["tokens_per_item"] == 40
    assert set(rows) == {
        ("vote", 1, None),
        ("meta", 1, 1),
        ("vote", 4, None),
        ("meta", 4, 1),
        ("meta", 4, 2),
        ("meta", 4, 4),
    }
    assert rows["meta", 4, 4]["value"] == rows["vote", 4, None]["value"]
    gain = {
        (p["a_aggregation"], p["a_k"], p["b_aggregation"], p["b_k"]): p["difference"]
        for p in found["paired"]
    }
    assert (
        gain["vote", 4, "vote", 1] == pytest.approx(0.75 - rows["vote", 1, None]["value"])
        and gain["meta", 4, "vote", 4] == 0.25
    )
    assert found["meta_rm"][0]["auc"] is not None
    (one,) = found["calibration"]
    assert (one["items"], one["low"], one["high"], one["margin"], one["accuracy"]) == (
        2,
        0,
        8,
        4,
        0.75,
    ), "two items are one bin"


def test_a_guess_is_not_told_from_another_and_an_oracle_is():
    items = [record(f"{i:03d}", best=i % 2, domain="xy"[i % 3 == 0]) for i in range(300)]
    rng = np.random.default_rng(0)
    systems = {
        "oracle": judged("oracle", [row(r, 0, list(r.rewards)) for r in items]),
        "constant": judged("constant", [row(r, 0, [1, 1]) for r in items]),
        "random": judged(
            "random",
            [row(r, 0, list(rng.random(2))) for r in items],
            [row(r, s, list(rng.random(2))) for r in items for s in range(4)],
        ),
    }
    found = compare_systems(
        [benchmark(items)],
        {name: {"toy": one} for name, one in systems.items()},
        (1, 4),
        draws=1000,
        seed=0,
    )
    rows = {(r["system"], r["aggregation"], r["k"]): r for r in found["rows"]}
    assert (
        rows["oracle", "greedy", 1]["value"] == 1
        and rows["oracle", "greedy", 1]["ci_low"] == pytest.approx(1)
        and rows["constant", "greedy", 1]["value"] == 0.5
    )
    assert rows["constant", "greedy", 1]["tie_rate"] == 1
    chance = rows["random", "greedy", 1]
    assert chance["ci_low"] < 0.5 < chance["ci_high"] and (
        chance["ci_high"] - chance["ci_low"]
    ) == pytest.approx(2 * 1.96 * 0.5 / 300**0.5, rel=0.15)
    bins = [m for m in found["calibration"] if m["system"] == "random"]
    assert (
        sum(m["items"] for m in bins) == 300
        and all(30 <= m["items"] <= 45 for m in bins)
        and len(bins) == 8
    )
    assert all(a["high"] <= b["low"] for a, b in zip(bins, bins[1:]))
    pairs = {
        (p["a_system"], p["b_system"]): p for p in found["paired"] if p["a_aggregation"] == "greedy"
    }
    assert (
        pairs["oracle", "random"]["sign_share"] == pytest.approx(2 / 1000)
        and pairs["constant", "random"]["sign_share"] > 0.05
    )
    can = {c["system"]: c for c in found["capabilities"]}
    assert (
        can["oracle"]["scalable"] is False
        and can["oracle"]["gain"] is None
        and not can["random"]["scalable"]
        and can["random"]["gain"] is not None
    )
    assert (
        can["oracle"]["two"] == {"items": 300, "accepted": 300, "verdicts": 300}
        and can["oracle"]["input_flexible"] is None
    )


def test_items_a_system_does_not_accept_are_no_part_of_its_figures_nor_of_a_difference():
    single, pair, many = items = [record("a", n=1, best=1), record("b"), record("c", n=3, best=2)]
    flexible = judged(
        "flexible", [row(single, 0, [1]), row(pair, 0, [1, 2]), row(many, 0, [1, 2, 3])]
    )
    pairwise = judged("pairwise", [row(pair, 0, [1, 0]), row(many, 0, [0, 0, 2])])
    scalar = judged(
        "scalar",
        [row(single, 0, [7.5]), row(pair, 0, [0.5, -1.0]), row(many, 0, [-3.0, -2.0, -1.0])],
    )
    found = compare_systems(
        [benchmark(items)],
        {one.name: {"toy": one} for one in (flexible, pairwise, scalar)},
        (1,),
        draws=200,
        seed=0,
    )
    rows = {r["system"]: r for r in found["rows"] if r["aggregation"] == "greedy"}
    assert (
        rows["flexible"]["items"],
        rows["flexible"]["not_applicable"],
        rows["flexible"]["value"],
    ) == (3, 0, pytest.approx(2 / 3))
    assert (
        rows["pairwise"]["items"],
        rows["pairwise"]["not_applicable"],
        rows["pairwise"]["value"],
    ) == (2, 1, 1.0)
    assert (rows["scalar"]["items"], rows["scalar"]["value"]) == (2, 1.0), (
        "a number has no threshold: single responses are no question of accuracy"
    )
    gap = next(
        p
        for p in found["paired"]
        if (p["a_system"], p["b_system"], p["a_aggregation"]) == ("flexible", "pairwise", "greedy")
    )
    assert gap["items"] == 2 and gap["difference"] == -0.5
    can = {c["system"]: c for c in found["capabilities"]}
    assert (
        can["flexible"]["input_flexible"] is True
        and can["scalar"]["input_flexible"] is True
        and can["pairwise"]["input_flexible"] is False
    )
    assert can["pairwise"]["one"] == {"items": 1, "accepted": 0, "verdicts": 0}


def test_a_section_weighted_figure_has_the_interval_of_its_own_weights():
    """overall: the plain mean of two sections, one of 10 items and always right, the other of 90
    and right half of the time.
    """
    items = [record(f"{i:03d}", domain="small" if i < 10 else "large") for i in range(100)]

    def summarize(records, values):
        parts = {d: [values[r.id] for r in records if r.domain == d] for d in ("small", "large")}
        means = {d: sum(part) / len(part) for d, part in parts.items() if part}
        return (
            {"overall": sum(means.values()) / 2}
            | {f"section/{d}": value for d, value in means.items()}
            if len(means) == 2
            else {}
        )

    rows = [row(r, 0, [2, 1] if i < 10 or i % 2 else [1, 2]) for i, r in enumerate(items)]
    found = compare_systems(
        [benchmark(items, summarize=summarize)],
        {"s": {"toy": judged("s", rows)}},
        (1,),
        draws=2000,
        seed=0,
    )
    one = found["rows"][0]
    assert one["value"] == 0.75 and one["item_mean"] == pytest.approx(0.55)
    weights = compare.weights(
        compare.make_field(benchmark(items, summarize=summarize), 2, 0), np.ones(100, bool)
    )["overall"]
    assert weights[0] == pytest.approx(1 / 20) and weights[50] == pytest.approx(1 / 180)
    assert 0.04 < one["ci_high"] - one["value"] < 0.12
    section = next(f for f in found["figures"] if f["figure"] == "section/small")
    assert section["value"] == section["ci_low"] == section["ci_high"] == 1


def test_items_of_one_prompt_are_resampled_together():
    """Ten prompts of 30 identical items each: the interval is that of ten draws, not of 300."""
    items = [
        Record(f"{p}-{i}", (Turn("user", f"{p}"),), ("a", "b"), (1.0, 0.0))
        for p in range(10)
        for i in range(30)
    ]
    rows = [row(r, 0, [2, 1] if int(r.id.split("-")[0]) < 5 else [1, 2]) for r in items]
    one = compare_systems(
        [benchmark(items)], {"s": {"toy": judged("s", rows)}}, (1,), draws=1000, seed=0
    )["rows"][0]
    assert one["value"] == 0.5 and one["ci_high"] - one["ci_low"] > 0.45


def test_roc_area_of_single_responses_counts_ties_half_and_has_an_interval():
    from grm_jax.benchmarks.credit import roc_auc

    items = [record(f"{i:03d}", n=1, best=i % 2) for i in range(120)]

    def summarize(records, values):
        area = roc_auc([values[r.id] for r in records], [r.rewards[0] == 1 for r in records])
        return {} if area is None else {"overall": area}

    rng = np.random.default_rng(1)
    good = [
        row(r, s, None, "no_box")
        if i == 3 and s == 0
        else row(r, s, [float(np.clip(round(5 + 2 * r.rewards[0] + 2 * rng.normal()), 1, 10))])
        for i, r in enumerate(items)
        for s in range(8)
    ]
    toy = benchmark(items, "roc_auc", summarize)
    systems = {
        "good": {"toy": judged("good", sampled=good)},
        "flat": {"toy": judged("flat", [row(r, 0, [1.0]) for r in items])},
    }
    found = compare_systems([toy], systems, (1, 8), draws=200, seed=0)
    rows = {(r["system"], r["aggregation"], r["k"]): r for r in found["rows"]}
    per_sample = [
        roc_auc(
            [None if g["scores"] is None else g["scores"][0] for g in good if g["sample"] == s],
            [r.rewards[0] == 1 for r in items],
        )
        for s in range(8)
    ]
    assert (
        rows["good", "vote", 1]["value"] == pytest.approx(np.mean(per_sample))
        and rows["flat", "greedy", 1]["value"] == 0.5
    )
    assert (
        rows["good", "vote", 8]["value"] > rows["good", "vote", 1]["value"] + 0.1
        and rows["good", "vote", 8]["items"] == 120
    )
    low, high = rows["good", "vote", 1]["ci_low"], rows["good", "vote", 1]["ci_high"]
    assert low < rows["good", "vote", 1]["value"] < high < 1 and high - low < 0.3
    assert {c["system"]: c["scalable"] for c in found["capabilities"]} == {
        "good": True,
        "flat": False,
    }
