"""Settings of sampling: how long texts may be, and how completions are drawn."""

import dataclasses

from grm_jax.settings import NOT_NEGATIVE, POSITIVE, Rule, check, growing, one_of

SAMPLERS = ("jit", "pmap", "shard_map")
KV_CACHE_DTYPES = ("auto", "int8")
DRAWING_RULES: dict[str, Rule] = {
    "top_p": ("a number in (0, 1]", lambda x: 0 < x <= 1),
    "top_k": NOT_NEGATIVE,
    "kv_cache_dtype": one_of(KV_CACHE_DTYPES),
}


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long texts may be, and what they are padded to, in tokens.

    prompt: longest prompt; a longer one is reported, never cut.
    completion: most tokens that are sampled.
    buckets: prompts are padded to the smallest of these that holds them; each compiles once. They
        grow, and end in `prompt`.
    sequences: likewise prompt and completion together; `prompt + completion` is added.
    """

    prompt: int
    completion: int
    buckets: tuple[int, ...]
    sequences: tuple[int, ...] = ()

    def __post_init__(self):
        check(
            self,
            {"prompt completion": POSITIVE, "sequences": ("growing positive lengths", growing)},
            [
                (
                    "buckets prompt",
                    "growing lengths that end in prompt = {prompt}",
                    lambda buckets, prompt: growing(buckets) and buckets[-1:] == (prompt,),
                )
            ],
        )

    @property
    def sequence_buckets(self) -> tuple[int, ...]:
        """Lengths that prompt + completion are padded to."""
        longest = self.prompt + self.completion
        return tuple(length for length in self.sequences if length < longest) + (longest,)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    top_p: nucleus sampling (arXiv 1904.09751) from the most likely tokens of this total
        probability; 1.0: from all.
    top_k: from the k most likely tokens; 0: from all.
    kv_cache_dtype: what keys and values are stored in while completions are drawn. "auto": as the
        model computes; "int8": with a scale for each position and head, in about half of
        bfloat16's memory (a quarter of float32's, where heads are wide), and less exact.
    rows: completions that are decoded at once, on all devices together. A row that ends is the
        next one's.
    chunk: decode steps between two looks at which rows have ended.
    cache_bytes: of the keys and values of prompts, on each device; 0: of as many as rows need. What
        has room stays until others need it, the one used longest ago first; fewer than rows need
        leave rows empty.
    sampler: "jit" (one device, or a mesh by the compiler), "pmap" (a whole model on every device)
        or "shard_map" (the model lies over the mesh).

    rows, chunk, cache_bytes and sampler change the time a completion takes, not the completion.
    """

    top_p: float = 1.0
    top_k: int = 0
    kv_cache_dtype: str = "auto"
    rows: int = 64
    sampler: str = "jit"
    chunk: int = 32
    cache_bytes: int = 0

    def __post_init__(self):
        rules = {"rows chunk": POSITIVE, "cache_bytes": NOT_NEGATIVE, "sampler": one_of(SAMPLERS)}
        check(self, DRAWING_RULES | rules)
