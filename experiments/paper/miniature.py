"""The paper in miniature, training: what is trained for each seed, from which base, on which data,
and what it takes over from another training.

    <workdir>/bases/width_<w>/           bases of other sizes (experiments/build_base/__main__.py)
    <workdir>/seed_<s>/<training>/       a work folder (experiments/stages/workdir.py), with
                                         models/<model>/

All trainings of a seed start from one base and from the same world records; judges of pairs see the
pairs that these records make (paper, App C.2: compatible data).
"""

import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Callable

import ml_collections

from experiments import run_config
from experiments.configs import tiny, tiny_reward_model
from experiments.stages import meta, rft, rl, scalar
from experiments.stages.reuse import read_marker
from experiments.stages.workdir import Run, run_stage, setup
from grm_jax.data.world import make_records
from grm_jax.evaluation import store
from grm_jax.judgment.parsing import BOX, read_answer
from grm_jax.judgment.reasoning import blanked
from grm_jax.judgment.records import Record, write_records
from grm_jax.judgment.rules import best_index, is_correct

Stage = tuple[str, Callable[[Run], str | None]]
RFT_SAMPLE, RFT, RL = ("rft_sample", rft.sample_trajectories), ("rft", rft.train), ("rl", rl.train)
META = (("meta_sample", meta.sample_own), ("meta", meta.train))
FAST = {  # overrides of a training that is only to be seen to run
    "rft.steps": 6,
    "rl.steps": 6,
    "meta.steps": 6,
    "rl.batch_size": 32,
    "rl.micro_batch": 32,
    "sampling.rows": 64,
    "bradley_terry.steps": 6,
    "pair_rm.steps": 6,
    "critic.steps": 6,
    "cloud.steps": 6,
    "checkpoint.every": 3,
}
FAST_RECORDS = 48


@dataclasses.dataclass(frozen=True)
class Training:
    """One work folder: overrides of the tiny preset, the stages to run, and whose trajectories
    ("rft_sample") or RFT model ("rft") it takes over.
    """

    name: str
    stages: tuple[Stage, ...]
    changes: dict = dataclasses.field(default_factory=dict)
    takes: tuple[str, ...] = ()
    giver: str = "spct"
    preset: Callable[[], ml_collections.ConfigDict] = tiny.get_config


def trainings(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, seed: int
) -> dict[str, list[Training]]:
    """{group: what is trained for it}, for the groups of the config, in order: each behind what it
    takes over. What all take from is "shared" where the main table, which trains it to its end, is
    not made.
    """
    samples, tuned = ("rft_sample",), ("rft_sample", "rft")
    critique = (
        ("critic", scalar.train_critic),
        ("critiques", scalar.sample_critiques),
        ("cloud", scalar.train_cloud),
    )
    kinds = {
        "bradley_terry": (("bradley_terry", scalar.train_bradley_terry),),
        "pair_rm": (("pair_rm", scalar.train_pair_rm),),
        "cloud": critique,
    }
    pairs = {"data.train": (str(_pairs_path(workdir, seed)),)}
    # labels cost nothing here: a scalar model learns from more of them
    four_times = ({"world": "train", "items": 4 * tiny.RFT_RECORDS},)
    groups = {
        "main": [
            Training("spct", (RFT_SAMPLE, RFT, RL, *META)),
            *(
                Training(kind, stages, {"kind": kind}, preset=tiny_reward_model.get_config)
                for kind, stages in kinds.items()
            ),
            Training(
                "bradley_terry_4x",
                kinds["bradley_terry"],
                {"kind": "bradley_terry", "data.train": four_times},
                preset=tiny_reward_model.get_config,
            ),
        ],
        "judges": [
            Training("judge_source", (RFT_SAMPLE,), pairs),
            Training(
                "judge",
                (("by_index", answer_by_index), RFT, RL),
                pairs | {"answer": "index", "templates.pointwise": "tiny_judge"},
                samples,
                giver="judge_source",
            ),
        ],
        "ablations": [
            Training("no_principles", (RFT, RL), {"rft.principles": False}, samples),
            # "w/o rejective sampling": RL on general data alone
            Training("general_only", (RFT, RL), {"rft.trajectories": ()}, samples),
            Training("no_hinted", (RFT,), {"rft.trajectories": ("unhinted",)}, samples),
            Training("no_unhinted", (RFT,), {"rft.trajectories": ("hinted",)}, samples),
            Training("no_general", (RFT,), {"rft.general_fraction": 0.0}, samples),
            *(
                Training(f"beta_{beta:g}", (RL,), {"rl.beta": beta}, tuned)
                for beta in config.betas
                if beta != tiny.RL_BETA
            ),
        ],
        "sizes": [
            Training(
                f"width_{width}",
                (RFT_SAMPLE, RFT, RL),
                {"model.path": str(workdir / "bases" / f"width_{width}")},
            )
            for width in config.widths
        ],
    }
    shared = (
        [Training("spct", (RFT_SAMPLE, RFT))]
        if "ablations" in config.groups and "main" not in config.groups
        else []
    )
    return {"shared": shared} | {group: groups[group] for group in config.groups}


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path, seed: int) -> None:
    """Run what is not done yet of all trainings of a seed."""
    _write_pairs(config, _pairs_path(workdir, seed), seed)
    for training in itertools.chain(*trainings(config, workdir, seed).values()):
        folder = workdir / f"seed_{seed}" / training.name
        names = [name for name, _ in training.stages]
        if all((folder / "stages" / f"{name}.json").is_file() for name in names):
            print(f"=== seed {seed}, {training.name}: done before", flush=True)
            continue
        print(f"=== seed {seed}, {training.name}", flush=True)
        run = setup(training_config(config, training, seed), folder)
        for what in training.takes:
            take_over(workdir / f"seed_{seed}" / training.giver, folder, what)
        for name, stage in training.stages:
            run_stage(run, name, stage)


