"""Run a preset once for every combination of some fields, and put the figures into one table.

    python -m experiments.sweep --config=experiments/configs/tiny.py --workdir=runs/sweep \\
        --sweep.rl.beta=0.0,0.02,0.08 --sweep.seed=0,1

    <workdir>/beta=0.02,seed=1/      the work folder of a run, named after what varies
    <workdir>/beta=0.02,seed=1.log   what it printed
    <workdir>/sweep.md, sweep.json, sweep.png   mean and standard error over seeds of each setting

Any field of the preset can be swept; values are written as on the command line of a run, tuples in
brackets. Overrides (--config.FIELD=VALUE), --stages and --from go to every run. Each run is a
process of its own, one after the other. A stage that does not depend on what varies is done once:
the others take it over (experiments/stages/reuse.py). A run that is done is skipped, one that was
stopped goes on, and where one fails the others still run: the table is made of those that are done.
--dry_run prints the commands alone.

    python -m experiments.sweep --workdir=runs/merged --merge runs/tiny_full_0 runs/tiny_full_1

makes the same table from work folders that are there, as seeds of one setting. Their configs may
differ in the seed, and in fields that are named: --by=rl.beta.
"""

import argparse
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections.config_flags import config_flags as ml_config_flags

from experiments import config_flags, ending, run_config
from grm_jax import locks, signals
from grm_jax.json_files import check_fields, read_object

TRAINING = ("experiments.spct_rl", "experiments.reward_model")  # whose stages are taken over
LONGEST = 200  # bytes in the name of a run's folder; file systems take 255, with suffixes
TAIL = 20  # lines of a failed run's output that are shown
config_flags.define_preset()  # which tells ml_collections how to read tuples and sections


class Run(NamedTuple):
    """One run of a sweep: its work folder, its command, and the config that it will have."""

    folder: pathlib.Path
    command: list[str]
    config: dict


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; the exit status, 1 where a run failed."""
    options, swept, overrides = parse(arguments)
    workdir = pathlib.Path(options.workdir)
    if options.merge:
        folders = [pathlib.Path(folder) for folder in options.merge]
        hold(workdir)
        write(workdir, folders, tuple(filter(None, options.by.split(","))))
        return 0
    runs = plan(options.config, workdir, swept, overrides)
    if options.dry_run:
        print("\n".join(shlex.join(run.command) for run in runs))
        return 0
    hold(workdir)
    failed, stopped = run_all(runs)
    if stopped:
        return stopped
    done = [run.folder for run in runs if run.folder not in failed]
    if done:
        write(workdir, done, tuple(field for field in swept if field != "seed"))
    for folder in failed:
        print(f"failed: {folder}; its output is in {log_of(folder)}")
    return 1 if failed else 0


def hold(workdir: pathlib.Path) -> None:
    """Keep the folder for this process; ends the program, saying who has it, if another does. Each
    run has a folder of its own, which its process keeps.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        locks.hold(workdir / ".lock", str(workdir))
    except ValueError as error:
        sys.exit(f"{error}. Wait for it, or choose another --workdir")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, list[str]], list[str]]:
    """(options, {swept field: its values as texts}, overrides of the command line)."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="preset to run, e.g. experiments/configs/tiny.py")
    parser.add_argument("--workdir", required=True, help="folder of the runs and of their table")
    parser.add_argument("--dry_run", action="store_true", help="print the commands alone")
    parser.add_argument(
        "--merge", nargs="+", metavar="FOLDER", help="make the table of finished work folders"
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="FIELD,...",
        help="with --merge: fields that tell settings apart",
    )
    options, rest = parser.parse_known_args(arguments)
    swept, overrides = {}, []
    for argument in rest:
        if match := re.fullmatch(r"--sweep\.([\w.\[\]]+)=(.+)", argument, re.DOTALL):
            if match[1] in swept:
                parser.error(f"--sweep.{match[1]}: expected once, with all of its values")
            swept[match[1]] = split_values(match[2])
            if len(swept[match[1]]) <= _BRACKETED.sub("", match[2]).count(","):
                parser.error(f"--sweep.{match[1]}: expected a value at every comma, got {match[2]}")
        elif re.match(r"--(config\.[^=]+|stages|from)=", argument):
            overrides.append(argument)
        else:
            parser.error(
                f"{argument}: expected --sweep.FIELD=VALUE,... or --config.FIELD=VALUE, or an "
                "option that --help shows"
            )
        if argument.startswith("--stages=") and "eval" not in argument.partition("=")[2].split(","):
            parser.error(f"{argument}: expected eval among them, which the table is made of")
    if options.merge and (swept or overrides or options.config):
        parser.error("--merge: expected work folders, --workdir and --by alone")
    if not options.merge and not (options.config and swept):
        parser.error("expected --config and at least one --sweep.FIELD=VALUE,..., or --merge")
    return options, swept, overrides


_BRACKETED = re.compile(r"""\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'""")


