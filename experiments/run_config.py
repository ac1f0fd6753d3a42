"""What the config of a run says, and whether that is right, before anything is computed.

    config = run_config.finish(config)
    lengths = run_config.section(config, "lengths")

A section of a config is a frozen dataclass that checks itself (experiments/stages/settings.py says
which). Here is what concerns files, several sections at once, and names of fields. Nothing heavy is
imported until a config is checked.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections

from grm_jax.json_files import check_plain, shown
from grm_jax.settings import in_words

if TYPE_CHECKING:
    from grm_jax.judgment.prompts import Template

# what changes neither the parameters of a run nor a judgment, but for rounding; the evaluation has
# an identity of its own (grm_jax/evaluation/judging.py)
NOT_RESULTS = (
    "note",
    "checkpoint",
    "log",
    "mesh",
    "packing",
    "sampling.rows",
    "sampling.sampler",
    "sampling.chunk",
    "sampling.cache_bytes",
    "eval",
    "data.eval",
    "data.max_left_out",
)
# what a run knows by its content, wherever it lies (experiments/stages/inputs.py)
BY_CONTENT = (
    "model.path",
    "tokenizer.path",
    "critic.path",
    "templates",
    "data.train",
    "data.general",
    "data.critiques",
)
STAGES = ("rft", "rl", "meta", "bradley_terry", "pair_rm", "critic", "cloud")  # that train


class Presets(NamedTuple):
    """The presets of a script: the fields that they are known by, and one that has them all."""

    known_by: tuple[str, ...]
    example: str


PRESETS = {  # of each script
    "experiments.spct_rl": Presets(("rft", "rl", "meta"), "spct_gemma2_27b"),
    "experiments.reward_model": Presets(("kind", "bradley_terry"), "tiny_reward_model"),
    "experiments.evaluate": Presets(("systems", "benchmarks"), "evaluate"),
    "experiments.paper": Presets(("groups", "evaluate"), "tiny_paper"),
}
SOURCES = ("data.train", "data.general", "data.critiques")  # beside data.eval.SPLIT
WORLD_KEYS = ("world", "items", "seed")
INSTRUCTIONS = ("instructions", "rubric_judgments")  # that the world makes


# ---- what a config says


def script_of(config: Mapping) -> str:
    """The script whose preset a config is, by the sections that it has. ValueError for none."""
    for script, presets in PRESETS.items():
        if all(name in config for name in presets.known_by):
            return script
    known_by = "; ".join(f"{' and '.join(p.known_by)} ({name})" for name, p in PRESETS.items())
    raise ValueError(f"this is no preset of any script; expected the fields {known_by}")


def section(config: ml_collections.ConfigDict, name: str) -> Any:
    """The settings of a section, as the dataclass that experiments/stages/settings.py names for it.

    Raises ValueError, which names every wrong field.
    """
    return _settings(config, name)[0]


def config_digest(config: ml_collections.ConfigDict) -> str:
    """sha256 (hex) of the config as JSON with sorted keys, without what is in NOT_RESULTS: equal
    for runs that must agree.
    """
    return hashlib.sha256(
        json.dumps(of_results(config.to_dict()), sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def of_results(
    config: Mapping[str, Any], prefix: str = "", but: Sequence[str] = ()
) -> dict[str, Any]:
    """A config's sections and fields without those in NOT_RESULTS, and in `but`."""
    return {
        name: of_results(value, f"{prefix}{name}.", but) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if prefix + name not in (*NOT_RESULTS, *but)
    }


