"""Reads RM-Bench (arXiv 2410.16184, THU-KEG/RM-Bench).

Three right and three wrong responses in three styles, compared in a 3 x 3 grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grm_jax.benchmarks.base import (
    Benchmark,
    Figures,
    Official,
    Place,
    Reading,
    finish,
    make_record,
    mean_of,
    means,
    named,
    row_id,
    texts,
    with_overall,
)
from grm_jax.data.files import Row
from grm_jax.data.rows import row_text, row_turns
from grm_jax.judgment.records import Record

HUB = {"train": ("THU-KEG/RM-Bench", None, "train")}
DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")
SECTIONS = ("chat", "code", "math", "safety")
STYLES = ("concise", "detailed", "markdown")
LEVELS = ("easy", "normal", "hard")

PROTOCOL = """Every prompt has a right and a wrong response in three styles (concise, detailed,
detailed with markdown); each of the nine right-wrong pairs is an item. easy: the right one has the
richer style; normal: the same style; hard: the wrong one has the richer style. A domain's figure is
the mean of its easy, normal and hard accuracy; safety pools its two halves; overall is the plain
mean of chat, code, math and safety, and overall/easy, overall/normal, overall/hard are means over
them too. A tie counts 1/2 in expectation; officially it counts 0."""


def load(name: str, place: Place) -> Benchmark:
    """Reads total_dataset.json, or the files of the domains.

    A folder with both, as in the repository, is read from the first alone.
    """
    whole = (
        sorted(place.path.rglob("total_dataset.json"))
        if place.path is not None and place.path.is_dir()
        else []
    )
    if whole:
        place = place._replace(path=whole[0])
    reading = Reading(place)
    records = []
    for part, row in reading.rows("train"):
        domain = _domain(part, row)
        right, wrong = texts(row, "chosen", 3), texts(row, "rejected", 3)
        for i, style in enumerate(STYLES):
            for j, other in enumerate(STYLES):
                records.append(
                    make_record(
                        row,
                        id=f"rm_bench/{domain}/{row_id(row, 'id')}/{i}-{j}",
                        conversation=row_turns(row, "prompt"),
                        best=0,
                        responses=[right[i], wrong[j]],
                        domain=domain,
                        metadata={
                            "level": "normal" if i == j else "easy" if i > j else "hard",
                            "styles": [style, other],
                        },
                    )
                )
    return finish(
        name,
        reading,
        PROTOCOL,
        records,
        "accuracy",
        summarize,
        official=Official("strict", "strict"),
    )


def _domain(part: str, row: Row) -> str:
    domain = (
        row_text(row, "domain")
        if "domain" in row.data
        else part.rsplit("/", 1)[-1].removesuffix(".json").removesuffix("_filtered")
    )
    if domain not in DOMAINS:
        raise ValueError(
            f'{row.where}: expected a field "domain", or a file <domain>_filtered.json, of '
            f"{', '.join(DOMAINS)}; got {domain!r}"
        )
    return domain


def summarize(records: Sequence[Record], credit: Mapping[str, float]) -> Figures:
    """Averages domains and sections at each level, their levels, and the sections."""

    def level_means(domain_of) -> dict[str, dict[str, float]]:
        cells = means(
            records, credit, lambda record: f"{domain_of(record)}/{record.metadata['level']}"
        )
        names = sorted({cell.split("/")[0] for cell in cells})
        return {
            name: {
                level: cells[f"{name}/{level}"] for level in LEVELS if f"{name}/{level}" in cells
            }
            for name in names
        }

    sections = level_means(lambda record: record.domain.split("-")[0])
    figures: Figures = {}
    for prefix, groups in (
        ("section", sections),
        ("subset", level_means(lambda record: record.domain)),
    ):
        for name, levels in groups.items():
            figures = {
                **figures,
                **with_overall(
                    named(f"{prefix}/{name}", levels), mean_of(levels, LEVELS), f"{prefix}/{name}"
                ),
            }
    for level in reversed(LEVELS):
        mean = mean_of(
            {name: levels[level] for name, levels in sections.items() if level in levels}, SECTIONS
        )
        figures = with_overall(figures, mean, f"overall/{level}")
    return with_overall(figures, mean_of(figures, [f"section/{section}" for section in SECTIONS]))
