"""Makes a checkable world: preference records whose gold is computed.

For showing SPCT with a model of under a million parameters. docs/world.md describes it for readers;
`tasks` has the task families, `records` the splits, `rubrics` those that are judged by a rubric,
`judge` the sloppy judge that the tiny base model imitates, `corpus` the text that the base is
pretrained on.
"""

from grm_jax.data.world import records, rubrics
from grm_jax.data.world.critiques import make_critiques
from grm_jax.data.world.records import make_instructions
from grm_jax.data.world.rubrics import make_rubric_judgments
from grm_jax.judgment.records import Record

__all__ = [
    "SPLITS",
    "describe",
    "make_critiques",
    "make_instructions",
    "make_records",
    "make_rubric_judgments",
]
SPLITS = (*records.SPLITS, *rubrics.SPLITS)


def make_records(split: str, count: int, seed: int = 0) -> list[Record]:
    """Makes `count` records of a split, in the schema of `grm_jax.judgment.records`."""
    make = rubrics.make_rubric_records if split in rubrics.SPLITS else records.make_records
    return make(split, count, seed)


def describe(split: str) -> str:
    """Says in words what the records of a split are, for a reader of figures on them."""
    return (rubrics if split in rubrics.SPLITS else records).describe(split)
