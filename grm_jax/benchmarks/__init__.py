"""Reads benchmarks: `load_benchmark(spec)` gives records, and figures of their results.

docs/benchmarks.md has each protocol, and what each reads; docs/extend.md one of your own. A spec is
a plain dict (or ml_collections ConfigDict):

    kind      one of FAMILIES, or `package.module:function` for a function (name, place, **options)
              that returns a `Benchmark`
    name      in tables and folders; the kind if absent
    path      a file or folder of the official data, as published
    hub       instead of a path: true for the official hub data set, or another data set of the same
              fields
    revision  of the hub data set
    limit     for a first look: so many items at most, spread over the subsets; a larger limit holds
              those of a smaller one
    prior (rewardbench), pairs (ppe_correctness), form and seed (gsm8k_solutions, zeroeval_gsm)
              options of one kind: keyword arguments of its function

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
from grm_jax.benchmarks.base import Benchmark, Official, Place, first_look
from grm_jax.benchmarks.credit import CREDIT, all_pairs_won, best_of_k, roc_auc
from grm_jax.data.sources import set_fields
from grm_jax.naming import own_settings, resolve

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
    """Says how a kind of benchmark is read: load(name, place, **options), and where from.

    source: where the files are published; "" for a function of the user's own, which may need none.
    hub: {part: (data set, config, split)}, {} where none is known.
    """

    load: Callable[..., Benchmark]
    source: str
    hub: Mapping[str, tuple[str, str | None, str]] = {}


FAMILIES = {
    "rewardbench": Family(
        rewardbench.load, "hub allenai/reward-bench, split filtered", rewardbench.HUB
    ),
    "rewardbench2": Family(rewardbench2.load, "hub allenai/reward-bench-2", rewardbench2.HUB),
    "rewardbench2_ties": Family(
        rewardbench2.load_ties, "hub allenai/reward-bench-2", rewardbench2.HUB
    ),
    "ppe_preference": Family(
        ppe.load_preference, "hub lmarena-ai/PPE-Human-Preference-V1", ppe.PREFERENCE_HUB
    ),
    "ppe_correctness": Family(
        ppe.load_correctness, "hub lmarena-ai/PPE-<set>-Best-of-K", ppe.CORRECTNESS_HUB
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
        gsm8k.load_solutions, "github openai/grade-school-math, example_model_solutions.jsonl"
    ),
    "zeroeval_gsm": Family(gsm8k.load_zeroeval, "github WildEval/ZeroEval, result_dirs/gsm/"),
    "hh_rlhf": Family(pairs.load_hh_rlhf, "github anthropics/hh-rlhf", pairs.HH_RLHF_HUB),
    "records": Family(pairs.load_records, "JSONL of the schema in grm_jax/judgment/records.py"),
}


def load_benchmark(spec: Mapping[str, Any]) -> Benchmark:
    """Reads and validates a benchmark.

    Raises ValueError or FileNotFoundError that names the field of the spec, or file, row and field.
    """
    spec = set_fields(spec)
    kind = spec.pop("kind", None)
    family = _family(kind)
    options = own_settings(family.load, 2)
    known = ("name", "path", "hub", "revision", "limit", *(option for option in options if option))
    for field in spec:
        if field not in known and None not in options:
            raise ValueError(
                f'benchmark {kind!r}: field "{field}": unknown; {_expected(field, known)}'
            )
    name = spec.pop("name", kind.replace(":", "."))
    limit = spec.pop("limit", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(
            f'benchmark {name!r}: field "limit": expected a positive integer, got {limit!r}'
        )
    place = _place(name, family, spec)
    missing = [option for option, needed in options.items() if needed and option not in spec]
    if missing:
        raise ValueError(f'benchmark {name!r}: field "{missing[0]}": missing; {kind} needs it')
    benchmark = family.load(name, place, **spec)
    if not isinstance(benchmark, Benchmark):
        raise TypeError(
            f"benchmark {name!r}: expected {kind} to return a Benchmark (grm_jax.benchmarks.base."
            f"finish makes one), got a {type(benchmark).__name__}"
        )
    return benchmark if limit is None else first_look(benchmark, limit)


def _family(kind: Any) -> Family:
    if isinstance(kind, str) and ":" in kind:
        try:
            return Family(resolve(kind, {}), "")
        except (ValueError, TypeError) as error:
            raise ValueError(f'benchmark: field "kind": {error}') from error
    if kind not in FAMILIES:
        raise ValueError(
            f'benchmark: field "kind": {_expected(kind, tuple(FAMILIES))}, or write '
            "package.module:function"
        )
    return FAMILIES[kind]


def _place(name: str, family: Family, spec: dict[str, Any]) -> Place:
    """Takes path, hub and revision out of the spec."""
    path, hub, revision = (spec.pop(field, None) for field in ("path", "hub", "revision"))
    if path is None and hub is None and not family.source:
        return Place(name, None, {}, None)
    if (path is None) == (hub is None):
        raise ValueError(
            f'benchmark {name!r}: expected one of the fields "path" and "hub"{_published(family)}'
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
            else f'a "path" instead, no hub data set is known{_published(family)}'
        )
        raise ValueError(f'benchmark {name!r}: field "hub": expected {known}')
    return Place(name, None, family.hub, revision)


def _published(family: Family) -> str:
    return f"; the files are at {family.source}" if family.source else ""


def _expected(given: Any, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    return (
        f"did you mean {near[0]!r}?"
        if near
        else (f"expected one of {', '.join(known)}, got {given!r}")
    )
