"""Train a reward model with a scalar head on preference records: Bradley-Terry, PairRM or CLoud.

    python -m experiments.reward_model --config=experiments/configs/tiny_reward_model.py \\
        --config.kind=bradley_terry --workdir=runs/tiny_bt

Run it again to go on where it was. Each kind wants a work folder of its own. What it leaves:
experiments/stages/scalar.py, run.py.
"""

import pathlib
import sys

from absl import app, logging

from experiments import config_flags
from experiments.stages.run import run_stage, setup, start_processes
from experiments.stages.scalar import judge_held_out, training_stages

CONFIG, WORKDIR = config_flags.define_config()


def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    config = config_flags.load(CONFIG)
    if "kind" not in config:
        sys.exit(
            "kind: expected a preset of experiments.reward_model, with one of "
            f"{', '.join(config_flags.KINDS)}; this one has none"
        )
    start_processes()
    print(config, flush=True)
    run = setup(config, pathlib.Path(WORKDIR.value))
    for name, stage in training_stages(run):
        run_stage(run, name, stage)
    run_stage(run, "held_out", judge_held_out)


if __name__ == "__main__":
    app.run(main)
