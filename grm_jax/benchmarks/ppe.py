"""Reads Preference Proxy Evaluations (arXiv 2410.14872, lmarena/PPE).

Human preferences, and verifiable correctness of 32 responses a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Place,
    Reading,
    finish,
    make_record,
    mean_of,
    means,
    named,
    with_overall,
)
from grm_jax.benchmarks.credit import best_of_k_figures, grouped, within_list_auc
from grm_jax.data.files import Row
from grm_jax.data.rows import row_text, row_turns, row_value
from grm_jax.json_files import shown
from grm_jax.judgment.records import Record

PREFERENCE_HUB = {"test": ("lmarena-ai/PPE-Human-Preference-V1", None, "test")}
SETS = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
CORRECTNESS_HUB = {name: (f"lmarena-ai/PPE-{name}-Best-of-K", None, "train") for name in SETS}
FLAGS = ("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code")

PREFERENCE_PROTOCOL = """Human votes of an arena on two responses. Votes for a tie are left out (no
response is the better one; the paper does not say what it does with them, other public harnesses
drop them) and counted. overall is the accuracy over all remaining pairs; the subsets are the
prompt's language and the data set's own flags, which overlap. A tied verdict counts 1/2 in
expectation."""

CORRECTNESS_PROTOCOL = """Pairs of a right and a wrong response to one prompt, the data set's own
sampled_conflict_pairs{first}. Accuracy of each of the five sets over its pairs; overall is their
plain mean. A tied verdict counts 1/2 in expectation. Prompts without such a pair are left out and
counted."""

BEST_OF_K_PROTOCOL = """Every response judged alone. best_of_k is the probability that the response
with the highest score among k of a prompt's responses is right, exactly over all subsets of size k,
ties broken at random, a response without a score chosen last; the official runner draws subsets at
random. roc_auc is the mean over prompts of the ROC area among the prompt's responses; ceiling the
share of prompts with a right response. overall is the mean over the sets of roc_auc,
overall/best_of_k that of best_of_k."""


def load_preference(name: str, place: Place) -> Benchmark:
    """Reads human preferences: pairs of responses, without the votes for a tie."""
    reading = Reading(place)
    records, ties = [], 0
    for _, row in reading.rows("test"):
        winner = row_text(row, "winner")
        if winner.startswith("tie"):
            ties += 1
            continue
        if winner not in ("model_a", "model_b"):
            raise ValueError(
                f'{row.where}: field "winner": expected model_a, model_b or a tie, got {winner!r}'
            )
        records.append(
            make_record(
                row,
                id=f"ppe_preference/{row.index}",
                conversation=row_turns(row, "prompt"),
                responses=[row_text(row, "response_1"), row_text(row, "response_2")],
                best=int(winner == "model_b"),
                domain=str(row.data.get("language", "")),
                metadata={"flags": [flag for flag in FLAGS if row.data.get(flag) is True]},
            )
        )
    return finish(
        name,
        reading,
        PREFERENCE_PROTOCOL,
        records,
        "accuracy",
        summarize_preference,
        counted={"human ties": ties},
    )


def summarize_preference(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages over all pairs, languages, and flags of the data set."""
    figures = means(records, credit, lambda record: record.domain or None)
    for flag in FLAGS:
        figures |= means(
            records,
            credit,
            lambda record, flag=flag: flag if flag in record.metadata["flags"] else None,
        )
    return with_overall(
        named("subset", figures),
        sum(credit[record.id] for record in records) / len(records) if records else None,
    )


