"""Put the adapters of the GRM of real text and of its Meta RM into the package, as "smollm2-grm"
and "smollm2-meta".

    python -m experiments.build_real.judge --cold=runs/real/cold --spct=runs/real/spct
    python -m experiments.build_real.judge --cold=runs/real/cold --spct=runs/real/spct \\
        --results=runs/real/evaluate/results.json

Those of the cold start, RFT and RL, each trained upon the one before, become one set over
"smollm2", and those of the Meta RM lie upon them, all in bfloat16. With the results of
`experiments.evaluate`, of a system "GRM" that is what is in the package now, their model cards are
written.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from absl import flags

from experiments import config_flags
from grm_jax.checkpoint.peft import load_adapters, save_adapters
from grm_jax.json_files import read_object
from grm_jax.judgment.voting import default_k_meta
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import stack
from grm_jax.models.table import SCALAR
from grm_jax.reward_models.description import (
    Description,
    model_folder,
    read_description,
    write_description,
)

_COLD = flags.DEFINE_string("cold", "runs/real/cold", "work folder of the cold start")
_SPCT = flags.DEFINE_string("spct", "runs/real/spct", "work folder of SPCT from there")
_RESULTS = flags.DEFINE_string("results", None, "results.json with a system GRM, for model cards")
_ASSETS = flags.DEFINE_string("assets", "grm_jax/assets/smollm2_grm", "gets grm/ and meta_rm/")

BASE, NAME, SYSTEM = "smollm2", "smollm2-grm", "GRM"
META = "meta_rm"  # not "meta", which would guide the GRM beside it unasked
LENGTHS = {"prompt": 2048, "completion": 256}  # what it was tested with
CARD = """---
license: apache-2.0
library_name: grm_jax
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# {title}

{what}

Made by the commands of docs/real_text.md, which has all figures, and
`python -m experiments.build_real.judge`. `grm.json` says how it is asked.

It judges requirements that a program could check (use this word, begin with that one, so many
sentences, capitals, a language), of the kinds that it was taught, in short English texts.
**Elsewhere it is no judge.** The order of the responses sways it. It is here so that a real
generative reward model runs offline after one `pip install`:
`grm_jax.load("smollm2-grm")`, guided by its Meta RM with `meta="smollm2-meta"`.

Correct in %, with 95 % intervals by bootstrap over prompts, on text that no training saw; the vote
is over {k} samples at temperature {temperature:g}, of which the Meta RM keeps half:

| records | items | chance | greedy | vote of {k} | with the Meta RM |
|---|---|---|---|---|---|
{rows}
"""
WHAT = {
    "grm": (
        "SmolLM2 GRM",
        "Adapters that make a pointwise generative reward model of SmolLM2-135M-Instruct: it "
        "reads a\nrequest and responses, and writes principles, what is right or wrong in each "
        "response, and a\nscore from 1 to 10 for each.",
    ),
    META: (
        "SmolLM2 Meta RM",
        "Adapters upon those of the GRM beside it, with a head: they read a judgment and say, as a "
        "logit,\nwhether it is correct.",
    ),
}


def main(_):
    cold, spct, out = (pathlib.Path(flag.value) for flag in (_COLD, _SPCT, _ASSETS))
    cards = {}
    if _RESULTS.value:
        results = read_object(pathlib.Path(_RESULTS.value))
        cards = {part: card(results, *said, _RESULTS.value) for part, said in WHAT.items()}
    pack(cold, spct, out)
    for part, text in cards.items():
        (out / part / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"written to {out}: {size / 1e6:.1f} MB")


def pack(cold: pathlib.Path, spct: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the folders grm and meta_rm; all that they are made of is read before."""
    cfg = load_config(model_folder(BASE))
    folders = (cold / "adapters/rft", spct / "adapters/rft", spct / "adapters/grm")
    grm, lora = stack([load_adapters(folder, cfg) for folder in folders])
    meta, meta_lora = load_adapters(spct / "adapters/meta", cfg, SCALAR)
    said = {part: _description(spct / "models" / part) for part in ("grm", "meta")}
    save_adapters(out / "grm", grm, cfg, lora, BASE, dtype="bfloat16")
    save_adapters(out / META, meta, cfg, meta_lora, NAME, architecture=SCALAR, dtype="bfloat16")
    for part, place in (("grm", "grm"), ("meta", META)):
        described = dataclasses.replace(said[part], lengths=LENGTHS, meta=None)
        write_description(out / place, described)


def _description(folder: pathlib.Path) -> Description:
    said = read_description(folder)
    if said is None:
        raise FileNotFoundError(f"{folder}: expected a grm.json, which says how it is asked")
    return said


def card(results: Mapping, title: str, what: str, where: str = "results") -> str:
    """The model card, with the figures of results.json."""
    rows, lines = [row for row in results["rows"] if row["system"] == SYSTEM], []
    if not rows:
        raise ValueError(f"{where}: no row of a system {SYSTEM!r}")
    k = max(row["k"] for row in rows if row["aggregation"] == "vote")
    ways_shown = (("greedy", 1, None), ("vote", k, None), ("meta", k, default_k_meta(k)))
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        ways = {
            (row["aggregation"], row["k"], row["k_meta"]): row
            for row in rows
            if row["benchmark"] == benchmark
        }
        cells = [ways.get(way) for way in ways_shown]
        if (greedy := cells[0]) is None:
            raise ValueError(f"{where}: no greedy row of {SYSTEM!r} on {benchmark}")
        first = [benchmark, str(greedy["items"]), f"{100 * greedy['chance']:.1f}"]
        lines.append("| " + " | ".join(first + list(map(_cell, cells))) + " |")
    temperature = results["config"]["eval"]["temperature"]
    return CARD.format(title=title, what=what, k=k, temperature=temperature, rows="\n".join(lines))


def _cell(row: Mapping | None) -> str:
    """A figure with its interval."""
    if row is None:
        return "not drawn"
    return "{value:.1f} [{ci_low:.1f}, {ci_high:.1f}]".format(
        **{field: 100 * row[field] for field in ("value", "ci_low", "ci_high")}
    )


if __name__ == "__main__":
    config_flags.run(main)
