"""Settings of the sections that only the scripts read, and which settings a config consists of."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from grm_jax.data.world.records import SPLITS as WORLD_SPLITS
from grm_jax.evaluation.settings import EvalConfig
from grm_jax.models.config import Numerics, from_sizes
from grm_jax.models.lora import LoraConfig
from grm_jax.parallel.mesh import MeshConfig
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.settings import (
    ABOVE_ZERO,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Rule,
    SettingsError,
    check,
    growing,
    one_of,
    some_of,
)
from grm_jax.training.metrics import check_sinks
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.settings import (
    FIT_RELATIONS,
    FIT_RULES,
    WHOLE,
    FitConfig,
    PackingConfig,
    RlConfig,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+@-]*")  # of a system or benchmark: a folder
SYSTEMS = ("base", "rft", "grm")  # policies of a run
TRAJECTORIES = ("unhinted", "hinted")
PAPER_GROUPS = ("main", "judges", "ablations", "sizes")  # experiments/paper/systems.py
KINDS = ("bradley_terry", "pair_rm", "cloud")
GENERAL_FRACTION: Rule = ("a number in [0, 1)", lambda x: 0 <= x < 1)
SEED: Rule = ("an integer from 0 to 2147483647", lambda seed: 0 <= seed < 2**31)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What stands at the top of a preset that trains.

    seed: of response order, sampling, data order and initialization. note: free text that goes into
    results.json and the page. answer: what a judgment's box holds, a score for each response
    ("scores") or the "index" of the best one. kind: of the reward model that
    experiments.reward_model trains.
    """

    seed: int
    note: str = ""
    answer: str = "scores"
    kind: str | None = None

    def __post_init__(self):
        rules: dict[str, Rule] = {
            "seed": SEED,
            "answer": one_of(("scores", "index")),
            "kind": one_of(KINDS),
        }
        check(self, rules)


@dataclasses.dataclass(frozen=True)
class PaperConfig:
    """What stands at the top of a preset of experiments.paper, beside how all systems are asked."""

    fast: bool
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    betas: tuple[float, ...]
    widths: tuple[int, ...]
    base: Mapping
    splits: tuple[str, ...]
    world_seed: int
    records: int
    ks: tuple[int, ...]

    def __post_init__(self):
        def steps(base: Mapping) -> bool:
            values = [base.get(name) for name in ("steps", "decay_steps")]
            return len(base) == 2 and all(type(v) is int and v >= 1 for v in values)

        several = "one number or several, each >= 0 and no other's"
        rules: dict[str, Rule] = {
            "seeds": (several, lambda x: x and len(set(x)) == len(x) and all(map(SEED[1], x))),
            "groups": some_of(PAPER_GROUPS),
            "betas": (several, lambda x: x and len(set(x)) == len(x) and min(x) >= 0),
            "widths": ("multiples of 32", lambda x: all(w >= 32 and w % 32 == 0 for w in x)),
            "base": ("steps and decay_steps, positive integers", steps),
            "splits": some_of(WORLD_SPLITS),
            "world_seed": SEED,
            "records": POSITIVE,
            "ks": ("growing integers from 1", lambda ks: ks[:1] == (1,) and growing(ks)),
        }
        check(self, rules)


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """What stands at the top of a preset of experiments.evaluate: the descriptions of the systems
    (reward_models/load.py), and of the benchmarks that all of them judge (grm_jax/benchmarks).
    """

    systems: tuple[Mapping, ...]
    benchmarks: tuple[Mapping, ...]

    def __post_init__(self):
        some = "at least one description, a dict"
        check(self, {"systems": (some, _have_names), "benchmarks": (some, len)})


