"""Votes over k of the K judgments sampled for an item, plain or guided by the Meta RM.

Tells how accurate votes are (Eq 14 of arXiv 2504.02495), how often they tie or have no verdict.

Every item has a pool of K samples. A vote over k < K of them is estimated on many subsets of the
pool: each item's pool is shuffled several times, and every shuffle gives K // k disjoint subsets.
The shuffles depend on (seed, item id) alone, so two systems, two aggregations or two values of k
always meet the same subsets and their difference can be paired item by item.

The arithmetic is that of `grm_jax.judgment.voting`, over whole arrays at once; a test compares the
two.

Letters: I items, K samples in a pool, N responses (padded to the longest list), V subsets of an
    item's pool, k judgments of a subset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grm_jax.benchmarks.credit import auc
from grm_jax.judgment.records import Record
from grm_jax.judgment.rules import best_index
from grm_jax.judgment.voting import TIE


@dataclass(frozen=True)
class Pool:
    """Holds judgments of one system on one benchmark, K per item.

    Items are sorted by id, samples by index.

    n_I: int, responses of the item.
    gold_I: int, index of the best response; where n = 1, the 0/1 reward itself; -1 where the record
        has no gold.
    scores_IKN: float, in record order, 0 where the judgment failed or the item has no such
        response.
    valid_IK: bool.
    drawn_IK: bool, False behind the last sample of an item that was left early (anytime voting);
        scores and tokens are 0 there, and nothing is valid.
    meta_IK: float, Meta RM logit, NaN where absent.
    tokens_IK: int, generated tokens.
    """

    ids: tuple[str, ...]
    n_I: np.ndarray
    gold_I: np.ndarray
    scores_IKN: np.ndarray
    valid_IK: np.ndarray
    drawn_IK: np.ndarray
    meta_IK: np.ndarray
    tokens_IK: np.ndarray

    @property
    def samples(self) -> int:
        """Returns K, the samples of an item."""
        return self.valid_IK.shape[1]

    @property
    def chance_I(self) -> np.ndarray:
        """Returns a random guess's accuracy: 1/n, and 1/2 for a single response scored 0 or 1."""
        return np.where(self.n_I == 1, 0.5, 1.0 / self.n_I)


@dataclass(frozen=True)
class Estimate:
    """Holds what is known about one way of judging: per-item means over the subsets of the pool.

    credit_I: expected 1/t credit. NaN without gold.
    strict_I: a tie is wrong. NaN without gold.
    tie_I: a top shared by several responses.
    lost_I: every judgment of the vote failed, worth the guess of `Pool.chance_I`.
    failed_I: share of judgments that did not parse.
    tokens_I: per judgment.
    samples_I, spent_I: judgments drawn for a vote, and their tokens.
    """

    ids: tuple[str, ...]
    credit_I: np.ndarray
    strict_I: np.ndarray
    tie_I: np.ndarray
    lost_I: np.ndarray
    failed_I: np.ndarray
    tokens_I: np.ndarray
    samples_I: np.ndarray
    spent_I: np.ndarray
    chance_I: np.ndarray


def make_pool(
    records: Iterable[Record], judgments: Iterable[Mapping], most: int | None = None
) -> Pool:
    """Lays the judgments of one system, kind and seed out as arrays, over the records judged.

    most: of the samples of an item, where items may have fewer, as they were left early.

    Raises ValueError naming the item where samples repeat, counts differ between items (an
    evaluation cut short), scores do not fit the responses, or the gold is not one maximum (n >= 2)
    or 0/1 (n = 1).
    """
    by_item: dict[str, list[Mapping]] = {}
    for judgment in judgments:
        by_item.setdefault(judgment["id"], []).append(judgment)
    items = sorted((r for r in records if r.id in by_item), key=lambda record: record.id)
    if not items:
        raise ValueError("no judgments: a pool needs at least one item")
    samples = len(by_item[items[0].id]) if most is None else most
    n_I = np.array([len(record.responses) for record in items])
    gold_I = np.array([_gold(record) for record in items])
    shape = (len(items), samples)
    scores_IKN = np.zeros((*shape, n_I.max()))
    valid_IK, meta_IK = np.zeros(shape, bool), np.full(shape, np.nan)
    drawn_IK = np.zeros(shape, bool)
    tokens_IK = np.zeros(shape, np.int64)
    for i, record in enumerate(items):
        group = sorted(by_item[record.id], key=lambda judgment: judgment["sample"])
        if len(group) != samples and (most is None or len(group) > most):
            raise ValueError(
                f"item {record.id!r} has {len(group)} judgments, item {items[0].id!r} has "
                f"{samples}: every item needs the same number"
            )
        for j, judgment in enumerate(group):
            if j and judgment["sample"] == group[j - 1]["sample"]:
                raise ValueError(f"item {record.id!r} has sample {judgment['sample']} twice")
            if (scores := judgment["scores"]) is not None:
                if len(scores) != n_I[i]:
                    raise ValueError(
                        f"item {record.id!r}, sample {judgment['sample']}: scores {scores} for "
                        f"{n_I[i]} response(s)"
                    )
                scores_IKN[i, j, : n_I[i]] = scores
                valid_IK[i, j] = True
            if judgment.get("meta_logit") is not None:
                meta_IK[i, j] = judgment["meta_logit"]
            drawn_IK[i, j] = True
            tokens_IK[i, j] = judgment["tokens"]
    ids = tuple(record.id for record in items)
    return Pool(ids, n_I, gold_I, scores_IKN, valid_IK, drawn_IK, meta_IK, tokens_IK)


