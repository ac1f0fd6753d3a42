"""Says what a system is: how it is asked, and what is known of its model before that is loaded."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from grm_jax.judgment.prompts import Template
from grm_jax.judgment.records import Record
from grm_jax.models.config import ModelConfig, Numerics
from grm_jax.reward_models.grm import Prompter
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.remote import Estimate
from grm_jax.sampling.engine import Drawing
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Asking:
    """Says how all systems of a comparison are asked.

    It holds devices, numerics, lengths, sampling, and the templates of those whose folder names
    none.

    samples_per_order: consecutive samples that show the responses in one order.
    templates_win: whether all are asked by these templates, whatever their folders say, as a run
        does that trains them.
    tokenizer, chat_args: folder or file of the tokenizer, and switches of its chat template, by
        which policies are asked in place of their folder's own; None: the folder's own.
    """

    mesh: Mesh
    numerics: Numerics
    lengths: Lengths
    sampling: Sampling
    templates: Mapping[str, Template]
    samples_per_order: int = 1
    templates_win: bool = False
    tokenizer: pathlib.Path | None = None
    chat_args: Mapping[str, Any] | None = None


class Policy(NamedTuple):
    """Holds a model that writes judgments, for who asks for them one at a time, as a server does.

    sampler_of: temperature -> what draws (`samplers`). buckets: widths of prompts. longest: prompt
        and completion, in tokens. hinted: see `pointwise_grm`.
    rate: puts the Meta RM's logits into judgments (`meta_rm.add_logits`): rate(judgments,
        {id: record}, widths of sequences, rows at once); None without one.
    """

    params: dict
    sampler_of: Callable[[float], Drawing]
    prompter: Prompter
    buckets: tuple[int, ...]
    longest: int
    hinted: bool
    rate: Callable[[Sequence[dict], Mapping[str, Record], Sequence[int], int], None] | None


class System(NamedTuple):
    """Holds a reward model that is known, and not loaded.

    name, kind: of its spec.
    identity: plain JSON with all that the text of a judgment depends on, by content; two systems
        that are equal in it may share their judgments.
    load: (seed, rows=None, sequences=None) -> RewardModel; rows at once, and widths of sequences,
        in place of those of `Asking`. The weights are loaded by the first call, and stay until
        `release`.
    view: from a judgment that `load`'s model gives to this system's own; None where they are the
        same.
    accepts: whether it can judge n responses; None where only the loaded model can tell.
    sampled: whether its samples differ; None where only the loaded model can tell.
    estimate: (records, samples) -> what they would ask of its server; None for what runs here.
    ready: raises ValueError where a key that its requests need is not there; asks nothing.
    span: n -> the largest difference of two scores in a judgment of n responses, None where it has
        no bound; None for a model of whose scores nothing is known, and for a kind of
        one's own, which says it once it is loaded.
    bounds: n -> the lowest and the highest score that it gives to one of n responses; None for a
        model of whose scores nothing is known, or that have no bounds.
    refuses: why it cannot judge by the rubric of a record, or go on from its principles, or None
        where it can; None for a model that does neither.
    policy: loads the weights of a pointwise_grm for who draws its judgments himself; None for other
        kinds, and for models with a thinking budget, principles written once or rubrics unseen.
    """

    name: str
    kind: str
    identity: dict[str, Any]
    load: Callable[..., RewardModel]
    release: Callable[[], None]
    view: Callable[[dict], dict] | None = None
    accepts: Callable[[int], bool] | None = None
    sampled: bool | None = None
    estimate: Callable[[Sequence[Record], int], Estimate] | None = None
    ready: Callable[[], object] | None = None
    span: Callable[[int], float | None] | None = None
    bounds: Callable[[int], tuple[float, float]] | None = None
    refuses: Callable[[Record], str | None] | None = None
    policy: Callable[[], Policy] | None = None


class Batches(NamedTuple):
    """Holds the shapes of programs: rows at once, and what prompts and sequences are padded to."""

    rows: int
    buckets: tuple[int, ...]
    sequence_buckets: tuple[int, ...]


def samplers(
    asking: Asking, model_cfg: ModelConfig, tokenizer: Tokenizer
) -> Callable[[float], Drawing]:
    """Returns temperature -> what draws a policy's completions (`rollout.generate`); 0 is greedy.

    The same compiled programs serve all who draw alike.
    """
    sampling, mesh = asking.sampling, None
    if sampling.sampler == "shard_map" or (sampling.sampler == "jit" and asking.mesh.size > 1):
        mesh = asking.mesh

    def sampler_of(temperature: float) -> Drawing:
        settings = SamplingConfig(
            max_new_tokens=asking.lengths.completion,
            temperature=temperature,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            kv_cache_dtype=sampling.kv_cache_dtype,
        )
        return Drawing(
            model_cfg, settings, sampling.sampler, mesh, sampling.chunk, sampling.cache_bytes
        )

    return sampler_of
