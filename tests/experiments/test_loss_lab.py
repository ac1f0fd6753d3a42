"""The figures of docs/losses.md: what they draw, and the table of a sweep over losses."""

import json
import pathlib

import numpy as np
import pytest

from experiments import loss_lab
from grm_jax.losses import LOSSES

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def test_pushes_are_bounded_where_the_papers_say():
    """At four ratios, A = +2 and -1, by hand: clipped above and below, never, or as a weight."""
    ratios = np.array([0.5, 1.0, 1.25, 8.0])
    by_hand = {
        "grpo": ([1, 2, 0, 0], [0, -1, -1.25, -8]),
        "dapo": ([1, 2, 2.5, 0], [0, -1, -1.25, -8]),
        "rloo": ([2, 2, 2, 2], [-1, -1, -1, -1]),
        "cispo": ([1, 2, 2.5, 10], [-0.5, -1, -1.25, -5]),
        "gspo": ([1, 2, 0, 0], [0, -1, -1.25, -8]),
    }
    for name, (up, down) in by_hand.items():
        np.testing.assert_allclose(loss_lab.push(name, ratios, 2.0), up, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(loss_lab.push(name, ratios, -1.0), down, rtol=1e-5, err_msg=name)


def test_on_policy_the_losses_are_three_by_their_divisor():
    for name, expected in {"grpo": [1 / 8, 1 / 64], "dr_grpo": [1 / 128, 1 / 128]}.items():
        np.testing.assert_allclose(loss_lab.share(name, [4, 32]), expected, rtol=1e-6)
    np.testing.assert_allclose(loss_lab.share("dapo", [4, 32]), [1 / 36, 1 / 64], rtol=1e-6)


def test_the_figure_in_the_docs_has_every_loss():
    text = (DOCS / "losses_gradients.svg").read_text()
    assert all(f">{name}" in text for name in LOSSES)


@pytest.fixture
def sweep(tmp_path):
    """Two losses of two seeds as a sweep leaves them, of six batches each."""
    for name, base in (("grpo", 0.0), ("rloo", 1.0)):
        for seed in (0, 1):
            folder = tmp_path / f"seed={seed},loss={name}"
            folder.mkdir()
            row = {"system": "grm", "k": 1, "value": 0.5 + 0.1 * seed}
            results = {
                "config": {"seed": seed, "rl": {"loss": name}},
                "rows": [row | {"aggregation": way} for way in ("greedy", "vote")],
            }
            (folder / "results.json").write_text(json.dumps(results))
            lines = []
            for step in range(6):
                row = dict.fromkeys(loss_lab.CURVES, base + step + seed)
                row |= {"stage": "rl", "step": step, "ratio_max": 1.0}
                lines.append(json.dumps(row | ({"clip_ratio/region": 0.5} if not base else {})))
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_table_has_means_over_seeds_with_their_errors(sweep):
    """And the differences at the same seed, which have none here."""
    found = loss_lab.runs(sweep)
    lines = loss_lab.table(found).splitlines()
    assert lines[2].startswith("| `grpo` | 2 | 4.000 ± 0.500 | 4.0000 ± 0.5000 |")
    assert lines[2].endswith("| 50.00 ± 0.00 | 55.0 ± 5.0 | 55.0 ± 5.0 |")
    assert lines[3].startswith("| `rloo` | 2 | 5.000 ± 0.500 |") and "|  |" in lines[3]
    (line,) = loss_lab.table(found, "grpo").splitlines()[2:]
    assert line.startswith("| `rloo` | 2 | +1.000 ± 0.000 |") and line.endswith("| +0.0 ± 0.0 |")


def test_the_curves_are_drawn(sweep):
    loss_lab.main(["--out", str(sweep / "curves.svg"), "--sweep", str(sweep)])
    text = (sweep / "curves.svg").read_text()
    assert ">rloo" in text and ">Entropy, nats" in text
