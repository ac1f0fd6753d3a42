"""Self-Principled Critique Tuning, end to end: rejective fine-tuning, rule-based RL, Meta RM,
evaluation.

    python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/tiny

Run it again to go on where it was, or to judge what is missing; --stages runs some stages alone,
--from takes over those of another work folder (experiments/stages/reuse.py). What lies where:
experiments/stages/workdir.py.
"""

import pathlib

from absl import logging

from experiments import config_flags, run_config

CONFIG, WORKDIR = config_flags.define_config("experiments.spct_rl")
STAGES, FROM = config_flags.define_stages()
PROFILE = config_flags.define_profile()


def main(_):
    # Orbax tells every step of its work at INFO
    logging.set_verbosity(logging.WARNING)
    config = config_flags.load(CONFIG)
    from experiments.stages import evaluation, meta, rft, rl
    from experiments.stages.workdir import begin, run_stage, start_processes

    # processes, mesh, model, data
    start_processes()
    print(config, flush=True)
    workdir = pathlib.Path(WORKDIR.value)
    run = begin(config, workdir, STAGES.value, FROM.value, PROFILE.value)

    # rejective fine-tuning
    run_stage(run, "rft_sample", rft.sample_trajectories)
    run_stage(run, "rft", rft.train)
    # rule-based online RL
    run_stage(run, "rl", rl.train)
    # the Meta RM, on the policies' own judgments
    run_stage(run, "meta_sample", meta.sample_own)
    run_stage(run, "meta", meta.train)
    # base, RFT and RL policy on every split
    settings = run_config.section(config, "eval")
    results = evaluation.evaluate_run(run, evaluation.policies(run), settings)
    evaluation.exit_without_judgments(results)


if __name__ == "__main__":
    config_flags.run(main)