def model_folder(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Folder of the model to start from, `model.path`, weights or adapters; None with
    model.random_init.

    FileNotFoundError where there is none of this name.
    """
    return _folder(config.model.path)


def critic_folder(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Hugging Face folder of the policy that the critic starts from: `critic.path`; None where it
    is the model.
    """
    return _folder(config.critic.path)


def tokenizer_path(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """`tokenizer.path`, or where it is not set the model's folder, of adapters that of what they
    are upon, unless they have their own.
    """
    from grm_jax.reward_models.description import BUILT_IN, layers_of, tokenizer_home

    path = config.tokenizer.path
    if path is not None:
        return BUILT_IN.get(path, pathlib.Path(path))
    folder = model_folder(config)
    return None if folder is None else tokenizer_home(layers_of(folder))


def _folder(name):
    from grm_jax.reward_models.description import model_folder as folder_of

    return None if name is None else folder_of(name)


def sources(value: str | Mapping | Sequence[str | Mapping] | None) -> tuple[dict, ...]:
    """A data field as source dicts: one or several, each a dict, a path that stands for {"path":
    path}, or JSON of a dict or of a list of them.
    """
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        value = read_json(value)
    if isinstance(value, str):
        return ({"path": value},)
    if isinstance(value, Mapping):
        return (dict(value),)
    if isinstance(value, ml_collections.ConfigDict):
        return (value.to_dict(),)
    if value is not None and not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a path, a dict or several of them, got {shown(value)}")
    return tuple(source for one in value or () for source in sources(one))


def read_json(text: str) -> Any:
    """Reads JSON, or a literal of Python. ValueError for neither."""
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text)  # quotes as Python has them
        except (ValueError, SyntaxError):
            raise ValueError(f"expected JSON, got {text}: {error}") from error


def nearest(field: str, known: Sequence[str]) -> list[str]:
    """Fields of the same name in other sections, else the one that is spelt most like it."""
    same_name = [other for other in known if other.split(".")[-1] == field.split(".")[-1]]
    return same_name or difflib.get_close_matches(field, known, n=1, cutoff=0.0)


# ---- what is right


def finish(config: ml_collections.ConfigDict, files: bool = True) -> ml_collections.ConfigDict:
    """A locked copy with every data field as a tuple of source dicts (`sources`), checked.

    Raises ValueError with one line for each field that is wrong: its name, what was expected and
    what it is.
    files: False leaves out what must be on this machine (model, tokenizer, templates, data), for
        planning elsewhere.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    problems = list(_take_all_sources(config)) if isinstance(config.get("data"), _DICT) else []
    problems = problems or list(_problems(config, files)) or list(_no_text(config))
    if problems:
        raise ValueError(in_words(problems, "the config"))
    return config.lock()


_DICT = ml_collections.ConfigDict


def _no_text(config) -> Iterator[str]:
    """Texts that no file of results could hold: names of files that are not UTF-8."""
    for field, value in json.loads(json.dumps(config.to_dict())).items():
        try:
            check_plain(value, "", field)
        except ValueError as error:
            yield f"{str(error).removeprefix(': ')}; expected UTF-8, as the locale is to be"


def _take_all_sources(config) -> Iterator[str]:
    fields = [field.split(".") for field in SOURCES if field.split(".")[1] in config.data]
    if isinstance(config.data.get("eval"), _DICT):
        fields += [["data", "eval", split] for split in config.data.eval]
    for *section, name in fields:
        node = functools.reduce(lambda node, step: node[step], section, config)
        try:
            with config.ignore_type():
                node[name] = sources(node[name])
        except (ValueError, TypeError) as error:
            yield f"{'.'.join([*section, name])}: expected a source, or several: {error}"


def _problems(config, files) -> Iterator[str]:
    script = script_of(config)
    if script == "experiments.paper":  # its own fields are overrides of other presets
        from experiments.stages.settings import PaperConfig
        from grm_jax.settings import SettingsError, build

        own = {name: value for name, value in config.to_dict().items() if name != "evaluate"}
        try:
            build(PaperConfig, own)
        except SettingsError as error:
            yield from error.problems
        if not isinstance(config.evaluate, _DICT):
            yield f"evaluate: expected a section of this name, got {shown(config.evaluate)}"
        else:
            yield from (f"evaluate.{problem}" for problem in _problems(config.evaluate, files))
        return
    from experiments.stages.settings import SECTIONS

    right = {}  # the settings that are, by section
    for name in SECTIONS[script]:
        try:
            right[name] = _settings(config, name)
        except ValueError as error:
            yield from getattr(error, "problems", (str(error),))
    yield from _problems_between(right)
    if files:
        yield from _template_problems(right)
        if script != "experiments.evaluate":
            yield from _path_problems(config, right)
            yield from _data_problems(right)


def _settings(config, name: str) -> list[Any]:
    """The settings that a section holds, of every class in SECTIONS; "" is the top."""
    from experiments.stages.settings import SECTIONS
    from grm_jax.settings import SettingsError, build

    sections = SECTIONS[script_of(config)]
    values = config.to_dict()
    if name and not isinstance(values.get(name), dict):
        raise ValueError(f"{name}: expected a section of this name, got {values.get(name)!r}")
    values = values[name] if name else {k: v for k, v in values.items() if k not in sections}
    settings, classes = [], sections[name]
    fields = [{field.name for field in dataclasses.fields(cls)} for cls in classes]
    known = set().union(*fields)
    beside = set() if name else sections.keys()  # names that a misspelt one may stand for
    problems = [
        f"{field}: no such field; nearest: {', '.join(nearest(field, sorted(known | beside)))}"
        for field in values
        if field not in known
    ]
    for cls, own in zip(classes, fields):
        try:
            settings.append(build(cls, {k: v for k, v in values.items() if k in own}))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(name, [f"{name}.{problem}".lstrip(".") for problem in problems])
    return settings


def _problems_between(right) -> Iterator[str]:
    """What is wrong between sections that are right by themselves."""
    stages = {name: right[name][0] for name in STAGES if name in right}
    if "optimizer" in right:
        for name, stage in stages.items():
            try:
                right["optimizer"][0].check_steps(stage.updates, name)
            except ValueError as error:
                yield str(error)
    if {"rl", "eval", "sampling"} <= right.keys():
        # samples that share a prompt are decoded together
        settings = right["eval"][0]
        per_order = min(settings.samples_per_order, settings.ks[-1])
        together = max(stages["rl"].group_size, per_order)
        if right["sampling"][0].rows < together:
            yield (
                "sampling.rows: expected at least rl.group_size and eval.samples_per_order, "
                f"{together}, got {right['sampling'][0].rows}"
            )
    if "data" in right:
        data = right["data"][0]
        for name, stage in stages.items():
            fraction = getattr(stage, "general_fraction", 0)
            if fraction > 0 and not data.general:
                yield (
                    f"data.general: {name}.general_fraction is {fraction:g}, so at least one "
                    "source is expected, got none"
                )
        splits = right["eval"][1].splits if "eval" in right else tuple(data.eval)
        unknown = [name for name in splits if name not in data.eval]
        if unknown or not splits:
            yield (
                f"eval.splits: expected some of {', '.join(data.eval)}, got "
                f"{', '.join(unknown) or 'none'}"
            )


# ---- what concerns files


def load_templates(config: Mapping) -> dict[str, "Template"]:
    """The templates of a config by role, without those that are None."""
    from grm_jax.judgment.prompts import load_template

    return {
        role: load_template(name) for role, name in config["templates"].items() if name is not None
    }


def _template_problems(right) -> Iterator[str]:
    from grm_jax.judgment.prompts import load_template

    for name, template in (
        dataclasses.asdict(right["templates"][0]).items() if "templates" in right else ()
    ):
        try:
            if template is not None:
                load_template(template)
        except (OSError, ValueError, TypeError) as error:
            yield f"templates.{name}: {error}"


def _path_problems(config, right) -> Iterator[str]:
    from grm_jax.reward_models.description import layers_of

    found = {}
    for section, find in (
        ("model", model_folder),
        ("tokenizer", tokenizer_path),
        ("critic", critic_folder),
    ):
        if {section, "model"} <= right.keys():  # the tokenizer may be the model's
            try:
                found[section] = find(config)
                if section != "tokenizer" and found[section] is not None:
                    layers_of(found[section])
            except (FileNotFoundError, ValueError) as error:
                if section != "tokenizer" or config.tokenizer.path is not None:  # else said before
                    yield f"{section}.path: {error}"
    if "tokenizer" not in found:
        return
    if found["tokenizer"] is None:
        yield (
            "tokenizer.path: expected a SentencePiece model or tokenizer.json, as "
            "model.random_init brings none, got nothing"
        )
    elif not _exists(found["tokenizer"]):
        yield f"tokenizer.path: no such file or folder: {found['tokenizer']}"


def _data_problems(right) -> Iterator[str]:
    from grm_jax.data.world import SPLITS

    if "data" not in right:
        return
    data = right["data"][0]
    fields = {field: getattr(data, field.split(".")[1]) for field in SOURCES}
    splits = right["eval"][1].splits if "eval" in right else tuple(data.eval)
    fields |= {f"data.eval.{name}": data.eval[name] for name in splits if name in data.eval}
    worlds = {"data.general": INSTRUCTIONS, "data.critiques": ("critiques",)}
    trained = [(source["path"], source.get("split")) for source in data.train if "path" in source]
    for field, value in fields.items():
        if not value and field not in worlds:
            yield f"{field}: expected the path of a file or a source, got nothing"
        for source in value:
            if field == "data.general" and source == {"records": "train"}:
                continue
            for message in _source_problems(source, worlds.get(field, SPLITS)):
                yield f"{field}: {message}"
        read = [(source.get("path"), source.get("split")) for source in value]
        if field.startswith("data.eval.") and any(one in trained for one in read):
            yield f"{field}: expected other records than data.train, got the same file"


def _source_problems(source, worlds) -> Iterator[str]:
    from grm_jax.data.sources import checked_spec
    from grm_jax.data.world import SPLITS

    kinds = [kind for kind in ("path", "hub", "world") if kind in source]
    if len(kinds) != 1:
        yield f"expected one of 'path', 'hub' and 'world' in a source, got {source}"
    elif kinds != ["world"]:
        try:
            checked_spec(source)
        except ValueError as error:
            yield str(error)
            return
        if not isinstance(source[kinds[0]], str):
            yield f"{kinds[0]}: expected a text, got {shown(source[kinds[0]])}"
        elif kinds == ["path"] and not _exists(source["path"]):
            yield f"no such file: {source['path']}"
    elif unknown := [key for key in source if key not in WORLD_KEYS]:
        yield f"expected a source with {', '.join(WORLD_KEYS)}, got {', '.join(unknown)}"
    elif source["world"] not in worlds:
        yield f"world: expected one of {', '.join(worlds)}, got {source['world']!r}"
    elif worlds is not SPLITS and "items" not in source:
        yield f"expected items, how many, got {source}"
    else:
        for key, least in (("items", 1), ("seed", 0)):
            value = source.get(key, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                yield f"{key}: expected an integer of at least {least}, got {shown(value)}"


def _exists(path: str) -> bool:
    try:
        return pathlib.Path(path).exists()
    except (ValueError, OSError):  # a name that no file can have
        return False
