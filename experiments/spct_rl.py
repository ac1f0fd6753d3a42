"""Self-Principled Critique Tuning, end to end: rejective fine-tuning, rule-based RL, Meta RM,
evaluation, report.

    python -m experiments.spct_rl --config=experiments/configs/tiny.py --workdir=runs/tiny

Run it again to go on where it was, or to write the report anew. What lies where:
experiments/stages/run.py.
"""

import json
import pathlib

from absl import app, logging

from experiments import config_flags
from experiments.stages import evaluate, meta, rft, rl
from experiments.stages.run import finished_stages, run_stage, setup, start_processes
from grm_jax.evaluation.results import summarize
from grm_jax.parallel import processes
from grm_jax.report.report import write_report
from grm_jax.reward_models.grm import read_rows

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
    if not processes.is_main():
        return

    rows = (
        row
        for path in sorted((run.workdir / "judgments").glob("eval_*.jsonl"))
        for row in read_rows(path)
    )
    summary = summarize(
        rows, config.eval.ks, shuffles=config.eval.reshuffles, seed=config.eval.seed
    )
    done = finished_stages(run)
    about = {
        "timings_s": {name: stage["seconds"] for name, stage in done.items()},
        "notes": [stage["note"] for stage in done.values() if stage["note"]],
    }
    results = {"config": config.to_dict(), "seed": config.seed} | about | summary
    (run.workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)
    print(f"report: {write_report(run.workdir)}")


def print_table(results: dict) -> None:
    """The headline: accuracy of every system and split, greedy, and voted with and without the Meta
    RM at the largest k.
    """
    for row in results["rows"]:
        if row["aggregation"] == "greedy" or row["k"] in (
            1,
            8,
            max(r["k"] for r in results["rows"]),
        ):
            print(
                f"{row['system']:5s} {row['split']:8s} {row['aggregation']:6s} "
                f"k={row['k']:<3d} accuracy {100 * row['accuracy']:5.1f} +- "
                f"{100 * row['stderr']:.1f}"
                f"  strict {100 * row['strict_accuracy']:5.1f}  ties "
                f"{100 * row['tie_rate']:4.1f} %  parse failures "
                f"{100 * row['parse_failure_rate']:4.1f} %"
            )


if __name__ == "__main__":
    app.run(main)
