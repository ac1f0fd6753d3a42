"""python -m experiments.evaluate --config=experiments/configs/evaluate_deepseek_grm.py \\
    --workdir=runs/deepseek_grm

DeepSeek-GRM-27B as it was released, plain and guided by its Meta RM, as its paper asks it: a vote
of 1, 8 and 32 samples at temperature 1, each of which shows the responses in an order of its own;
the Meta RM keeps half of them. Scores are read as the code on the model's card reads them, and by
the strict rules beside it.

The folders are those of the two models, and the templates are the user's files, saved from the card
of the model, whose words the weights know to the letter: docs/released_models.md says which file
goes where.

Hardware: 54 GB for the judge in bfloat16 and 54 GB for its Meta RM, over all devices.
Result and time: not run here; on a small folder of the same structure, docs/released_models.md.
"""

import ml_collections

from experiments.configs import evaluate

JUDGE, META = "models/deepseek_grm/grm", "models/deepseek_grm/meta"
TEMPLATES = "templates/deepseek_grm"


def get_config() -> ml_collections.ConfigDict:
    config = evaluate.get_config()
    config.systems = (
        {
            "name": "DeepSeek-GRM-27B",
            "kind": "pointwise_grm",
            "path": JUDGE,
            "meta": META,
            "parsing": "released",
        },
    )
    config.eval.update(ks=(1, 8, 32), temperature=1.0, samples_per_order=1)
    config.templates.update(
        pointwise=f"{TEMPLATES}/pointwise.jinja",
        single=f"{TEMPLATES}/single.jinja",
        meta=f"{TEMPLATES}/meta.jinja",
    )
    return config
