"""Makes a checkable world: preference records whose gold is computed.

For showing SPCT with a model of under a million parameters. docs/world.md describes it for readers;
`tasks` has the task families, `records` the splits, `judge` the sloppy judge that the tiny base
model imitates, `corpus` the text that the base is pretrained on.
"""

from grm_jax.data.world.critiques import make_critiques
from grm_jax.data.world.records import describe, make_instructions, make_records

__all__ = ["describe", "make_critiques", "make_instructions", "make_records"]
