"""How prompts and completions are cut, and how completions are drawn: two sections of a config."""

import dataclasses

SAMPLERS = ("jit", "pmap", "shard_map")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Limits in tokens, and the widths that rows are padded to; each width is a program of its own.

    prompt, completion: the longest of each. buckets: growing widths of prompts, up to `prompt`.
    sequences: growing widths of prompt and completion together. Raises ValueError, one line a
    field.
    """

    prompt: int
    completion: int
    buckets: tuple[int, ...]
    sequences: tuple[int, ...] = ()

    def __post_init__(self):
        problems = [
            f"{field}: expected a positive integer, got {getattr(self, field)!r}"
            for field in ("prompt", "completion")
            if not _positive(getattr(self, field))
        ]
        if not _growing(self.buckets) or self.buckets[-1:] != (self.prompt,):
            problems.append(
                f"buckets: expected growing lengths that end in prompt = {self.prompt}, got "
                f"{self.buckets}"
            )
        if not _growing(self.sequences):
            problems.append(f"sequences: expected growing positive lengths, got {self.sequences}")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def sequence_buckets(self) -> tuple[int, ...]:
        """Widths that prompt and completion together are padded to, the last of them the longest
        there can be.
        """
        longest = self.prompt + self.completion
        return tuple(width for width in self.sequences if width < longest) + (longest,)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn: the nucleus (1.0: off), the k best (0: off), completions at once,
    and the road to the devices (`sampling.mapped.make_sampler`).
    """

    top_p: float = 1.0
    top_k: int = 0
    rows: int = 64
    sampler: str = "jit"

    def __post_init__(self):
        problems = []
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: expected a number in (0, 1], got {self.top_p!r}")
        if self.top_k < 0:
            problems.append(f"top_k: expected an integer >= 0, got {self.top_k!r}")
        if not _positive(self.rows):
            problems.append(f"rows: expected a positive integer, got {self.rows!r}")
        if self.sampler not in SAMPLERS:
            problems.append(f"sampler: expected one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if problems:
            raise ValueError("\n".join(problems))


def _positive(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _growing(widths: tuple[int, ...]) -> bool:
    return all(map(_positive, widths)) and list(widths) == sorted(set(widths))
