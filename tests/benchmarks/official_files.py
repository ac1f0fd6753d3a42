"""Writes small files in each benchmark's official format.

`WRITERS[kind](folder)` writes them and returns the spec for `load_benchmark`.
"""

import gzip
import json

from grm_jax.benchmarks import gsm8k, ppe, rewardbench, rewardbench2, rm_bench


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def listed(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_rewardbench(folder):
    rows = [
        {
            "prompt": f"{subset} {i}",
            "chosen": "good" * (i + 1),
            "chosen_model": "a",
            "rejected": "bad",
            "rejected_model": "b",
            "subset": subset,
            "id": i,
        }
        for subset in rewardbench.WEIGHTS
        for i in range(3)
    ]
    for part in (*rewardbench.PRIOR_SETS, "anthropic_harmless", "pku_safer"):
        lines(
            folder / "prior" / f"{part}-00000-of-00001.jsonl",
            [
                {
                    "prompt": [{"role": "user", "content": "q"}],
                    "chosen": "yes",
                    "rejected": "no",
                    "subset": part,
                    "id": None,
                }
            ]
            * 2,
        )
    return {
        "kind": "rewardbench",
        "path": str(lines(folder / "filtered.jsonl", rows)),
        "prior": str(folder / "prior"),
    }


def rewardbench2_rows():
    rows = [
        {
            "id": str(i),
            "prompt": "q",
            "chosen": ["right"],
            "rejected": ["w1", "w2", "w3"],
            "num_correct": 1,
            "num_incorrect": 3,
            "total_completions": 4,
            "models": ["m"],
            "subset": subset,
            "additional_metadata": {},
        }
        for subset in rewardbench2.SUBSETS
        for i in range(4)
    ]
    for number in range(3):
        rows.append(
            rows[0]
            | {
                "id": f"ref:{number}",
                "subset": "Ties",
                "chosen": ["r"],
                "rejected": ["w1", "w2"],
                "num_correct": 1,
            }
        )
        rows.append(
            rows[0]
            | {
                "id": f"tied:{number}",
                "subset": "Ties",
                "chosen": ["r1", "r2", "r3"],
                "rejected": ["w1", "w2"],
                "num_correct": 3,
            }
        )
    return rows


def write_rewardbench2(folder):
    return {"kind": "rewardbench2", "path": str(listed(folder / "rb2.json", rewardbench2_rows()))}


def write_rewardbench2_ties(folder):
    return write_rewardbench2(folder) | {"kind": "rewardbench2_ties"}


def write_ppe_preference(folder):
    rows = [
        {
            "question_id": f"q{i}",
            "model_a": "a",
            "model_b": "b",
            "winner": ("model_a", "model_b", "tie", "tie (bothbad)")[i % 4],
            "prompt": "p",
            "response_1": "one",
            "response_2": "two!",
            "language": ("English", "French")[i % 2 * (i % 3 > 0)],
            "hard_prompt": i % 3 == 0,
            "is_code": False,
        }
        for i in range(40)
    ]
    return {"kind": "ppe_preference", "path": str(lines(folder / "test.jsonl", rows))}


def write_ppe_correctness(folder):
    for name in ppe.SETS:
        rows = []
        for i in range(6):
            right = [(i + j) % 3 == 0 for j in range(8)]
            pairs = [[a, b] for a in range(8) for b in range(a) if right[a] != right[b]][:5]
            rows.append(
                {
                    "question_id": f"q{i}",
                    "prompt": f"p{i}",
                    "model_name": "m",
                    "scores": right,
                    "conflict_pairs": pairs,
                    "sampled_conflict_pairs": pairs,
                }
                | {f"response_{j + 1}": f"answer {j} " + "x" * j for j in range(8)}
            )
        lines(
            folder / "ppe" / f"PPE-{name}-Best-of-K" / "data" / "train-00000-of-00001.jsonl", rows
        )
    return {"kind": "ppe_correctness", "path": str(folder / "ppe")}


def write_ppe_best_of_k(folder):
    return write_ppe_correctness(folder) | {"kind": "ppe_best_of_k"}


def rmb_row(kind, uid, category, n):
    answers = [{"llm_name": f"m{j}", "answer": f"answer {j}"} for j in range(n)]
    row = {
        f"{kind}_uid": str(uid),
        "category_path": category,
        "conversation_input": [{"role": "user", "content": "q", "language": "English"}],
    }
    return row | (
        {"bon_best": answers[0], "loser_list": answers[1:]}
        if kind == "bon"
        else {"chosen": answers[0], "reject": answers[1]}
    )


def write_rmb(folder):
    uid = 0
    for category in (
        "Helpfulness/Chat/Casual Conversation",
        "Helpfulness/Code/Documentation",
        "Harmlessness/S1",
    ):
        for kind, part in (("pair", "Pairwise_set"), ("bon", "BoN_set")):
            rows = [
                rmb_row(kind, uid + i, f"{part}/{category}", 2 if kind == "pair" else 3 + i % 3)
                for i in range(6)
            ]
            uid += len(rows)
            listed(folder / "RMB_dataset" / part / f"{category}.json", rows)
    return {"kind": "rmb", "path": str(folder / "RMB_dataset")}


def write_realmistake(folder):
    for task in (
        "math_word_problem_generation",
        "finegrained_fact_verification",
        "answerability_classification",
    ):
        for model in ("gpt-4-0613", "Llama-2-70b-chat-hf"):
            lines(
                folder / "data" / task / f"{model}.jsonl",
                [
                    {
                        "input": "q",
                        "llm_response": f"answer {i}",
                        "label": ("error", "error", "no_error")[i % 3],
                        "error_categories": [],
                        "human_explanation": "",
                        "metadata": {"llm_response_model": model},
                    }
                    for i in range(9)
                ],
            )
    lines(
        folder / "data" / "example.jsonl", [{"input": "q", "llm_response": "a", "label": "error"}]
    )
    return {"kind": "realmistake", "path": str(folder / "data")}


def write_judgebench(folder):
    sources = (
        "mmlu-pro-law",
        "mmlu-pro-math",
        "livebench-reasoning",
        "livebench-math",
        "livecodebench",
    )
    for model in ("gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"):
        lines(
            folder / "data" / f"dataset=judgebench,response_model={model}.jsonl",
            [
                {
                    "pair_id": f"{i}",
                    "original_id": "1",
                    "source": source,
                    "question": "q",
                    "response_model": model,
                    "response_A": "a",
                    "response_B": "bb",
                    "label": ("A>B", "B>A")[i % 2],
                }
                for i, source in enumerate(sources * 3)
            ],
        )
    return {"kind": "judgebench", "path": str(folder / "data")}


def write_rm_bench(folder):
    rows = [
        {
            "id": i,
            "prompt": "q",
            "chosen": [f"r{s}" for s in range(3)],
            "rejected": [f"w{s}" for s in range(3)],
            "domain": domain,
        }
        for domain in rm_bench.DOMAINS
        for i in range(3)
    ]
    listed(folder / "data" / "total_dataset.json", rows)
    for domain in rm_bench.DOMAINS:
        part = [
            {field: value for field, value in row.items() if field != "domain"}
            for row in rows
            if row["domain"] == domain
        ]
        listed(folder / "data" / f"{domain}_filtered.json", part)
    return {"kind": "rm_bench", "path": str(folder)}


def write_llmbar(folder):
    for subset in (
        "LLMBar/Natural",
        *(f"LLMBar/Adversarial/{name}" for name in ("Neighbor", "GPTInst", "GPTOut", "Manual")),
        "Processed/MT-Bench",
    ):
        listed(
            folder / "Dataset" / subset / "dataset.json",
            [
                {"input": "q", "output_1": "a", "output_2": "bb", "label": 1 + i % 2}
                for i in range(6)
            ],
        )
    return {"kind": "llmbar", "path": str(folder / "Dataset")}


def write_gsm8k_solutions(folder):
    rows = [
        {"question": f"q{i}", "ground_truth": "#### 1"}
        | {
            sampler: {
                "is_correct": (i + j) % 3 == 0 and i % 4 > 0,
                "solution": f"{i} {sampler} #### 1",
            }
            for j, sampler in enumerate(gsm8k.SAMPLERS)
        }
        for i in range(20)
    ]
    return {
        "kind": "gsm8k_solutions",
        "path": str(lines(folder / "example_model_solutions.jsonl", rows)),
    }


def write_zeroeval_gsm(folder):
    for j, model in enumerate(("m1", "m2", "m3", "m4")):
        listed(
            folder / "gsm" / f"{model}.json.gz",
            [
                {
                    "id": f"gsm8k-main-test-#{i}",
                    "question": f"q{i}",
                    "answer": "# 1,018",
                    "generator": model,
                    "output": [
                        json.dumps(
                            {
                                "reasoning": f"by {model}",
                                "answer": "$1,018" if (i + j) % 3 else "17",
                            }
                        )
                    ],
                }
                for i in range(10)
            ],
        )
    return {"kind": "zeroeval_gsm", "path": str(folder / "gsm")}


def write_hh_rlhf(folder):
    rows = [
        {
            "chosen": f"\n\nHuman: q{i}\n\nAssistant: yes",
            "rejected": f"\n\nHuman: q{i}\n\nAssistant: no way",
        }
        for i in range(5)
    ]
    lines(folder / "harmless-base" / "train.jsonl", rows)
    lines(folder / "harmless-base" / "test.jsonl", rows)
    return {"kind": "hh_rlhf", "path": str(folder / "harmless-base")}


def write_records(folder):
    rows = [
        {
            "id": f"{i}",
            "conversation": [{"role": "user", "content": "q"}],
            "responses": [f"a{j}" for j in range(1 + i % 4)],
            "domain": f"d{i % 2}",
        }
        for i in range(12)
    ]
    for i, row in enumerate(rows):
        row.update({"rewards": [i % 8 // 4]} if i % 4 == 0 else {"best": i % 2})
    return {"kind": "records", "path": str(lines(folder / "mine.jsonl", rows))}


def _form(writer, form):
    return lambda folder: writer(folder) | {"form": form, "name": f"gsm {form}"}


WRITERS = {
    name.removeprefix("write_"): value
    for name, value in list(globals().items())
    if name.startswith("write_")
}
WRITERS |= {
    f"{kind} {form}": _form(WRITERS[kind], form)
    for kind in ("gsm8k_solutions", "zeroeval_gsm")
    for form in ("lists", "best_of_k")
}
