"""Best of n on real text: answers of a small chat model to requests with a requirement that a
program checks, chosen by a GRM of real text that reads each answer alone.

    python -m experiments.policy.real_text --policy=checkpoints/smollm2-135m-instruct \\
        --answers=data/real/answers_test.jsonl --judge=smollm2-grm --workdir=runs/real/best_of_n \\
        --out=docs/best_of_n_real

The requests are on topics that no judge of `experiments.build_real` was trained on. The gold is
what the check finds, and no judge sees it; the length of what is chosen stands beside it.

    <workdir>/answers-*.jsonl   N answers to each request
    <workdir>/judged-*.jsonl    each answer with its gold, its words, and the judge's score
    <workdir>/*.of.json         beside each, what it is of: another policy or judge is refused
    <out>.json, <out>.svg       the figures and their plot; a table is printed

Run it again to go on where it was.
"""

import json
import pathlib

from absl import flags

import grm_jax
from experiments import config_flags
from experiments.build_real.draw import answers, read_rows
from experiments.policy.choosing import checked, draw_plot, figures, requirements, scored, table

_POLICY = flags.DEFINE_string("policy", None, "folder of the model that answers", required=True)
_ANSWERS = flags.DEFINE_string("answers", None, "answers to the plain questions", required=True)
_JUDGE = flags.DEFINE_string("judge", "smollm2-grm", "what grm_jax.load finds")
_WORKDIR = flags.DEFINE_string("workdir", "runs/real/best_of_n", "answers and scores")
_OUT = flags.DEFINE_string("out", None, "file without suffix, for the figures and their plot")
_REQUESTS = flags.DEFINE_integer("requests", 40, "requests")
_N = flags.DEFINE_integer("n", 8, "answers to each")
_K = flags.DEFINE_integer("k", 4, "judgments of an answer")
_SEED = flags.DEFINE_integer("seed", 0, "of requirements, answers and judgments")


def main(_):
    workdir = pathlib.Path(_WORKDIR.value)
    asked = requirements(pathlib.Path(_ANSWERS.value), _REQUESTS.value, _SEED.value)
    requests = {key: request for key, (request, _) in asked.items()}
    name = f"n{_N.value}-seed{_SEED.value}"
    path = workdir / f"answers-{name}.jsonl"
    judged = workdir / f"judged-{name}-k{_K.value}-{pathlib.Path(_JUDGE.value).name}.jsonl"
    answers(pathlib.Path(_POLICY.value), requests, _N.value, _SEED.value, path)
    rows = checked(asked, {row["id"]: row["texts"] for row in read_rows(path)})
    judge = grm_jax.load(_JUDGE.value, meta=False)
    found = figures(scored(rows, judge, _K.value, _SEED.value, judged))
    print(table(found))
    if _OUT.value:
        out = pathlib.Path(_OUT.value)
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw_plot(found, out.with_suffix(".svg"))


if __name__ == "__main__":
    config_flags.run(main)
