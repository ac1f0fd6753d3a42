"""What every stage depends on and leaves; a finished one of another work folder is taken over.

    --from=WORKDIR    take over the stages that are finished there, and depend on the same; a folder
                      of work folders, such as that of a sweep, stands for all of them
    --stages=A,B      run these alone

Two stages are the same where the fields of the config below, and the content of what was read, are
equal, for the stage and for all before it. Both lie in config.json of every work folder.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import run_config
from experiments.stages.inputs import what_matters
from grm_jax.evaluation import store
from grm_jax.json_files import NULL, check_fields, read_object
from grm_jax.reward_models.description import content_digest
from grm_jax.training.metrics import read_metrics
from grm_jax.whole_files import replacing, write_json, write_whole

EVALUATION = "eval"  # beside the stages, as a name in --stages


class Stage(NamedTuple):
    """after: the stages whose work it reads. fields: of the config, beside those of the stages
    before; a section stands for its fields. inputs: of what a run reads, by content
    (`inputs.digests`). leaves: files and folders in the work folder.
    """

    after: tuple[str, ...]
    fields: tuple[str, ...]
    inputs: tuple[str, ...]
    leaves: tuple[str, ...]


_MODEL = ("model", "tokenizer", "matmul_precision")
_TRAINED = ("seed", "model", "tokenizer", "lengths", "optimizer", "lora")
_ASKED = ("seed", "model", "tokenizer", "lengths", "sampling", "answer")
_RECORDS = (*_MODEL, "data.train", "templates.pointwise", "templates.single", "templates.rubric")
STAGES = {
    # of experiments.spct_rl
    "rft_sample": Stage(
        (),
        (
            *_ASKED,
            "rft.samples",
            "rft.hinted_samples",
            "rft.temperature",
            "rft.drop_too_easy",
            "rft.keep_hinted_of_too_easy",
        ),
        _RECORDS,
        ("trajectories/base/train/unhinted", "trajectories/base/train/hinted"),
    ),
    "rft": Stage(
        ("rft_sample",), (*_TRAINED, "rft"), ("data.general",), ("models/rft", "adapters/rft")
    ),
    "rl": Stage(
        ("rft",),
        ("rl",),
        ("functions.rl",),
        ("models/grm", "adapters/grm", "trajectories/rl.jsonl"),
    ),
    "meta_sample": Stage(
        ("rl",),
        ("meta.own_samples", "meta.policies", "meta.temperature"),
        (),
        tuple(f"trajectories/{policy}/train/own" for policy in ("base", "rft", "grm")),
    ),
    "meta": Stage(
        ("meta_sample",), ("meta",), ("templates.meta",), ("models/meta", "adapters/meta")
    ),
    # of experiments.reward_model
    "bradley_terry": Stage(
        (), (*_TRAINED, "bradley_terry"), (*_MODEL, "data.train"), ("models/bradley_terry",)
    ),
    "pair_rm": Stage((), (*_TRAINED, "pair_rm"), (*_MODEL, "data.train"), ("models/pair_rm",)),
    "critic": Stage(
        (),
        (*_TRAINED, "critic"),
        (*_MODEL, "critic", "data.critiques", "data.general", "data.train"),
        ("models/critic",),
    ),
    "critiques": Stage(
        ("critic",),
        ("sampling", "cloud.samples", "cloud.temperature"),
        (),
        ("trajectories/critic",),
    ),
    "cloud": Stage(("critiques",), ("cloud",), (), ("models/cloud",)),
}


def chain(name: str) -> list[str]:
    """A stage behind all that it reads the work of."""
    before = [earlier for direct in STAGES[name].after for earlier in chain(direct)]
    return [*dict.fromkeys(before), name]


def stages_of(config: Mapping) -> list[str]:
    """The stages of a run, in order."""
    return chain("meta" if "rl" in config else config["kind"])


def identity(name: str, config: Mapping, inputs: Mapping) -> dict[str, dict]:
    """What a stage and all before it depend on, as plain JSON: {"config": {field: value}, "inputs":
    {name: digest}}. config: plain; inputs: as `inputs.digests` has them.
    """
    stages = [STAGES[stage] for stage in chain(name)]

    def chosen(tree: Mapping, names: Sequence[str]) -> dict[str, Any]:
        return {
            field: value
            for field, value in _flat(tree)
            if any(field == one or field.startswith(f"{one}.") for one in names)
        }

    return {
        "config": chosen(
            run_config.of_results(config, but=run_config.BY_CONTENT),
            [field for stage in stages for field in stage.fields],
        ),
        "inputs": chosen(inputs, [field for stage in stages for field in stage.inputs]),
    }


def _flat(tree: Mapping, prefix: str = "") -> list[tuple[str, Any]]:
    fields = []
    for name, value in tree.items():
        below = isinstance(value, Mapping)
        fields += _flat(value, f"{prefix}{name}.") if below else [(prefix + name, value)]
    return fields


# ---- other work folders


def read_run(path: pathlib.Path) -> dict:
    """What the config.json of a work folder holds. ValueError for one that is no run's, such as a
    model's.
    """
    kinds = {"digest": str, "config": dict, "inputs": dict}
    try:
        return check_fields(read_object(path), kinds, str(path), ("digest", "config"))
    except ValueError as error:
        raise ValueError(f"{error}. A work folder has the config.json of a run") from None


def read_marker(path: pathlib.Path) -> dict:
    """What stages/NAME.json says of a finished stage. ValueError for another file."""
    kinds = {"seconds": (int, float), "note": (str, NULL), "funnel": dict, "models": dict}
    return check_fields(read_object(path), kinds, str(path), ("seconds",))


def done(workdir: pathlib.Path, name: str) -> dict | None:
    """What stages/NAME.json says of a finished stage; None where it is not done."""
    marker = workdir / "stages" / f"{name}.json"
    return read_marker(marker) if marker.is_file() else None


def need_models(workdir: pathlib.Path, name: str) -> None:
    """ValueError where a stage is done and a model that it left is not there, or another one is."""
    left = (done(workdir, name) or {}).get("models", {})
    for folder in _models(workdir, name):
        there = (folder / "config.json").is_file()
        if not there or left.get(folder.name, now := content_digest(folder)) != now:
            what = "the model there is another one" if there else "no model is there"
            raise ValueError(
                f"{folder}: {what}, and stages/{name}.json says that {name} is done; bring the "
                "model back, or remove that marker to train it again"
            )


def model_digests(workdir: pathlib.Path, name: str) -> dict[str, dict]:
    """{name: digests by content} of the models that a stage left."""
    folders = [folder for folder in _models(workdir, name) if folder.is_dir()]
    return {folder.name: content_digest(folder) for folder in folders}


def _models(workdir: pathlib.Path, name: str) -> list[pathlib.Path]:
    leaves = STAGES[name].leaves if name in STAGES else ()
    return [workdir / place for place in leaves if place.startswith("models/")]


def givers(names: Sequence[str], workdir: pathlib.Path) -> list[pathlib.Path]:
    """The work folders that --from names, but `workdir` itself. ValueError where one is none."""
    found: list[pathlib.Path] = []
    for name in names:
        folder = pathlib.Path(name)
        inside = sorted(path.parent for path in folder.glob("*/config.json"))
        runs = [folder] if (folder / "config.json").is_file() else inside
        if not runs:
            raise ValueError(
                f"--from={name}: expected a work folder, with config.json, or a folder of some; "
                + ("found neither" if folder.is_dir() else "there is no such folder")
            )
        found += [run for run in runs if run.absolute() != workdir.absolute() and run not in found]
    return found


def take_over(workdir: pathlib.Path, names: Sequence[str], folders: Sequence[pathlib.Path]) -> None:
    """Copy every stage of `names` that is not done here, from the first of the folders in which it
    is finished and depends on the same; say which, and in what the nearest of the others differ.
    """
    told = False
    for name in names if folders else ():
        if done(workdir, name):
            continue
        mine, nearest = _identity_in(workdir, name), None
        for folder in folders:
            theirs = done(folder, name)
            changed = store.differing(mine, _identity_in(folder, name)) if theirs else None
            if changed == [] and _has_models(folder, name):
                _copy(folder, workdir, name)
                print(f"== {name}: taken over from {folder} ({theirs['seconds']:.0f} s there)")
                break
            if changed and (nearest is None or len(changed) < len(nearest[1])):
                nearest = folder, changed
        else:
            if not told:  # of the stages behind it the same is true
                fields = [field.partition(".")[2] for field in nearest[1]] if nearest else []
                fields = fields if len(fields) <= 8 else [*fields[:8], f"{len(fields) - 8} more"]
                print(
                    f"== {name}: not taken over; "
                    + (
                        f"that of {nearest[0]} differs in {', '.join(fields)}"
                        if nearest
                        else f"not finished in {', '.join(map(str, folders))}"
                    ),
                    flush=True,
                )
            told = True


def _has_models(folder: pathlib.Path, name: str) -> bool:
    try:
        need_models(folder, name)
    except ValueError as error:
        print(f"== {name}: not taken over; {error}", flush=True)
        return False
    return True


def _identity_in(folder: pathlib.Path, name: str) -> dict:
    """The identity of a stage by the config.json of its work folder."""
    run = read_run(folder / "config.json")
    config = run["config"]
    return identity(name, config, what_matters(run.get("inputs", {})))


def _copy(giver: pathlib.Path, workdir: pathlib.Path, name: str) -> None:
    """What a stage leaves, what it logged, and its marker, which comes last."""
    for place in (*STAGES[name].leaves, f"tensorboard/{name}"):
        # models are never written to again; files of judgments may be
        copy = _link if place.startswith(("models/", "adapters/")) else shutil.copy2
        if (giver / place).is_dir():
            shutil.copytree(giver / place, workdir / place, copy_function=copy, dirs_exist_ok=True)
        elif (giver / place).is_file():
            (workdir / place).parent.mkdir(parents=True, exist_ok=True)
            copy(giver / place, workdir / place)
    logged = [
        row
        for folder, own in ((workdir, False), (giver, True))
        if (folder / "metrics.jsonl").is_file()
        for row in read_metrics(folder / "metrics.jsonl")
        if (row["stage"] == name) == own
    ]
    if logged:
        lines = "".join(json.dumps(row) + "\n" for row in logged)
        write_whole(workdir / "metrics.jsonl", lines)
    (workdir / "stages").mkdir(exist_ok=True)
    marker = (done(giver, name) or {}) | {"from": str(giver)}
    write_json(workdir / "stages" / f"{name}.json", marker)


def _link(source: str, target: str) -> None:
    """One file under two names, or a copy where the folders lie on different disks."""
    pathlib.Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def take_judgments(
    place: pathlib.Path, name: str, identity: Mapping, folders: Sequence[pathlib.Path]
) -> None:
    """Copy the judgments of a system of this identity to `place` (judgments/NAME), if it has none
    yet: of the folders that have any, from the one that has most.
    """
    there = [folder / "judgments" / name for folder in folders]
    there = [other for other in there if store.holds(other, identity)]
    if place.exists() or not there:
        return
    most = max(there, key=lambda other: sum(p.stat().st_size for p in other.rglob("*.jsonl")))
    with replacing(place) as partial:
        shutil.copytree(most, partial, dirs_exist_ok=True)
    print(f"== judgments of {name}: taken over from {most}", flush=True)


# ---- the stages that are asked for


def chosen(names: Sequence[str], workdir: pathlib.Path, all_names: Sequence[str]) -> list[str]:
    """The stages to run: all, or those that --stages names. ValueError for a name that is none, and
    where what one of them reads is neither done nor among them.
    """
    if not names:
        return [*all_names, EVALUATION]
    check_names(names, all_names)
    for name in names:
        for before in STAGES[name].after if name != EVALUATION else ():
            if before not in names and not done(workdir, before):
                raise ValueError(
                    f"--stages: {name} reads what {before} leaves, which is not done in {workdir}; "
                    f"name {before} too, or take it over with --from=WORKDIR"
                )
    return list(names)


def check_names(names: Sequence[str], all_names: Sequence[str]) -> None:
    """ValueError where --stages names what is no stage of the run."""
    known = (*all_names, EVALUATION)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--stages: expected some of {', '.join(known)}, got {unknown[0]!r}")
