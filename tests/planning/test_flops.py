"""FLOPs of a jaxpr against counts by hand, through every kind of loop and call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from grm_jax.models.config import ModelConfig, alternating
from grm_jax.models.flops import forward_flops, token_flops
from grm_jax.models.splash import block_size, splash_attend
from grm_jax.models.table import abstract_params
from grm_jax.parallel.mesh import make_mesh
from grm_jax.planning.flops import count
from grm_jax.training.step import rft_loss

A, B, C = 4, 8, 16
x_AB, w_BC = jax.ShapeDtypeStruct((A, B), np.float32), jax.ShapeDtypeStruct((B, C), np.float32)
ONE = 2 * A * B * C


def flops(fn, *args, **how):
    return count(jax.make_jaxpr(fn)(*args), **how)


def test_matmul_batched_product_and_convolution():
    assert flops(jnp.matmul, x_AB, w_BC).total == ONE
    batched = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in (x_AB, w_BC)]
    assert flops(jnp.matmul, *batched).total == 3 * ONE
    image, kernel = (
        jax.ShapeDtypeStruct((2, 5, 9, 9), np.float32),
        jax.ShapeDtypeStruct((7, 5, 3, 3), np.float32),
    )
    convolved = flops(
        lambda a, b: jax.lax.conv_general_dilated(a, b, (1, 1), "VALID"), image, kernel
    )
    assert convolved.total == 2 * (2 * 7 * 7 * 7) * (5 * 3 * 3)


def test_scan_counts_its_length():
    def body(x, w_BB):
        return x @ w_BB, None

    stacked = jax.ShapeDtypeStruct((6, B, B), np.float32)
    assert flops(lambda x, w: jax.lax.scan(body, x, w), x_AB, stacked).total == 6 * 2 * A * B * B
    assert (
        flops(lambda x, w: jax.lax.scan(body, x, w, unroll=3), x_AB, stacked).total
        == 6 * 2 * A * B * B
    )


def test_gradient_of_an_mlp_with_and_without_remat():
    def mlp(params, x):
        return jnp.sum(jnp.tanh(x @ params[0]) @ params[1])

    params = [w_BC, jax.ShapeDtypeStruct((C, B), np.float32)]
    # forward 2 products, backward 2 for the second layer, 1 for the first (x needs no gradient)
    assert flops(jax.grad(mlp), params, x_AB).total == 5 * ONE
    with_remat = flops(jax.grad(jax.checkpoint(mlp)), params, x_AB).total
    # the first product again; the second one's result is not needed
    assert with_remat in (6 * ONE, 7 * ONE)


def test_custom_vjp_jit_and_cond():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert flops(product, x_AB, w_BC).total == ONE
    assert flops(jax.jit(product), x_AB, w_BC).total == ONE
    assert (
        flops(jax.grad(lambda x, w: product(x, w).sum(), argnums=(0, 1)), x_AB, w_BC).total
        == 3 * ONE
    )

    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((A, C)))

    assert flops(either, x_AB, w_BC).total == ONE


def test_while_is_named_unless_its_trips_are_stated():
    def loop(x, w_BB):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w_BB, x)

    square = jax.ShapeDtypeStruct((B, B), np.float32)
    found = flops(loop, x_AB, square)
    assert found.total == 2 * A * B * B and len(found.unknown) == 1 and "while" in found.unknown[0]
    stated = flops(loop, x_AB, square, while_trips=10)
    assert stated.total == 10 * 2 * A * B * B and stated.unknown == ()


def test_shard_map_counts_every_device():
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    data = P(("replica", "fsdp"))
    split = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(data, P()), out_specs=data, axis_names={"replica", "fsdp"}
    )
    assert flops(split, x_AB, w_BC).total == ONE
    everywhere = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False
    )
    assert flops(everywhere, x_AB, w_BC).total == 8 * ONE


@pytest.mark.parametrize("remat", ["none", "full"])
def test_train_step_of_the_model(remat):
    cfg = ModelConfig(
        vocab_size=50,
        d_model=16,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=32,
        layer_types=alternating(4),
        sliding_window=4,
        remat=remat,
    )
    rows, T = 3, 12
    ints, floats = (
        jax.ShapeDtypeStruct((rows, T), np.int32),
        jax.ShapeDtypeStruct((rows, T), np.float32),
    )
    params = abstract_params(cfg)
    forward = flops(
        rft_loss(cfg), params, {"tokens": ints, "positions": ints, "mask": floats}
    ).total
    weights = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "scale" not in jax.tree_util.keystr(path)
    )
    # the program computes masked pairs too
    dense_attention = 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * T * T
    assert forward == rows * (2 * weights * T + dense_attention)

    step = flops(
        jax.value_and_grad(rft_loss(cfg), has_aux=True),
        params,
        {"tokens": ints, "positions": ints, "mask": floats},
    ).total
    ratio = step / forward
    assert 2.9 < ratio < 3.05 if remat == "none" else 3.6 < ratio < 4.05


@pytest.mark.parametrize(
    "T, window",
    [(640, None), (640, 1), (640, 128), (640, 129), (640, 300), (640, 640), (1024, 700), (100, 30)],
)
def test_splash_counts_the_blocks_that_its_mask_leaves(T, window):
    """Forward: two products a block. Backward: three for dq, four for dk and dv, which compute the
    logits again.
    """
    rows, heads, head_dim = 2, 4, 16
    q, kv = (jax.ShapeDtypeStruct((rows, T, n, head_dim), np.float32) for n in (heads, 1))
    pos = jax.ShapeDtypeStruct((rows, T), np.int32)

    def attention(q, k, v, pos):
        return splash_attend(q, k, v, pos, window, 50.0)

    padded = -(-T // 128) * 128
    size = block_size(padded)
    seen_TT = np.arange(padded)[:, None] - np.arange(padded)
    seen_TT = (seen_TT >= 0) & (seen_TT < (window or padded))
    blocks = seen_TT.reshape(padded // size, size, -1, size).any((1, 3)).sum()
    one = 2 * size * size * head_dim * rows * heads
    assert flops(attention, q, kv, kv, pos) == (2 * blocks * one, ())
    both = flops(jax.grad(lambda *args: attention(*args).sum(), (0, 1, 2)), q, kv, kv, pos)
    # the sum of output times its gradient, for the softmax
    assert both == (9 * blocks * one + 2 * rows * heads * padded * head_dim, ())


def test_forward_flops_by_hand():
    cfg = ModelConfig(
        vocab_size=50,
        d_model=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=32,
        layer_types=alternating(2),
        sliding_window=4,
    )
    T = 10
    weights = 2 * (16 * 4 * 8 + 2 * 16 * 2 * 8 + 4 * 8 * 16 + 3 * 16 * 32)
    local = sum(min(t + 1, 4) for t in range(T))
    whole = sum(t + 1 for t in range(T))
    assert forward_flops(cfg, T, logits=3) == 2 * weights * T + 2 * 3 * 50 * 16 + 4 * 4 * 8 * (
        local + whole
    )
    pieces = forward_flops(cfg, 7) + forward_flops(cfg, T, start=7)
    assert pieces == forward_flops(cfg, T)
    # rows as they are packed: positions alone say what is seen
    trunk, branches = np.arange(7), np.concatenate([np.arange(7, T), np.arange(7, 9), [-1, -1]])
    packed = forward_flops(cfg, 7) + forward_flops(cfg, T, start=7) + forward_flops(cfg, 9, start=7)
    assert token_flops(cfg, np.concatenate([trunk, branches])) == packed
    assert token_flops(cfg, np.arange(T)[None], logits=3) == forward_flops(cfg, T, logits=3)
