"""From a config to what is planned of its run (experiments/plan.py)."""

import functools
import pathlib

import ml_collections

from experiments import run_config
from grm_jax.models.config import from_sizes
from grm_jax.planning.programs import Job, planned_model
from grm_jax.reward_models.description import BUILT_IN, layers_of, model_folder, tokenizer_home
from grm_jax.tokenizer import load_tokenizer


def job_of(config: ml_collections.ConfigDict, platform: str = "tpu") -> Job:
    """The job of a preset of experiments.spct_rl on a platform. Neither weights nor data need to be
    there, and nothing is downloaded, but what adapters are upon has to be found.

    Raises ValueError for a model that is neither there nor of a published size.
    """
    section = functools.partial(run_config.section, config)
    numerics, path = section("model").resolve(platform), config.model.path
    here = path is not None and (path in BUILT_IN or pathlib.Path(path).exists())
    try:
        layers = layers_of(model_folder(path)) if here else (path,)
    except FileNotFoundError as error:
        raise ValueError(f"model.path: {error}") from error
    folder, tokenizer = layers[0], config.tokenizer.path
    if tokenizer is None:
        tokenizer = tokenizer_home(layers) if here else path
    loaded = None
    if tokenizer is not None and pathlib.Path(tokenizer).exists():
        loaded = load_tokenizer(tokenizer)
    if config.model.random_init is None:
        model_cfg = planned_model(folder, **numerics)
    elif loaded is None:
        raise ValueError("tokenizer.path: expected a tokenizer, whose vocabulary the model takes")
    else:
        model_cfg = from_sizes(config.model.random_init, loaded.vocab_size, **numerics)
    names = ("mesh", "lengths", "sampling", "optimizer", "lora", "rft", "rl", "meta")
    settings = {name: section(name) for name in names}
    lengths = section("lengths")
    more = {
        "general_fraction": settings["rft"].general_fraction,
        "row_lengths": section("packing").lengths(lengths.sequence_buckets[-1]),
    }
    more["platform"] = platform
    more |= {} if loaded is None else {"stop_ids": loaded.stop_ids}
    return Job(model_cfg, **settings, **more)
