"""Compare reward models on benchmarks: judge what is missing, then write the figures and a page to
read them and every judgment.

    python -m experiments.evaluate --config=experiments/configs/tiny_evaluate.py \\
        --workdir=runs/tiny_evaluate

    judgments/<system>/<benchmark>/{greedy,swapped,sampled}-seed<s>.jsonl   every raw row
    (experiments/stages/judging.py) results.json    flat rows, paired differences, capabilities,
    config, versions and protocols of the benchmarks table.md        the headline
    report.html     one self-contained page

Run it again after adding a system, a benchmark or a larger k: only the new judgments are asked for.
"""

import pathlib
import sys

from absl import app, logging

from experiments import config_flags
from experiments.stages.comparison import run
from experiments.stages.run import start_processes
from grm_jax.parallel import processes
from grm_jax.report.headline import markdown

CONFIG, WORKDIR = config_flags.define_config()


def main(_):
    logging.set_verbosity(logging.WARNING)
    start_processes()
    workdir = pathlib.Path(WORKDIR.value)
    try:
        results = run(CONFIG.value.lock(), workdir)
    # a config, benchmark or folder that cannot be used, said in full
    except (ValueError, FileNotFoundError) as error:
        if processes.count() > 1:
            raise  # only after an exception does a process leave without waiting for the others
        sys.exit(f"{type(error).__name__}: {error}")
    if processes.is_main():
        print(markdown(results))
        print(f"{workdir / 'results.json'}, {workdir / 'table.md'}, {workdir / 'report.html'}")


if __name__ == "__main__":
    app.run(main)