def training_seconds(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, seed: int
) -> dict[str, float]:
    """{group: seconds of the stages that were trained for it}; what one training took over from
    another counts once.
    """

    def seconds(training: Training) -> float:
        folder = workdir / f"seed_{seed}" / training.name / "stages"
        return sum(read_marker(folder / f"{stage}.json")["seconds"] for stage, _ in training.stages)

    return {
        group: sum(map(seconds, own)) for group, own in trainings(config, workdir, seed).items()
    }


def training_config(
    config: ml_collections.ConfigDict, training: Training, seed: int
) -> ml_collections.ConfigDict:
    preset = training.preset()
    preset.seed = seed
    # judging is experiments.evaluate's work
    preset.data.eval = ml_collections.ConfigDict({"test": {"world": "test", "items": 8}})
    preset.eval.splits, preset.eval.records = ("test",), 8
    changes = dict(training.changes)
    if config.fast:
        preset.data.train = ({"world": "train", "items": FAST_RECORDS},)
        changes |= {field: value for field, value in FAST.items() if field.split(".")[0] in preset}
    with preset.ignore_type():
        preset.update_from_flattened_dict(changes)
    return run_config.finish(preset)


def take_over(giver: pathlib.Path, folder: pathlib.Path, what: str) -> None:
    """Copy a finished stage of another training, its marker last."""
    marker = folder / "stages" / f"{what}.json"
    if marker.is_file():
        return
    if what == "rft_sample":
        base = pathlib.Path("trajectories") / "base"
        shutil.copytree(giver / base, folder / base, dirs_exist_ok=True)
    else:
        shutil.copytree(giver / "models" / what, folder / "models" / what, dirs_exist_ok=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(giver / "stages" / f"{what}.json", marker)


def _pairs_path(workdir: pathlib.Path, seed: int) -> pathlib.Path:
    return workdir / f"seed_{seed}" / "pairs.jsonl"


def _write_pairs(config: ml_collections.ConfigDict, path: pathlib.Path, seed: int) -> None:
    """The pairs (best response, another) of the world's training records, for judges of pairs."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        records = make_records("train", FAST_RECORDS if config.fast else tiny.RFT_RECORDS, seed)
        write_records(path, [pair for record in records for pair in pairs_of(record)])


def pairs_of(record: Record) -> list[Record]:
    """The best response with each of the others, in the record's order; none for a single
    response.
    """
    if len(record.responses) < 2:
        return []
    best, found = best_index(record.rewards), []
    for other in range(len(record.responses)):
        if other != best:
            kept = sorted((best, other))
            found.append(
                dataclasses.replace(
                    record,
                    id=f"{record.id}/{kept[0]}-{kept[1]}",
                    responses=tuple(record.responses[i] for i in kept),
                    rewards=tuple(record.rewards[i] for i in kept),
                )
            )
    return found


def answer_by_index(run: Run) -> None:
    """Rewrite the base's pointwise judgments of pairs as answers by index: the box names the
    response with the higher score.

    The tiny base has never seen an answer by index, so it could not be sampled for LLM-as-a-Judge's
    RFT. What is accepted is decided anew; judgments that tie or do not parse cannot be rewritten
    and count as failures.
    """
    for path in sorted(run.trajectories("base").rglob("*.jsonl")):
        judgments = [by_index(judgment) for judgment in store.read(path)]
        rewritten = path.with_suffix(".rewritten")
        rewritten.unlink(missing_ok=True)
        with store.appending(rewritten) as file:
            store.append(file, judgments)
        rewritten.replace(path)
    decided = rft.trajectories(run)
    print(
        f"by_index: {sum(judgment['accepted'] for judgment in decided)} of {len(decided)} "
        "rewritten judgments are accepted",
        flush=True,
    )


def by_index(judgment: dict) -> dict:
    """One pointwise judgment of a pair as an answer by index; what is one already stays as it
    is.
    """
    scores, order = judgment["scores"], judgment["order"]
    if scores is None or sorted(scores) == [0, 1]:
        return judgment
    first, second = (scores[i] for i in order)  # as shown
    if first == second:
        return judgment | {"scores": None, "failure": "tie", "correct": False}
    text = judgment["text"]
    text = text[: blanked(text).rindex(BOX)] + f"{BOX}{1 if first > second else 2}}}"
    answer = read_answer(text, order, "index")
    correct = is_correct(answer["scores"], judgment["rewards"])
    return judgment | {"text": text, **answer, "correct": correct}
