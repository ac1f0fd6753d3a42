"""Mean and standard error over seeds of several runs, as Markdown.

python -m experiments.merge_seeds --out=docs/tiny_full.md runs/tiny_full_0 runs/tiny_full_1 \\
    runs/tiny_full_2
"""

import json
import pathlib

from absl import app, flags

from grm_jax.evaluation.results import markdown, merge_seeds

_OUT = flags.DEFINE_string(
    "out", None, "Markdown file to write; the merged table goes beside it as .json", required=True
)


def main(argv):
    if len(argv) < 2:
        raise app.UsageError("expected the work folders of finished runs")
    merged = merge_seeds([pathlib.Path(folder) / "results.json" for folder in argv[1:]])
    out = pathlib.Path(_OUT.value)
    out.write_text(markdown(merged) + "\n")
    out.with_suffix(".json").write_text(json.dumps(merged, indent=1) + "\n")
    print(f"{out} and {out.with_suffix('.json')}: seeds {merged['seeds']}")


if __name__ == "__main__":
    app.run(main)
