"""Train a reward model with a scalar head on preference records: Bradley-Terry, PairRM or CLoud.

    python -m experiments.reward_model --config=experiments/configs/tiny_reward_model.py \\
        --config.kind=bradley_terry --workdir=runs/tiny_bt

Run it again to go on where it was. Each kind wants a work folder of its own. What it leaves:
experiments/stages/scalar.py, workdir.py.
"""

import pathlib

from absl import logging

from experiments import config_flags, run_config

CONFIG, WORKDIR = config_flags.define_config("experiments.reward_model")
STAGES, FROM = config_flags.define_stages()
PROFILE = config_flags.define_profile()


def main(_):
    # Orbax tells every step of its work at INFO
    logging.set_verbosity(logging.WARNING)
    config = config_flags.load(CONFIG)
    from experiments.stages import evaluation, scalar
    from experiments.stages.workdir import begin, run_stage, start_processes

    # processes, mesh, model, data
    start_processes()
    print(config, flush=True)
    workdir = pathlib.Path(WORKDIR.value)
    run = begin(config, workdir, STAGES.value, FROM.value, PROFILE.value)

    # the head; for CLoud the critic and its critiques before it
    for name, stage in scalar.training_stages(run):
        run_stage(run, name, stage)
    # the finished model on every split
    settings = run_config.section(config, "eval")
    results = evaluation.evaluate_run(run, scalar.trained(run), settings)
    evaluation.exit_without_judgments(results)


if __name__ == "__main__":
    config_flags.run(main)
