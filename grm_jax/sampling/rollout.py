"""Samples from the host: many prompts of mixed length through programs of a few fixed shapes.

`plan` sorts requests into batches as a pure function of the request list, so a run that was stopped
after some batches draws exactly the missing ones, in the same shapes, with the same tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from grm_jax.sampling.engine import Counts, Drawing, draw
from grm_jax.sampling.requests import NO_LIMIT, Completion, Request, check_logits, check_request
from grm_jax.sampling.sampler import sample_key

__all__ = ["Batch", "Completion", "Request", "generate", "plan"]


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
      ValueError: a prompt is empty or longer than the widest bucket, the requests differ in k, or
        k > rows; a request goes on with a completion, which the engine alone does.
    """
    if not requests:
        return []
    k = len(requests[0].samples)
    if not 0 < k <= rows:
        raise ValueError(f"requests ask for {k} samples; expected between 1 and rows = {rows}")
    widths = np.sort(np.asarray(buckets))
    lengths = np.array([len(request.prompt_ids) for request in requests])
    for request in requests:
        if len(request.samples) != k:
            raise ValueError(
                f"item {request.item_id}: {len(request.samples)} samples, but the first request "
                f"has {k}"
            )
        if request.begun:
            raise ValueError(f"item {request.item_id}: the engine alone goes on with a completion")
        check_request(request, widths[-1])
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
    sampler: Drawing | Callable,
    params: dict,
    requests: Sequence[Request],
    seed: int,
    buckets: Sequence[int],
    rows: int,
    counts: Callable[[Counts], None] = lambda counts: None,
) -> Iterator[tuple[list[int], list[Completion]]]:
    """Draws all completions: with the engine as they are complete, or a batch at a time.

    Args:
      sampler: a `Drawing`, for the engine (`engine.draw`), where requests may differ in the number
        of samples; or the engine's slow twin, from `grm_jax.sampling.mapped.make_sampler`, for one
        batch of `plan(requests, buckets, rows)` after the other.
      seed: with (item id, sample index) it fixes every completion, whatever the batch around it.
      counts: gets the counts of an engine each time that something is complete.

    Yields:
      The indices of complete requests, and their completions, request by request and sample by
      sample.

    Raises:
      ValueError: logits were not finite, so that what they chose is no text of the model.
    """
    if isinstance(sampler, Drawing):
        yield from draw(sampler, params, requests, seed, buckets, rows, counts)
        return
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
                check_logits(requests[index], sample, drawn["logp"][p, j, :n])
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
