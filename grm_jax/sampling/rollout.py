"""Samples from the host: many prompts of mixed length through programs of a few fixed shapes.

`plan` sorts requests into batches as a pure function of the request list, so a run that was stopped
after some batches draws exactly the missing ones, in the same shapes, with the same tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from grm_jax.sampling.sampler import sample_key

NO_LIMIT = np.iinfo(np.int32).max  # of a sample's tokens, but for the sampler's own


@dataclasses.dataclass(frozen=True)
class Request:
    """Asks for a completion of `prompt_ids` for every index in `samples`, all upon one prefix.

    limits: the most tokens of each sample, stop token included, 1 to the sampler's; None: the
        sampler's.
    """

    prompt_ids: Sequence[int]
    item_id: str
    samples: tuple[int, ...] = (0,)
    limits: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """Holds one completion: ids int32[n] and their log-probabilities float32[n].

    The stop token is included if `finished`.
    """

    item_id: str
    sample: int
    token_ids: np.ndarray
    logp: np.ndarray
    finished: bool


@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds one call of the sampler: requests (indices into the list) that share a prompt width."""

    width: int
    requests: tuple[int, ...]


def plan(requests: Sequence[Request], buckets: Sequence[int], rows: int) -> list[Batch]:
    """Sorts requests into batches of `rows // k` (k samples each), narrow prompts first.

    Inside a bucket they are sorted by prompt length.

    Args:
      requests: all with the same number of samples k.
      buckets: prompt widths; a prompt goes to the narrowest that holds it.
      rows: completions per batch.

    Raises:
      ValueError: a prompt is empty or longer than the widest bucket, or the requests differ in k,
        or k > rows.
    """
    if not requests:
        return []
    k = len(requests[0].samples)
    if not 0 < k <= rows:
        raise ValueError(f"requests ask for {k} samples; expected between 1 and rows = {rows}")
    widths = np.sort(np.asarray(buckets))
    lengths = np.array([len(request.prompt_ids) for request in requests])
    for request, length in zip(requests, lengths):
        if len(request.samples) != k:
            raise ValueError(
                f"item {request.item_id}: {len(request.samples)} samples, but the first request "
                f"has {k}"
            )
        if request.limits is not None and (len(request.limits) != k or min(request.limits) < 1):
            raise ValueError(
                f"item {request.item_id}: limits {request.limits}; expected a positive number of "
                f"tokens for each of {k} samples"
            )
        if not 0 < length <= widths[-1]:
            raise ValueError(
                f"item {request.item_id}: prompt of {length} tokens; expected 1 to {widths[-1]} "
                "(widest bucket)"
            )
    bucket = np.searchsorted(widths, lengths)
    per_batch, batches = rows // k, []
    for b, width in enumerate(widths):
        members = np.flatnonzero(bucket == b)
        members = members[np.argsort(lengths[members], kind="stable")]
        for start in range(0, len(members), per_batch):
            batches.append(
                Batch(int(width), tuple(int(i) for i in members[start : start + per_batch]))
            )
    return batches


def generate(
    sampler: Callable,
    params: dict,
    requests: Sequence[Request],
    seed: int,
    buckets: Sequence[int],
    rows: int,
) -> Iterator[tuple[list[int], list[Completion]]]:
    """Draws all completions, one batch of `plan(requests, buckets, rows)` at a time.

    Args:
      sampler: from `grm_jax.sampling.mapped.make_sampler`.
      seed: with (item id, sample index) it fixes every completion, whatever the batch around it.

    Yields:
      The indices of the batch's requests, and their completions, request by request and sample by
      sample.

    Raises:
      ValueError: logits were not finite, so that what they chose is no text of the model.
    """
    k = len(requests[0].samples) if requests else 1
    for batch in plan(requests, buckets, rows):
        prompts_PT = np.zeros((rows // k, batch.width), np.int32)
        # 0: dummy row that fills the last batch of a bucket
        lengths_P = np.zeros(rows // k, np.int32)
        keys_Pk2 = np.zeros((rows // k, k, 2), np.uint32)
        limits_Pk = np.full((rows // k, k), NO_LIMIT, np.int32)
        for p, index in enumerate(batch.requests):
            request = requests[index]
            prompts_PT[p, : len(request.prompt_ids)] = request.prompt_ids
            lengths_P[p] = len(request.prompt_ids)
            keys_Pk2[p] = [sample_key(seed, request.item_id, sample) for sample in request.samples]
            if request.limits is not None:
                limits_Pk[p] = request.limits
        limits = (limits_Pk,) if (limits_Pk < NO_LIMIT).any() else ()
        drawn = {
            name: np.asarray(array)
            for name, array in sampler(params, prompts_PT, lengths_P, keys_Pk2, *limits).items()
        }
        completions = []
        for p, index in enumerate(batch.requests):
            for j, sample in enumerate(requests[index].samples):
                n = int(drawn["length"][p, j])
                if not np.isfinite(drawn["logp"][p, j, :n]).all():
                    _refuse_logits(requests[index], sample, drawn["logp"][p, j, :n])
                completions.append(
                    Completion(
                        requests[index].item_id,
                        sample,
                        drawn["tokens"][p, j, :n],
                        drawn["logp"][p, j, :n],
                        bool(drawn["finished"][p, j]),
                    )
                )
        yield list(batch.requests), completions


def _refuse_logits(request: Request, sample: int, logp_C: np.ndarray) -> None:
    token = int(np.argmin(np.isfinite(logp_C)))
    raise ValueError(
        f"item {request.item_id!r}, sample {sample}: the logits of token {token} behind a prompt "
        f"of {len(request.prompt_ids)} tokens are not finite (log-probability {logp_C[token]}); "
        "the weights, or the dtype that is computed in, are not those of a model that works, or "
        "the temperature is too low to divide by (0 is greedy)"
    )
