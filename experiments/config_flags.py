"""--config and --workdir: load a preset, apply the overrides of the command line, and end the
program with one line where something is wrong, before anything is computed.

    CONFIG, WORKDIR = config_flags.define_config("experiments.spct_rl")
    def main(_):
        config = config_flags.load(CONFIG)
        lengths = run_config.section(config, "lengths")
    config_flags.run(main)

What a config says, and whether that is right, is in experiments/run_config.py. Nothing heavy is
imported before the flags are parsed: --help and a misspelt flag take no second.
"""

import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags, tuple_parser

from experiments import config_help, ending, run_config
from grm_jax import signals
from grm_jax.last_line import first_line


def define_config(*scripts: str) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Define the flags --config (a preset's file) and --workdir, both required. Call it once, where
    the script is imported.

    scripts: names in run_config.PRESETS whose presets are taken; none: all. A preset of another
    script, and an override of a field that does not exist, end the program while flags are parsed.
    """
    holder = define_preset(*scripts)
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "folder for checkpoints, judgments, metrics and reports; a run in it is resumed",
        required=True,
    )
    flags.register_validator("workdir", _is_folder_name, "expected a folder of this machine")
    return holder, workdir


def define_stages() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Define the flags --stages and --from of a script that trains (stages/reuse.py)."""
    stages = flags.DEFINE_list(
        "stages", [], "stages to run, and eval for the evaluation; all where it is left out"
    )
    takes = flags.DEFINE_multi_string(
        "from",
        [],
        "work folder, or folder of such, whose finished stages are taken over where they depend on "
        "the same",
    )
    return stages, takes


def define_profile() -> flags.FlagHolder:
    """Define the flag --profile of a script that trains (grm_jax/training/phases.py)."""
    profile = flags.DEFINE_string(
        "profile",
        "",
        "steps of each training stage to trace, FIRST:LAST without LAST, or how many warm ones; "
        "the traces go to WORKDIR/profile/STAGE (docs/profile.md)",
    )
    expected = "expected FIRST:LAST, LAST above FIRST, or a number of steps"
    flags.register_validator("profile", _is_steps, expected)
    return profile


def _is_steps(text: str) -> bool:
    """Whether it is what `trace_of` reads; that would import JAX while flags are parsed."""
    if not re.fullmatch(r"(\d+(:\d+)?)?", text, re.ASCII):
        return False
    first, colon, last = text.partition(":")
    return not text or (int(first) < int(last) if colon else int(first) > 0)


def _is_folder_name(workdir: str | None) -> bool:
    """Whether it may be a folder: a run writes plain files, and docs/launch.md says how a bucket
    becomes a folder.
    """
    return workdir is None or (bool(workdir.strip()) and "://" not in workdir)


def define_preset(*scripts: str) -> flags.FlagHolder:
    """Define the flag --config of `define_config` alone."""
    config_flags.register_flag_parser_for_type(tuple, _TupleParser())
    config_flags.register_flag_parser_for_type(ml_collections.ConfigDict, _DictParser())
    example = run_config.PRESETS[scripts[0]].example if scripts else "tiny"
    holder = config_flags.DEFINE_config_file(
        "config", help_string=f"preset to run, e.g. experiments/configs/{example}.py"
    )
    flags.FLAGS["config"].parser = Parser("config", scripts)
    flags.mark_flag_as_required("config")
    return holder


def run(main: Callable[[list[str]], Any]) -> None:
    """Parse the command line and run a script. What ends it is the last line; Ctrl-C and SIGTERM do
    so with a line too, at once where nothing is to be saved (`processes.stop_signal`).
    """
    ending.install()
    with signals.ending():
        app.run(main, flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parse the command line; --help shows the script's flags and every field of its presets, and
    ends the program, as a flag that is wrong does with one line.
    """
    options = list(arguments[1 : arguments.index("--")] if "--" in arguments else arguments[1:])
    if any(option in ("--help", "-help", "-h", "-?") for option in options):
        print(_help(options))
        sys.exit(0)
    if "--helpfull" in options or "--helpshort" in options:
        return app.parse_flags_with_usage(arguments)
    try:
        rest = flags.FLAGS(arguments)
        if len(rest) > 1:
            raise flags.Error(f"expected flags, --NAME=VALUE, got {' '.join(rest[1:])}")
    except flags.Error as error:
        sys.exit(f"{_script_name()}: {_in_a_line(error)}; --help shows the flags")
    return rest


def load(holder: flags.FlagHolder, files: bool = True) -> ml_collections.ConfigDict:
    """The config that the command line asks for, `finish`ed; ends the program with the message if a
    field is wrong.
    """
    try:
        return run_config.finish(holder.value, files)
    except ValueError as error:
        sys.exit(f"error: {flags.FLAGS['config'].config_filename}: {error}")


class Parser(config_flags.ConfigFileFlagParser):
    """ml_collections' parser of a preset's path, which then checks whose preset it is, and the
    names of the overrides behind it on the command line.

    absl turns its ValueError into one line and exit status 1; ml_collections alone would end in a
    traceback.
    """

    def __init__(self, name: str, scripts: Sequence[str] = ()):
        super().__init__(name)
        self.scripts = tuple(scripts)

    def parse(self, path: str) -> ml_collections.ConfigDict:
        if not pathlib.Path(path.split(":")[0]).is_file():
            raise ValueError("no such file")
        config = _preset(super().parse, path)
        script = run_config.script_of(config)
        if self.scripts and script not in self.scripts:
            raise ValueError(f"this is a preset of {script}, not of {' or '.join(self.scripts)}")
        for argument in sys.argv[1:]:
            if argument == "--":
                break
            if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
                _take_free_field(config, match[1])
                _require_field(config, match[1])
        return config


def _preset(parse: Callable, path: str) -> ml_collections.ConfigDict:
    """The config that a preset's file makes. ValueError with the line of it that is wrong."""
    try:
        config = parse(path)
    except Exception as error:  # whatever a person's Python file may raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in path]
        line = error.lineno if isinstance(error, SyntaxError) else next(iter(lines[::-1]), None)
        where = "" if line is None else f"line {line}: "
        raise ValueError(f"no preset can be read from it: {where}{first_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            "get_config: expected to return an ml_collections.ConfigDict, got "
            f"{type(config).__name__}"
        )
    return config


WORDS = re.compile(r"(?!True\b|False\b|None\b)[A-Za-z_][\w:]*(,[A-Za-z_][\w:]*)+")


class _TupleParser(tuple_parser.TupleParser):
    """ml_collections' parser of tuples, which also takes JSON (an object is the one element, an
    array holds the elements), words with commas between them, which it takes for one text, and one
    text with blanks in it, such as a path, which it refuses.
    """

    def parse(self, argument: Any) -> tuple:
        if isinstance(argument, str) and WORDS.fullmatch(argument):
            return tuple(argument.split(","))
        if not isinstance(argument, str) or argument.strip()[:1] not in ("{", "["):
            try:
                return super().parse(argument)
            except ValueError:
                if "," in argument or argument.strip()[:1] in ("(", "'", '"'):
                    raise
                return (argument,)
        value = run_config.read_json(argument)
        return tuple(value) if isinstance(value, list) else (value,)


class _DictParser(flags.ArgumentParser):
    """A parser of sections as JSON."""

    def parse(self, argument: Any) -> ml_collections.ConfigDict:
        value = run_config.read_json(argument) if isinstance(argument, str) else argument
        if not isinstance(value, (dict, ml_collections.ConfigDict)):
            raise ValueError(f"expected a JSON object, got {argument}")
        return ml_collections.ConfigDict(value)


def _script_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else pathlib.Path(sys.argv[0]).name


def _in_a_line(error: flags.Error) -> str:
    """absl's words, in one line, and of flags that are missing their names alone."""
    text = " ".join(str(error).split())
    missing = re.findall(r"Flag (--\w+) must have a value other than None", text)
    return f"expected a value of {' and of '.join(dict.fromkeys(missing))}" if missing else text


def _help(options: Sequence[str]) -> str:
    if "config" not in flags.FLAGS:
        return config_help.text()
    preset = _named_preset(options)
    if preset is None:
        scripts = flags.FLAGS["config"].parser.scripts or tuple(run_config.PRESETS)
        preset = config_help.preset_path(run_config.PRESETS[scripts[0]].example)
    return config_help.text(preset, Parser("config").parse(str(preset)))


def _named_preset(options: Sequence[str]) -> pathlib.Path | None:
    """The file after --config on a command line."""
    for i, option in enumerate(options):
        name, equals, value = option.lstrip("-").partition("=")
        if name == "config" and option.startswith("-"):
            value = value if equals else "".join(options[i + 1 : i + 2])
            return pathlib.Path(value) if pathlib.Path(value).is_file() else None
    return None


def _take_free_field(config, field):
    """Make room for a field that the command line sets whatever the preset has there: a data field
    becomes a tuple of sources, and the loss has what settings it has.
    """
    section, _, name = field.rpartition(".")
    node = config
    for step in section.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or step not in node:
            return
        node = node[step]
    if not isinstance(node, ml_collections.ConfigDict):
        return
    with config.ignore_type(), config.unlocked():
        if section == "rl.loss_args" and name not in node:
            node[name] = config_dict.placeholder(object)
        elif name in node and (section == "data.eval" or field in run_config.SOURCES):
            node[name] = ()


def _require_field(config, field):
    node, names = config, field.split("[")[0].split(".")
    for name in names:
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            raise ValueError(
                f"no such field {field}; nearest: "
                f"{', '.join(run_config.nearest('.'.join(names), config_help.fields(config)))}"
            )
        node = node[name]