def _gold(record: Record) -> int:
    """Index of the one best response, or the 0/1 reward of a single response; -1 without gold."""
    if record.rewards is None:
        return -1
    if len(record.rewards) == 1:
        if record.rewards[0] not in (0, 1):
            raise ValueError(
                f"item {record.id!r}: the reward of a single response must be 0 or 1, not "
                f"{record.rewards[0]}"
            )
        return int(record.rewards[0])
    try:
        return best_index(record.rewards)
    except ValueError as error:
        raise ValueError(f"item {record.id!r}: {error}") from None


def has_logits(pool: Pool) -> bool:
    """Says whether the Meta RM has scored this pool.

    One scored in part is an error that the vote raises.
    """
    return bool((pool.valid_IK & np.isfinite(pool.meta_IK)).any())


def subsets(ids: Sequence[str], samples: int, k: int, shuffles: int, seed: int) -> np.ndarray:
    """Draws index_IVk: `shuffles` x (samples // k) subsets of k sample indices for every item.

    A function of (seed, item id) alone. Disjoint within a shuffle. For k = 1 and k = samples
    further shuffles would repeat the same votes, so one is taken.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} judgments asked of a pool of {samples}")
    groups = samples // k
    if k in (1, samples):
        return np.broadcast_to(np.arange(samples).reshape(groups, k), (len(ids), groups, k))
    base_SK = np.tile(np.arange(samples), (shuffles, 1))
    index_IVk = np.empty((len(ids), shuffles * groups, k), np.int64)
    for i, item in enumerate(ids):
        state = int.from_bytes(hashlib.sha256(f"{seed}|{item}".encode()).digest()[:8], "big")
        shuffled_SK = np.random.default_rng(state).permuted(base_SK, axis=1)
        index_IVk[i] = shuffled_SK[:, : groups * k].reshape(-1, k)
    return index_IVk


def _meta_first(pool: Pool, index_IVk: np.ndarray) -> np.ndarray:
    """Sorts each subset by preference.

    Parsed before failed, higher Meta RM logit first, then the lower sample index.
    """
    missing = pool.valid_IK & ~np.isfinite(pool.meta_IK)
    if missing.any():
        raise ValueError(
            f"item {pool.ids[int(missing.any(1).argmax())]!r} has a parsed judgment without a "
            "finite Meta RM logit"
        )
    logits_IK = np.where(pool.valid_IK, pool.meta_IK, 0.0)
    # stable, so equal logits stay in sample order
    order_IK = np.lexsort((-logits_IK, ~pool.valid_IK), axis=-1)
    rank_IK = np.argsort(order_IK, axis=-1)
    rank_IVk = _gather(rank_IK, index_IVk)
    return np.take_along_axis(index_IVk, np.argsort(rank_IVk, axis=-1), axis=-1)


def _gather(values_IK: np.ndarray, index_IVk: np.ndarray) -> np.ndarray:
    """values_IVk of the samples that a subset index names."""
    items, votes, k = index_IVk.shape
    return np.take_along_axis(values_IK, index_IVk.reshape(items, votes * k), axis=1).reshape(
        items, votes, k
    )


def _votes(
    pool: Pool, index_IVk: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(credit, strict, tie, lost) of the vote of every subset, each (I, V), float or bool."""
    items, votes, k = index_IVk.shape
    scores_IXN = np.take_along_axis(pool.scores_IKN, index_IVk.reshape(items, votes * k, 1), axis=1)
    totals_IVN = scores_IXN.reshape(items, votes, k, -1).sum(axis=2)
    valid_IV = _gather(pool.valid_IK, index_IVk).sum(axis=2)

    responses_N = np.arange(totals_IVN.shape[-1])
    totals_IVN = np.where(responses_N < pool.n_I[:, None, None], totals_IVN, -np.inf)
    # sums of floats that are equal but for their last bits are a tie
    top_IVN = totals_IVN >= totals_IVN.max(axis=-1, keepdims=True) - TIE
    tied_IV = top_IVN.sum(axis=-1)
    place_I = np.where(pool.n_I == 1, 0, np.maximum(pool.gold_I, 0))
    hit_IV = np.take_along_axis(top_IVN, place_I[:, None, None], axis=-1)[..., 0]

    # one response: the majority of the 0/1 scores against the 0/1 reward
    single_I1 = (pool.n_I == 1)[:, None]
    margin_IV = 2 * totals_IVN[..., 0] - valid_IV
    tied_IV = np.where(single_I1, 1 + (margin_IV == 0), tied_IV)
    hit_IV = np.where(single_I1, margin_IV * (2 * pool.gold_I[:, None] - 1) >= 0, hit_IV)

    lost_IV = valid_IV == 0
    credit_IV = np.where(lost_IV, pool.chance_I[:, None], hit_IV / tied_IV)
    strict_IV = hit_IV & (tied_IV == 1) & ~lost_IV
    gold_I1 = (pool.gold_I >= 0)[:, None]
    return (
        np.where(gold_I1, credit_IV, np.nan),
        np.where(gold_I1, strict_IV, np.nan),
        (tied_IV > 1) & ~lost_IV,
        lost_IV,
    )


