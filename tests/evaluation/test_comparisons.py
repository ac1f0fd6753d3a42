"""Figures of systems on benchmarks, against what a hand computes."""

import dataclasses

import numpy as np
import pytest

from grm_jax.benchmarks import load_benchmark
from grm_jax.benchmarks.base import Benchmark, Official, Part
from grm_jax.benchmarks.pairs import summarize_domains
from grm_jax.evaluation import diagnostics, figures
from grm_jax.evaluation.comparisons import compare_systems, without_judgments
from grm_jax.judgment.records import Record, Turn


def record(name, n=2, best=0, domain="d", lengths=None):
    rewards = (float(best or 0),) if n == 1 else tuple(float(i == best) for i in range(n))
    rewards = None if best is None else rewards
    return Record(
        name,
        (Turn("user", f"prompt {name}"),),
        tuple("x" * (lengths[i] if lengths else i + 1) for i in range(n)),
        rewards,
        domain,
    )


def benchmark(
    records, metric="accuracy", summarize=summarize_domains, official=None, name="toy", part=None
):
    return Benchmark(
        name,
        "v1",
        "a protocol",
        tuple(records),
        metric,
        lambda values: summarize([r for r in records if r.id in values], values),
        official,
        {},
        part,
    )


def row(record, sample, scores, failure=None, meta=None, tokens=10):
    return {
        "id": record.id,
        "domain": record.domain,
        "sample": sample,
        "scores": scores,
        "rewards": None if record.rewards is None else list(record.rewards),
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
    return figures.Judged(name, sampled is not None, frozenset(ids), rows, {})


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
        and one["strict"] == 0.25
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
    assert (one["items"], one["judged"], one["coverage"]) == (4, 3, 0.75), "d has no verdict"
    assert one["ci_low"] < one["value"] < one["ci_high"] and one["tokens_per_item"] == 10
    credits = [1, 0.5, 0, 1 / 3]  # of four prompts drawn with replacement
    assert one["stderr"] == pytest.approx(np.std(credits) / 2, rel=0.15)
    (about,) = found["benchmarks"]
    assert about["chance"] == one["chance"] and found["schema"] == 2
    assert diagnostics_scores(found) == {
        "best": {"3": 1, "5": 1, "2": 1},
        "others": {"1": 3, "5": 1, "8": 1},
    }
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


def test_both_readings_of_a_text_are_counted_apart():
    """What strict and released readings differ in, by hand: judgments, failures, verdicts."""

    def row(item, sample, strict, released):
        failure = None if released else "wrong_count"
        beside = {"scores": strict, "failure": None if strict else "not_an_integer"}
        return (item, sample), {"scores": released, "failure": failure, "strict": beside}

    sampled = [
        # both votes have the first on top, though one judgment of them differs
        row("a", 0, None, [8.5, 7.0]),
        row("a", 1, [9, 2], [9.0, 2.0]),
        # the strict vote has the second, the released one both
        row("b", 0, [1, 2], [1.0, 2.0]),
        row("b", 1, None, [2.5, 1.5]),
        # no verdict by one of the two
        row("c", 0, [3, 4], None),
        row("c", 1, None, None),
        # single responses: right, and neither
        row("d", 0, [1], [1.0]),
        row("d", 1, None, [0.0]),
    ]
    greedy = [row("a", 0, [8, 7], [8.0, 7.0]), row("b", 0, None, None)]
    rows = {"sampled": [dict(sampled)], "greedy": [dict(greedy)]}
    judged = figures.Judged("x", True, frozenset("abcd"), rows, {})
    assert diagnostics.readings(judged) == {
        "judgments": 10,
        "judgments_differ": 4,
        "strict_failures": {"not_an_integer": 5},
        "released_failures": {"wrong_count": 3},
        "verdicts": 6,
        "verdicts_differ": 3,
    }
    unread = {key: of | {"strict": None} for key, of in sampled}
    assert diagnostics.readings(judged._replace(rows={"sampled": [unread]})) is None


def diagnostics_scores(results):
    return results["diagnostics"][0]["scores"]


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
    assert list(gain) == [("vote", 4, "vote", 1), ("meta", 4, "vote", 1), ("meta", 4, "vote", 4)], (
        "the focus of ks without 8 is the largest; greedy was not asked"
    )
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
    weights = figures.weights(
        figures.make_field(benchmark(items, summarize=summarize), 2, 0), np.ones(100, bool)
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


def test_metadata_names_a_prompt_only_where_the_benchmark_says_so():
    """A user's own "question" is any JSON; of a benchmark's it is what two wordings share."""
    plain = [record(f"{i}") for i in range(6)]
    rows = [row(r, 0, [2, 1] if i % 2 else [1, 2]) for i, r in enumerate(plain)]

    def interval(questions, prompt_key=None):
        items = [dataclasses.replace(r, metadata={"question": q}) for r, q in zip(plain, questions)]
        toy = benchmark(items)._replace(prompt_key=prompt_key)
        found = compare_systems([toy], {"s": {"toy": judged("s", rows)}}, (1,), draws=500, seed=0)
        return found["rows"][0]["ci_low"], found["rows"][0]["ci_high"]

    own = interval(range(6))
    assert None not in own
    assert interval([None] * 6) == interval([{"text": "q"}] * 6) == own
    assert interval(range(6), "question") == own
    assert interval([0] * 6, "question") == (None, None)


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


def systems(items, **rows_of):
    return {name: {"toy": judged(name, rows)} for name, rows in rows_of.items()}


def test_a_judge_that_never_answered_has_no_figure():
    items = [record("a", domain="x"), record("b", n=3, domain="y"), record("c", n=1, best=1)]
    silent = [row(r, 0, None, "request_failed:429") for r in items]
    sampled = [row(r, s, None, "no_box") for r in items for s in range(2)]
    found = compare_systems(
        [benchmark(items, official=Official("parsed", "parsed", "verdicts"))],
        {
            "silent": {"toy": judged("silent", silent)},
            "mute": {"toy": judged("mute", silent, sampled, silent)},
            "well": {"toy": judged("well", [row(r, 0, list(r.rewards)) for r in items])},
        },
        (1, 2),
        draws=200,
        seed=0,
    )
    asked = [r for r in found["rows"] if r["system"] != "well"]
    assert len(asked) == 6
    for r in asked:
        assert (r["items"], r["judged"], r["coverage"]) == (3, 0, 0)
        assert r["parse_failure_rate"] == r["all_failed_rate"] == 1
        assert r["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3), (
            "of a guess, if it made one"
        )
        figures_of_row = ("value", "stderr", "ci_low", "ci_high", "strict", "official_value")
        figures_of_row += ("item_mean", "tie_rate", "length_agreement", "domain_range")
        assert [r[name] for name in figures_of_row] == [None] * len(figures_of_row)
        assert r["seed_means"] == [] and r["domains"] == 0
    assert without_judgments(found) == [
        "silent on toy (request_failed:429 3)",
        "mute on toy (request_failed:429 6, no_box 6)",
    ]
    for table in ("figures", "domains", "calibration", "meta_rm"):
        assert {r["system"] for r in found[table]} <= {"well"}
    sides = {p[f"{side}_system"] for p in found["paired"] for side in "ab"}
    assert sides == {"well"}, "there is no figure to set another against"
    can = {c["system"]: c for c in found["capabilities"]}
    assert can["silent"]["two"]["verdicts"] == 0 and can["mute"]["gain"] is None
    assert can["mute"]["scalable"] is None


def test_coverage_of_a_vote_is_the_share_of_votes_that_rest_on_a_judgment():
    items = [record("a"), record("b"), record("c")]
    scores = {"a": [[1, 0], None], "b": [None, None], "c": [[1, 0], [1, 0]]}
    sampled = [
        row(r, s, one, None if one else "no_box")
        for r in items
        for s, one in enumerate(scores[r.id])
    ]
    found = compare_systems(
        [benchmark(items)], {"s": {"toy": judged("s", sampled=sampled)}}, (1, 2), draws=100, seed=0
    )
    one, two = found["rows"]
    assert (one["items"], one["judged"], one["coverage"]) == (
        3,
        2,
        pytest.approx((0.5 + 0 + 1) / 3),
    )
    assert (two["items"], two["judged"], two["coverage"]) == (3, 2, pytest.approx(2 / 3))
    assert one["coverage"] == pytest.approx(1 - one["all_failed_rate"])
    assert two["value"] == pytest.approx((1 + 0.5 + 1) / 3), "b is worth a guess, and is seen"
    assert found["min_coverage"] == 0.9 and without_judgments(found) == []


def test_records_without_gold_are_judged_and_counted_and_have_no_figure():
    items = [record("a", best=None), record("b", n=3, best=None), record("c", n=1, best=None)]
    greedy = [row(items[0], 0, [1, 2]), row(items[1], 0, [4, 4, 1]), row(items[2], 0, [1])]
    swapped = [row(items[0], 0, [1, 2]), row(items[1], 0, [1, 4, 1])]
    sampled = [row(r, s, None, "no_box") for r in items for s in range(2)]
    sampled[0] |= {"scores": [3, 1], "failure": None, "meta_logit": 0.5}
    other = systems(items, other=greedy)
    found = compare_systems(
        [benchmark(items, metric="none", summarize=lambda records, values: {})],
        {"s": {"toy": judged("s", greedy, sampled, swapped)}} | other,
        (1, 2),
        draws=100,
        seed=0,
    )
    rows = {(r["system"], r["aggregation"], r["k"]): r for r in found["rows"]}
    one = rows["s", "greedy", 1]
    assert (one["metric"], one["items"], one["judged"], one["coverage"]) == ("none", 3, 3, 1)
    assert one["tie_rate"] == pytest.approx(1 / 3) and one["chance"] is None
    assert one["length_agreement"] == pytest.approx((1 + 0) / 2)
    for name in ("value", "stderr", "ci_low", "strict", "item_mean", "domain_range"):
        assert one[name] is None
    assert (rows["s", "vote", 2]["judged"], rows["s", "vote", 2]["items"]) == (1, 3)
    swap = found["diagnostics"][0]["position_swap"]
    assert (swap["consistent"], swap["both_right"]) == (0.5, None)
    assert found["diagnostics"][0]["scores"] is None and found["diagnostics"][0]["judgments"] == 11
    for table in ("figures", "domains", "calibration", "meta_rm", "paired"):
        assert found[table] == []
    assert found["benchmarks"][0]["chance"] is None and without_judgments(found) == []
    assert found["capabilities"][0]["two"] == {"items": 1, "accepted": 1, "verdicts": 1}


def test_strict_weighs_items_as_the_figure_itself_does():
    """Two sections, of one item and of three, that count alike; the one item ties."""
    items = [record("a", domain="x"), *(record(name, domain="y") for name in "bcd")]

    def summarize(records, values):
        parts = [[values[r.id] for r in records if r.domain == d] for d in "xy"]
        return {"overall": sum(sum(p) / len(p) for p in parts) / 2} if all(parts) else {}

    rows = [row(items[0], 0, [1, 1]), *(row(r, 0, [2, 1]) for r in items[1:])]
    found = compare_systems(
        [benchmark(items, summarize=summarize)],
        {"s": {"toy": judged("s", rows)}},
        (1,),
        draws=100,
        seed=0,
    )
    one = found["rows"][0]
    assert (one["value"], one["strict"], one["item_mean"]) == (0.75, 0.5, (0.5 + 3) / 4)


def test_parts_make_the_figure_of_their_leaderboard():
    """(5 x overall + Ties) / 6, with the interval of both."""
    lists = [record(f"{i:03d}", n=4, best=i % 4) for i in range(80)]
    single = [record(f"{i:03d}", n=1, best=i % 2) for i in range(60)]

    def area(records, values):
        from grm_jax.benchmarks.credit import roc_auc

        value = roc_auc([values[r.id] for r in records], [r.rewards[0] == 1 for r in records])
        return {} if value is None else {"overall": value}

    parts = [
        benchmark(lists, name="five", part=Part("official", 5 / 6)),
        benchmark(single, "roc_auc", area, name="ties", part=Part("official", 1 / 6)),
        benchmark(lists, name="alone", part=Part("other", 1 / 3)),
    ]
    right = [list(r.rewards) if i % 4 else [0, 0, 0, 0] for i, r in enumerate(lists)]
    scores = {  # three lists in four right; singles told apart but for noise
        "five": [row(r, 0, given) for r, given in zip(lists, right)],
        "ties": [row(r, 0, [r.rewards[0] + (i % 7) / 4]) for i, r in enumerate(single)],
    }
    scores["alone"] = scores["five"]
    some = {name: judged("some", rows) for name, rows in scores.items()}
    failed = {"scores": None, "failure": "no_box"}
    none = {name: judged("none", [r | failed for r in rows]) for name, rows in scores.items()}
    lists_only = {
        name: judged("lists", rows if name != "ties" else []) for name, rows in scores.items()
    }
    found = compare_systems(
        parts, {"some": some, "none": none, "lists": lists_only}, (1, 2), draws=1000, seed=0
    )
    about = {b["name"]: b for b in found["benchmarks"]}
    assert list(about) == ["five", "ties", "alone", "official", "mean over benchmarks"], (
        "weights of other are not whole"
    )
    assert about["official"]["parts"] == {"five": 5 / 6, "ties": 1 / 6}
    assert about["official"]["chance"] == pytest.approx(5 / 6 * 0.25 + 1 / 6 * 0.5)
    rows = {(r["system"], r["benchmark"], r["aggregation"], r["k"]): r for r in found["rows"]}
    assert ("lists", "official", "greedy", 1) not in rows
    whole, five, ties = (rows["some", name, "greedy", 1] for name in ("official", "five", "ties"))
    assert whole["value"] == pytest.approx((5 * five["value"] + ties["value"]) / 6)
    assert five["value"] == pytest.approx(0.75 + 0.25 / 4)
    assert whole["stderr"] == pytest.approx(
        np.hypot(5 / 6 * five["stderr"], 1 / 6 * ties["stderr"]), rel=0.2
    ), "benchmarks are resampled apart"
    assert whole["ci_low"] < whole["value"] < whole["ci_high"]
    assert (whole["items"], whole["judged"], whole["coverage"]) == (140, 140, 1)
    assert set(whole) == set(five), "a row like any other"
    mean = rows["some", "mean over benchmarks", "greedy", 1]
    assert mean["value"] == pytest.approx((2 * five["value"] + ties["value"]) / 3)
    assert mean["ci_low"] < mean["value"] < mean["ci_high"]
    assert ("lists", "mean over benchmarks", "greedy", 1) not in rows, "it has no figure on one"
    assert rows["some", "official", "vote", 2]["value"] == whole["value"]
    silent = rows["none", "official", "greedy", 1]
    assert (silent["value"], silent["judged"], silent["coverage"]) == (None, 0, 0)
    assert silent["all_failed_rate"] == 1


def test_reward_bench_2_and_its_ties_are_parts_of_one_score(tmp_path):
    from tests.benchmarks import official_files as files

    both = [
        load_benchmark(files.WRITERS[kind](tmp_path / kind))
        for kind in ("rewardbench2", "rewardbench2_ties")
    ]
    perfect = {
        b.name: judged("perfect", [row(r, 0, list(r.rewards)) for r in b.records]) for b in both
    }
    found = compare_systems(both, {"perfect": perfect}, (1,), draws=100, seed=0)
    official = [r for r in found["rows"] if r["benchmark"] == "rewardbench2 official"]
    assert [r["aggregation"] for r in official] == ["greedy", "vote"]
    assert official[0]["value"] == pytest.approx((5 * 1 + 1.01) / 6), "margin goes beyond 1"
    chance = {b["name"]: b["chance"] for b in found["benchmarks"]}
    assert chance["rewardbench2"] == 0.25 and 0 < chance["rewardbench2_ties"] < 0.5, (
        "a random judge seldom puts every right answer above every wrong one"
    )


def test_failures_of_a_model_without_a_threshold_are_no_guesses_on_single_responses():
    """A number for a single response says neither right nor wrong, and a failure beside it is no
    more of an answer: there is nothing to have a figure of.
    """
    items = [record("a", n=1, best=1), record("b", n=1, best=0), record("c")]
    rows = [row(items[0], 0, [0.3]), row(items[1], 0, None, "no_box"), row(items[2], 0, [2.5, 1.0])]
    found = compare_systems(
        [benchmark(items)], {"s": {"toy": judged("s", rows)}}, (1,), draws=100, seed=0
    )
    one = found["rows"][0]
    assert (one["items"], one["judged"], one["not_applicable"], one["value"]) == (1, 1, 2, 1.0)
    single = benchmark(items[:2], name="single")
    found = compare_systems(
        [single], {"s": {"single": judged("s", rows[:2])}}, (1,), draws=100, seed=0
    )
    one = found["rows"][0]
    assert (one["items"], one["value"], one["coverage"]) == (0, None, None)
