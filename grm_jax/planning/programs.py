"""Makes the programs of a job with abstract arguments, placed as the stages run them."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.data.packing import SLOT_TOKENS
from grm_jax.models.config import PUBLISHED, PUBLISHED_STOP_IDS, ModelConfig
from grm_jax.models.flops import ADAPTED, FORWARD, TRAINED, Passes, forward_flops
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig, start_adapters
from grm_jax.models.placement import DATA_AXES
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, param_shardings, shares
from grm_jax.planning.lengths import (
    BATCHES,
    Layout,
    Load,
    TextLengths,
    decode_steps,
    fit_load,
    prefilled,
    rl_load,
    widest,
)
from grm_jax.planning.measure import Program
from grm_jax.sampling.chunks import (
    Drawing,
    Programs,
    empty_pool,
    empty_rows,
    split_weights,
    state_shardings,
    weight_shardings,
)
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.sampling.shapes import Shape, places, prefill_rows, shape_of
from grm_jax.training.loop import make_step
from grm_jax.training.objectives import rl_objective
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.settings import FitConfig, RlConfig
from grm_jax.training.step import (
    adapted,
    make_logprob_fn,
    make_packed_logprob_fn,
    meta_loss,
    rft_loss,
)

NAMES = (
    "rft_step",
    "rl_step",
    "logprobs",
    "meta_step",
    "prefill",
    "decode",
    "judge_prefill",
    "judge_decode",
)
ONE_HOST = 8  # devices of the largest host
# judgments that the sampling stages' rows of the table are for: their number depends on the data
SAMPLED = 10_000
VOTED, VOTES = 1_000, 32  # records of the row of evaluation, and samples of each


@dataclasses.dataclass(frozen=True)
class Job:
    """Holds what the programs of a run of SPCT follow from. stop_ids: of the tokenizer."""

    model_cfg: ModelConfig
    mesh: MeshConfig
    lengths: Lengths
    sampling: Sampling
    optimizer: OptimizerConfig
    lora: LoraConfig
    rft: FitConfig
    rl: RlConfig
    meta: FitConfig
    general_fraction: float = 0.0  # share of general data in a batch of RFT
    row_lengths: tuple[int, ...] = ()  # of packed rows; (): nothing is packed
    stop_ids: tuple[int, ...] = PUBLISHED_STOP_IDS
    platform: str = "tpu"

    @property
    def width(self) -> int:
        """Counts the tokens of the longest training sequence."""
        return self.lengths.prompt + self.lengths.completion

    def mesh_sizes(self, devices: int) -> dict[str, int]:
        """Works out the mesh's -1."""
        sizes = dataclasses.asdict(self.mesh)
        known = math.prod(size for size in sizes.values() if size != -1)
        return {axis: devices // known if size == -1 else size for axis, size in sizes.items()}


def planned_model(folder: str | os.PathLike, **numerics: Any) -> ModelConfig:
    """Reads the model of a folder, or where that is not there takes a published size by its name.

    numerics: fields of `ModelConfig` that are not in config.json. Raises ValueError for another
    name.
    """
    if (pathlib.Path(folder) / "config.json").is_file():
        return load_config(pathlib.Path(folder), **numerics)
    name = pathlib.Path(folder).name.removesuffix("-it")
    if name not in PUBLISHED:
        raise ValueError(
            f"model.path: {folder} has no config.json; expected a Hugging Face folder, or a name "
            f"among {', '.join(PUBLISHED)}"
        )
    return dataclasses.replace(PUBLISHED[name], **numerics)


def make_programs(job: Job, devices: list, names: tuple[str, ...] = NAMES) -> dict[str, Program]:
    """Makes {name: Program} at the widest shapes of a job: every sequence as long as lengths allow.

    Raises ValueError where a shape cannot be.
    """
    mesh = make_mesh(**dataclasses.asdict(job.mesh), devices=devices)
    makers = {
        "rft_step": functools.partial(_train_step, "rft"),
        "rl_step": functools.partial(_train_step, "rl"),
        "logprobs": _logprobs,
        "meta_step": functools.partial(_train_step, "meta"),
    }
    makers |= {
        name: functools.partial(_sampler_program, name)
        for name in ("prefill", "decode", "judge_prefill", "judge_decode")
    }
    return {name: makers[name](job, mesh) for name in names}


def placed(tree: Any, shardings: Any) -> Any:
    """Lays the shapes and dtypes of a tree over a mesh."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def _batch(mesh, rows, length, **more) -> dict:
    """Tokens, positions and mask [rows, length], and more fields by their number of axes, split
    over the data axes.
    """
    dtypes = {"tokens": (2, jnp.int32), "positions": (2, jnp.int32), "mask": (2, jnp.float32)} | {
        n: (axes, jnp.float32) for n, axes in more.items()
    }
    return {
        name: jax.ShapeDtypeStruct((rows, length)[:axes], dtype, sharding=batch_sharding(mesh))
        for name, (axes, dtype) in dtypes.items()
    }


def _packed_batch(mesh, job, stage, parts) -> dict:
    """Packed rows [parts, R, T] of the longest length, as `fit` and the RL stage place them, but
    for the number of parts and their lengths, which these programs have as constants: so each loop
    runs a known number of times.
    """
    rows, T = shares(mesh), job.row_lengths[-1]
    slots = min(getattr(job, stage).batch_size, T // SLOT_TOKENS)
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        name: ((T,), jnp.int32) for name in ("tokens", "positions", "segment", "branch")
    }
    fields |= {"mask": ((slots,), jnp.float32), "length": ((slots,), jnp.int32)}
    if stage == "meta":
        fields |= {"labels": ((slots,), jnp.float32), "last": ((slots, 1), jnp.int32)}
    else:
        fields |= {"wanted": ((T,), jnp.float32)}
    if stage == "rl":
        fields |= {"start": ((slots,), jnp.int32), "advantages": ((slots,), jnp.float32)}
        fields |= {"old_logp": ((T,), jnp.float32)}
        fields |= {"ref_logp": ((T,), jnp.float32)} if job.rl.beta else {}
        if job.rl.importance_sampling_correction:
            fields["sampler_logp"] = ((T,), jnp.float32)
    split = NamedSharding(mesh, P(None, DATA_AXES))
    return {
        name: jax.ShapeDtypeStruct((parts, rows, *shape), dtype, sharding=split)
        for name, (shape, dtype) in fields.items()
    }


def _with_parts(batch, parts) -> dict:
    return batch | {"parts": parts, "sizes": jnp.zeros(parts, jnp.int32)}


def _train_step(stage, job, mesh) -> Program:
    """A step as `training.loop.begin` makes it. Beside it lies RL's reference, where
    beta asks for one; the other stages hand over what they start from. With adapters the frozen
    weights are an argument, and RL's reference.
    """
    settings, cfg = getattr(job, stage), job.model_cfg
    settings.check_shares(stage, shares(mesh))
    params = abstract_params(cfg)
    if stage == "rft":
        loss, fields = rft_loss(cfg), {}
    elif stage == "meta":
        loss, fields, params = (
            meta_loss(cfg),
            {"labels": 1, "mask": 1},
            abstract_params(cfg, SCALAR),
        )
    else:
        loss, _ = rl_objective(job.rl, cfg, job.lengths.completion)
        fields = {"old_logp": 2, "advantages": 1} | ({"ref_logp": 2} if job.rl.beta else {})
        fields |= {"sampler_logp": 2} if job.rl.importance_sampling_correction else {}
    whole = placed(params, param_shardings(mesh, params))
    frozen = None
    if job.lora.rank:
        params = jax.eval_shape(
            lambda p: start_adapters(cfg, job.lora, p, jax.random.key(0)), params
        )
        loss, frozen = adapted(loss, job.lora.scale), whole
    rows = job.row_lengths[-1:]
    step, _, _, state = make_step(
        mesh, job.optimizer, params, loss, settings, settings.updates, rows
    )
    B, T = settings.batch_size, job.width
    if rows:
        load = _load(job, stage, widest(job.lengths.prompt, job.lengths.completion), shares(mesh))
        parts = math.ceil(load.computed / shares(mesh) / rows[0])
        batch = _packed_batch(mesh, job, stage, parts)
        unpacked = step

        def packed(state, batch, frozen):
            return unpacked.__wrapped__(state, _with_parts(batch, parts), frozen)

        where = jax.tree.map(lambda x: x.sharding, state)
        step = jax.jit(packed, donate_argnums=0, out_shardings=(where, None))
        tokens = parts * shares(mesh) * rows[0]
    else:
        batch, tokens = _batch(mesh, B, T, **fields), B * T
    has_reference = stage == "rl" and job.rl.beta > 0
    resident = {"reference": whole} if has_reference and not job.lora.rank else {}
    return Program(
        f"{stage}_step",
        step,
        (state, batch, frozen),
        mesh,
        {"params": (state.params, frozen), "optimizer": state.opt_state, "batch": batch},
        resident,
        _forward(job, stage, ADAPTED if job.lora.rank else TRAINED),
        tokens,
    )


def _load(job, stage, text, rows) -> Load:
    """What a batch of a stage that trains has to do, packed or not."""
    settings = getattr(job, stage)
    layout = Layout(job.row_lengths, rows, job.lengths.sequence_buckets)
    if stage == "rl":
        return rl_load(text, settings.batch_size, settings.group_size, layout)
    general = job.general_fraction if stage == "rft" else 0.0
    return fit_load(text, settings.batch_size, general, layout)


def _forward(job, stage, passes: Passes = FORWARD) -> float:
    """Model FLOPs of these passes over the widest batch of a stage, packed or not."""
    cfg, B, T = job.model_cfg, getattr(job, stage).batch_size, job.width
    if stage != "rl" or not job.row_lengths:
        return B * forward_flops(cfg, T, logits=0 if stage == "meta" else T, passes=passes)
    prompt, G = job.lengths.prompt, job.rl.group_size  # a prompt once a group
    rest = forward_flops(cfg, T, start=prompt, logits=T - prompt, passes=passes)
    return B // G * forward_flops(cfg, prompt, passes=passes) + B * rest


def _logprobs(job, mesh) -> Program:
    """Of the reference, for a whole batch of rollouts, as experiments/stages/rl.py calls it (of
    packed rows one part); the policy's train state lies beside it.
    """
    params, beside = _rl_arrays(job, mesh)
    cfg, B, T = job.model_cfg, job.rl.batch_size, job.width
    beside = {name: arrays for name, arrays in beside.items() if name != "reference"} | {
        "policy": params
    }
    if job.row_lengths:
        rows, T = job.row_lengths[-1:], job.row_lengths[-1]
        batch = _packed_batch(mesh, job, "rl", 1)
        names = ("tokens", "positions", "segment", "branch", "wanted")
        args = {name: batch[name] for name in names}
        of_rows = make_packed_logprob_fn(cfg, job.rl.temperature, rows)
        fn = jax.jit(lambda params, batch: of_rows(params, _with_parts(batch, 1)))
        whole = _load(job, "rl", widest(job.lengths.prompt, job.lengths.completion), shares(mesh))
        tokens = shares(mesh) * T
        flops = _forward(job, "rl") * tokens / whole.computed
        both = {"params": params, "batch": args}
        return Program("logprobs", fn, (params, args), mesh, both, beside, flops, tokens, 1)
    batch = _batch(mesh, B, T)
    return Program(
        "logprobs",
        make_logprob_fn(cfg, job.rl.temperature, B // job.rl.micro_batch),
        (params, batch["tokens"], batch["positions"]),
        mesh,
        {"params": params, "batch": (batch["tokens"], batch["positions"])},
        beside,
        B * forward_flops(cfg, T, logits=T),
        B * T,
    )


def _rl_arrays(job, mesh) -> tuple[Any, dict]:
    """(the policy's parameters, what else the RL stage keeps on the devices while it samples)."""
    step = _train_step("rl", job, mesh)
    state, _, frozen = step.args
    params = state.params if frozen is None else frozen  # adapters are merged into a copy
    beside = {"optimizer": state.opt_state} | ({"reference": params} if job.rl.beta else {})
    return params, beside if frozen is None else beside | {"adapters": state.params}


def engine_shape(job: Job, parts: int, judging: bool = False) -> Shape:
    """Chooses the rows of each share of the engine, as the stages do.

    RL draws a group from each prompt; judgments for RFT, the Meta RM and evaluation (`judging`)
    each have an order of responses, and so a prompt, of their own.
    """
    total = job.sampling.rows if judging else job.rl.batch_size
    each = 1 if judging else job.rl.group_size
    drawing = Drawing(job.model_cfg, _sampling(job), cache_bytes=job.sampling.cache_bytes)
    width = job.lengths.buckets[-1]
    rows = job.sampling.rows
    return shape_of(drawing, parts, total // each, total, each, rows, width, job.platform)


def engine_rows(job: Job, sizes: Mapping[str, int], judging: bool = False) -> int:
    """Counts the completions that are decoded at once on a mesh, {axis: devices}."""
    parts = math.prod(sizes.values()) if job.sampling.sampler == "pmap" else _shares(sizes)
    shape = engine_shape(job, parts, judging)
    return parts * shape.groups * shape.fold


def _shares(sizes: Mapping[str, int]) -> int:
    return sizes["replica"] * sizes["fsdp"]


class Needs(NamedTuple):
    """Says how much of its programs a job needs, as `stage_times` adds them up.

    tokens: {"rft_step", "rl_step", "logprobs", "meta_step": tokens that a batch computes;
        "prefill", "judge_prefill": of one prompt, "vote_prefill": of the prompts of VOTES samples
        of a record}.
    steps: {"rl": decode steps of a batch of rollouts; "sampled", "voted": of all judgments of
        these rows}.
    """

    tokens: Mapping[str, float]
    steps: Mapping[str, float]


def widest_needs(job: Job, sizes: Mapping[str, int]) -> tuple[Needs, dict]:
    """Returns what a job needs where every sequence is as long as lengths allow, and its loads.

    Those are {stage: lengths.Load of a batch}.
    Every row is decoded until lengths.completion, and every judgment has a prompt of its own.
    """
    steps, judged = job.lengths.completion, engine_rows(job, sizes, judging=True)
    loads = _loads(job, widest(job.lengths.prompt, job.lengths.completion), _shares(sizes))
    width = job.lengths.buckets[-1]
    tokens = {"prefill": width, "judge_prefill": width, "vote_prefill": VOTES * width}
    needs = Needs(
        _trained(loads) | tokens,
        {
            "rl": math.ceil(job.rl.batch_size / engine_rows(job, sizes)) * steps,
            "sampled": math.ceil(SAMPLED / judged) * steps,
            "voted": math.ceil(VOTED * VOTES / judged) * steps,
        },
    )
    return needs, loads


def _loads(job, text, rows) -> dict[str, Load]:
    return {stage: _load(job, stage, text, rows) for stage in ("rft", "rl", "meta")}


def _trained(loads) -> dict[str, float]:
    tokens = {f"{stage}_step": loads[stage].computed for stage in ("rft", "rl", "meta")}
    return tokens | {"logprobs": loads["rl"].computed}


def drawn_needs(job: Job, text: TextLengths, sizes: Mapping[str, int]) -> tuple[Needs, dict]:
    """Returns what a job needs for texts of these lengths, and {stage: lengths.Load of a batch}.

    Train batches are packed; in judging, samples that drew one order share its prefill, and a row
    that ends makes room for the next behind the chunk of steps.
    """
    loads = _loads(job, text, _shares(sizes))
    at_once, judged = engine_rows(job, sizes), engine_rows(job, sizes, judging=True)
    rng = np.random.default_rng(0)

    def steps(count, rows):
        return decode_steps(rng.choice(text.completions, count), rows, job.sampling.chunk)

    one, vote = (prefilled(text, job.lengths.buckets, samples) for samples in (1, VOTES))
    tokens = _trained(loads) | {"prefill": one.computed, "judge_prefill": one.computed}
    loads |= {"prompt": one, f"prompts of {VOTES} samples": vote}
    return (
        Needs(
            tokens | {"vote_prefill": vote.computed},
            {
                "rl": sum(steps(job.rl.batch_size, at_once) for _ in range(BATCHES)) / BATCHES,
                "sampled": steps(SAMPLED, judged),
                "voted": steps(VOTED * VOTES, judged),
            },
        ),
        loads,
    )


def stage_times(
    job: Job, programs: Mapping[str, Mapping], devices: int, chips: int, needs: Needs | None = None
) -> list[dict]:
    """Adds up the time of every stage from its programs' "seconds".

    None where a program has none; "lacking" names those.

    needs: how much of them; None for the widest shapes. A program takes as long for each token as
        at the shapes that it was made for; a decode step as long as with the longest caches.
    """
    sizes, rl = job.mesh_sizes(devices), job.rl
    needs = widest_needs(job, sizes)[0] if needs is None else needs
    seconds = {name: programs.get(name, {}).get("seconds") for name in NAMES}
    # of the reference, and of the policy before the update
    passes = (rl.beta > 0) + (rl.old_logp == "trainer")

    def of(name, times, tokens=None):
        """Seconds of a program, `times` times, with as many tokens as needed where it is made."""
        if not times:
            return 0.0
        if seconds[name] is None:
            return None
        made = programs[name]["tokens"] * devices / programs[name].get("devices", devices)
        return times * seconds[name] * (needs.tokens[tokens or name] / made)

    def decoded(name, steps):
        return None if seconds[name] is None else steps * seconds[name] / job.sampling.chunk

    def add(*parts):
        return None if any(part is None for part in parts) else sum(parts)

    def row(stage, names, what, step, times):
        hours = None if step is None else step * times / 3600
        return {
            "stage": stage,
            "what": what,
            "lacking": [name for name in NAMES if name in names and seconds[name] is None],
            "seconds": step,
            "per_day": None if step is None or not step else 86400 / step,
            "hours": hours,
            "chip_hours": None if hours is None else hours * chips,
        }

    def k(tokens):
        return f"{tokens / 1000:,.0f}k" if tokens >= 1000 else f"{tokens:,.0f}"

    judging = ["judge_prefill", "judge_decode"]
    prompts = rl.batch_size // rl.group_size
    rollout = add(of("prefill", prompts), decoded("decode", needs.steps["rl"]))
    rl_step = add(of("logprobs", passes), of("rl_step", rl.updates_per_rollout))
    sampled = add(of("judge_prefill", SAMPLED), decoded("judge_decode", needs.steps["sampled"]))
    voted = add(
        of("judge_prefill", VOTED, "vote_prefill"), decoded("judge_decode", needs.steps["voted"])
    )
    rl_names = ["prefill", "decode", *(["logprobs"] if passes else []), "rl_step"]
    drawing = f"{prompts} prompts + {needs.steps['rl']:,.0f} x decode"
    tokens = {name: k(needs.tokens.get(name, 0)) for name in ("rft_step", "rl_step", "meta_step")}
    return [
        row(
            "rft_sample, meta_sample",
            judging,
            f"{SAMPLED:,} judgments: their prompts + {needs.steps['sampled']:,.0f} x judge_decode",
            sampled,
            1,
        ),
        row(
            "rft",
            ["rft_step"],
            f"{job.rft.steps} x rft_step of {tokens['rft_step']} tokens",
            of("rft_step", 1),
            job.rft.steps,
        ),
        row(
            "rl",
            rl_names,
            f"{rl.steps} x ({drawing} + {passes} x logprobs + {rl.updates_per_rollout} x rl_step, "
            f"of {tokens['rl_step']} tokens)",
            add(rollout, rl_step),
            rl.steps,
        ),
        row("  its rollouts", rl_names[:2], f"{rl.steps} x ({drawing})", rollout, rl.steps),
        row(
            "meta",
            ["meta_step"],
            f"{job.meta.steps} x meta_step of {tokens['meta_step']} tokens",
            of("meta_step", 1),
            job.meta.steps,
        ),
        row(
            "evaluation",
            judging,
            f"{VOTED:,} records, {VOTES} samples each: their prompts + "
            f"{needs.steps['voted']:,.0f} x judge_decode",
            voted,
            1,
        ),
    ]


def _sampling(job) -> SamplingConfig:
    return SamplingConfig(
        job.lengths.completion,
        temperature=job.rl.temperature,
        top_p=job.sampling.top_p,
        top_k=job.sampling.top_k,
        kv_cache_dtype=job.sampling.kv_cache_dtype,
        stop_ids=job.stop_ids,
    )


def _sampler_program(name, job, mesh) -> Program:
    """The engine's programs. "prefill" and "decode": RL's rollouts. "judge_prefill" and
    "judge_decode": judgments, with nothing but the policy on the devices. The policy that the
    engine's weights were made from lies beside them.
    """
    cfg, scfg, sampler, devices = job.model_cfg, _sampling(job), job.sampling.sampler, mesh.size
    if sampler == "pmap" and devices > ONE_HOST:
        raise ValueError(
            f"sampling.sampler=pmap runs on the devices of one process, at most {ONE_HOST}, not "
            f"on {devices}; take shard_map"
        )
    judging = name.startswith("judge_")
    params, beside = _rl_arrays(job, mesh)
    beside = {"policy": params} | ({} if judging else beside)
    if sampler == "pmap":  # a whole model on each
        mesh = make_mesh(devices, 1, 1, list(mesh.devices.flat))
    mode = "shard_map" if sampler == "pmap" else sampler
    programs = Programs(Drawing(cfg, scfg, mode, mesh, job.sampling.chunk))
    D, T, C = programs.parts, job.lengths.buckets[-1], job.lengths.completion
    groups, fold, entries, shared = engine_shape(job, D, judging)
    split = jax.eval_shape(lambda p: split_weights(p, cfg), params)
    weights = placed(split, weight_shardings(cfg, sampler, mesh, params))

    def laid(make, *numbers):
        tree = jax.eval_shape(lambda: make(*numbers))
        return placed(tree, state_shardings(mesh, tree))

    pool = laid(empty_pool, cfg, scfg.kv_cache_dtype, D, entries, T)
    state = laid(empty_rows, cfg, scfg, D, groups * fold, C)
    split_rows = batch_sharding(mesh)

    def host(dtype, *shape):
        return jax.ShapeDtypeStruct((D, *shape), dtype, sharding=split_rows)

    if name.endswith("prefill"):
        p = prefill_rows(T, groups)
        batch = host(jnp.int32, p, T), host(jnp.int32, p), host(jnp.int32, p)
        return Program(
            name,
            programs.prefill(0),
            (weights, None, pool, *batch),
            mesh,
            {"params": weights, "kv cache": pool, "batch": batch},
            beside | {"rows": state},
            D * p * forward_flops(cfg, T, logits=0),
            D * p * T,
        )
    B, steps = groups * fold, job.sampling.chunk
    rows = {name: host(jnp.int32, B) for name in ("prompt_length", "limit", "begun")}
    rows |= {"entry": host(jnp.int32, groups), "keys": host(jnp.uint32, B, 2)}
    rows |= {"fresh": host(jnp.bool_, B), "waits": host(jnp.bool_, groups)}
    rows["enough"] = host(jnp.int32)
    if shared > 1:
        g = places(groups, shared)
        rows |= {"entry": host(jnp.int32, g), "row": host(jnp.int32, g, shared)}
        rows["place"] = host(jnp.int32, groups)
    cache = {"pool": pool, "suffix": state["suffix"]}
    other = {name: x for name, x in state.items() if name != "suffix"}
    return Program(
        name,
        programs.chunk(T),
        (weights, None, pool, state, rows),
        mesh,
        {"params": weights, "kv cache": cache, "batch": (other, rows)},
        beside,
        D * B * steps * forward_flops(cfg, T + C // 2, T + C // 2 - 1, logits=1),
        D * B * steps,
        steps,
    )
