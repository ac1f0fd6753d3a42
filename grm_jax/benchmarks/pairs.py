"""Reads benchmarks of pairs with a plain layout: JudgeBench, LLMBar, hh-rlhf, and our own JSONL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Official,
    Place,
    Reading,
    choice,
    finish,
    make_record,
    mean_of,
    means,
    named,
    summarize_domains,
    with_overall,
)
from grm_jax.data.formats import FORMATS
from grm_jax.data.rows import row_text
from grm_jax.judgment.records import Record

JUDGEBENCH_HUB = {split: ("ScalerLab/JudgeBench", None, split) for split in ("gpt", "claude")}
HH_RLHF_HUB = {"test": ("Anthropic/hh-rlhf", None, "test")}
JUDGEBENCH_SECTIONS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
PROCESSED = ("FairEval", "MT-Bench", "LLMEval2", "LLMEval^2")

JUDGEBENCH_PROTOCOL = """Pairs of responses of one model to one question, one objectively right
(label "A>B" or "B>A"). overall is the accuracy over all pairs read; the published table is over the
350 pairs of GPT-4o (response_model/gpt-4o-2024-05-13). Sections: Knowledge (MMLU-Pro), Reasoning,
Math, Coding. A tie counts 1/2 in expectation. The official runner asks a judge in both orders and
counts a pair when the two verdicts together favor the right response, a tie or one verdict each
way counting 0: strict credit over the votes of both orders. A reward model is asked once, ties 0.
"""

LLMBAR_PROTOCOL = """Pairs of outputs for one instruction, label 1 or 2 the better one. Accuracy of
each subset; section/Adversarial is the plain mean of Neighbor, GPTInst, GPTOut and Manual; overall
the plain mean of Natural and those four. The Processed sets (human labels) have a mean of their own
and do not enter it. A tie counts 1/2 in expectation; the official runner asks in both orders, and a
reply without a verdict counts 0."""

HH_PROTOCOL = """Dialogues that differ from some assistant turn on; humans preferred the chosen one.
The conversation is what the two share. overall is the accuracy over all pairs, subsets are the
folders. A tie counts 1/2 in expectation. There is no official runner."""

RECORDS_PROTOCOL = """The figure is the mean credit of all items; subsets are the records' domains.
A tie of t that includes the best response counts 1/t in expectation; a single response scored 0 or
1 is right when the score is its reward."""

NO_GOLD_PROTOCOL = """The records have no gold: they are judged, and verdicts, ties, failures and
agreement of both orders are counted. No figure says how often a verdict is right, for there is
nothing to compare it with."""


def load_judgebench(name: str, place: Place) -> Benchmark:
    """Reads JudgeBench: pairs of responses to a question, one of them objectively right."""
    reading = Reading(place)
    records = []
    for _, row in reading.rows():
        model, source = row_text(row, "response_model"), row_text(row, "source")
        label = choice(row, "label", ("A>B", "B>A"))
        section = next(
            (section for start, section in JUDGEBENCH_SECTIONS.items() if source.startswith(start)),
            None,
        )
        if section is None:
            raise ValueError(
                f'{row.where}: field "source": expected one that begins with '
                f"{', '.join(JUDGEBENCH_SECTIONS)}, got {source!r}"
            )
        records.append(
            make_record(
                row,
                id=f"judgebench/{model}/{row_text(row, 'pair_id')}",
                conversation=[{"role": "user", "content": row_text(row, "question")}],
                responses=[row_text(row, "response_A"), row_text(row, "response_B")],
                best=int(label == "B>A"),
                domain=source,
                metadata={"response_model": model, "section": section},
            )
        )
    return finish(
        name,
        reading,
        JUDGEBENCH_PROTOCOL,
        records,
        "accuracy",
        summarize_judgebench,
        official=Official("strict", "strict", "verdicts"),
    )


def summarize_judgebench(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages over all pairs, subsets, models of the responses, and sections."""
    models = means(records, credit, lambda record: record.metadata["response_model"])
    sections = means(records, credit, lambda record: record.metadata["section"])
    return (
        summarize_domains(records, credit)
        | named("response_model", models)
        | named("section", sections)
    )


def load_llmbar(name: str, place: Place) -> Benchmark:
    """Reads LLMBar: pairs of outputs for an instruction."""
    return _of_format(
        name,
        place,
        "llmbar",
        ("input", "output_1", "output_2", "label"),
        LLMBAR_PROTOCOL,
        summarize_llmbar,
        Official("expected", "parsed", "mean"),
    )


def summarize_llmbar(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages each subset, the Adversarial and the Processed ones, and Natural with the first."""
    subsets = means(records, credit, lambda record: record.domain)
    sections = with_overall({}, mean_of(subsets, ADVERSARIAL), "section/Adversarial")
    processed = [name for name in PROCESSED if name in subsets]
    sections = with_overall(sections, mean_of(subsets, processed), "section/Processed")
    return with_overall(
        {**sections, **named("subset", subsets)}, mean_of(subsets, ("Natural", *ADVERSARIAL))
    )


def load_hh_rlhf(name: str, place: Place) -> Benchmark:
    """Reads hh-rlhf: pairs of dialogues, the chosen one the better."""
    return _of_format(
        name, place, "hh_rlhf", ("chosen", "rejected"), HH_PROTOCOL, summarize_domains, None, "test"
    )


def load_records(
    name: str, place: Place, about: str = "", left_out: Mapping[str, int] | None = None
) -> Benchmark:
    """Reads records of our own schema, with gold or, all of them, without.

    about: what these records are, in words, which open the protocol; else the file's name does.
    left_out: {reason: records} that were left out before, for the counts.
    """
    if not about:
        hub = ", ".join(dict.fromkeys(dataset for dataset, _, _ in place.hub.values()))
        about = f"Records of {place.path.name if place.path else hub}."
    benchmark = _of_format(
        name,
        place,
        "records",
        ("id", "conversation", "responses"),
        f"{about} {RECORDS_PROTOCOL}",
        summarize_domains,
        None,
        counted={f"left out: {reason}": count for reason, count in (left_out or {}).items()},
    )
    bare = [record.id for record in benchmark.records if record.rewards is None]
    if not bare:
        return benchmark
    if len(bare) < len(benchmark.records):
        raise ValueError(
            f"benchmark {name!r}: {len(bare)} of {len(benchmark.records)} records, such as "
            f'{bare[0]!r}, have no gold ("rewards" or "best"); expected all or none with gold in '
            f"{place.path}"
        )
    protocol = " ".join(f"{about} {NO_GOLD_PROTOCOL}".split())
    return benchmark._replace(metric="none", protocol=protocol, summarize=lambda values: {})


def _of_format(
    name: str,
    place: Place,
    form: str,
    fields: Sequence[str],
    protocol: str,
    summarize,
    official: Official | None,
    split: str = "",
    counted: Mapping[str, int] | None = None,
) -> Benchmark:
    reading = Reading(place)
    records = []
    for _, row in reading.rows(split):
        absent = [field for field in fields if field not in row.data]
        if absent:
            raise ValueError(
                f'{row.where}: field "{absent[0]}": missing; expected a row with '
                f"{', '.join(fields)}, it has {', '.join(row.data)}"
            )
        records.append(make_record(row, **FORMATS[form](row)))
    return finish(
        name, reading, protocol, records, "accuracy", summarize, official=official, counted=counted
    )
