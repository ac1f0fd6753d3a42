"""Reads ReaLMistake (arXiv 2404.03602, psunlpgroup/ReaLMistake).

The question is whether there is an error in one response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Place,
    Reading,
    choice,
    finish,
    make_record,
    mean_of,
    with_overall,
)
from grm_jax.benchmarks.credit import grouped, roc_auc
from grm_jax.data.rows import row_text
from grm_jax.judgment.records import Record

TASKS = (
    "math_word_problem_generation",
    "finegrained_fact_verification",
    "answerability_classification",
)
HUB = {
    f"{task}/{split}": ("ryokamoi/realmistake", task, split)
    for task in TASKS
    for split in ("gpt4", "llama2")
}

PROTOCOL = """Single responses of GPT-4 and Llama 2 70B to three tasks; experts marked them as with
or without an error. The figure is the area under the ROC curve of the response's score (a sum over
k samples) as a sign of no error; ties, and comparisons with a response that has no score, count
1/2. overall is the plain mean of the three tasks; pooled is over all responses at once (the paper
does not say which it reports). The benchmark's own paper reports F1 and accuracy of yes/no answers
instead. The files come as a zip with a password, which its README states."""


def load(name: str, place: Place) -> Benchmark:
    """Reads the files <task>/<model>.jsonl of data.zip.

    A folder may hold other files (the examples of the paper): they are not read.
    """
    reading = Reading(place)
    records, examples = [], 0
    for part, row in reading.rows():
        where = (
            part
            if place.path is None
            else f"{place.path.absolute().parent.name}/{place.path.name}/{part}"
        )
        task = next((task for task in TASKS if task in where.split("/")), None)
        if task is None and place.path is not None and place.path.is_dir():
            examples += 1
            continue
        if task is None:
            raise ValueError(f"{row.where}: expected the file in a folder named {', '.join(TASKS)}")
        label = choice(
            row, "label" if "label" in row.data else "error_label", ("error", "no_error")
        )
        model = part.rsplit("/", 1)[-1].removesuffix(".jsonl")
        records.append(
            make_record(
                row,
                id=f"realmistake/{task}/{model}/{row.index}",
                conversation=[{"role": "user", "content": row_text(row, "input")}],
                responses=[row_text(row, "llm_response")],
                rewards=[float(label == "no_error")],
                domain=task,
                metadata={"response_model": model},
            )
        )
    return finish(
        name,
        reading,
        PROTOCOL,
        records,
        "roc_auc",
        summarize,
        counted={"rows of files outside the three tasks": examples},
    )


def summarize(records: Sequence[Record], scores: Mapping[str, float | None]) -> Figures:
    """Computes the ROC area of each task, of each model's responses to it, and of all pooled."""

    def areas(key) -> Figures:
        found = {name: roc_auc(*scored) for name, scored in grouped(scores, records, key).items()}
        return {name: area for name, area in found.items() if area is not None}

    tasks = areas(lambda record: record.domain)
    figures = {f"section/{task}": area for task, area in tasks.items()}
    figures |= {
        f"subset/{cell}": area
        for cell, area in areas(lambda r: f"{r.domain}/{r.metadata['response_model']}").items()
    }
    return with_overall(areas(lambda record: "pooled") | figures, mean_of(tasks, TASKS))
