"""The programs of a job with abstract arguments, for planning: the functions that the stages run,
in the placement they run them in.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import config_flags
from experiments.stages import rl
from experiments.stages.train import lora_config, make_step
from grm_jax.models.config import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    Gemma2Config,
    alternating,
    load_config,
)
from grm_jax.models.gemma2 import cast_weights
from grm_jax.models.lora import start_adapters
from grm_jax.models.placement import DATA_AXES
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings, shares
from grm_jax.planning.flops import forward_flops
from grm_jax.planning.measure import Program
from grm_jax.sampling.mapped import map_rows
from grm_jax.sampling.sampler import SamplingConfig, decode_step, empty_suffix, grow_suffix, start
from grm_jax.tokenizer import load_tokenizer
from grm_jax.training.step import adapted, make_logprob_fn, meta_loss, rft_loss

PUBLISHED = {"gemma-2-2b": GEMMA2_2B, "gemma-2-9b": GEMMA2_9B, "gemma-2-27b": GEMMA2_27B}
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


def planned_model(config: ml_collections.ConfigDict, platform: str = "tpu") -> Gemma2Config:
    """The model of a config on a platform: from its folder, or where that is not there, the
    published size that the folder is named after.
    """
    numerics = config_flags.numerics(config, platform)
    if config.model.random_init is not None:
        sizes = config.model.random_init.to_dict()
        vocab_size = load_tokenizer(config_flags.tokenizer_path(config)).vocab_size
        return Gemma2Config(
            vocab_size=vocab_size, layer_types=alternating(sizes["n_layers"]), **sizes, **numerics
        )
    folder = config_flags.model_folder(config)
    if (folder / "config.json").is_file():
        return load_config(folder, **numerics)
    name = pathlib.Path(folder).name.removesuffix("-it")
    if name not in PUBLISHED:
        raise ValueError(
            f"model.path: {folder} has no config.json; expected a Hugging Face folder, or a name "
            f"among {', '.join(PUBLISHED)}"
        )
    return dataclasses.replace(PUBLISHED[name], **numerics)


def make_programs(
    config: ml_collections.ConfigDict, devices: list, names: tuple[str, ...] = NAMES
) -> dict[str, Program]:
    """{name: Program} at the widest shapes of the config: every sequence as long as lengths allow.
    ValueError where a shape cannot be.
    """
    cfg, mesh = (
        planned_model(config, devices[0].platform),
        make_mesh(**config.mesh, devices=devices),
    )
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
    return {name: makers[name](config, cfg, mesh) for name in names}


def width(config: ml_collections.ConfigDict) -> int:
    """Tokens of the longest training sequence."""
    return config.lengths.prompt + config.lengths.completion


def placed(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of a tree, laid over a mesh."""
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


def _train_step(stage, config, cfg, mesh) -> Program:
    """A step as `experiments.stages.train.begin` makes it. Beside it lies RL's reference, where
    beta asks for one; the other stages hand over what they start from. With adapters the frozen
    weights are an argument, and RL's reference.
    """
    settings = config[stage]
    config_flags.check_micro_batch(config, stage, shares(mesh))
    params, updates = abstract_params(cfg), settings.steps
    if stage == "rft":
        loss, fields = rft_loss(cfg), {}
    elif stage == "meta":
        loss, fields, params = (
            meta_loss(cfg),
            {"labels": 1, "mask": 1},
            abstract_params(cfg, SCALAR),
        )
    else:
        loss, fields, updates = (
            rl.objective(config, cfg)[0],
            {"old_logp": 2, "advantages": 1} | ({"ref_logp": 2} if settings.beta else {}),
            updates * settings.updates_per_rollout,
        )
    whole = placed(params, param_shardings(mesh, params))
    frozen = None
    if config.lora.rank:
        lora, frozen = lora_config(config), whole
        params, loss = (
            jax.eval_shape(lambda p: start_adapters(cfg, lora, p, jax.random.key(0)), params),
            adapted(loss, lora.scale),
        )
    step, _, _, state = make_step(config, mesh, params, loss, settings, updates)
    B, T = settings.batch_size, width(config)
    batch = _batch(mesh, B, T, **fields)
    kept = stage == "rl" and settings.beta and not config.lora.rank
    resident = {"reference": whole} if kept else {}
    return Program(
        f"{stage}_step",
        step,
        (state, batch, frozen),
        mesh,
        {"params": (state.params, frozen), "optimizer": state.opt_state, "batch": batch},
        resident,
        3 * B * forward_flops(cfg, T, logits=0 if stage == "meta" else T),
        B * T,
    )


