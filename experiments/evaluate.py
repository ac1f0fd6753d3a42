"""Compare reward models on benchmarks: judge what is missing, then write the figures and a page to
read them and every judgment.

    python -m experiments.evaluate --config=experiments/configs/tiny_evaluate.py \\
        --workdir=runs/tiny_evaluate

    judgments/<system>/<benchmark>/{greedy,swapped,sampled}-seed<s>.jsonl   every judgment
    results.json    flat rows, paired differences, capabilities, config, versions and protocols of
                    the benchmarks (docs/evaluation.md)
    table.md        the headline
    report.html     one self-contained page

Run it again after adding a system, a benchmark or a larger k: only the new judgments are asked for.
--dry_run says how many these are, and what those of an API may cost, and asks for none.
"""

import pathlib

from absl import flags, logging

from experiments import config_flags, run_config

CONFIG, WORKDIR = config_flags.define_config("experiments.evaluate")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "say what would be judged and cost, and judge nothing"
)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = config_flags.load(CONFIG)
    from experiments.stages import evaluation
    from experiments.stages.workdir import hold, start_processes

    start_processes()
    workdir = pathlib.Path(WORKDIR.value)
    hold(workdir)
    benchmarks = evaluation.benchmarks(config, workdir / "records")
    settings = run_config.section(config, "eval")
    systems = evaluation.systems(config)
    if DRY_RUN.value:
        planned = evaluation.plan(systems, benchmarks, workdir / "judgments", settings)
        evaluation.say_plan(planned, everything=True)
        return
    results = evaluation.evaluate(systems, benchmarks, workdir, settings, config)
    evaluation.exit_without_judgments(results)


if __name__ == "__main__":
    config_flags.run(main)