def load_correctness(name: str, place: Place, pairs: str = "all") -> Benchmark:
    """Reads verifiable correctness; `pairs`: "all" of a prompt's conflict pairs, or its "first"."""
    if pairs not in ("all", "first"):
        raise ValueError(
            f'benchmark {name!r}: field "pairs": expected "all" or "first", got {pairs!r}'
        )
    reading = Reading(place)
    records, without = [], 0
    for part, row, responses, right in _prompts(reading):
        conflicts = row_value(row, "sampled_conflict_pairs", list)
        without += not conflicts
        for number, pair in enumerate(conflicts if pairs == "all" else conflicts[:1]):
            known = isinstance(pair, list) and len(pair) == 2
            if not known or not all(type(i) is int and 0 <= i < len(responses) for i in pair):
                right_pair = False
            else:
                right_pair = right[pair[0]] != right[pair[1]]
            if not right_pair:
                raise ValueError(
                    f'{row.where}: field "sampled_conflict_pairs": expected two of '
                    f"{len(responses)} responses of which one is right, got {shown(pair)}"
                )
            i, j = pair
            records.append(
                make_record(
                    row,
                    id=f"ppe_correctness/{part}/{row.index}/{number}",
                    conversation=row_turns(row, "prompt"),
                    responses=[responses[i], responses[j]],
                    best=int(right[j]),
                    domain=part,
                )
            )
    protocol = CORRECTNESS_PROTOCOL.format(
        first="" if pairs == "all" else ", the first of each prompt"
    )
    return finish(
        name,
        reading,
        protocol,
        records,
        "accuracy",
        summarize_correctness,
        counted={"prompts without a conflict pair": without},
    )


def summarize_correctness(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages each of the five sets, and their accuracies; that mean needs all five."""
    subsets = means(records, credit, lambda record: record.domain)
    return with_overall(named("subset", subsets), mean_of(subsets, SETS))


def load_best_of_k(name: str, place: Place) -> Benchmark:
    """Reads verifiable correctness: every response as a record of its own, right or wrong."""
    reading = Reading(place)
    records = [
        make_record(
            row,
            id=f"ppe_best_of_k/{part}/{row.index}/{i}",
            conversation=row_turns(row, "prompt"),
            responses=[text],
            rewards=[float(right[i])],
            domain=part,
            metadata={"question": f"{part}/{row.index}"},
        )
        for part, row, responses, right in _prompts(reading)
        for i, text in enumerate(responses)
    ]
    return finish(
        name,
        reading,
        BEST_OF_K_PROTOCOL,
        records,
        "roc_auc",
        summarize_best_of_k,
        prompt_key="question",
    )


def summarize_best_of_k(records: Sequence[Record], scores: Mapping[str, float | None]) -> Figures:
    """Gives ROC area and best-of-k figures of each set, and their means over the sets."""
    by_set: dict[str, list] = {}
    for (part, _), scored in grouped(
        scores, records, lambda r: (r.domain, r.metadata["question"])
    ).items():
        by_set.setdefault(part, []).append(scored)
    figures: Figures = {}
    for part, lists in by_set.items():
        area = within_list_auc(lists)
        one = best_of_k_figures(lists) | ({} if area is None else {"roc_auc": area})
        figures |= named(f"subset/{part}", one)
    measures = list(dict.fromkeys(name.rsplit("/", 1)[1] for name in figures))
    overall = {
        measure: mean_of(figures, [f"subset/{part}/{measure}" for part in SETS])
        for measure in measures
    }
    means_of_sets = {
        f"overall/{measure}": mean
        for measure, mean in overall.items()
        if mean is not None and measure != "roc_auc"
    }
    return with_overall(means_of_sets | figures, overall.get("roc_auc"))


def _prompts(reading: Reading) -> Iterator[tuple[str, Row, list[str], list[bool]]]:
    """(set, row, responses, whether each is right) of every prompt of the five sets."""
    for part, row in reading.rows("train"):
        where = part if reading.place.path is None else f"{reading.place.path.name}/{part}"
        columns = sorted(
            (field for field in row.data if re.fullmatch(r"response_\d+", field)),
            key=lambda field: int(field.split("_")[1]),
        )
        right = list(row_value(row, "scores", list))
        if not columns or len(right) != len(columns) or not all(value in (0, 1) for value in right):
            raise ValueError(
                f'{row.where}: field "scores": expected true or false for each of the '
                f"{len(columns)} fields response_1, response_2, ..."
            )
        yield (
            _set_of(where, row),
            row,
            [row_text(row, column) for column in columns],
            [bool(value) for value in right],
        )


def _set_of(part: str, row: Row) -> str:
    plain = re.sub(r"[^a-z]", "", part.lower())
    found = [name for name in SETS if re.sub(r"[^a-z]", "", name.lower()) in plain]
    if len(found) != 1:
        raise ValueError(
            f"{row.where}: cannot tell the set: expected one of {', '.join(SETS)} in the file's "
            "name or that of its folder"
        )
    return found[0]
