"""Every benchmark reads its official format; gold scores give 100 %, constant scores the tie
credit, random scores chance.
"""

import json
import math
import pathlib
import random
import re
import statistics
from collections import Counter

import numpy as np
import pytest

from grm_jax.benchmarks import CREDIT, FAMILIES, load_benchmark
from grm_jax.benchmarks.base import prompt_of
from grm_jax.benchmarks.rewardbench import SECTIONS, WEIGHTS
from grm_jax.judgment.voting import vote
from tests.benchmarks import official_files as files

TIES = "rewardbench2_ties"
DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def figures_of(benchmark, score):
    """The figures of a system that gives response i of a record score(record, i)."""

    def value(record):
        scores = tuple(score(record, i) for i in range(len(record.responses)))
        return (
            CREDIT["expected"](vote([scores]), record.rewards)
            if benchmark.metric == "accuracy"
            else scores[0]
        )

    return benchmark.summarize({record.id: value(record) for record in benchmark.records})


@pytest.fixture(params=files.WRITERS)
def benchmark(request, tmp_path):
    return load_benchmark(files.WRITERS[request.param](tmp_path))


def test_every_family_has_its_format():
    assert FAMILIES.keys() <= files.WRITERS.keys()


def test_gold_constant_and_random_scores(benchmark):
    assert (
        len({record.id for record in benchmark.records})
        == len(benchmark.records)
        == benchmark.counts["items"]
    )
    assert all(record.rewards is not None for record in benchmark.records)
    gold = figures_of(benchmark, lambda record, i: record.rewards[i])
    constant = figures_of(benchmark, lambda record, i: 0)
    assert "overall" in gold
    if benchmark.name == TIES:
        # the official score's margin term goes beyond 1
        assert gold["overall"] == pytest.approx(1.01) and constant["overall"] == 0
        name, chance = "roc_auc", 0.5
    elif benchmark.metric == "roc_auc":
        assert {
            gold[name]
            for name in gold
            if not name.rsplit("/")[-1].startswith(("best_of", "ceiling"))
        } == {1.0}
        name, chance = "overall", 0.5
    else:
        assert set(gold.values()) == {1.0}
        name, chance = "overall", constant["overall"]
    assert constant[name] == pytest.approx(chance)
    draws = []
    for seed in range(30):
        rng = random.Random(seed)
        draws.append(
            figures_of(
                benchmark,
                lambda record, i, rng=rng: (
                    rng.randrange(2) if len(record.responses) == 1 else rng.random()
                ),
            )[name]
        )
    assert abs(statistics.mean(draws) - chance) < 3 * statistics.stdev(draws) / math.sqrt(
        len(draws)
    )


@pytest.mark.parametrize(
    "name",
    [name for name in files.WRITERS if not name.endswith(("_ties", "best_of_k", "realmistake"))],
)
def test_figures_of_accuracy_are_weighted_means(tmp_path, name):
    """What resampling relies on: `summarize` is linear in the credits, and takes arrays of them."""
    benchmark = load_benchmark(files.WRITERS[name](tmp_path))
    rng = np.random.default_rng(0)
    credits = {record.id: rng.random(3) for record in benchmark.records}
    columns = benchmark.summarize(credits)
    for column in range(3):
        one = benchmark.summarize({item: float(values[column]) for item, values in credits.items()})
        assert {name: values[column] for name, values in columns.items()} == pytest.approx(one)


def test_a_second_reading_is_the_same(benchmark, tmp_path, request):
    again = load_benchmark(files.WRITERS[request.node.callspec.params["benchmark"]](tmp_path))
    assert (
        again.records == benchmark.records
        and again.version == benchmark.version
        and again.counts == benchmark.counts
    )
    assert benchmark.version.startswith("sha256:") and "  " not in benchmark.protocol


def test_tie_credit_is_that_of_the_lists(tmp_path):
    def overall(kind):
        return figures_of(load_benchmark(files.WRITERS[kind](tmp_path / kind)), lambda record, i: 7)

    rmb = overall("rmb")
    assert rmb["section/Helpfulness Pairwise"] == 0.5 and rmb[
        "section/Helpfulness BoN"
    ] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert rmb["overall"] == pytest.approx((0.5 + (1 / 3 + 1 / 4 + 1 / 5) / 3) / 2)
    assert set(overall("rewardbench2").values()) == {0.25}
    assert (
        set(overall("rewardbench").values())
        == set(overall("rm_bench").values())
        == set(overall("llmbar").values())
        == {0.5}
    )