def split_values(text: str) -> list[str]:
    """The values of a list, cut at commas outside of brackets and quotes."""
    pieces = re.findall(rf"""(?:[^,("'\[{{]|{_BRACKETED.pattern})+""", text)
    return [piece.strip() for piece in pieces]


def plan(
    preset: str,
    workdir: pathlib.Path,
    swept: Mapping[str, Sequence[str]],
    overrides: Sequence[str] = (),
) -> list[Run]:
    """Every run of the sweep, its config checked: nothing is computed before all are right. Ends
    the program with the message where one is wrong, or where a folder holds a run of another
    config.
    """
    from grm_jax.evaluation.merge import other_fields
    from grm_jax.report import merged as report

    runs: list[Run] = []
    names = report.short_names(list(swept))
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values))
        name = ",".join(f"{names[field]}={value}" for field, value in chosen.items())
        folder = workdir / re.sub(r"[^\w.+=,@:()\[\]-]", "_", name)
        if folder in [run.folder for run in runs]:
            sys.exit(f"{name}: expected values that differ; this combination is there twice")
        own = [*overrides, *(f"--config.{field}={value}" for field, value in chosen.items())]
        script, config = resolve(preset, [word for word in own if word.startswith("--config.")])
        same = [run.folder.name for run in runs if run.config == config]
        if same:  # 0.1 and 0.10
            sys.exit(f"{name}: expected values that differ; {same[0]} is the same config")
        if len(folder.name.encode()) > LONGEST:
            sys.exit(
                f"{name[:60]}...: its folder would have a name of {len(folder.name.encode())} "
                f"bytes, and at most {LONGEST} are possible; expected shorter values"
            )
        if script in TRAINING:
            check_reuse(own, config, folder)
            own.append(f"--from={workdir}")
        command = [sys.executable, "-m", script, f"--config={preset}", f"--workdir={folder}", *own]
        runs.append(Run(folder, command, config))
        if results := read_results(folder):
            if fields := other_fields(results["config"], config):
                sys.exit(
                    f"{folder} holds a run of another config; it differs in {', '.join(fields)}. "
                    "Choose another --workdir"
                )
            if fields := other_functions(folder, config):
                sys.exit(
                    f"{folder} holds a run of other code; what {', '.join(fields)} names has "
                    "changed since. Bring it back, or choose another --workdir"
                )
    return runs


def check_reuse(words: Sequence[str], config: dict, folder: pathlib.Path) -> None:
    """End the program where --stages names no stage of a run, or --from no work folder."""
    from experiments.stages import reuse

    def values(flag: str) -> list[str]:
        return [word.partition("=")[2] for word in words if word.startswith(f"--{flag}=")]

    try:
        for names in values("stages"):
            reuse.check_names(names.split(","), reuse.stages_of(config))
        reuse.givers(values("from"), folder)
    except ValueError as error:
        sys.exit(str(error))


def other_functions(folder: pathlib.Path, config: dict) -> list[str]:
    """Fields of a config that name a function of the user's whose module is not as it was when the
    run in this folder read it.
    """
    path = folder / "config.json"
    from experiments.stages import reuse
    from experiments.stages.inputs import user_functions
    from grm_jax.evaluation import store

    inputs = reuse.read_run(path).get("inputs", {}) if path.is_file() else {}
    now = user_functions(config)
    return store.differing(inputs.get("functions", now), now)


