"""docs/results.md of experiments.paper: which table shows what, in which order, with which
plots.
"""

import json
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

import ml_collections

from experiments.configs import tiny
from experiments.paper.tables import (
    OVERALL,
    Claim,
    Way,
    claims,
    claims_table,
    critical,
    curves,
    k_curve,
    make_tables,
    table,
)
from grm_jax.data.world import describe as describe_world
from grm_jax.json_files import check_fields, read_object
from grm_jax.whole_files import write_whole

SHIPPED_WIDTH = 128
# what a person says of the figures: a file beside them, that ends the document
READINGS = "readings.md"
FIGURES = {"seed": int, "config": dict}
KEPT = (  # of a row of results.json
    "system",
    "benchmark",
    "aggregation",
    "k",
    "k_meta",
    "items",
    "value",
    "ci_low",
    "ci_high",
    "strict",
    "tie_rate",
    "parse_failure_rate",
    "domain_std",
    "tokens_per_judgment",
)


def figures_folder(out: pathlib.Path) -> pathlib.Path:
    """Where the figures of the seeds and the plots of a document lie."""
    return out.with_suffix("")


def keep_figures(
    out: pathlib.Path,
    config: ml_collections.ConfigDict,
    seed: int,
    groups: Mapping[str, Mapping],
    training_s: Mapping[str, float],
) -> None:
    """Put the figures of groups of systems into seed_<s>.json, beside those that it has. `groups`:
    {group: results.json of its comparison}.
    """
    path = figures_folder(out) / f"seed_{seed}.json"
    before = next(
        (one for one in read_figures(config, path.parent) if one["seed"] == seed), {"groups": {}}
    )
    found = {
        name: {
            "commit": _commit(),
            "training_s": training_s[name],
            "judging_s": sum(
                row["judgments"] * (row["seconds_per_judgment"] or 0.0)
                for row in group["diagnostics"]
            ),
            "rows": [{name: row[name] for name in KEPT} for row in group["rows"]],
            "capabilities": group["capabilities"],
        }
        for name, group in groups.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"seed": seed, "config": _settings(config), "groups": before["groups"] | found}
    write_whole(path, json.dumps(document, indent=0) + "\n")


def _settings(config) -> dict:
    """What all figures of a document must share."""
    return {
        name: value
        for name, value in json.loads(json.dumps(config.to_dict())).items()
        if name not in ("seeds", "groups")
    }


def read_figures(config: ml_collections.ConfigDict, folder: pathlib.Path) -> list[dict]:
    """All seeds of a folder, in order. Raises ValueError for a file that was made with another
    config.
    """
    found = sorted(
        (
            check_fields(read_object(path), FIGURES, str(path), FIGURES)
            for path in folder.glob("seed_*.json")
        ),
        key=lambda one: one["seed"],
    )
    settings = _settings(config)
    for one in found:
        if one["config"] != settings:
            wrong = sorted(
                name
                for name in one["config"] | settings
                if one["config"].get(name) != settings.get(name)
            )
            raise ValueError(
                f"{folder}/seed_{one['seed']}.json was made with another config; it differs in "
                f"{', '.join(wrong)}. Remove it, or choose another --out"
            )
    return found