def _subsets_voted(
    pool: Pool, k: int, k_meta: int | None, shuffles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(index_IVk of the subsets that are generated, those of each that vote)."""
    index_IVk = subsets(pool.ids, pool.samples, k, shuffles, seed)
    if k_meta is None:
        return index_IVk, index_IVk
    if not 1 <= k_meta <= k:
        raise ValueError(f"k_meta = {k_meta} of k = {k} judgments")
    chosen_IVk = _meta_first(pool, index_IVk)[..., :k_meta]
    if pool.drawn_IK.all():
        return index_IVk, chosen_IVk
    # of fewer than k the same share is kept: in place of the rest one that was not drawn
    drawn_IV = _gather(pool.drawn_IK, index_IVk).sum(axis=-1, keepdims=True)
    kept_IV = -(-drawn_IV * k_meta // k)
    undrawn_I = pool.drawn_IK.argmin(axis=1)[:, None, None]
    return index_IVk, np.where(np.arange(k_meta) < kept_IV, chosen_IVk, undrawn_I)


def estimate(
    pool: Pool, k: int, k_meta: int | None = None, *, shuffles: int = 8, seed: int = 0
) -> Estimate:
    """Judges with k samples; with `k_meta`, only the k_meta best of each k by the Meta RM vote."""
    index_IVk, chosen = _subsets_voted(pool, k, k_meta, shuffles, seed)
    credit_I, strict_I, tie_I, lost_I = (values.mean(axis=1) for values in _votes(pool, chosen))
    # all that were generated were paid for
    drawn_I = _gather(pool.drawn_IK, index_IVk).sum(axis=(1, 2))
    failed_I = 1.0 - _gather(pool.valid_IK, index_IVk).sum(axis=(1, 2)) / drawn_I
    spent_I = _gather(pool.tokens_IK, index_IVk).sum(axis=(1, 2))
    return Estimate(
        pool.ids,
        credit_I,
        strict_I,
        tie_I,
        lost_I,
        failed_I,
        spent_I / drawn_I,
        drawn_I / index_IVk.shape[1],
        spent_I / index_IVk.shape[1],
        pool.chance_I,
    )


def single_scores(
    pool: Pool, k: int, k_meta: int | None = None, *, shuffles: int = 8, seed: int = 0
) -> np.ndarray:
    """Returns mean_IV: what every vote gives to the first response of each item.

    In a benchmark of single responses it is the only one. The mean is over the scores that parsed:
    a sum would not compare items with different numbers of failures. NaN where all judgments of a
    vote failed.
    """
    _, chosen_IVk = _subsets_voted(pool, k, k_meta, shuffles, seed)
    total_IV = _gather(pool.scores_IKN[..., 0], chosen_IVk).sum(axis=2)
    valid_IV = _gather(pool.valid_IK, chosen_IVk).sum(axis=2)
    return np.divide(total_IV, valid_IV, out=np.full(total_IV.shape, np.nan), where=valid_IV > 0)


def item_stderr(values_I: np.ndarray) -> float:
    """Returns the standard error of the mean over items; 0 for one, where it is not defined."""
    return float(values_I.std(ddof=1) / np.sqrt(len(values_I))) if len(values_I) > 1 else 0.0


def meta_auc(pool: Pool) -> dict:
    """Measures how well the logits tell right judgments from wrong ones (Eq 10).

    Among those that parsed; every item needs gold.

    "auc": over all judgments of the split.
    "auc_within_item": mean over the items that have both, with its standard error; only this one
        can help a vote, which compares judgments of one item.
    """
    used_IK = pool.valid_IK & np.isfinite(pool.meta_IK)
    strict_IV = _votes(pool, subsets(pool.ids, pool.samples, 1, 1, 0))[1].astype(bool)
    within = [auc(pool.meta_IK[i, used], strict_IV[i, used]) for i, used in enumerate(used_IK)]
    within = np.array([value for value in within if value is not None])
    return {
        "auc": auc(pool.meta_IK[used_IK], strict_IV[used_IK]),
        "auc_within_item": float(within.mean()) if len(within) else None,
        "auc_within_item_stderr": item_stderr(within) if len(within) else None,
        "items_with_both": len(within),
        "judgments": int(used_IK.sum()),
        "correct_rate": float(strict_IV[used_IK].mean()),
    }