def resolve(preset: str, overrides: Sequence[str]) -> tuple[str, dict]:
    """(the script of a preset, its config with overrides, as plain JSON). Ends the program with the
    message where a field is wrong.
    """
    arguments, before = ["sweep", f"--config={preset}", *overrides], sys.argv
    values = flags.FlagValues()  # of their own: parsing defines a flag for each override
    ml_config_flags.DEFINE_config_file("config", flag_values=values)
    values["config"].parser = config_flags.Parser("config")
    try:
        sys.argv = arguments  # where ml_collections looks for them
        values(arguments)
        config = run_config.finish(values["config"].value)
        script = run_config.script_of(config)
        if script == "experiments.paper":
            raise ValueError(f"this is a preset of {script}, which has seeds and tables of its own")
    except (ValueError, flags.Error) as error:
        sys.exit(f"{preset} {' '.join(overrides)}: {error}")
    finally:
        sys.argv = before
    return script, json.loads(json.dumps(config.to_dict()))


def run_all(runs: Sequence[Run]) -> tuple[list[pathlib.Path], int]:
    """Run what is not done, one after the other: (the folders of those that failed, 0).

    A signal goes to the run under way, and no further one is begun: its exit status then stands in
    the place of 0.
    """
    failed = []
    for i, run in enumerate(runs, start=1):
        label = f"[{i}/{len(runs)}] {run.folder.name}"
        if read_results(run.folder) and read_the_same(run):
            print(f"{label}: done before", flush=True)
            continue
        print(f"{label}: {shlex.join(run.command)}", flush=True)
        began, log = time.monotonic(), log_of(run.folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            output = {"stdout": file, "stderr": subprocess.STDOUT}
            status, came = signals.run(run.command, label, **output)
        took = f"{(time.monotonic() - began) / 60:.1f} min"
        if status == 0 and read_results(run.folder):
            print(f"{label}: done in {took}", flush=True)
            if not came:
                continue
        if came:
            print(
                f"== stopped by {came[0].name}: {label} ended with status {status}; its output is "
                f"in {log}. The same command goes on from there",
                flush=True,
            )
            return failed, status or 128 + came[0]
        failed.append(run.folder)
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
        print(
            f"{label}: failed after {took} with status {status}; the end of {log}:\n{end}",
            flush=True,
        )
    return failed, 0


def read_the_same(run: Run) -> bool:
    """Whether a finished run read what its config names now, as far as files tell that alone.

    Where they do not, the run is started once more: it says what is another now, or that nothing
    is. So is a comparison, whose systems may be others: what is on file is not asked again.
    """
    if "systems" in run.config:
        return False
    path = run.folder / "config.json"
    about = read_object(path) if path.is_file() else {}
    if "files" not in about or "data" not in run.config:
        return True
    from experiments.stages import inputs

    config = ml_collections.ConfigDict(run.config)
    templates = run_config.load_templates(config)
    try:
        now = inputs.models_and_templates(config, templates)
        same = inputs.file_digests(config) == about["files"]
    except (ValueError, OSError):
        return False
    before = inputs.what_matters(about["inputs"])
    return same and not inputs.changed({name: before.get(name) for name in now}, now)


def log_of(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f"{folder.name}.log")


def read_results(folder: pathlib.Path) -> dict | None:
    """What a finished run's results.json holds; None where there is none. Ends the program with the
    message for another file of this name.
    """
    path = folder / "results.json"
    try:
        kinds = {"config": dict}
        return check_fields(read_object(path), kinds, str(path), kinds) if path.is_file() else None
    except ValueError as error:
        sys.exit(f"{error}. Remove it, or choose another --workdir")


def write(workdir: pathlib.Path, folders: Sequence[pathlib.Path], swept: Sequence[str]) -> None:
    """Write the table of finished runs. Ends the program with the message where they cannot be
    merged.
    """
    from grm_jax.evaluation.merge import merge
    from grm_jax.report import merged as report

    runs = {}
    for folder in folders:
        results = read_results(folder)
        if results is None:
            sys.exit(f"{folder} has no results.json: expected the work folder of a finished run")
        runs[str(folder)] = results
    try:
        merged = merge(runs, swept)
    except ValueError as error:
        sys.exit(str(error))
    workdir.mkdir(parents=True, exist_ok=True)
    text = report.markdown(merged)
    (workdir / "sweep.md").write_text(text + "\n", encoding="utf-8", errors="replace")
    (workdir / "sweep.json").write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    report.plot(merged, workdir / "sweep.png")
    print(text)
    print(", ".join(str(workdir / f"sweep.{kind}") for kind in ("md", "json", "png")))


if __name__ == "__main__":
    ending.install()
    with signals.ending():
        sys.exit(main(sys.argv[1:]))
