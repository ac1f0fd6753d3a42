"""What anytime voting saves, and what it changes, on judgments that are on file.

    python -m speed.anytime --judgments=runs/x/judgments/grm --samples=32

The folder holds <benchmark>/sampled-seed<s>.jsonl with all `samples` of each item, as an evaluation
without eval.anytime leaves them (samples_per_order=1 for the test). One JSON line for each
benchmark, error and vote:

    saved            share of the samples that are not drawn
    accuracy_all, difference, stderr
                     of the vote of all samples; of the stopped vote less that; over items, whose
                     seeds are averaged first
    lost             share of items whose winner is none of those of all samples
    fixed_samples, fixed_difference, fixed_stderr
                     the vote of a fixed number of samples at the same cost, against all

    python -m speed.anytime --simulate=2000 --samples=32

draws so many items of judges that make it hard, from seed 0, and says how many winners were lost.
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from grm_jax.evaluation import store
from grm_jax.judgment.anytime import ROUND, decided, kept_so_far
from grm_jax.judgment.parsing import score_span
from grm_jax.judgment.voting import default_k_meta, expected_credit, select_by_meta, vote

ERRORS = (0.0, 0.01, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser("speed.anytime")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--judgments", type=pathlib.Path)
    what.add_argument("--simulate", type=int, metavar="ITEMS")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--errors", type=float, nargs="*", default=ERRORS)
    args = parser.parse_args()
    if args.simulate:
        return _simulate(args.simulate, args.samples, [error for error in args.errors if error])
    for folder in sorted(path for path in args.judgments.iterdir() if path.is_dir()):
        seeds = [
            _items(path, args.samples)
            for path in sorted(folder.glob("sampled-seed*.jsonl"))
            if path.stat().st_size
        ]
        if not seeds:
            continue
        guided = any(
            j["meta_logit"] is not None for items in seeds for j in next(iter(items.values()))
        )
        for error in args.errors:
            for which in ("vote", "meta", "both: vote", "both: meta") if guided else ("vote",):
                about = {
                    "benchmark": folder.name,
                    "seeds": len(seeds),
                    "error": error,
                    "vote": which,
                }
                print(json.dumps(about | _measure(seeds, args.samples, error, which)), flush=True)


# n, and the scores of k judgments: what is liked alike, slightly more, or in bulk
JUDGES = {
    "two, a coin between 10:1 and 1:10": (2, lambda rng, k: rng.permuted([[1, 10]] * k, axis=1)),
    "two, 55 of 100 for the first": (
        2,
        lambda rng, k: np.where(rng.random((k, 1)) < 0.55, [[10, 1]], [[1, 10]]),
    ),
    "two, uniform scores": (2, lambda rng, k: rng.integers(1, 11, (k, 2))),
    "two, many small wins and few large losses": (
        2,
        lambda rng, k: np.where(rng.random((k, 1)) < 0.8, [[6, 4]], [[1, 9]]),
    ),
    "four, uniform scores": (4, lambda rng, k: rng.integers(1, 11, (k, 4))),
    "one, a coin between right and wrong": (1, lambda rng, k: rng.integers(0, 2, (k, 1))),
}


def _simulate(items: int, k: int, errors: Sequence[float]) -> None:
    for judge, (n, draw) in JUDGES.items():
        for meta in (False, True):
            rng = np.random.default_rng(0)
            drawn = []
            for _ in range(items):
                scores = draw(rng, k).tolist()
                # a Meta RM with an opinion: it likes what is good for the first response
                logits = [s[0] / 10 + x for s, x in zip(scores, rng.normal(size=k))]
                drawn.append(
                    [
                        {"scores": s, "meta_logit": x, "order": range(n)}
                        for s, x in zip(scores, logits)
                    ]
                )
            for error in errors:
                lost, stops = [], []
                for judgments in drawn:
                    stop = _stop(judgments, k, error, (meta,))
                    whole, early = (_answers(_vote(judgments[:m], k, meta)) for m in (k, stop))
                    lost.append(stop < k and not set(early) <= set(whole))
                    stops.append(stop)
                share = float(np.mean(lost))
                about = {"judge": judge, "meta": meta, "items": items, "error": error}
                about |= {"lost": share, "stderr": round((share * (1 - share) / items) ** 0.5, 5)}
                saved = round(1 - float(np.mean(stops)) / k, 4)
                print(json.dumps(about | {"saved": saved}), flush=True)


def _stop(judgments: Sequence[dict], k: int, error: float, ways: Sequence[bool]) -> int:
    """Returns after how many samples an item is left; ways: of voting that all have to stand."""
    return next(
        end
        for end in [*range(ROUND, k, ROUND), k]
        if end == k or all(_decided(judgments[:end], k, error, way) for way in ways)
    )


def _items(path: pathlib.Path, samples: int) -> dict[str, list[dict]]:
    """Returns {id: its judgments by sample} of the items that have all samples."""
    of_item: dict[str, dict[int, dict]] = collections.defaultdict(dict)
    for judgment in store.read(path):
        of_item[judgment["id"]][judgment["sample"]] = judgment
    return {
        name: [of[sample] for sample in range(samples)]
        for name, of in sorted(of_item.items())
        if all(sample in of for sample in range(samples))
    }


def _measure(seeds: Sequence[dict], k: int, error: float, which: str) -> dict:
    meta, both = which.endswith("meta"), which.startswith("both")
    drawn, gaps, credits, lost = [], collections.defaultdict(list), [], []
    for items in seeds:
        for name, judgments in items.items():
            ways = (False, True) if both else (meta,)
            stop = _stop(judgments, k, error, ways)
            drawn.append(stop)
            whole, early = (_vote(judgments[:end], k, meta) for end in (k, stop))
            rewards = judgments[0]["rewards"]
            credits.append(expected_credit(whole, rewards))
            gaps[name].append(expected_credit(early, rewards) - credits[-1])
            lost.append(stop < k and not set(_answers(early)) <= set(_answers(whole)))
    fixed = round(float(np.mean(drawn)))
    fixed_gaps = collections.defaultdict(list)
    for items in seeds:
        for name, judgments in items.items():
            few, whole = (_vote(judgments[:end], k, meta) for end in (fixed, k))
            rewards = judgments[0]["rewards"]
            fixed_gaps[name].append(expected_credit(few, rewards) - expected_credit(whole, rewards))
    difference, stderr = _mean(gaps)
    fixed_difference, fixed_stderr = _mean(fixed_gaps)
    return {
        "items": len(gaps),
        "samples_per_item": round(float(np.mean(drawn)), 2),
        "saved": round(1 - float(np.mean(drawn)) / k, 4),
        "accuracy_all": round(float(np.mean(credits)), 5),
        "difference": difference,
        "stderr": stderr,
        "lost": round(float(np.mean(lost)), 5),
        "fixed_samples": fixed,
        "fixed_difference": fixed_difference,
        "fixed_stderr": fixed_stderr,
    }


def _decided(judgments: Sequence[dict], k: int, error: float, meta: bool) -> str | None:
    scores = [judgment["scores"] for judgment in judgments]
    guide = ([judgment["meta_logit"] for judgment in judgments], default_k_meta(k)) if meta else ()
    return decided(scores, k, score_span(len(judgments[0]["order"])), error, *guide)


def _vote(judgments: Sequence[dict], k: int, meta: bool):
    scores = [judgment["scores"] for judgment in judgments]
    if meta:
        logits = [judgment["meta_logit"] for judgment in judgments]
        kept = kept_so_far(len(scores), k, default_k_meta(k))
        scores = [scores[i] for i in select_by_meta(scores, logits, kept)]
    return vote(scores)


def _answers(verdict) -> tuple:
    """The winners; of a single response right, wrong, or both."""
    if verdict.totals is None or len(verdict.totals) > 1:
        return verdict.winners
    ahead = 2 * verdict.totals[0] - verdict.valid
    return (0, 1) if ahead == 0 else (int(ahead > 0),)


def _mean(of_item: dict[str, list[float]]) -> tuple[float, float]:
    values = np.array([np.mean(gaps) for gaps in of_item.values()])
    return round(float(values.mean()), 5), round(float(values.std(ddof=1) / len(values) ** 0.5), 5)


if __name__ == "__main__":
    main()
