"""The paper in miniature, judging: the systems of each group, as specs of experiments.evaluate."""

from experiments.configs import tiny


def main_systems(config, models) -> list[dict]:
    """Systems of the main table, with votes of every k."""
    grm = {"kind": "pointwise_grm", "meta": models("spct", "meta")}
    return [
        {"name": "random", "kind": "random"},
        {"name": "length", "kind": "length"},
        {
            "name": "bradley_terry",
            "kind": "scalar",
            "path": models("bradley_terry", "bradley_terry"),
        },
        {
            "name": "bradley_terry_4x",
            "kind": "scalar",
            "path": models("bradley_terry_4x", "bradley_terry"),
        },
        {"name": "pair_rm", "kind": "pair_rm", "path": models("pair_rm", "pair_rm")},
        {
            "name": "cloud",
            "kind": "cloud",
            "path": models("cloud", "cloud"),
            "critic": models("cloud", "critic"),
        },
        {"name": "base", "kind": "pointwise_grm", "path": "tiny_base"},
        {"name": "rft", "path": models("spct", "rft"), **grm},
        {"name": "grm", "path": models("spct", "grm"), **grm},
    ]


def judge_systems(config, models) -> list[dict]:
    """LLM-as-a-Judge, which goes through all pairs of a list: votes of at most 8, as in the
    paper.
    """
    return [
        {"name": kind, "kind": kind, "path": models("judge", "grm")}
        for kind in ("llm_judge", "token_prob")
    ]


def ablation_systems(config, models) -> list[dict]:
    """Systems of the ablations: greedy, one sample, and a vote of at most 8."""
    paths = {
        "no_principles": models("no_principles", "grm"),
        "no_rejection": models("general_only", "grm"),
        "rft_general_only": models("general_only", "rft"),
        "rft_no_hinted": models("no_hinted", "rft"),
        "rft_no_unhinted": models("no_unhinted", "rft"),
        "rft_no_general": models("no_general", "rft"),
    }
    paths |= {
        f"beta_{beta:g}": models(f"beta_{beta:g}", "grm")
        for beta in config.betas
        if beta != tiny.RL_BETA
    }
    return [{"name": name, "kind": "pointwise_grm", "path": path} for name, path in paths.items()]


def size_systems(config, models) -> list[dict]:
    """GRMs of other sizes, with votes of every k; the shipped size is in the main table."""
    return [
        {"name": f"width_{width}", "kind": "pointwise_grm", "path": models(f"width_{width}", "grm")}
        for width in config.widths
    ]


GROUPS = {
    "main": main_systems,
    "judges": judge_systems,
    "ablations": ablation_systems,
    "sizes": size_systems,
}
