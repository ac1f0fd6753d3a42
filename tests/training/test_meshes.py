"""Ten steps of every kind of training give the same losses and parameters on any mesh, and no
program holds a parameter whole by accident.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from grm_jax.losses.config import LossConfig
from grm_jax.losses.grpo import grpo
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.placement import split_rows
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from grm_jax.planning.collectives import KINDS, device_axes
from grm_jax.planning.hlo import arrays, parse, times_run
from grm_jax.reward_models.meta_rm import make_scorer
from grm_jax.training.logprobs import token_logprobs
from grm_jax.training.optimizer import OptimizerConfig, make_optimizer
from grm_jax.training.state import abstract_state, init_state
from grm_jax.training.step import (
    make_logprob_fn,
    make_train_step,
    preference_loss,
    rft_loss,
    rl_loss,
)

CFG = ModelConfig(
    vocab_size=48,
    d_model=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(4),
    sliding_window=6,
    query_pre_attn_scalar=8.0,
    remat="full",
)
MESHES = [(1, 8, 1), (1, 4, 2), (2, 2, 2)]  # replica, fsdp, tensor
B, T, STEPS = 16, 12, 10
OPTIMIZER, _ = make_optimizer(
    OptimizerConfig(
        schedule="cosine",
        warmup_steps=2,
        final_fraction=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.01,
    ),
    learning_rate=3e-3,
    steps=STEPS,
)


def sequences(rng):
    lengths_B1 = rng.integers(4, T + 1, (B, 1))
    positions = np.where(np.arange(T) < lengths_B1, np.arange(T), -1).astype(np.int32)
    return {
        "tokens": rng.integers(0, CFG.vocab_size, (B, T)).astype(np.int32),
        "positions": positions,
    }


@functools.cache
def batches(kind):
    """A different batch for each step."""
    rng, found = np.random.default_rng(0), []
    logprobs = make_logprob_fn(CFG)
    for _ in range(STEPS):
        batch = sequences(rng)
        if kind == "bradley_terry":
            worse = sequences(rng)
            found.append(
                {"mask": np.ones(B, np.float32)}
                | {
                    f"{side}_{name}": value
                    for side, one in (("better", batch), ("worse", worse))
                    for name, value in one.items()
                }
            )
            continue
        batch["mask"] = ((np.arange(T) >= 3) & (batch["positions"] >= 0)).astype(np.float32)
        if kind == "rl":
            logp = np.asarray(logprobs(parameters("rl"), batch["tokens"], batch["positions"]))
            batch |= {
                name: logp + rng.normal(0, 0.1, (B, T)).astype(np.float32)
                for name in ("old_logp", "ref_logp")
            }
            batch["advantages"] = rng.choice([-1.0, 1.0], B).astype(np.float32)
        found.append(batch)
    return found


@functools.cache
def parameters(kind):
    params = init_params(CFG, jax.random.key(0))
    return init_scalar_params(CFG, params, jax.random.key(1)) if kind == "bradley_terry" else params


LOSSES = {
    "rft": rft_loss(CFG),
    "rl": rl_loss(CFG, grpo, LossConfig(beta=0.08), 1.0),
    "bradley_terry": preference_loss(CFG),
}


def placed(kind, mesh):
    """(step, shardings) on a mesh; on one device without shardings."""
    shardings = (
        None if mesh is None else param_shardings(mesh, abstract_state(parameters(kind), OPTIMIZER))
    )
    return make_train_step(LOSSES[kind], OPTIMIZER, 2, shardings), shardings


@functools.cache
def trained(kind, sizes):
    mesh = None if sizes is None else make_mesh(*sizes)
    step, shardings = placed(kind, mesh)
    state, losses = init_state(parameters(kind), OPTIMIZER, shardings), []
    for batch in batches(kind):
        state, metrics = step(
            state, batch if mesh is None else jax.device_put(batch, batch_sharding(mesh))
        )
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("sizes", MESHES)
def test_ten_steps_are_the_same_on_every_mesh(kind, sizes):
    params, losses = trained(kind, sizes)
    want_params, want_losses = trained(kind, None)
    # the RL loss is a sum that cancels
    np.testing.assert_allclose(
        losses, want_losses, rtol=1e-5, atol=1e-5 * np.abs(want_losses).max()
    )
    assert len(set(want_losses)) == STEPS
    for (path, x), want in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(want_params), strict=True
    ):
        # a norm multiplies by 1 + w, and w starts at 0
        whole = 1.0 + want if str(path[-1]).endswith("scale']") else want
        assert np.linalg.norm(x - want) <= 1e-5 * np.linalg.norm(whole) + 1e-7, path


@pytest.mark.parametrize("kind", LOSSES)
def test_the_compiled_program_holds_its_share_of_every_parameter(kind):
    """Read from the program itself: the shapes of its arguments, and of what its all-gathers
    give.
    """
    mesh = make_mesh(1, 4, 2)
    step, shardings = placed(kind, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract_state(parameters(kind), OPTIMIZER),
        shardings,
    )
    rows = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
        for name, x in batches(kind)[0].items()
    }
    text = step.lower(state, rows).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    held = {
        int(number): tuple(map(int, shape.split(","))) if shape else ()
        for shape, number in re.findall(
            r"= \w+\[([\d,]*)\][^=]* "
            r"parameter\((\d+)\)",
            entry,
        )
    }

    flat = flatten_dict(parameters(kind), sep="/")
    leaves = jax.tree.leaves_with_path(state)
    split = 0
    for number, (path, leaf) in enumerate(leaves):
        assert held[number] == leaf.sharding.shard_shape(leaf.shape), path
        # everything but norms and counters
        if leaf.ndim > 1 and not str(path[-1]).endswith("scale']"):
            # at least fsdp splits it
            assert np.prod(held[number]) * 4 <= leaf.size, (path, held[number])
            split += 1
    # parameter and two moments
    assert split == 3 * sum(
        leaf.ndim > 1 and not path.endswith("scale") for path, leaf in flat.items()
    )

    stacks = {
        (leaf.shape[0], leaf.size)
        for path, leaf in flat.items()
        if "blocks/" in path and leaf.ndim > 2
    }
    for dims in re.findall(r"= \w+\[([\d,]+)\][^=]* all-gather(?:-start)?\(", text):
        shape = tuple(map(int, dims.split(",")))
        # one block at a time
        assert (shape[0], int(np.prod(shape))) not in stacks, (
            f"an all-gather makes a whole stack of layers: {shape}"
        )

    moved = over_fsdp(text, mesh)
    # the check reads what it should
    assert any(
        kind == "all-gather" and (CFG.d_model, CFG.d_ff // 2) == dims for kind, dims in moved
    )
    only_the_look_up(moved)


def over_fsdp(text, mesh):
    """{(kind, dims)} of every array in a collective over fsdp alone. No parameter has a dimension
    of T.
    """
    module, entry = parse(text)
    return {
        (kind, array.dims)
        for name in times_run(module, entry)[0]
        for instruction in module[name].values()
        if (kind := instruction.opcode.removesuffix("-start")) in KINDS
        and device_axes(instruction, dict(mesh.shape)) == ("fsdp",)
        for array in arrays(instruction.shape)
    }


def only_the_look_up(moved):
    """No activation is added up or gathered over fsdp. Of arrays with positions only those of the
    look-up in an embedding that is split along D: token ids [B, T, 1] are gathered, and what was
    found goes from columns to rows by an all-to-all.
    """
    wrong = {
        (kind, dims)
        for kind, dims in moved
        if T in dims and kind != "all-to-all" and dims[2:] != (1,)
    }
    assert not wrong, wrong


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_log_probabilities_of_a_split_batch(micro_batches):
    """In micro-batches and on a mesh: the values of the whole batch on one device; no activation is
    added up or gathered over fsdp.
    """
    mesh, batch = make_mesh(1, 4, 2), batches("rl")[0]
    params = jax.device_put(parameters("rl"), param_shardings(mesh, parameters("rl")))
    tokens, positions = (
        jax.device_put(batch[name], batch_sharding(mesh)) for name in ("tokens", "positions")
    )
    compiled = make_logprob_fn(CFG, 0.7, micro_batches).lower(params, tokens, positions).compile()
    want = make_logprob_fn(CFG, 0.7)(parameters("rl"), batch["tokens"], batch["positions"])
    np.testing.assert_allclose(compiled(params, tokens, positions), want, atol=1e-5)
    only_the_look_up(over_fsdp(compiled.as_text(), mesh))


def test_gradient_of_log_probabilities_in_chunks():
    """Five positions at a time, the embedding gathered before the loop: the gradient of all at once
    on one device, split as the parameters are.
    """
    mesh, batch = make_mesh(2, 2, 2), batches("rl")[0]

    def loss(chunk, params, tokens, positions, mask):
        logp_BT, entropy_BT = token_logprobs(params, CFG, tokens, positions, 0.7, chunk)
        return jnp.sum((logp_BT + jax.lax.stop_gradient(entropy_BT)) * mask)

    arrays = [batch[name] for name in ("tokens", "positions", "mask")]
    want = jax.jit(jax.grad(functools.partial(loss, T)))(parameters("rl"), *arrays)
    shardings = param_shardings(mesh, parameters("rl"))
    split = [jax.device_put(array, batch_sharding(mesh)) for array in arrays]
    got = jax.jit(jax.grad(functools.partial(loss, 5)), out_shardings=shardings)(
        jax.device_put(parameters("rl"), shardings), *split
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)


def test_scorers_share_rows_among_devices():
    """Host arrays in, as a Meta RM is asked: each device computes its own rows, and the logits are
    those of one device.
    """
    batch, params = batches("rft")[0], parameters("bradley_terry")
    mesh, scorer = make_mesh(2, 4, 1), make_scorer(CFG)
    args = (
        jax.device_put(params, param_shardings(mesh, params)),
        batch["tokens"],
        batch["positions"],
    )
    one, shared = (
        scorer.lower(*a).compile().cost_analysis()["flops"] for a in ((params, *args[1:]), args)
    )
    assert shared < one / 6
    np.testing.assert_allclose(scorer(*args), scorer(params, *args[1:]), atol=1e-5)


def test_activations_are_pinned_only_where_the_compiler_places_them():
    """One device, rows that a mesh does not divide, one position, and `shard_map` over the data
    axes: no constraint.
    """
    mesh, x = make_mesh(1, 4, 2), np.zeros((8, 3, 2), np.float32)
    placed_x = jax.device_put(x, batch_sharding(mesh))

    def constraints(fn, x):
        return str(jax.make_jaxpr(fn)(x)).count("sharding_constraint")

    assert constraints(split_rows, placed_x) == 1 and constraints(split_rows, x) == 0
    assert (
        constraints(lambda x: split_rows(x[:6]), placed_x) == 0
        and constraints(lambda x: split_rows(x[:, :1]), placed_x) == 0
    )
    rows = batch_sharding(mesh).spec
    manual = jax.shard_map(
        split_rows,
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        axis_names={"replica", "fsdp"},
        check_vma=False,
    )
    assert constraints(manual, placed_x) == 0