# ---- the figures as the benchmark defines them


def by_domain(benchmark, **wrong):
    """Figures where everything is right but the named domains."""
    return benchmark.summarize(
        {record.id: wrong.get(record.domain, 1.0) for record in benchmark.records}
    )


def test_rewardbench_weights(tmp_path):
    benchmark = load_benchmark(files.write_rewardbench(tmp_path))
    assert sum(WEIGHTS.values()) - 984 + 447 == 2985 and set(WEIGHTS) == {
        name for members in SECTIONS.values() for name in members
    }
    figures = by_domain(
        benchmark,
        **{
            "math-prm": 0.0,
            "alpacaeval-easy": 0.0,
            "prior/shp": 0.0,
            "prior/anthropic_harmless": 0.0,
        },
    )
    assert (
        figures["section/Reasoning"] == 0.5
        and figures["section/Chat"] == pytest.approx(258 / 358)
        and figures["section/Safety"] == 1.0
    )
    assert figures["overall"] == pytest.approx((0.5 + 258 / 358 + 2) / 4)
    assert figures["section/Prior Sets"] == 0.75  # harmless and pku are no part of it
    assert figures["overall/with_prior_sets"] == pytest.approx(
        (2 * (0.5 + 258 / 358 + 2) + 0.75) / 9
    )
    assert benchmark.counts[
        "rows of prior sets that were withdrawn"
    ] == 2 and benchmark.official == ("strict", "expected", None)
    core = {record.id: 1.0 for record in benchmark.records if record.domain in SECTIONS["Safety"]}
    # no overall of a part
    assert benchmark.summarize(core).keys() == {
        "section/Safety",
        *(f"subset/{name}" for name in SECTIONS["Safety"]),
    }