def _logprobs(config, cfg, mesh) -> Program:
    """Of the reference, for a whole batch of rollouts, as experiments/stages/rl.py calls it; the
    policy's train state lies beside it.
    """
    params, beside = _rl_arrays(config, cfg, mesh)
    B, T = config.rl.batch_size, width(config)
    batch = _batch(mesh, B, T)
    beside = {name: arrays for name, arrays in beside.items() if name != "reference"} | {
        "policy": params
    }
    return Program(
        "logprobs",
        make_logprob_fn(cfg, config.rl.temperature, B // config.rl.micro_batch),
        (params, batch["tokens"], batch["positions"]),
        mesh,
        {"params": params, "batch": (batch["tokens"], batch["positions"])},
        beside,
        B * forward_flops(cfg, T, logits=T),
        B * T,
    )


def _rl_arrays(config, cfg, mesh) -> tuple[Any, dict]:
    """(the policy's parameters, what else the RL stage keeps on the devices while it samples)."""
    step = _train_step("rl", config, cfg, mesh)
    state, _, frozen = step.args
    params = state.params if frozen is None else frozen  # adapters are merged into a copy
    beside = {"optimizer": state.opt_state} | ({"reference": params} if config.rl.beta else {})
    return params, beside if frozen is None else beside | {"adapters": state.params}


def sampler_call(
    config: ml_collections.ConfigDict, mesh_shape: Mapping[str, int], judging: bool = False
) -> tuple[int, int, int]:
    """(prompts of one call of the sampler, the same with the dummies that fill the devices, samples
    of each prompt).

    As `rl.roll_out` and `sampling.rollout.generate` cut them: RL draws a group from each prompt;
    judgments for RFT, the Meta RM and evaluation (`judging`) each have an order of responses, and
    so a prompt, of their own.
    """
    G = 1 if judging else config.rl.group_size
    rows = config.sampling.rows if judging else min(config.rl.batch_size, config.sampling.rows)
    prompts = rows // G
    parts = (
        mesh_shape["replica"]
        * mesh_shape["fsdp"]
        * (mesh_shape["tensor"] if config.sampling.sampler == "pmap" else 1)
    )
    return prompts, -(-prompts // parts) * parts, G


def _sampling(config) -> SamplingConfig:
    path = config_flags.tokenizer_path(config)
    # Gemma's <eos>, <end_of_turn>
    stop_ids = load_tokenizer(path).stop_ids if path is not None and path.exists() else (1, 107)
    return SamplingConfig(
        config.lengths.completion,
        temperature=config.rl.temperature,
        top_p=config.sampling.top_p,
        top_k=config.sampling.top_k,
        stop_ids=stop_ids,
    )


def _sampler_program(name, config, cfg, mesh) -> Program:
    """ "prefill" and "decode": RL's rollouts. "judge_prefill" and "judge_decode": judgments, with
    nothing but the policy on the devices.
    """
    if config.sampling.sampler == "pmap" and mesh.size > ONE_HOST:
        raise ValueError(
            f"sampling.sampler=pmap runs on the devices of one process, at most {ONE_HOST}, not "
            f"on {mesh.size}; take shard_map"
        )
    judging = name.startswith("judge_")
    params, beside = _rl_arrays(config, cfg, mesh)
    make = _prefill if name.endswith("prefill") else _decode
    return make(
        name,
        config,
        cfg,
        mesh,
        params,
        {} if judging else beside,
        sampler_call(config, mesh.shape, judging),
    )


def _prefill(name, config, cfg, mesh, params, beside, call) -> Program:
    """`sampler.start` on the widest bucket, from the parameters as the job hands them over:
    "shard_map" gathers them over fsdp here.
    """
    scfg = _sampling(config)
    (asked, prompts, G), T, parts = call, config.lengths.buckets[-1], mesh.size
    policy, (mapped, mesh, params, prompts) = params, _mapping(config, cfg, mesh, params, prompts)
    real = asked * mesh.size / parts  # without dummies; on these devices
    data = P(DATA_AXES)

    def run(params, prompts_PT, lengths_P, keys_Pk2):
        return start(params, cfg, scfg, prompts_PT, lengths_P, keys_Pk2)

    args = [
        jax.ShapeDtypeStruct(s, t)
        for s, t in (
            ((prompts, T), jnp.int32),
            ((prompts,), jnp.int32),
            ((prompts, G, 2), jnp.uint32),
        )
    ]
    out_specs = _specs(jax.eval_shape(run, params, *args))
    args = placed(args, [NamedSharding(mesh, data)] * 3)
    return Program(
        name,
        mapped(run, (data, data, data), out_specs),
        (params, *args),
        mesh,
        {"params": params, "batch": args},
        beside | ({"policy": policy} if config.sampling.sampler == "pmap" else {}),
        real * forward_flops(cfg, T, logits=1),
        round(real * T),
    )


def _decode(name, config, cfg, mesh, params, beside, call) -> Program:
    """One `sampler.decode_step` with the longest caches, from parameters as they lie inside the
    loop: cast, and with "shard_map" whole over fsdp. The policy that they were made from lies
    beside them.
    """
    scfg = _sampling(config)
    (asked, prompts, G), T, C, parts = (
        call,
        config.lengths.buckets[-1],
        config.lengths.completion,
        mesh.size,
    )
    policy, (mapped, mesh, params, prompts) = params, _mapping(config, cfg, mesh, params, prompts)
    real = asked * mesh.size / parts
    params = _cast(cfg, params)
    if config.sampling.sampler == "shard_map":
        whole = jax.tree.map(
            lambda x: NamedSharding(
                mesh, P(*(axis if axis == "tensor" else None for axis in x.sharding.spec))
            ),
            params,
        )
        params = placed(params, whole)
    shapes = (((prompts, T), jnp.int32), ((prompts,), jnp.int32), ((prompts, G, 2), jnp.uint32))
    begin = jax.eval_shape(
        lambda p, *args: start(p, cfg, scfg, *args),
        params,
        *(jax.ShapeDtypeStruct(*shape) for shape in shapes),
    )
    prefix, rows = begin[0], begin[1]
    rows = rows | {
        "suffix": jax.eval_shape(lambda: grow_suffix(cfg, empty_suffix(cfg, prompts * G), C))
    }
    specs = _specs((prefix, rows))
    shardings = jax.tree.map(
        functools.partial(_cache_sharding, mesh),
        specs,
        (prefix, rows),
        is_leaf=lambda x: isinstance(x, P),
    )
    prefix, rows = placed((prefix, rows), shardings)

    def run(params, prefix, state):
        return decode_step(params, cfg, scfg, prefix, state)

    cache = {"prefix": prefix, "suffix": rows["suffix"]}
    other = {name: value for name, value in rows.items() if name != "suffix"}
    return Program(
        name,
        mapped(run, specs, specs[1], donate=2),
        (params, prefix, rows),
        mesh,
        {"params": params, "kv cache": cache, "batch": other},
        beside | {"policy": policy},
        real * G * forward_flops(cfg, T + C // 2, T + C // 2 - 1, logits=1),
        round(real * G),
    )


def _cast(cfg, params) -> Any:
    return placed(
        jax.eval_shape(lambda p: cast_weights(p, cfg), params),
        jax.tree.map(lambda x: x.sharding, params),
    )


def _mapping(config, cfg, mesh, params, prompts):
    """(how to jit a function of the sampler, its mesh, its parameters, its prompts), as
    `sampling.mapped.make_sampler` maps it.
    """
    mode = config.sampling.sampler
    if mode == "pmap":  # one device's share, with the whole model on it
        alone = Mesh(
            mesh.devices.reshape(-1)[:1].reshape(1, 1, 1),
            mesh.axis_names,
            axis_types=mesh.axis_types,
        )
        params = _cast(
            cfg, placed(params, jax.tree.map(lambda x: NamedSharding(alone, P()), params))
        )
        return _jit(cfg), alone, params, prompts // mesh.size
    if mode == "jit":
        return _jit(cfg), mesh, params, prompts

    def shard_mapped(fn, in_specs, out_specs, donate=()):
        return jax.jit(map_rows(fn, cfg, mesh, in_specs, out_specs), donate_argnums=donate)

    return shard_mapped, mesh, params, prompts


def _jit(cfg):
    def jitted(fn, in_specs, out_specs, donate=()):
        return jax.jit(
            lambda params, *arrays: fn(cast_weights(params, cfg), *arrays), donate_argnums=donate
        )

    return jitted


def _specs(tree) -> Any:
    """The data axes of a sampler's prefix and state: caches are [blocks, rows, ...], all else
    [rows, ...], the step is one number.
    """
    prefix, state = tree
    prefix, suffix = jax.tree.map(lambda x: P(None, DATA_AXES), (prefix, state["suffix"]))
    rows = {name: P(DATA_AXES) if x.ndim else P() for name, x in state.items() if name != "suffix"}
    return prefix, rows | {"suffix": suffix}


def _cache_sharding(mesh, spec, x) -> NamedSharding:
    """Heads of a cache [blocks, rows, slots, heads, dim] over `tensor` too, as the projections that
    fill it are.
    """
    if x.ndim == 5 and x.shape[3] % mesh.shape["tensor"] == 0:
        spec = P(*spec, None, "tensor")
    return NamedSharding(mesh, spec)
