"""Prints how far a run in a work folder has come: another line where it has come further.

    python launch/progress.py runs/big

Stages that are done, the last checkpoint of each, and bytes of judgments. Rollouts of RL do not
count: those behind the last checkpoint are made again. Needs nothing but Python.
"""

import pathlib
import sys


def progress(workdir: pathlib.Path) -> str:
    """How far it is, as a text; "" where nothing is there."""
    stages = sorted(path.stem for path in workdir.glob("stages/*.json"))
    last: dict[str, int] = {}
    for step in workdir.glob("checkpoints/*/*"):
        if step.name.isdigit():  # not those that are being written, nor damaged ones
            last[step.parent.name] = max(int(step.name), last.get(step.parent.name, 0))
    judged = 0
    for folder in ("judgments", "trajectories"):
        for path in workdir.glob(f"{folder}/*/**/*.jsonl"):
            try:
                judged += path.stat().st_size
            except OSError:
                pass  # it was renamed meanwhile
    words = [f"stages {','.join(stages)}"] if stages else []
    words += [f"{stage} {step}" for stage, step in sorted(last.items())]
    words += [f"judged {judged}"] if judged else []
    return "; ".join(words)


if __name__ == "__main__":
    print(progress(pathlib.Path(sys.argv[1])))