def write(out: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `out`, and its plots, from the seeds in `figures_folder(out)`."""
    plots = figures_folder(out)
    seeds = read_figures(config, plots)
    rows = [[row for group in one["groups"].values() for row in group["rows"]] for one in seeds]
    lists = tuple(split for split in config.splits if split != "single")
    tables, most = make_tables(rows, lists), max(config.ks)
    focus = max(k for k in config.ks if k <= 8)
    found = claims(tables, config.ks, config.widths)
    made = [group for one in seeds for group in one["groups"].values()]
    hours = [
        sum(group[name] for group in made) / len(seeds) / 3600
        for name in ("training_s", "judging_s")
    ]
    took = f"{hours[0]:.2f} h of training and {hours[1]:.2f} h of judging a seed"
    absent = {
        f"{name} of seed {one['seed']}"
        for one in seeds
        for name in config.groups
        if name not in one["groups"]
    }

    errors = f", {critical(len(seeds)):.2f} standard errors with {len(seeds)} seeds"
    bound = errors if len(seeds) > 1 else ""

    lines = [
        "# The paper in miniature",
        "",
        "Made by `python -m experiments.paper "
        "--config=experiments/configs/tiny_paper.py"
        f"{' --config.fast=True' if config.fast else ''}` "
        f"at commit {', '.join(sorted({group['commit'] for group in made}))}; "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(str(one['seed']) for one in seeds)}; "
        f"{config.records} items of each split, drawn with world seed {config.world_seed}; "
        f"{took}. Accuracies are percentages with "
        "expected credit for ties, mean over seeds ± standard error over seeds. `overall` is "
        "the mean over the splits with two or more responses. "
        "An empty cell: the system cannot judge such items, or has no 0/1 answer there.",
        "",
        *(
            [
                "**These figures come from a fast run: a few training steps and a few items. They "
                "show that the job runs, and nothing else.**",
                "",
            ]
            if config.fast
            else []
        ),
        *(
            [
                f"**Not made yet: {', '.join(sorted(absent))}.** Tables that need them leave these "
                "rows out.",
                "",
            ]
            if absent
            else []
        ),
        "## Claims",
        "",
        "Each claim of the paper is one difference. *shows*: above 0 by a one-sided t-test "
        f"over seeds at 5 %{bound}.{_by_chance(found)}",
        "",
        *claims_table(found),
        "## How to read the tables",
        "",
        *words(config, focus),
        "## Main table",
        "",
        *table(tables, main_ways(most, focus), (*config.splits, OVERALL)),
        f"![Accuracy by k]({plots.name}/k.png)",
        "",
        "The k-curve of a scalar model is flat by construction: it is asked once. ",
        "",
        "## Judgments without scores, %",
        "",
        "They have no readable scores and are left out of the vote.",
        "",
        *table(tables, unparsed_ways(), config.splits, "parse_failure_rate"),
        "## What a system can do",
        "",
        *capabilities(
            [
                one
                for group in ("main", "judges")
                for one in seeds[0]["groups"].get(group, {"capabilities": []})["capabilities"]
            ]
        ),
        "## Ablations",
        "",
        *table(tables, ablation_ways(focus), (*config.splits, OVERALL)),
        f"## k_meta, vote of {most}",
        "",
        *table(tables, k_meta_ways(most), (*config.splits, OVERALL)),
        "## KL coefficient",
        "",
        *table(tables, beta_ways(config.betas), (*config.splits, OVERALL)),
    ]
    labels = {
        "grm": "GRM",
        "rft": "RFT",
        "base": "base",
        "cloud": "CLoud",
        "bradley_terry": "Bradley-Terry",
        "llm_judge": "LLM-as-a-Judge",
    }
    curves(
        plots / "k.png",
        {
            **{
                labels[name]: k_curve(lambda way: tables.value(way, OVERALL), name, config.ks)
                for name in labels
            },
            "GRM, Meta RM": k_curve(
                lambda way: tables.value(way, OVERALL), "grm", config.ks, "meta"
            ),
        },
        "k, judgments in the vote",
        "Inference-time scaling, mean over the splits of lists",
    )
    if config.widths:
        lines += [
            "## Inference-time and training-time scaling",
            "",
            "The same stages from bases of three widths.",
            "",
            *table(tables, width_ways(config.widths, config.ks), (*config.splits, OVERALL)),
            f"![Accuracy by k and width]({plots.name}/widths.png)",
            "",
        ]
        curves(
            plots / "widths.png",
            {
                f"width {width}": k_curve(
                    lambda way: tables.value(way, OVERALL), _of_width(width), config.ks
                )
                for width in (*config.widths, SHIPPED_WIDTH)
            },
            "k, judgments in the vote",
            "Three model sizes, mean over the splits of lists",
        )
    if (plots / READINGS).is_file():
        lines += ["## Readings", "", (plots / READINGS).read_text(encoding="utf-8")]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _by_chance(found: Sequence[Claim]) -> str:
    """Says how many claims a test at 5 % would show if none of them were so."""
    tested = sum(claim.difference is not None for claim in found)
    are = "s are" if tested > 1 else " is"
    return (
        f" {tested} claim{are} tested and nothing is corrected for multiple comparisons: were none "
        f"of them so, about {tested / 20:.0f} would still *show*."
        if tested
        else ""
    )


def words(config: ml_collections.ConfigDict, focus: int) -> list[str]:
    """What splits, systems and ways to judge are, for a reader of the document alone."""
    return [
        f"- **greedy**: one judgment at temperature 0. **@{focus}**: a vote, the sums of the "
        f"scores of {focus} sampled judgments. **Meta RM @{focus}**: of the half of them that a "
        "second model ranks highest, or of the **k_meta** best.",
        "- A verdict with the best response alone on top counts 1, a tie of t responses with the "
        "best among them 1/t, anything else 0; a judgment without scores is left out of the vote, "
        "and an item without any counts as a guess, 1/n of n responses.",
        "- **random** is a random judge: what chance gets on these very items. The longest "
        "response shows what length alone gets.",
        "- **base**: the pretrained model. **GRM-RFT**: after rejective fine-tuning. **GRM**: "
        "after RL as well.",
        *_splits(config.splits),
        "",
    ]


def _splits(splits: Sequence[str]) -> list[str]:
    """Says what the records of each split are, and what several have in common once."""
    told = {split: describe_world(split).replace(". ", ".\n").splitlines() for split in splits}
    of = {
        text: [split for split in splits if text in told[split]]
        for text in dict.fromkeys(text for texts in told.values() for text in texts)
    }
    lines: dict[str, list[str]] = {}
    for text, having in of.items():
        lines.setdefault(", ".join(having), []).append(text)
    shared_first = sorted(lines.items(), key=lambda line: -line[0].count(", "))
    return [f"- **{names}**: {' '.join(texts)}" for names, texts in shared_first]


def unparsed_ways() -> dict[str, Way]:
    names = {"CLoud": "cloud", "LLM-as-a-Judge": "llm_judge", "base": "base"}
    names |= {"GRM-RFT": "rft", "GRM": "grm"}
    greedy = {f"{label}, greedy": Way(name) for label, name in names.items()}
    return greedy | {f"{label} @1": Way(name, "vote", 1) for label, name in names.items()}


def main_ways(most: int, focus: int) -> dict[str, Way]:
    """Rows of the paper's Tab 2, by label."""
    named = {
        "random": "random",
        "longest response": "length",
        "Bradley-Terry": "bradley_terry",
        "Bradley-Terry, 4 x the records": "bradley_terry_4x",
        "PairRM": "pair_rm",
    }
    ways = {label: Way(name) for label, name in named.items()}
    sampled = {
        "CLoud": "cloud",
        "LLM-as-a-Judge": "llm_judge",
        "base": "base",
        "GRM-RFT": "rft",
        "GRM": "grm",
    }
    for label, name in sampled.items():
        ways[f"{label}, greedy"] = Way(name)
        for k in sorted({1, focus, most}):
            ways[f"{label} @{k}"] = Way(name, "vote", k)
        if name == "llm_judge":
            ways[f"TokenProb @{focus}"] = Way("token_prob", "vote", focus)
    for label, name in (("GRM-RFT", "rft"), ("GRM", "grm")):
        for k in sorted({focus, most}):
            ways[f"{label} Meta RM @{k}"] = Way(name, "meta", k, max(1, k // 2))
    return ways


def ablation_ways(focus: int) -> dict[str, Way]:
    named = {
        "GRM": "grm",
        "w/o principle generation": "no_principles",
        "w/o rejective sampling": "no_rejection",
        "RFT alone (no RL)": "rft",
        "RFT w/o hinted": "rft_no_hinted",
        "RFT w/o non-hinted": "rft_no_unhinted",
        "RFT w/o both": "rft_general_only",
        "RFT w/o general instruction data": "rft_no_general",
    }
    greedy = {f"{label}, greedy": Way(name) for label, name in named.items()}
    return greedy | {
        f"{label} @{focus}": Way(name, "vote", focus) for label, name in list(named.items())[:2]
    }


def k_meta_ways(most: int) -> dict[str, Way]:
    kept = sorted({1, max(1, most // 8), max(1, most // 4), max(1, most // 2), most})
    return {
        f"{label}, k_meta = {k}": Way(name, "meta", most, k)
        for label, name in (("GRM-RFT", "rft"), ("GRM", "grm"))
        for k in kept
    }


def beta_ways(betas: Sequence[float]) -> dict[str, Way]:
    return {
        f"beta = {beta:g}, greedy": Way("grm" if beta == tiny.RL_BETA else f"beta_{beta:g}")
        for beta in sorted({*betas, tiny.RL_BETA})
    }


def width_ways(widths: Sequence[int], ks: Sequence[int]) -> dict[str, Way]:
    ways = {}
    for width in (*widths, SHIPPED_WIDTH):
        ways[f"width {width}, greedy"] = Way(_of_width(width))
        ways |= {f"width {width} @{k}": Way(_of_width(width), "vote", k) for k in (1, max(ks))}
    return ways


def _of_width(width: int) -> str:
    return "grm" if width == SHIPPED_WIDTH else f"width_{width}"


def capabilities(found: Sequence[Mapping]) -> list[str]:
    """The paper's Tab 1 columns, as they came out of the runs of the first seed."""

    def shown(value):
        return "not seen" if value is None else "yes" if value else "no"

    lines = [
        "| system | verdicts on n = 1 | n = 2 | n > 2 | input-flexible | gain from k, points (95 "
        "% interval over items) | scalable |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        counts = [
            f"{one[size]['verdicts']} of {one[size]['items']}" for size in ("one", "two", "many")
        ]
        gain = (
            "flat by construction"
            if one["gain"] is None
            else (
                f"{100 * one['gain']:+.1f} ({100 * one['gain_low']:+.1f} to "
                f"{100 * one['gain_high']:+.1f})"
            )
        )
        lines.append(
            f"| {one['system']} | {' | '.join(counts)} | {shown(one['input_flexible'])} | {gain} "
            f"| {shown(one['scalable'])} |"
        )
    return [*lines, ""]


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
    )
    return found.stdout.strip() if found.returncode == 0 else "unknown (not a git checkout)"
