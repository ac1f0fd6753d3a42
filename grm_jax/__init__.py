"""Generalist generative reward models in JAX, trained by Self-Principled Critique Tuning.

    judge = grm_jax.load("tiny")
    verdict = judge("Reverse the list: 1.fox 2.ant", ["1.ant 2.fox", "1.fox 2.ant"], k=8)

What is named here is imported when it is first used: importing the package takes no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grm_jax.judge import Judge, load
    from grm_jax.judgment.anytime import Anytime
    from grm_jax.judgment.records import Criterion, Record, Turn, read_records
    from grm_jax.judgment.voting import vote
    from grm_jax.verdict import Judgment, Verdict

__version__ = "0.1.0"
__all__ = [
    "Anytime",
    "Criterion",
    "Judge",
    "Judgment",
    "Record",
    "Turn",
    "Verdict",
    "__version__",
    "load",
    "read_records",
    "vote",
]
_HOMES = {
    "grm_jax.judge": ("Judge", "load"),
    "grm_jax.verdict": ("Judgment", "Verdict"),
    "grm_jax.judgment.anytime": ("Anytime",),
    "grm_jax.judgment.records": ("Criterion", "Record", "Turn", "read_records"),
    "grm_jax.judgment.voting": ("vote",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
