"""A policy that gets better: best of n and RL with a GRM, with its Meta RM, and with a
Bradley-Terry model as the judge, on the checkable world, where the gold is computed.

    python -m experiments.reward_model --config=experiments/configs/tiny_reward_model.py \\
        --config.kind=bradley_terry --workdir=runs/tiny_bt
    python -m experiments.policy --workdir=runs/policy --scalars=bt=runs/tiny_bt --out=docs/policy

    <workdir>/seed_<s>/sft/            the policy before, a Hugging Face folder
    <workdir>/seed_<s>/best_of_n.json  gold and score of the best of n, by judge
    <workdir>/seed_<s>/before.json     gold, and the score of every judge, on queries held out
    <workdir>/seed_<s>/rl_<judge>/     the policy after, steps.jsonl, after.json; rl_trl is TRL's
                                       (with_trl.py), and measured by the next run of this
    <workdir>/seed_<s>/of.json         what these are of, sizes and judges: others are refused
    <out>.json, <out>.svg              all figures of all seeds, and their plot; prints tables

Run it again to go on where it was; a judge that is new gets its figures beside those on file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from absl import flags, logging

from experiments import config_flags

WORKDIR = flags.DEFINE_string("workdir", "runs/policy", "policies, steps, figures of each seed")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of fine-tuning, sampling and RL")
SCALARS = flags.DEFINE_list(
    "scalars", [], "NAME=FOLDER of Bradley-Terry models, work folders of experiments.reward_model"
)
OUT = flags.DEFINE_string("out", None, "file without suffix, for the figures and their plot")

# of a step, in the figures of all seeds
KEPT = ("step", "gold", "reward", "missing", "kl", "tokens", "unread")


def rounded(value):
    """The same with four decimals: the standard error of a share over seeds has two."""
    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(x) for x in value]
    return round(value, 4) if isinstance(value, float) else value


def read_json(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def gathered(workdir: pathlib.Path, seeds: Sequence[int], settings: Mapping) -> dict:
    """All figures of these seeds, as plain JSON."""
    found: dict = {"settings": settings, "seeds": {}}
    for seed in seeds:
        folder, arms = workdir / f"seed_{seed}", {}
        for path in sorted(folder.glob("rl_*/after.json")):
            lines = (path.parent / "steps.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [{x: json.loads(line).get(x) for x in KEPT} for line in lines]
            arms[path.parent.name.removeprefix("rl_")] = {"steps": steps, "after": read_json(path)}
        best, before = (read_json(folder / f"{name}.json") for name in ("best_of_n", "before"))
        found["seeds"][str(seed)] = {"best_of_n": best, "before": before, "rl": arms}
    return found


def main(_):
    from experiments.policy.seeds import Sizes, run

    logging.set_verbosity(logging.WARNING)
    workdir, sizes = pathlib.Path(WORKDIR.value), Sizes()
    seeds = [int(seed) for seed in SEEDS.value]
    scalars = dict(scalar.split("=", 1) for scalar in SCALARS.value)
    run(workdir, seeds, scalars, sizes)
    found = gathered(workdir, seeds, dataclasses.asdict(sizes))
    out = pathlib.Path(OUT.value or workdir / "policy")
    from experiments.policy.plot import draw_plot
    from experiments.policy.tables import make_tables

    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(rounded(found)) + "\n", encoding="utf-8")
    draw_plot(found, out.with_suffix(".svg"))
    print(f"{make_tables(found)}\n{out.with_suffix('.svg')}", flush=True)


if __name__ == "__main__":
    config_flags.run(main)
