"""Self-Principled Critique Tuning, end to end: rejective fine-tuning, rule-based RL, Meta RM,
evaluation, report.

    python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/tiny

Run it again to go on where it was, or to write the report anew. What lies where:
experiments/stages/run.py.
"""

import pathlib

from absl import app, logging

from experiments import config_flags
from experiments.stages import evaluate, meta, rft, rl
from experiments.stages.run import run_stage, setup, start_processes

CONFIG, WORKDIR = config_flags.define_config()


def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    config = config_flags.load(CONFIG)
    start_processes()
    print(config, flush=True)
    run = setup(config, pathlib.Path(WORKDIR.value))

    run_stage(run, "rft_sample", rft.sample_trajectories)
    run_stage(run, "rft", rft.train)
    run_stage(run, "rl", rl.train)
    run_stage(run, "meta_sample", meta.sample_own)
    run_stage(run, "meta", meta.train)
    stages = evaluate.evaluation_stages(run)
    for name, stage in stages:
        run_stage(run, name, stage)


if __name__ == "__main__":
    app.run(main)