def test_rewardbench2_ties_score(tmp_path):
    benchmark = load_benchmark(files.write_rewardbench2_ties(tmp_path))
    table = {
        "ref:0": (5, 1, 2),
        "tied:0": (7, 8, 9, 4, 1),
        "ref:1": (3, 3, 1),
        "tied:1": (5, 6, 9, 1, 0),
        "ref:2": (9, 1, 1),
        "tied:2": (4, 9, 6, 5, 1),
    }
    scores = {
        f"rewardbench2/Ties/{key}/{i}": float(value)
        for key, values in table.items()
        for i, value in enumerate(values)
    }
    figures = benchmark.summarize(scores)
    # gaps ref 3, 0, 8; tied 3, 4, -1; spreads 2, 4, 5
    expected = {
        "tied_accuracy": 2 / 3,
        "ref_accuracy": 2 / 3,
        "preferred": 1 / 3,
        "preferred_hard": 1 / 3,
        "margin": (math.tanh(3 / 2 - 1) + math.tanh(0 / 4 - 1) + math.tanh(-1 / 5 - 1)) / 3,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["overall"] == pytest.approx(
        0.3 * 4 / 3 + 0.2 * 2 / 3 + 0.01 * expected["margin"]
    )
    unscored = benchmark.summarize(scores | {"rewardbench2/Ties/tied:0/4": None})
    assert (
        unscored["tied_accuracy"] == pytest.approx(1 / 3)
        and unscored["preferred"] == 0
        and math.isfinite(unscored["overall"])
    )


def test_rm_bench_grid(tmp_path):
    benchmark = load_benchmark(files.write_rm_bench(tmp_path))
    # total_dataset.json, not the parts as well
    assert len(benchmark.records) == 5 * 3 * 9 and benchmark.counts["rows read"] == 15
    # the richer style wins
    style = {
        record.id: float(record.responses[0][1] > record.responses[1][1])
        for record in benchmark.records
    }
    figures = benchmark.summarize(style)
    assert (
        figures["overall/easy"],
        figures["overall/normal"],
        figures["overall/hard"],
        figures["overall"],
    ) == (1, 0, 0, pytest.approx(1 / 3))
    half = {
        record.id: float(record.domain != "safety-refuse" and record.domain != "math")
        for record in benchmark.records
    }
    figures = benchmark.summarize(half)
    assert (
        figures["section/safety"] == 0.5
        and figures["overall"] == pytest.approx(2.5 / 4)
        and figures["subset/safety-response"] == 1
    )
    parts = load_benchmark(
        {"kind": "rm_bench", "path": str(tmp_path / "data" / "math_filtered.json")}
    )
    assert {record.domain for record in parts.records} == {
        "math"
    } and "overall" not in parts.summarize({parts.records[0].id: 1.0})


def test_rmb_and_llmbar_means(tmp_path):
    figures = by_domain(load_benchmark(files.write_rmb(tmp_path)), **{"Harmlessness/S1": 0.0})
    assert (
        figures["overall"] == 0.5
        and figures["section/Harmlessness BoN"] == 0
        and figures["subset/BoN/Helpfulness/Code/Documentation"] == 1
    )
    figures = by_domain(
        load_benchmark(files.write_llmbar(tmp_path)), **{"GPTOut": 0.0, "MT-Bench": 0.0}
    )
    assert (
        figures["section/Adversarial"] == 0.75
        and figures["overall"] == 0.8
        and figures["section/Processed"] == 0
    )


def test_judgebench_labels_and_means(tmp_path):
    benchmark = load_benchmark(files.write_judgebench(tmp_path))
    record = benchmark.records[1]
    assert record.id == "judgebench/claude-3-5-sonnet-20240620/1" and record.rewards == (0.0, 1.0)
    figures = by_domain(benchmark, **{"mmlu-pro-law": 0.0})
    assert (
        figures["section/Knowledge"] == 0.5
        and figures["overall"] == 0.8 == figures["response_model/gpt-4o-2024-05-13"]
    )


def test_ppe(tmp_path):
    preference = load_benchmark(files.write_ppe_preference(tmp_path))
    assert preference.counts["human ties"] == 20 and len(preference.records) == 20
    assert [record.rewards for record in preference.records[:2]] == [(1.0, 0.0), (0.0, 1.0)]
    assert "subset/hard_prompt" in figures_of(
        preference, lambda record, i: 0
    ) and "subset/is_code" not in figures_of(preference, lambda record, i: 0)
    spec = files.write_ppe_correctness(tmp_path)
    pairs = load_benchmark(spec)
    assert (
        len(pairs.records) == 5 * 6 * 5
        and len(load_benchmark(spec | {"pairs": "first"}).records) == 5 * 6
    )
    assert by_domain(pairs, GPQA=0.0)["overall"] == 0.8
    lists = load_benchmark(files.write_ppe_best_of_k(tmp_path))
    assert len(lists.records) == 5 * 6 * 8
    assert len({prompt_of(lists, record) for record in lists.records}) == 5 * 6
    gold = figures_of(lists, lambda record, i: record.rewards[0])
    constant = figures_of(lists, lambda record, i: 0)
    assert gold["overall/best_of_8"] == gold["overall/ceiling"] == 1.0 and gold[
        "overall/best_of_1"
    ] == pytest.approx(16 / 48)
    assert constant["overall/best_of_4"] == pytest.approx(16 / 48)
    assert list(gold)[0] == "overall" and "subset/IFEval/best_of_2" in gold


def test_realmistake_is_a_roc_area(tmp_path):
    benchmark = load_benchmark(files.write_realmistake(tmp_path))
    assert (
        benchmark.metric == "roc_auc"
        and len(benchmark.records) == 54
        and benchmark.counts["rows of files outside the three tasks"] == 1
    )
    figures = figures_of(
        benchmark, lambda record, i: record.rewards[0] if record.domain.startswith("math") else 0
    )
    assert (
        figures["overall"] == pytest.approx((1 + 0.5 + 0.5) / 3)
        and figures["section/math_word_problem_generation"] == 1.0
    )
    assert 0.5 < figures["pooled"] < figures["overall"] + 0.01
    one = load_benchmark(
        {
            "kind": "realmistake",
            "path": str(tmp_path / "data/answerability_classification/gpt-4-0613.jsonl"),
        }
    )
    assert {record.domain for record in one.records} == {"answerability_classification"}


def test_gsm8k_candidates(tmp_path):
    spec = files.write_gsm8k_solutions(tmp_path)
    pairs, lists, singles = (
        load_benchmark(spec | {"form": form}) for form in ("pairs", "lists", "best_of_k")
    )
    assert (
        pairs.counts["questions"] == 20
        and pairs.counts["questions with right and wrong ones"]
        == len(pairs.records)
        == len(lists.records)
        == 15
    )
    assert len(singles.records) == 80 and all(
        len(record.responses) in (3, 4) for record in lists.records
    )
    right = {record.responses[0] for record in singles.records if record.rewards[0] == 1}
    for record in (*pairs.records, *lists.records):
        assert record.responses[0] in right and not right & set(record.responses[1:])
    draws = {
        tuple(record.responses for record in load_benchmark(spec | {"seed": seed}).records)
        for seed in range(3)
    }
    assert len(draws) == 3 and pairs.records == load_benchmark(spec | {"seed": 0}).records
    gold = figures_of(singles, lambda record, i: record.rewards[0])
    assert (
        gold["best_of_4"] == gold["ceiling"] == 0.75
        and gold["best_of_1"] < gold["best_of_2"] < gold["best_of_4"]
    )


def test_snippet_of_the_docs(tmp_path):
    names = {}
    for snippet in re.findall(
        r"^```python\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(snippet, "benchmarks.md", "exec"), names)
    version, figures = names["length_only_figures"](files.write_judgebench(tmp_path))
    # response_B is the longer one
    assert version.startswith("sha256:") and figures["overall"] == pytest.approx(14 / 30)


# ---- where the files come from


def test_parquet_and_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asked = []
    rows = [{**row, "additional_metadata": None} for row in files.rewardbench2_rows()]
    for split, part in (("test", rows), ("train", rows[:1])):
        path = tmp_path / "clone" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(part).to_parquet(path)
    from_list = load_benchmark(files.write_rewardbench2(tmp_path))
    # the split test alone
    assert (
        load_benchmark({"kind": "rewardbench2", "path": str(tmp_path / "clone")}).records
        == from_list.records
    )

    def load_dataset(name, config, split, revision):
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = load_benchmark(
        {"kind": "rewardbench2", "hub": True, "revision": "abc", "name": "rb2"}
    )
    assert (
        from_hub.records == from_list.records
        and from_hub.version == "allenai/reward-bench-2@abc"
        and from_hub.name == "rb2"
    )
    assert asked == [("allenai/reward-bench-2", None, "test", "abc")]

    def no_network(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)cannot read split 'filtered' of the hub data set 'allenai/reward-bench'.*file "
        r"as "
        r"\"path\"",
    ):
        load_benchmark({"kind": "rewardbench", "hub": True})


@pytest.mark.parametrize(
    "spec, message",
    [
        ({}, 'field "kind": expected one of rewardbench, .* got None'),
        ({"kind": "reward_bench"}, "field \"kind\": did you mean 'rewardbench'?"),
        (
            {"kind": "rmb", "pth": "x"},
            "benchmark 'rmb': field \"pth\": unknown; did you mean 'path'?",
        ),
        ({"kind": "rmb", "form": "pairs"}, 'field "form": unknown'),
        (
            {"kind": "rmb"},
            'expected one of the fields "path" and "hub"; the files are at github Zhou-Zoey',
        ),
        (
            {"kind": "rmb", "hub": True},
            'field "hub": expected a "path" instead, no hub data set is known',
        ),
        (
            {"kind": "ppe_correctness", "hub": "me/mine"},
            'field "hub": expected true, for lmarena-ai/PPE-GPQA-Best-of-K, ',
        ),
        ({"kind": "rmb", "path": "x", "revision": "y"}, 'field "revision": goes with "hub"'),
    ],
)
def test_a_wrong_spec_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(spec)


def test_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="benchmark 'rmb': field \"path\": .*nowhere does not exist"
    ):
        load_benchmark({"kind": "rmb", "path": str(tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match="expected files .jsonl.* found none"):
        load_benchmark({"kind": "rmb", "path": str(tmp_path)})
    files.listed(tmp_path / "empty.json", [])
    with pytest.raises(ValueError, match="benchmark 'rmb': no item in .*empty.json; rows read: 0"):
        load_benchmark({"kind": "rmb", "path": str(tmp_path / "empty.json")})


RB2 = files.rewardbench2_rows()[0]
PPE = {
    "prompt": "p",
    "scores": [True, False],
    "sampled_conflict_pairs": [[0, 1]],
    "response_1": "a",
    "response_2": "b",
}
RB1 = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 1}
JUDGE = {
    "pair_id": "1",
    "source": "mmlu-pro-law",
    "question": "q",
    "response_model": "m",
    "response_A": "a",
    "response_B": "b",
    "label": "A>B",
}
MINE = {"id": "1", "conversation": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}
GRID = {"id": 1, "prompt": "q", "chosen": ["a"] * 3, "rejected": ["b"] * 3}
ZERO = {"id": "g-#1", "question": "q", "answer": "# 18", "output": ["17"], "generator": "m"}


@pytest.mark.parametrize(
    "kind, rows, message",
    [
        (
            "rewardbench",
            [RB1, {**RB1, "subset": "hep-cobol"}],
            r'field "subset": expected one of '
            r"alpacaeval-easy, .* got \'hep-cobol\'",
        ),
        (
            "rewardbench",
            [{"text": "x"}],
            r'data.jsonl:1: field "subset": missing; the row has text',
        ),
        (
            "rewardbench",
            [RB1, {**RB1, "id": 2, "rejected": ["b"]}],
            r'data.jsonl:2: field "rejected": '
            r"expected str, got .* \(list\)",
        ),
        ("rewardbench", [RB1, RB1], "1 ids occur more than once, such as 'rewardbench/hep-go/1'"),
        (
            "rewardbench2",
            [{**RB2, "chosen": ["a", "b"]}],
            r'field "chosen": expected a '
            r"list of 1 texts",
        ),
        (
            "rewardbench2",
            [{**RB2, "rejected": ["a", None]}],
            r'field "rejected": expected a list '
            r"of one or more texts",
        ),
        (
            "rewardbench2_ties",
            [{**RB2, "subset": "Ties", "id": "7"}],
            r'field "id": expected "ref:<number>" or '
            r'"tied:<number>" .* got \'7\'',
        ),
        (
            "ppe_preference",
            [{"winner": "model_c"}],
            "field \"winner\": expected model_a, model_b or a tie, got 'model_c'",
        ),
        ("ppe_correctness", [PPE], "cannot tell the set: expected one of MMLU-Pro, MATH"),
        (
            "rmb",
            [{"input": "q", "output_1": "a", "output_2": "b", "label": 1}],
            'expected an RMB row with "pair_uid" or "bon_uid", the row has input',
        ),
        (
            "rmb",
            [{**files.rmb_row("pair", 1, "Pairwise_set/Chat", 2)}],
            'field "category_path": expected one of Helpfulness, Harmlessness',
        ),
        (
            "realmistake",
            [{"input": "q", "llm_response": "a", "label": "error"}],
            "expected the file in a folder named math_word_problem_generation",
        ),
        (
            "judgebench",
            [{**JUDGE, "label": "A=B"}],
            r'field "label": expected one of '
            r"A>B, B>A, got \'A=B\'",
        ),
        (
            "judgebench",
            [{**JUDGE, "source": "poems"}],
            r'field "source": expected one that '
            r"begins with mmlu-pro",
        ),
        ("rm_bench", [GRID], r'expected a field "domain", or a file <domain>_filtered.json'),
        (
            "rm_bench",
            [{**GRID, "rejected": ["b"] * 2, "domain": "chat"}],
            'field "rejected": expected a list of 3 texts',
        ),
        (
            "llmbar",
            [{"input": "q", "output_1": "a", "output_2": "b"}],
            'field "label": missing; expected a row with input, output_1',
        ),
        ("gsm8k_solutions", [{"question": "q"}], 'field "6b_finetuning": missing'),
        ("zeroeval_gsm", [{**ZERO, "answer": "none"}], 'field "answer": expected a number'),
        (
            "zeroeval_gsm",
            [ZERO, {**ZERO, "question": "other"}],
            "field \"question\": 'g-#1' is another question in",
        ),
        (
            "records",
            [MINE, {**MINE, "id": "2", "best": 0}],
            "1 of 2 records, such as '1', have no gold .*; expected all or none with gold",
        ),
        ("hh_rlhf", [MINE], 'field "chosen": missing; expected a row with chosen, rejected'),
    ],
)
def test_a_wrong_row_is_named(tmp_path, kind, rows, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark({"kind": kind, "path": str(files.lines(tmp_path / "data.jsonl", rows))})


def test_wrong_values_across_fields_and_files(tmp_path):
    path = files.lines(tmp_path / "PPE-MATH-Best-of-K.jsonl", [{**PPE, "scores": [True, True]}])
    with pytest.raises(
        ValueError,
        match='field "sampled_conflict_pairs": expected two of 2 '
        "responses of which one is right, got",
    ):
        load_benchmark({"kind": "ppe_correctness", "path": str(path)})
    path.write_text(json.dumps({**PPE, "scores": [True]}))
    with pytest.raises(
        ValueError, match='field "scores": expected true or false for each of the 2 fields'
    ):
        load_benchmark({"kind": "ppe_correctness", "path": str(path)})
    files.listed(tmp_path / "z" / "m1.json", [ZERO])
    files.listed(tmp_path / "z" / "m2.json", [{**ZERO, "id": "g-#2"}])
    with pytest.raises(
        ValueError,
        match="expected question 'g-#1' in the file of every model, it is not in those of m2",
    ):
        load_benchmark({"kind": "zeroeval_gsm", "path": str(tmp_path / "z")})
    with pytest.raises(
        ValueError, match="field \"form\": expected one of pairs, lists, best_of_k, got 'pair'"
    ):
        load_benchmark(files.write_gsm8k_solutions(tmp_path) | {"form": "pair"})
    benchmark = load_benchmark(files.write_llmbar(tmp_path))
    with pytest.raises(ValueError, match="benchmark 'llmbar' has no item 'x'"):
        benchmark.summarize({"x": 1.0})
    assert benchmark.summarize({}) == {}


def test_records_without_gold_have_no_figures_and_say_what_they_are(tmp_path):
    path = files.lines(tmp_path / "mine.jsonl", [MINE, {**MINE, "id": "2"}])
    spec = {"kind": "records", "path": str(path), "about": "Questions of last week."}
    benchmark = load_benchmark(spec)
    assert (benchmark.metric, len(benchmark.records)) == ("none", 2)
    assert benchmark.summarize({record.id: 1.0 for record in benchmark.records}) == {}
    assert benchmark.protocol.startswith("Questions of last week. The records have no gold")
    gold = [{**MINE, "best": 0}]
    benchmark = load_benchmark(spec | {"path": str(files.lines(tmp_path / "gold.jsonl", gold))})
    assert benchmark.protocol.startswith("Questions of last week. The figure is the mean credit")
    assert benchmark.metric == "accuracy"


def test_repeated_and_empty_responses_stay_and_are_counted(tmp_path):
    rows = [
        {"input": "q", "output_1": "a", "output_2": "a", "label": 1},
        {"input": "q", "output_1": " ", "output_2": "b", "label": 2},
    ]
    benchmark = load_benchmark(
        {"kind": "llmbar", "path": str(files.lines(tmp_path / "Natural" / "dataset.jsonl", rows))}
    )
    assert benchmark.counts == {
        "rows read": 2,
        "items": 2,
        "items with a repeated response": 1,
        "items with an empty response": 1,
    }


OWN = """
from grm_jax.benchmarks.base import Reading, finish, make_record, summarize_domains


def load(name, place, shown, best=0):
    reading = Reading(place)
    records = [
        make_record(row, id=f"{name}/{row.index}", responses=row.data[shown], best=best,
                    conversation=[{"role": "user", "content": "q"}])
        for _, row in reading.rows()
    ]
    return finish(name, reading, "As it comes.", records, "accuracy", summarize_domains)


def from_nowhere(name, place):
    from grm_jax.judgment.records import Record, Turn

    records = [Record("r", (Turn("user", "q"),), ("a", "b"), (1.0, 0.0), "d")]
    return finish(name, Reading(place), "Two.", records, "accuracy", summarize_domains)


def records_alone(name, place):
    return []
"""


def test_a_kind_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_kinds.py").write_text(OWN)
    (tmp_path / "data.jsonl").write_text(json.dumps({"pair": ["a", "b"]}) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"kind": "own_kinds:load", "path": str(tmp_path / "data.jsonl"), "shown": "pair"}
    benchmark = load_benchmark(spec)
    assert benchmark.name == "own_kinds.load" and benchmark.version.startswith("sha256:")
    assert benchmark.records[0].responses == ("a", "b")
    assert benchmark.summarize({"own_kinds.load/0": 0.5}) == {"overall": 0.5}
    assert load_benchmark(spec | {"name": "mine", "best": 1}).records[0].rewards == (0.0, 1.0)
    without = load_benchmark({"kind": "own_kinds:from_nowhere"})
    assert without.summarize({"r": 1.0}) == {"overall": 1.0, "subset/d": 1.0}
    for wrong, message in (
        ({"show": "pair"}, "field \"show\": unknown; did you mean 'shown'"),
        ({"shown": None}, 'field "shown": missing; own_kinds:load needs it'),
        ({"kind": "own_kinds:laod"}, "field \"kind\": .* has no 'laod'; did you mean load"),
        ({"path": None, "hub": "a/b"}, 'field "hub": expected a "path" instead, .* is known$'),
        ({"hub": "a/b"}, 'expected one of the fields "path" and "hub"$'),
    ):
        with pytest.raises(ValueError, match=message):
            load_benchmark(spec | wrong)
    with pytest.raises(TypeError, match="records_alone to return a Benchmark .*, got a list"):
        load_benchmark({"kind": "own_kinds:records_alone"})


# ---- a first look


def test_a_first_look_is_spread_grows_and_says_so(benchmark, tmp_path, request):
    spec = files.WRITERS[request.node.callspec.params["benchmark"]](tmp_path)
    every = len(benchmark.records)
    whole = load_benchmark(spec | {"limit": every})
    assert whole.records == benchmark.records and whole.protocol == benchmark.protocol
    prompts = Counter(prompt_of(benchmark, r) for r in benchmark.records)
    together = benchmark.metric == "roc_auc"
    before = set()
    least = max(prompts.values()) if together else 1
    for limit in sorted({least, max(least, every // 2), max(least, every - 1)}):
        look = load_benchmark(spec | {"limit": limit})
        ids = {record.id for record in look.records}
        assert len(ids) <= limit and (together or len(ids) == limit) and before <= ids
        before = ids
        assert list(look.records) == [r for r in benchmark.records if r.id in ids]
        assert look.version == benchmark.version
        if len(ids) < every:
            assert look.protocol.startswith(f"A first look at {len(ids)} of {every} items")
            assert look.counts["items left out by limit"] == every - len(ids)
        assert look.counts["items"] == len(ids)
        if together:  # the figures are over all items of a prompt
            taken = Counter(prompt_of(look, r) for r in look.records)
            assert all(prompts[prompt] == count for prompt, count in taken.items())
        figures = look.summarize({record.id: 1.0 for record in look.records})
        assert set(figures) <= set(benchmark.summarize({r.id: 1.0 for r in benchmark.records}))


def test_a_first_look_at_a_benchmark_has_all_of_its_sections(tmp_path):
    look = load_benchmark(files.write_rmb(tmp_path) | {"limit": 6})
    assert "overall" in look.summarize({record.id: 1.0 for record in look.records})


@pytest.mark.parametrize("limit", [0, -1, 2.5, "40", True])
def test_a_limit_that_is_no_number_of_items_is_named(tmp_path, limit):
    with pytest.raises(ValueError, match='field "limit": expected a positive integer, got '):
        load_benchmark(files.write_rmb(tmp_path) | {"limit": limit})


def test_a_limit_below_the_items_of_a_prompt_that_stay_together_is_named(tmp_path):
    spec = files.WRITERS["ppe_best_of_k"](tmp_path)
    with pytest.raises(ValueError, match='field "limit": expected at least [0-9]+, the items of'):
        load_benchmark(spec | {"limit": 1})