def _have_names(systems: tuple[Mapping, ...]) -> bool:
    names = [spec.get("name") for spec in systems]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not NAME.fullmatch(name) or names.index(name) != i:
            raise ValueError(
                f'[{i}]: field "name": expected a name of its own that can be a folder (letters, '
                f'digits, " ._+@-"), got {name!r}'
            )
    return bool(names)


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where the model to start from is: `path`, a Hugging Face folder, one of adapters, which are
    merged, or the name of a model in the package; or the sizes of a randomly initialized one,
    fields of `ModelConfig`.
    """

    path: str | None = None
    random_init: Mapping[str, Any] | None = None

    def __post_init__(self):
        check(
            self,
            relations=[
                (
                    "path random_init",
                    "a model to start from, or else model.random_init, and not both",
                    lambda path, sizes: (path is None) != (sizes is None),
                )
            ],
        )
        if self.random_init is not None:
            try:
                from_sizes(self.random_init, vocab_size=1)
            except SettingsError as error:
                problems = [f"random_init.{problem}" for problem in error.problems]
                raise SettingsError(type(self).__name__, problems) from error


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer's file or folder; None: that of the model.

    chat_args: switches of its own chat template, {"enable_thinking": False}, say; None: none.
    """

    path: str | None = None
    chat_args: Mapping[str, Any] | None = None

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
    """Templates by role: names of built-in ones, paths of Jinja files, or package.module:function.

    pointwise: responses, each of which gets a score. single: one response. meta: what the Meta RM
    reads. judge: responses, of which the best is named. rubric: responses, each of which gets a
    score for each criterion of its record's rubric; None for none, as in all presets of the paper.
    """

    pointwise: str
    single: str
    meta: str
    judge: str = "judge"
    rubric: str | None = None

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of records: tuples of dicts (`run_config.sources`), for each split of `eval` one.

    train: preference records. general: instruction data. critiques: critiques of single responses.
    max_left_out: most that may be left out of a set as too long, as a share of it.
    """

    train: tuple[Mapping, ...]
    general: tuple[Mapping, ...]
    eval: Mapping[str, tuple[Mapping, ...]]
    critiques: tuple[Mapping, ...] = ()
    max_left_out: float = 0.5

    def __post_init__(self):
        check(self, {"max_left_out": FRACTION})


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """What of a run is evaluated: the fields of the section eval that are not of `EvalConfig`.

    records: of each split, from the front; 0: all. splits: names in data.eval. systems: policies.
    """

    records: int
    splits: tuple[str, ...]
    systems: tuple[str, ...] = SYSTEMS

    def __post_init__(self):
        check(self, {"records": NOT_NEGATIVE, "systems": some_of(SYSTEMS)})


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Train-state checkpoints: every so many steps, of which the last `keep` stay."""

    every: int
    keep: int

    def __post_init__(self):
        check(self, {"every keep": POSITIVE})


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is logged: a judged example every so many steps, and metrics to the sinks."""

    example_every: int
    sinks: tuple[str, ...] = ("jsonl", "tensorboard")

    def __post_init__(self):
        known: Rule = ("names of sinks", lambda sinks: check_sinks(sinks) is None)
        check(self, {"example_every": POSITIVE, "sinks": known})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RftConfig(FitConfig):
    """Rejective fine-tuning.

    samples, hinted_samples: of each record, without and with the best response's number in the
        prompt. temperature: of both.
    drop_too_easy: drop records whose unhinted samples are all correct; keep_hinted_of_too_easy: but
        for their hinted samples.
    trajectories: kinds of samples that are trained on; (): general data alone.
    principles: False trains on the judgments from their analysis on.
    general_fraction: share of general instruction data in a batch.
    steps: 0 leaves the stage out: the RFT model is the base.
    """

    samples: int
    hinted_samples: int
    temperature: float
    drop_too_easy: bool
    keep_hinted_of_too_easy: bool
    trajectories: tuple[str, ...]
    principles: bool
    general_fraction: float

    def __post_init__(self):
        _, known = some_of(TRAJECTORIES)
        names: Rule = (f"some of {', '.join(TRAJECTORIES)}, or none", lambda x: not x or known(x))
        only_general = (
            "general_fraction trajectories",
            "more than 0, as trajectories is empty",
            lambda fraction, trajectories: trajectories or fraction > 0,
        )
        rules: dict[str, Rule] = {
            "steps": WHOLE,
            "samples": POSITIVE,
            "hinted_samples": NOT_NEGATIVE,
            "temperature": ABOVE_ZERO,
            "trajectories": names,
            "general_fraction": GENERAL_FRACTION,
        }
        check(self, FIT_RULES | rules, [*FIT_RELATIONS, only_general])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaConfig(FitConfig):
    """The Meta RM: a scalar head that tells correct judgments from wrong ones.

    own_samples: judgments of each training record by each of the `policies`, at `temperature`, that
    it is trained on beside the unhinted trajectories of RFT.
    """

    own_samples: int
    policies: tuple[str, ...]
    temperature: float

    def __post_init__(self):
        rules: dict[str, Rule] = {
            "own_samples": POSITIVE,
            "policies": some_of(SYSTEMS),
            "temperature": ABOVE_ZERO,
        }
        check(self, FIT_RULES | rules, FIT_RELATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BradleyTerryConfig(FitConfig):
    """A scalar reward model. Batches count pairs. center: weight of (r_better + r_worse)^2."""

    center: float

    def __post_init__(self):
        check(self, FIT_RULES | {"center": NOT_NEGATIVE}, FIT_RELATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticConfig(FitConfig):
    """The critic of CLoud. path: the policy that it starts from; None: the model.
    general_fraction: share of general instruction data in a batch.
    """

    path: str | None
    general_fraction: float

    def __post_init__(self):
        check(self, FIT_RULES | {"general_fraction": GENERAL_FRACTION}, FIT_RELATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudConfig(FitConfig):
    """The head of CLoud, trained on sampled critiques. Batches count pairs.

    samples: critiques of each response, drawn at `temperature`.
    """

    samples: int
    temperature: float

    def __post_init__(self):
        rules: dict[str, Rule] = {"samples": POSITIVE, "temperature": ABOVE_ZERO}
        check(self, FIT_RULES | rules, FIT_RELATIONS)


# {script: {section of its presets: the settings that it holds}}; "" is the top. The fields of a
# section with several are shared out among them; the first is what `run_config.section` gives.
_ASKING = {
    "model": (Numerics,),
    "mesh": (MeshConfig,),
    "templates": (TemplateConfig,),
    "lengths": (Lengths,),
    "sampling": (Sampling,),
    "eval": (EvalConfig,),
}
_RUN = _ASKING | {
    "model": (Numerics, ModelSource),
    "tokenizer": (TokenizerConfig,),
    "data": (DataConfig,),
    "packing": (PackingConfig,),
    "optimizer": (OptimizerConfig,),
    "lora": (LoraConfig,),
    "eval": (EvalConfig, SplitConfig),
    "checkpoint": (CheckpointConfig,),
    "log": (LogConfig,),
}
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "experiments.spct_rl": {"": (RunConfig,)}
    | _RUN
    | {"rft": (RftConfig,), "rl": (RlConfig,), "meta": (MetaConfig,)},
    "experiments.reward_model": {"": (RunConfig,)}
    | _RUN
    | {
        "bradley_terry": (BradleyTerryConfig,),
        "pair_rm": (FitConfig,),
        "critic": (CriticConfig,),
        "cloud": (CloudConfig,),
    },
    "experiments.evaluate": {"": (ComparisonConfig,)} | _ASKING,
}
