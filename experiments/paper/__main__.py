"""The paper in miniature: train every system on the checkable world, judge with all of them, and
write the tables.

    python -m experiments.paper --config=experiments/configs/tiny_paper.py --workdir=runs/paper \\
        --out=docs/results.md

    <workdir>/bases/, seed_<s>/<training>/   what is trained (experiments/paper/miniature.py)
    <workdir>/seed_<s>/judged/<group>/       what experiments.evaluate leaves: judgments, tables
    <out without suffix>/seed_<s>.json       the figures of a seed, group by group
    <out>, <out without suffix>/*.png        tables, claims, plots, from all seeds that are there

Run it again to go on where it was. Seeds, and groups of systems, need nothing of each other:
`--config.seeds=1 --config.groups=ablations` makes one part, on another machine if need be, and adds
its figures to those that are there.
"""

import pathlib
import sys

import ml_collections
from absl import flags, logging

from experiments import config_flags, run_config
from grm_jax import signals

CONFIG, WORKDIR = config_flags.define_config("experiments.paper")
OUT = flags.DEFINE_string(
    "out", None, "Markdown file to write; its plots lie in a folder of the same name", required=True
)

FAST = {
    "seeds": (0,),
    "groups": ("main", "judges", "ablations"),
    "betas": (0.02, 0.08),
    "widths": (),
    "records": 16,
    "ks": (1, 2, 4),
}


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = config_flags.load(CONFIG)
    from experiments.paper import document, miniature
    from experiments.stages.workdir import hold, start_processes
    from grm_jax.parallel import processes

    start_processes()
    if processes.count() > 1:
        raise ValueError(
            f"experiments.paper runs in one process, this job has {processes.count()}: start "
            "it alone, with its own seeds or groups"
        )
    workdir, out = pathlib.Path(WORKDIR.value), pathlib.Path(OUT.value)
    config = ml_collections.ConfigDict(config.to_dict())
    if config.fast:
        config.update(FAST)
        # a call with few judgments is as long as one with `rows`
        config.evaluate.sampling.rows = 64
    config.lock()
    hold(workdir)
    # what the figures would be put beside, before there are any
    document.read_figures(config, document.figures_folder(out))
    for width in config.widths if "sizes" in config.groups else ():
        build_base(config, workdir, width)
    for seed in config.seeds:
        miniature.train(config, workdir, seed)
        groups = {group: judge(config, workdir, seed, group) for group in config.groups}
        document.keep_figures(
            out, config, seed, groups, miniature.training_seconds(config, workdir, seed)
        )
        document.write(out, config)
        print(f"written: {out}, with {', '.join(config.groups)} of seed {seed}", flush=True)


def build_base(config: ml_collections.ConfigDict, workdir: pathlib.Path, width: int) -> None:
    """Pretrain a base of another width, in a process of its own; it resumes."""
    folder = workdir / "bases" / f"width_{width}"
    if (folder / "config.json").is_file():
        return
    print(f"=== base of width {width}", flush=True)
    status, came = signals.run(
        [
            sys.executable,
            "-m",
            "experiments.build_base",
            f"--workdir={workdir / 'bases' / f'state_{width}'}",
            f"--out={folder}",
            f"--width={width}",
            f"--steps={config.base.steps}",
            f"--decay_steps={config.base.decay_steps}",
        ],
        f"the base of width {width}",
    )
    if status or came:
        sys.exit(status or 128 + came[0])


def judge(config: ml_collections.ConfigDict, workdir: pathlib.Path, seed: int, group: str) -> dict:
    """Judge the splits with the systems of a group; what its results.json holds."""
    from experiments.paper.systems import GROUPS
    from experiments.stages import evaluation

    evaluate = ml_collections.ConfigDict(config.evaluate.to_dict())
    evaluate.systems = tuple(
        GROUPS[group](
            config,
            lambda training, model: str(workdir / f"seed_{seed}" / training / "models" / model),
        )
    )
    evaluate.benchmarks = tuple(
        {
            "kind": "world",
            "name": split,
            "split": split,
            "items": config.records,
            "seed": config.world_seed,
        }
        for split in config.splits
    )
    most = max(k for k in config.ks if k <= 8)
    evaluate.eval.ks = tuple(config.ks) if group in ("main", "sizes") else (1, most)
    evaluate.eval.seeds = (0,)  # the same orders and keys for the systems of all training seeds
    evaluate.eval.swap = group == "main"
    folder = workdir / f"seed_{seed}" / "judged" / group
    return evaluation.evaluate(
        evaluation.systems(evaluate),
        evaluation.benchmarks(evaluate, folder / "records"),
        folder,
        run_config.section(evaluate, "eval"),
        evaluate,
    )


if __name__ == "__main__":
    config_flags.run(main)
