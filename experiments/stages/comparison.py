"""The whole comparison of a config in a work folder: judgments, figures, results.json, table.md,
report.html.
"""

import json
import pathlib

import ml_collections

from experiments.stages import judging
from grm_jax.evaluation.comparisons import compare_systems
from grm_jax.parallel import processes
from grm_jax.report.headline import markdown
from grm_jax.report.report import write_report


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
    """Judge what is missing, write the three files, and return what results.json holds; {} in all
    processes but the first, which writes.

    Raises ValueError for a config that cannot be right.
    """
    judging.validate(config)
    benchmarks = judging.load_benchmarks(config, workdir / "records")
    judged = judging.judge_all(config, benchmarks, workdir / "judgments")
    if not processes.is_main():
        return {}
    results = {"config": config.to_dict()} | compare_systems(
        benchmarks, judged, tuple(config.ks), draws=config.bootstrap, seed=config.seeds[0]
    )
    partial = workdir / "results.json.partial"
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    partial.rename(workdir / "results.json")
    (workdir / "table.md").write_text(markdown(results))
    write_report(workdir, results, benchmarks, judged, config.report_items)
    return results
