"""A reward model of a config's system, asked as the config says (grm_jax/reward_models/load.py)."""

from collections.abc import Callable, Mapping

import ml_collections

from grm_jax.judgment.prompts import load_template
from grm_jax.models.config import Numerics
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models import load
from grm_jax.reward_models.load import KINDS, Asking, wrong_fields
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.sampling.settings import Lengths, Sampling

__all__ = ["KINDS", "asking_of", "load_reward_model", "reward_model_maker", "wrong_fields"]


def asking_of(config: ml_collections.ConfigDict) -> Asking:
    """How the sections model, mesh, templates, lengths and sampling of experiments/configs/evaluate
    ask all systems.
    """
    sampling = config.sampling.to_dict()
    return Asking(
        mesh=make_mesh(**config.mesh),
        numerics=Numerics(
            **{f: config.model[f] for f in ("dtype", "scan_layers", "remat", "attention")}
        ),
        lengths=Lengths(**{f: _tuple(value) for f, value in config.lengths.items()}),
        sampling=Sampling(**{f: sampling[f] for f in ("top_p", "top_k", "rows", "sampler")}),
        templates={role: load_template(name) for role, name in config.templates.items()},
        samples_per_order=min(sampling["samples_per_order"], max(config.ks)),
    )


def load_reward_model(
    spec: Mapping, config: ml_collections.ConfigDict, seed: int = 0
) -> RewardModel:
    """The model of a spec."""
    return load.load_reward_model(spec, asking_of(config), seed)


def reward_model_maker(
    spec: Mapping, config: ml_collections.ConfigDict
) -> Callable[[int], RewardModel]:
    """seed -> the model of a spec."""
    asking = asking_of(config)
    return lambda seed: load.load_reward_model(spec, asking, seed)


def _tuple(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value
