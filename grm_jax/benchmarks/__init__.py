"""Published benchmarks as records and figures: `load_benchmark(spec)`. docs/benchmarks.md has each
protocol, and what each reads.

A spec is a plain dict (or ml_collections ConfigDict):

    kind      one of FAMILIES
    name      in tables and folders; the kind if absent
    path      a file or folder of the official data, as published
    hub       instead of a path: true for the official hub data set, or another data set of the same
    fields revision  of the hub data set
    prior (rewardbench), pairs (ppe_correctness), form and seed (gsm8k_solutions, zeroeval_gsm)
    see docs/benchmarks.md

What official files contain besides sound rows is kept where the published figures keep it (repeated
and empty responses), left out where no response is the best (human ties), and counted in
`Benchmark.counts` either way. Anything else is an error that names file, row and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grm_jax.benchmarks import (
    gsm8k,
    pairs,
    ppe,
    realmistake,
    rewardbench,
    rewardbench2,
    rm_bench,
    rmb,
)
from grm_jax.benchmarks.base import Benchmark, Official, Place
from grm_jax.benchmarks.credit import CREDIT, all_pairs_won, best_of_k, roc_auc

__all__ = [
    "CREDIT",
    "FAMILIES",
    "Benchmark",
    "Official",
    "all_pairs_won",
    "best_of_k",
    "load_benchmark",
    "roc_auc",
]


class Family(NamedTuple):
    """load(name, place, **options); hub: {part: (data set, config, split)}, {} where none is known;
    source: where the files are published.
    """

    load: Callable[..., Benchmark]
    source: str
    hub: Mapping[str, tuple[str, str | None, str]] = {}
    options: tuple[str, ...] = ()


FAMILIES = {
    "rewardbench": Family(
        rewardbench.load, "hub allenai/reward-bench, split filtered", rewardbench.HUB, ("prior",)
    ),
    "rewardbench2": Family(rewardbench2.load, "hub allenai/reward-bench-2", rewardbench2.HUB),
    "rewardbench2_ties": Family(
        rewardbench2.load_ties, "hub allenai/reward-bench-2", rewardbench2.HUB
    ),
    "ppe_preference": Family(
        ppe.load_preference, "hub lmarena-ai/PPE-Human-Preference-V1", ppe.PREFERENCE_HUB
    ),
    "ppe_correctness": Family(
        ppe.load_correctness, "hub lmarena-ai/PPE-<set>-Best-of-K", ppe.CORRECTNESS_HUB, ("pairs",)
    ),
    "ppe_best_of_k": Family(
        ppe.load_best_of_k, "hub lmarena-ai/PPE-<set>-Best-of-K", ppe.CORRECTNESS_HUB
    ),
    "rmb": Family(rmb.load, "github Zhou-Zoey/RMB-Reward-Model-Benchmark, RMB_dataset/"),
    "realmistake": Family(
        realmistake.load, "github psunlpgroup/ReaLMistake, data.zip", realmistake.HUB
    ),
    "judgebench": Family(
        pairs.load_judgebench, "github ScalerLab/JudgeBench, data/", pairs.JUDGEBENCH_HUB
    ),
    "rm_bench": Family(rm_bench.load, "github THU-KEG/RM-Bench, data/", rm_bench.HUB),
    "llmbar": Family(pairs.load_llmbar, "github princeton-nlp/LLMBar, Dataset/"),
    "gsm8k_solutions": Family(
        gsm8k.load_solutions,
        "github openai/grade-school-math, example_model_solutions.jsonl",
        options=("form", "seed"),
    ),
    "zeroeval_gsm": Family(
        gsm8k.load_zeroeval, "github WildEval/ZeroEval, result_dirs/gsm/", options=("form", "seed")
    ),
    "hh_rlhf": Family(pairs.load_hh_rlhf, "github anthropics/hh-rlhf", pairs.HH_RLHF_HUB),
    "records": Family(
        pairs.load_records, "JSONL of the schema in grm_jax/judgment/records.py", options=("about",)
    ),
}


def load_benchmark(spec: Mapping[str, Any]) -> Benchmark:
    """Reads and validates a benchmark. Raises ValueError or FileNotFoundError that names the field
    of the spec, or file, row and field.
    """
    spec = {
        key: value
        for key, value in (spec.to_dict() if hasattr(spec, "to_dict") else dict(spec)).items()
        if value is not None
    }
    kind = spec.pop("kind", None)
    if kind not in FAMILIES:
        raise ValueError(f'benchmark: field "kind": {_expected(kind, tuple(FAMILIES))}')
    family = FAMILIES[kind]
    known = ("name", "path", "hub", "revision", *family.options)
    for field in spec:
        if field not in known:
            raise ValueError(
                f'benchmark {kind!r}: field "{field}": unknown; {_expected(field, known)}'
            )
    name = spec.pop("name", kind)
    return family.load(name, _place(name, family, spec), **spec)


def _place(name: str, family: Family, spec: dict[str, Any]) -> Place:
    """Takes path, hub and revision out of the spec."""
    path, hub, revision = (spec.pop(field, None) for field in ("path", "hub", "revision"))
    if (path is None) == (hub is None):
        raise ValueError(
            f'benchmark {name!r}: expected one of the fields "path" and "hub"; the files are at '
            f"{family.source}"
        )
    if path is not None:
        if revision is not None:
            raise ValueError(
                f'benchmark {name!r}: field "revision": goes with "hub", not with "path"'
            )
        return Place(name, Path(path), {}, None)
    sets = {data_set for data_set, _, _ in family.hub.values()}
    if isinstance(hub, str) and len(sets) == 1:
        return Place(
            name,
            None,
            {part: (hub, config, split) for part, (_, config, split) in family.hub.items()},
            revision,
        )
    if hub is not True or not sets:
        known = (
            f"true, for {', '.join(sorted(sets))}"
            if sets
            else (f'a "path" instead, no hub data set is known; the files are at {family.source}')
        )
        raise ValueError(f'benchmark {name!r}: field "hub": expected {known}')
    return Place(name, None, family.hub, revision)


def _expected(given: Any, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    return (
        f"did you mean {near[0]!r}?"
        if near
        else (f"expected one of {', '.join(known)}, got {given!r}")
    )
