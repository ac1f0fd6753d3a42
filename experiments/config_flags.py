"""--config and --workdir: load a preset, apply the overrides of the command line, refuse what
cannot be right before anything is computed.

    CONFIG, WORKDIR = config_flags.define_config()
    def main(_):
        config = config_flags.load(CONFIG)
    app.run(main)
"""

import difflib
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
from absl import flags
from ml_collections.config_flags import config_flags

from grm_jax import losses
from grm_jax.data import sources as data_sources
from grm_jax.data.world.records import SPLITS
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.rules import REWARDS
from grm_jax.models.config import ATTENTIONS
from grm_jax.models.lora import TARGETS as LORA_TARGETS
from grm_jax.models.splash import attention_on
from grm_jax.training.metrics import check_sinks
from grm_jax.training.optimizer import SCHEDULES

PACKAGE = pathlib.Path(losses.__file__).resolve().parents[1]
TINY_BASE = PACKAGE / "assets" / "tiny_base"
# sections that change nothing in the parameters or figures of a run, but for rounding
NOT_RESULTS = ("note", "checkpoint", "log", "mesh")


def define_config() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags --config (a preset's file) and --workdir, both required. Call it once,
    where the script is imported.

    An override of a field that does not exist ends the program while flags are parsed, with the
    nearest field that does.
    """
    holder = define_preset()
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "folder for checkpoints, judgments, metrics and reports; a run in it is resumed",
    )
    flags.mark_flag_as_required("workdir")
    return holder, workdir


def define_preset() -> flags.FlagHolder:
    """The flag --config of `define_config` alone."""
    holder = config_flags.DEFINE_config_file(
        "config", help_string="preset to run, e.g. experiments/configs/tiny.py"
    )
    flags.FLAGS["config"].parser = _Parser("config")
    flags.mark_flag_as_required("config")
    return holder


def load(holder: flags.FlagHolder, files: bool = True) -> ml_collections.ConfigDict:
    """The config that the command line asks for, `finish`ed; ends the program with the message if a
    field is wrong.
    """
    try:
        return finish(holder.value, files)
    except ValueError as error:
        sys.exit(f"{flags.FLAGS['config'].config_filename}: {error}")


def finish(config: ml_collections.ConfigDict, files: bool = True) -> ml_collections.ConfigDict:
    """A locked copy with every data source as a dict (`sources`), checked by `validate_config`.
    ValueError as there.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    with config.ignore_type():  # a path becomes a dict
        config.data.train, config.data.general = (
            sources(config.data.train or ()),
            sources(config.data.general),
        )
        if "critiques" in config.data:
            config.data.critiques = sources(config.data.critiques)
        for split, source in config.data.eval.items():
            config.data.eval[split] = (
                ml_collections.ConfigDict(sources(source)[0]) if source else None
            )
    validate_config(config, files)
    return config.lock()


def config_digest(config: ml_collections.ConfigDict) -> str:
    """sha256 (hex) of the config as JSON with sorted keys, without the sections in NOT_RESULTS:
    equal for runs that must agree.
    """
    return hashlib.sha256(
        json.dumps(of_results(config.to_dict()), sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def of_results(config: dict) -> dict:
    """A config's sections without those in NOT_RESULTS."""
    return {name: value for name, value in config.items() if name not in NOT_RESULTS}


def model_folder(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Hugging Face folder of the model to start from: `model.path`, where "tiny" is the one in the
    package; None with model.random_init.
    """
    return folder_of(config.model.path)


def critic_folder(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Hugging Face folder of the policy that the critic starts from: `critic.path`; None where it
    is the model.
    """
    return folder_of(config.critic.path)


def tokenizer_path(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """`tokenizer.path`, or the model's folder where it is not set."""
    return folder_of(config.tokenizer.path) or model_folder(config)


def sources(value: str | Mapping | Sequence[str | Mapping]) -> tuple[dict, ...]:
    """A data field as source dicts: one or several, each a dict or a bare string that stands for
    {"path": string}.
    """
    many = (value,) if isinstance(value, (str, Mapping, ml_collections.ConfigDict)) else value
    return tuple({"path": source} if isinstance(source, str) else dict(source) for source in many)


def validate_config(config: ml_collections.ConfigDict, files: bool = True) -> None:
    """Raises ValueError with one line for each field that is wrong: its name, what was expected and
    what it is.

    files: False leaves out what must be on this machine (model, tokenizer, templates, data), for
        planning elsewhere.
    """
    problems = list(_problems(config, files))
    if problems:
        raise ValueError(
            f"{len(problems)} wrong "
            f"field{'s' * (len(problems) > 1)} in the config\n  " + "\n  ".join(problems)
        )


def check_micro_batch(config: ml_collections.ConfigDict, stage: str, shares: int) -> None:
    """ValueError unless the stage's micro-batches can be cut into as many parts as the mesh cuts a
    batch into.
    """
    if (rows := config[stage].micro_batch) % shares:
        raise ValueError(
            f"{stage}.micro_batch: expected a multiple of replica x fsdp = {shares}, over which "
            f"every micro-batch is split, got {rows}"
        )


def numerics(config: ml_collections.ConfigDict, platform: str) -> dict:
    """How a model computes on devices of a platform: the fields of `Gemma2Config` that are not in
    its config.json.
    """
    return {name: config.model[name] for name in ("dtype", "scan_layers", "remat")} | {
        "attention": attention_on(config.model.attention, platform)
    }


def sequence_buckets(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Lengths that prompt + completion are padded to; each compiles once."""
    longest = config.lengths.prompt + config.lengths.completion
    return tuple(b for b in config.lengths.sequences if b < longest) + (longest,)


def folder_of(path: str | None) -> pathlib.Path | None:
    """A model's folder by its path, where "tiny" is the one in the package; None for None."""
    return None if path is None else TINY_BASE if path == "tiny" else pathlib.Path(path)


# One line each: (fields, what is expected, test). Everything that concerns one field alone is here.
# A field that a config does not have is not looked at: presets of one script lack the stages of
# another.
STAGES = ("rft", "rl", "meta", "bradley_terry", "pair_rm", "critic", "cloud")  # that train
_RULES = (
    (
        "lengths.prompt lengths.completion sampling.rows rft.samples rl.updates_per_rollout "
        "meta.own_samples cloud.samples eval.samples_per_order"
        " eval.reshuffles checkpoint.every checkpoint.keep log.example_every "
        + " ".join(
            f"{stage}.{field}"
            for stage in STAGES
            for field in ("batch_size", "micro_batch", "steps")
        ),
        "a positive integer",
        lambda x: x >= 1,
    ),
    ("rl.group_size", "an integer of at least 2", lambda x: x >= 2),
    (
        "lora.rank sampling.top_k rft.hinted_samples eval.records optimizer.warmup_steps "
        "optimizer.weight_decay rl.beta bradley_terry.center",
        "a number >= 0",
        lambda x: x >= 0,
    ),
    (
        "lora.alpha optimizer.eps optimizer.clip_norm rft.temperature rl.temperature "
        "meta.temperature cloud.temperature eval.temperature "
        + " ".join(f"{stage}.learning_rate" for stage in STAGES),
        "a number > 0",
        lambda x: x > 0,
    ),
    ("sampling.top_p optimizer.final_fraction", "a number in (0, 1]", lambda x: 0 < x <= 1),
    (
        "rl.clip_low",
        "a number in (0, 1], or None for the loss's own",
        lambda x: x is None or 0 < x <= 1,
    ),
    ("rl.clip_high", "a number > 0, or None for the loss's own", lambda x: x is None or x > 0),
    (
        "optimizer.b1 optimizer.b2 rft.general_fraction critic.general_fraction",
        "a number in [0, 1)",
        lambda x: 0 <= x < 1,
    ),
    (
        "mesh.replica mesh.fsdp mesh.tensor",
        "a positive integer, or -1 for all devices that are left",
        lambda x: x >= 1 or x == -1,
    ),
)
KINDS = ("bradley_terry", "pair_rm", "cloud")
_CHOICES = {
    "kind": KINDS,
    "answer": ("scores", "index"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "model.attention": ("auto", *ATTENTIONS),
    "sampling.sampler": ("jit", "pmap", "shard_map"),
    "optimizer.schedule": SCHEDULES,
    "optimizer.mu_dtype": ("float32", "bfloat16"),
    "rl.kl_in": ("loss", "reward"),
    "rl.old_logp": ("trainer", "sampler"),
    "rl.zero_variance": ("keep", "drop"),
}
_FUNCTIONS = {
    "rl.reward": REWARDS,
    "rl.advantage": losses.ADVANTAGES,
    "rl.kl": losses.KL_ESTIMATORS,
    "rl.aggregation": losses.AGGREGATIONS,
}
SYSTEMS, TRAJECTORIES = ("base", "rft", "grm"), ("unhinted", "hinted")
WORLD_KEYS, WORLD_INSTRUCTIONS, WORLD_CRITIQUES = (
    ("world", "items", "seed"),
    ("instructions",),
    ("critiques",),
)


def _problems(config, files) -> Iterator[str]:
    for fields, expected, ok in _RULES:
        for field in fields.split():
            if _has(config, field) and not ok(value := _get(config, field)):
                yield f"{field}: expected {expected}, got {value}"
    for field, choices in _CHOICES.items():
        if _has(config, field) and (value := _get(config, field)) not in choices:
            yield f"{field}: expected one of {', '.join(choices)}, got {value!r}"
    for field, table in _FUNCTIONS.items():
        try:
            if _has(config, field) and (
                (name := _get(config, field)) is not None or field != "rl.aggregation"
            ):
                losses.resolve(name, table)
        except (ValueError, TypeError) as error:
            yield f"{field}: {error}"
    if "rl" in config:
        try:
            losses.policy_loss(config.rl.loss, config.rl.loss_args)
        except (ValueError, TypeError) as error:
            yield f"rl.loss: {error}"
    try:
        check_sinks(config.log.sinks if "log" in config else ())
    except (ValueError, TypeError) as error:
        yield f"log.sinks: {error}"
    if not config.lora.targets or (
        unknown := [name for name in config.lora.targets if name not in LORA_TARGETS]
    ):
        yield (
            f"lora.targets: expected some of {', '.join(LORA_TARGETS)}, got "
            f"{', '.join(unknown) if config.lora.targets else 'none'}"
        )
    if sum(size == -1 for size in config.mesh.values()) > 1:
        yield f"mesh: expected at most one axis of -1, got {config.mesh.to_dict()}"
    yield from _batch_problems(config)
    yield from _length_problems(config)
    if files:
        yield from _path_problems(config)
        yield from _data_problems(config)
    yield from _eval_problems(config)


def _batch_problems(config):
    for name in STAGES:
        if name not in config:
            continue
        stage = config[name]
        if stage.steps < config.optimizer.warmup_steps:
            yield (
                f"{name}.steps: expected at least optimizer.warmup_steps = "
                f"{config.optimizer.warmup_steps}, got {stage.steps}"
            )
        if stage.micro_batch >= 1 and stage.batch_size % stage.micro_batch:
            yield (
                f"{name}.batch_size: expected a multiple of {name}.micro_batch = "
                f"{stage.micro_batch}, got {stage.batch_size}"
            )
    if "rl" in config:
        rl = config.rl
        if rl.group_size >= 2 and rl.batch_size % rl.group_size:
            yield (
                f"rl.batch_size: expected a multiple of rl.group_size = {rl.group_size}, as it "
                f"counts rollouts, got {rl.batch_size}"
            )
        # samples that share a prompt
        together = max(
            rl.group_size, min(config.eval.samples_per_order, max(config.eval.ks, default=1))
        )
        if config.sampling.rows < together:
            yield (
                "sampling.rows: expected at least rl.group_size and eval.samples_per_order, "
                f"{together}, got {config.sampling.rows}"
            )
    if "rft" in config:
        if unknown := [name for name in config.rft.trajectories if name not in TRAJECTORIES]:
            yield (
                f"rft.trajectories: expected some of {', '.join(TRAJECTORIES)}, or none of them, "
                f"got {', '.join(unknown)}"
            )
        if not config.rft.trajectories and config.rft.general_fraction == 0:
            yield "rft.general_fraction: expected more than 0, as rft.trajectories is empty, got 0"
    for name in ("rft", "critic"):
        if name in config and config[name].general_fraction > 0 and not config.data.general:
            yield (
                f"data.general: {name}.general_fraction is {config[name].general_fraction:g}, so "
                "at least one source is expected, got none"
            )


def _length_problems(config):
    buckets = tuple(config.lengths.buckets)
    if (
        not buckets
        or list(buckets) != sorted(set(buckets))
        or buckets[0] < 1
        or buckets[-1] != config.lengths.prompt
    ):
        yield (
            "lengths.buckets: expected growing lengths that end in lengths.prompt = "
            f"{config.lengths.prompt}, got {buckets}"
        )
    sequences = tuple(config.lengths.sequences)
    if list(sequences) != sorted(set(sequences)) or (sequences and sequences[0] < 1):
        yield f"lengths.sequences: expected growing positive lengths, got {sequences}"


def _path_problems(config):
    if (config.model.path is None) == (config.model.random_init is None):
        yield ("model: expected one of model.path and model.random_init, got ") + (
            "none" if config.model.path is None else "both"
        )
    folder, tokenizer = model_folder(config), tokenizer_path(config)
    if folder is not None and not (folder / "config.json").is_file():
        yield f"model.path: expected a Hugging Face folder with config.json, got {folder}"
    if tokenizer is None:
        yield (
            "tokenizer.path: expected a SentencePiece model or tokenizer.json, as "
            "model.random_init brings none, got nothing"
        )
    elif not tokenizer.exists():
        yield f"tokenizer.path: no such file or folder: {tokenizer}"
    if (
        "critic" in config
        and critic_folder(config) is not None
        and not (critic_folder(config) / "config.json").is_file()
    ):
        yield (
            "critic.path: expected a Hugging Face folder with config.json, got "
            f"{config.critic.path}"
        )
    for name, template in config.templates.items():
        try:
            load_template(template)
        except (OSError, ValueError) as error:
            yield f"templates.{name}: {error}"


def _data_problems(config):
    fields = {
        "data.train": config.data.train,
        "data.general": config.data.general,
        "data.critiques": config.data.get("critiques", ()),
    }
    worlds = {"data.general": WORLD_INSTRUCTIONS, "data.critiques": WORLD_CRITIQUES}
    fields |= {
        f"data.eval.{split}": config.data.eval[split]
        for split in config.eval.splits
        if split in config.data.eval
    }
    for field, value in fields.items():
        if not value and field not in worlds:
            yield f"{field}: expected the path of a file or a source, got nothing"
        for source in sources(value or ()):
            if field == "data.general" and source == {"records": "train"}:
                continue
            for message in _source_problems(source, worlds.get(field, SPLITS)):
                yield f"{field}: {message}"
    trained = {source["path"] for source in sources(config.data.train or ()) if "path" in source}
    for field in fields:
        if field.startswith("data.eval.") and any(
            source.get("path") in trained for source in sources(fields[field] or ())
        ):
            yield f"{field}: expected other records than data.train, got the same file"


def _source_problems(source, worlds):
    kinds = [kind for kind in ("path", "hub", "world") if kind in source]
    known = WORLD_KEYS if kinds == ["world"] else data_sources.SOURCE_KEYS
    if len(kinds) != 1:
        yield f"expected one of 'path', 'hub' and 'world' in a source, got {source}"
    elif unknown := [key for key in source if key not in known]:
        yield f"expected a source with {', '.join(known)}, got {', '.join(unknown)}"
    elif kinds == ["path"] and not pathlib.Path(source["path"]).exists():
        yield f"no such file: {source['path']}"
    elif kinds == ["world"] and source["world"] not in worlds:
        yield f"world: expected one of {', '.join(worlds)}, got {source['world']!r}"
    elif kinds == ["world"] and worlds is not SPLITS and "items" not in source:
        yield f"expected items, how many, got {source}"


def _eval_problems(config):
    ks = tuple(config.eval.get("ks", (1,)))
    if not ks or list(ks) != sorted(set(ks)) or ks[0] < 1:
        yield f"eval.ks: expected growing positive integers, got {ks}"
    elif ks[-1] % max(1, min(config.eval.get("samples_per_order", 1), ks[-1])):
        yield (
            f"eval.samples_per_order: expected a divisor of the largest of eval.ks = {ks[-1]}, "
            f"got {config.eval.samples_per_order}"
        )
    for field, known in (
        ("eval.splits", tuple(config.data.eval)),
        ("eval.systems", SYSTEMS),
        ("meta.policies", SYSTEMS),
    ):
        if not _has(config, field):
            continue
        chosen = _get(config, field)
        if not chosen or (unknown := [name for name in chosen if name not in known]):
            yield (
                f"{field}: expected some of {', '.join(known)}, got "
                f"{', '.join(unknown) if chosen else 'none'}"
            )


def _has(config, field):
    section, _, name = field.rpartition(".")
    return name in (_get(config, section) if section in config else config if not section else ())


def _get(config, field):
    for name in field.split("."):
        config = config[name]
    return config


class _Parser(config_flags.ConfigFileFlagParser):
    """ml_collections' parser of a preset's path, which then checks the names of the overrides
    behind it on the command line.

    absl turns its ValueError into one line and exit status 1; ml_collections alone would end in a
    traceback.
    """

    def parse(self, path: str) -> ml_collections.ConfigDict:
        if not pathlib.Path(path.split(":")[0]).is_file():
            raise ValueError("no such file")
        config = super().parse(path)
        for argument in sys.argv[1:]:
            if argument == "--":
                break
            if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
                _require_field(config, match[1])
        return config


def _require_field(config, field):
    node, names = config, field.split("[")[0].split(".")
    for name in names:
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            raise ValueError(
                f"no such field {field}; nearest: "
                f"{', '.join(_nearest('.'.join(names), _fields(config)))}"
            )
        node = node[name]


def _nearest(field, known):
    """Fields of the same name in other sections, else the one that is spelt most like it."""
    same_name = [other for other in known if other.split(".")[-1] == field.split(".")[-1]]
    return same_name or difflib.get_close_matches(field, known, n=1, cutoff=0.0)


def _fields(config, prefix=""):
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ml_collections.ConfigDict):
            names += _fields(value, f"{prefix}{name}.")
    return names
