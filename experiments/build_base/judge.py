"""Put the trained GRM and its Meta RM of a finished quick start into the package, as "tiny".

    bash launch/quickstart.sh
    python -m experiments.build_base.judge --workdir=runs/tiny

Each is a Hugging Face folder with its grm.json, its tokenizer and a model card whose accuracies are
those of the run's results.json.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence

from absl import flags

from experiments import config_flags, run_config
from grm_jax.chat import BUILT_IN_CHAT
from grm_jax.checkpoint.tokenizer_files import TOKENIZER_FILES
from grm_jax.json_files import read_object
from grm_jax.judgment.voting import default_k_meta
from grm_jax.reward_models.description import Description, model_folder, write_description

_WORKDIR = flags.DEFINE_string("workdir", "runs/tiny", "work folder of a finished quick start")
_OUT = flags.DEFINE_string("out", "grm_jax/assets/tiny", "folder that gets grm/ and meta/")

FILES = ("config.json", "model.safetensors")
MODEL_CARD = """---
license: apache-2.0
library_name: grm_jax
---
# {title}

{what}

Made by `bash launch/quickstart.sh` (`experiments/configs/tiny.py`, seed {seed}: rejective
fine-tuning, online RL and the Meta RM from `grm_jax/assets/tiny_base`, float32) and
`python -m experiments.build_base.judge`. It knows only the checkable world of `grm_jax.data.world`
(docs/world.md), and is no judge of any other text. `grm.json` says how it is asked.

Accuracy of the judge in %, with the standard error over items, on records that no training saw; the
vote is over {k} samples at temperature {temperature:g}, of which the Meta RM keeps {k_meta}:

| split | items | chance | greedy | vote of {k} | with the Meta RM |
|---|---|---|---|---|---|
{rows}
"""
GRM = (
    "A pointwise generative reward model of 0.7 million parameters (Gemma-2, 4 layers, width 128)."
)
META = (
    "The Meta RM of the GRM beside it, of the same size: it reads a judgment and says, as a logit, "
    "whether it is correct."
)


def main(_):
    workdir, out = pathlib.Path(_WORKDIR.value), pathlib.Path(_OUT.value)
    results = read_object(workdir / "results.json")
    config = results["config"]
    templates = run_config.load_templates(config)
    how = {
        "chat": BUILT_IN_CHAT,
        "lengths": {name: config["lengths"][name] for name in ("prompt", "completion")},
        "temperature": config["eval"]["temperature"],
    }
    grm = Description(
        "pointwise_grm",
        {role: templates[role] for role in ("pointwise", "single")},
        meta="../meta",
        **how,
    )
    meta = Description("meta_rm", {"meta": templates["meta"]}, **how)
    for name, described, title, what in (
        ("grm", grm, "Tiny GRM", GRM),
        ("meta", meta, "Tiny Meta RM", META),
    ):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(workdir / "models" / name / file, folder / file)
        for file in TOKENIZER_FILES:
            if (model_folder("tiny_base") / file).is_file():
                shutil.copyfile(model_folder("tiny_base") / file, folder / file)
        write_description(folder, described)
        (folder / "README.md").write_text(card(results, title, what), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"written to {out}: {size / 1e6:.1f} MB")


def card(results: Mapping, title: str, what: str) -> str:
    """The model card, with the figures of results.json."""
    config = results["config"]
    k = max(config["eval"]["ks"])
    rows = []
    for split in config["eval"]["splits"]:
        greedy = _row(results["rows"], split, ("greedy", 1, None))
        vote = _row(results["rows"], split, ("vote", k, None))
        cells = [greedy, vote, _row(results["rows"], split, ("meta", k, default_k_meta(k)))]
        figures = [f"{100 * cell['value']:.1f} ± {100 * cell['stderr']:.1f}" for cell in cells]
        chance = f"{100 * greedy['chance']:.0f}"
        rows.append("| " + " | ".join([split, str(greedy["items"]), chance, *figures]) + " |")
    return MODEL_CARD.format(
        title=title,
        what=what,
        seed=config["seed"],
        k=k,
        k_meta=default_k_meta(k),
        temperature=config["eval"]["temperature"],
        rows="\n".join(rows),
    )


def _row(rows: Sequence[Mapping], split: str, way: tuple) -> Mapping:
    return next(
        row
        for row in rows
        if (row["system"], row["benchmark"]) == ("grm", split)
        and (row["aggregation"], row["k"], row["k_meta"]) == way
    )


if __name__ == "__main__":
    config_flags.run(main)
