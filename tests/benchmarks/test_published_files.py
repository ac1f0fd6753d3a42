"""The real files: item counts, length-only figures, the same on a second reading.

    python -m pytest tests/benchmarks/test_published_files.py -s

prints the table of docs/benchmarks.md.
"""

import collections
import math
import pathlib
import re

import pytest

from grm_jax.benchmarks import CREDIT, load_benchmark
from grm_jax.judgment.voting import vote
from grm_jax.reward_models import baselines

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
SETS = {  # spec -> items
    "rmb": ({"kind": "rmb", "path": "rmb"}, 1532 + 510),
    "llmbar": ({"kind": "llmbar", "path": "llmbar"}, 419 + 400),
    "hh_rlhf": ({"kind": "hh_rlhf", "path": "hh_rlhf"}, 2312),
    "gsm8k_solutions pairs": (
        {"kind": "gsm8k_solutions", "path": "gsm8k/example_model_solutions.jsonl"},
        731,
    ),
    "gsm8k_solutions lists": (
        {"kind": "gsm8k_solutions", "path": "gsm8k/example_model_solutions.jsonl", "form": "lists"},
        731,
    ),
    "gsm8k_solutions best_of_k": (
        {
            "kind": "gsm8k_solutions",
            "path": "gsm8k/example_model_solutions.jsonl",
            "form": "best_of_k",
        },
        1319 * 4,
    ),
    "zeroeval_gsm pairs": ({"kind": "zeroeval_gsm", "path": "zeroeval_gsm"}, 898),
    "zeroeval_gsm lists": ({"kind": "zeroeval_gsm", "path": "zeroeval_gsm", "form": "lists"}, 898),
    "zeroeval_gsm best_of_k": (
        {"kind": "zeroeval_gsm", "path": "zeroeval_gsm", "form": "best_of_k"},
        13190,
    ),
    # what these published repositories hold, unpacked into the same folder
    "rmb, whole": ({"kind": "rmb", "path": "RMB_dataset"}, 2109 + 1677 + 8456 + 6087),
    "realmistake": ({"kind": "realmistake", "path": "realmistake"}, 900),
    "judgebench": ({"kind": "judgebench", "path": "judgebench"}, 350 + 270),
    "rm_bench": ({"kind": "rm_bench", "path": "rm_bench"}, 9 * (129 + 228 + 441)),
}
PUBLISHED = {  # accuracy in % at WildEval/ZeroEval
    "gemma-2-2b-it": 51.6,
    "gemma-2-9b-it": 87.4,
    "Qwen2-7B-Instruct": 80.1,
    "Qwen2-72B-Instruct": 92.7,
    "Mixtral-8x7B-Instruct-v0.1": 70.1,
    "Mistral-Nemo-Instruct-2407": 82.8,
    "Phi-3.5-mini-instruct": 82.0,
    "Yi-1.5-9B-Chat": 76.4,
    "Yi-1.5-34B-Chat": 84.1,
    "deepseek-v2.5-0908": 92.5,
}


_loaded = {}


def load(data_dir, name):
    spec = SETS[name][0]
    if not (data_dir / spec["path"]).exists():
        pytest.skip(f"no {data_dir / spec['path']} (docs/benchmarks.md says where the files are)")
    return load_benchmark(spec | {"name": name, "path": str(data_dir / spec["path"])})


def load_once(data_dir, name):
    if name not in _loaded:
        _loaded[name] = load(data_dir, name)
    return _loaded[name]


def figures_of(model, benchmark, credit="expected"):
    """The figures of a model asked once."""
    rows = {row["id"]: row["scores"] for block in model.judge(benchmark.records) for row in block}
    if benchmark.metric == "roc_auc":
        return benchmark.summarize({item: scores[0] for item, scores in rows.items()})
    return benchmark.summarize(
        {
            record.id: CREDIT[credit](vote([rows[record.id]]), record.rewards)
            for record in benchmark.records
        }
    )


def table_row(benchmark, figures):
    main = [
        f"{name} {100 * value:.1f}"
        for name, value in figures.items()
        if not name.startswith("subset/") and name != "ceiling"
    ]
    parts = ", ".join(main[:7])
    repeated, empty = (
        benchmark.counts[f"items with {what} response"] for what in ("a repeated", "an empty")
    )
    return (
        f"| {benchmark.name} | {len(benchmark.records)} | {repeated} | {empty} | {parts} | "
        f"`{benchmark.version}` |"
    )


@pytest.mark.parametrize("name", SETS)
def test_counts_and_length_only(data_dir, name):
    first, second = load_once(data_dir, name), load(data_dir, name)
    assert (
        len(first.records) == SETS[name][1]
        and first.records == second.records
        and first.version == second.version
    )
    figures = figures_of(baselines.length_only(), first)
    assert figures == figures_of(baselines.length_only(), second)
    line = table_row(first, figures)
    print("\n" + line)
    assert line in DOCS.read_text(), "docs/benchmarks.md has another row"


def test_subset_counts(data_dir):
    llmbar = collections.Counter(record.domain for record in load_once(data_dir, "llmbar").records)
    assert llmbar == {
        "Natural": 100,
        "Neighbor": 134,
        "GPTInst": 92,
        "GPTOut": 47,
        "Manual": 46,
        "MT-Bench": 200,
        "LLMEval2": 200,
    }
    rmb = collections.Counter(
        len(record.responses) > 2 for record in load_once(data_dir, "rmb").records
    )
    assert rmb == {False: 1532, True: 510}


def test_published_shares_of_right_candidates(data_dir):
    solutions, zeroeval = (
        load_once(data_dir, name)
        for name in ("gsm8k_solutions best_of_k", "zeroeval_gsm best_of_k")
    )
    assert (
        solutions.counts["questions"] == 1319
        and solutions.counts["questions with a right candidate"] == 887
    )
    shares = collections.defaultdict(list)
    for record in (*solutions.records, *zeroeval.records):
        shares[record.metadata["models"][0]].append(record.rewards[0])
    published = PUBLISHED | {
        "6b_finetuning": 21.7,
        "6b_verification": 39.0,
        "175b_finetuning": 34.7,
        "175b_verification": 56.3,
    }
    assert {name: 100 * sum(found) / len(found) for name, found in shares.items()} == pytest.approx(
        published, abs=0.06
    )
    assert zeroeval.counts["questions with a right candidate"] == 1300


@pytest.mark.parametrize("name", ["rmb", "llmbar", "gsm8k_solutions lists"])
def test_gold_and_random_scores(data_dir, name):
    benchmark = load_once(data_dir, name)
    assert set(figures_of(baselines.oracle(), benchmark, "strict").values()) == {1.0}
    chance = {record.id: 1 / len(record.responses) for record in benchmark.records}
    assert figures_of(baselines.constant(), benchmark) == pytest.approx(benchmark.summarize(chance))
    rows = [block[0] for block in baselines.random_scores(0).judge(benchmark.records)]
    hits = [CREDIT["expected"](vote([row["scores"]]), row["rewards"]) for row in rows]
    error = math.sqrt(sum(share * (1 - share) for share in chance.values()))
    assert abs(sum(hits) - sum(chance.values())) < 3 * error


def test_docs_name_every_family():
    from grm_jax.benchmarks import FAMILIES

    text = DOCS.read_text()
    assert not [kind for kind in FAMILIES if not re.search(rf"`{kind}`", text)]
