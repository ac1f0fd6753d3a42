"""The sampler against slow twins: teacher-forced log-probabilities, transformers' greedy text,
exact distributions, other batches and devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from grm_jax.sampling.logits import choose_tokens, inverse_cdf
from grm_jax.sampling.mapped import make_sampler, map_rows
from grm_jax.sampling.rollout import Request, generate, plan
from grm_jax.sampling.sampler import (
    SamplingConfig,
    cache_sizes,
    decode_step,
    grow_suffix,
    sample,
    sample_key,
    start,
)
from grm_jax.training.logprobs import token_logprobs_reference
from tests.jaxprs import equations

CFG = ModelConfig(
    vocab_size=62,
    d_model=24,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(4),
    sliding_window=6,
    attn_softcap=2.0,
    final_softcap=3.0,
    query_pre_attn_scalar=5.0,
    scan_layers=False,
)
SETTINGS = SamplingConfig(max_new_tokens=13, temperature=0.8, stop_ids=(3, 7), pad_id=0)
# shorter and longer than the window of 6; 13 new tokens wrap its ring
LENGTHS = np.array([9, 1, 5, 12, 4, 2, 8, 11], np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2.5 * x, init_params(CFG, jax.random.key(1)))


@pytest.fixture(scope="module")
def prompts():
    rows = np.random.default_rng(0).integers(8, CFG.vocab_size, (len(LENGTHS), 12)).astype(np.int32)
    return np.where(np.arange(12) < LENGTHS[:, None], rows, 0).astype(np.int32)


def keys(items, samples, seed=0):
    return np.array([[sample_key(seed, f"item{i}", j) for j in samples] for i in items])


def run(params, prompts, lengths, keys_Pk2, cfg=CFG, settings=SETTINGS):
    return jax.tree.map(
        np.asarray,
        jax.jit(lambda *a: sample(a[0], cfg, settings, *a[1:]))(params, prompts, lengths, keys_Pk2),
    )


@pytest.fixture(scope="module")
def drawn(params, prompts):
    return run(params, prompts, LENGTHS, keys(range(8), range(3)))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logprobs_are_the_trainers(params, prompts, scan_layers):
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
    out = run(params, prompts, LENGTHS, keys(range(8), range(3)), cfg)
    ids, pos = np.zeros((24, 25), np.int32), np.full((24, 25), -1, np.int32)
    for row in range(24):
        p, length, n = row // 3, LENGTHS[row // 3], out["length"].ravel()[row]
        ids[row, : length + n] = np.concatenate(
            [prompts[p, :length], out["tokens"].reshape(24, -1)[row, :n]]
        )
        pos[row, : length + n] = np.arange(length + n)
    logp = np.asarray(
        jax.jit(lambda params: token_logprobs_reference(params, cfg, ids, pos, temperature=0.8)[0])(
            params
        )
    )
    worst = max(
        np.abs(logp[row, LENGTHS[row // 3] :][:n] - out["logp"].reshape(24, -1)[row, :n]).max()
        for row, n in enumerate(out["length"].ravel())
    )
    print(f"largest difference of a log-probability: {worst:.2e}")
    assert worst < 1e-5


def test_a_row_ends_at_its_first_stop_token(drawn):
    assert drawn["finished"].any() and not drawn["finished"].all()
    for tokens, logp, length, finished in zip(
        *(drawn[name].reshape(24, -1) for name in ("tokens", "logp", "length", "finished"))
    ):
        stops = np.flatnonzero(np.isin(tokens[: length[0]], SETTINGS.stop_ids))
        assert stops.tolist() == ([length[0] - 1] if finished[0] else [])
        assert finished[0] or length[0] == SETTINGS.max_new_tokens
        assert not tokens[length[0] :].any() and not logp[length[0] :].any()
    ends = {
        int(t[n - 1])
        for t, n, f in zip(
            drawn["tokens"].reshape(24, -1), drawn["length"].ravel(), drawn["finished"].ravel()
        )
        if f
    }
    assert ends == {3, 7}


@pytest.mark.parametrize(
    "mode, mesh_shape", [("jit", None), ("pmap", None), ("shard_map", (2, 4, 1))]
)
def test_a_row_ends_at_its_own_limit(params, prompts, drawn, mode, mesh_shape):
    limits = np.random.default_rng(2).integers(1, 14, (8, 3)).astype(np.int32)
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    sampler = make_sampler(CFG, SETTINGS, mode, mesh)
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    out = sampler(placed, prompts, LENGTHS, keys(range(8), range(3)), limits)
    length = np.minimum(drawn["length"], limits)
    np.testing.assert_array_equal(out["length"], length)
    np.testing.assert_array_equal(
        out["tokens"], np.where(np.arange(13) < length[..., None], drawn["tokens"], 0)
    )
    np.testing.assert_array_equal(out["finished"], drawn["finished"] & (drawn["length"] <= limits))
    assert ((limits < drawn["length"]).any(), (limits > drawn["length"]).any()) == (True, True)


def test_long_completions_go_from_a_small_cache_to_a_large_one(params, prompts):
    """Two loops, the second from a quarter of the tokens on, draw what one does."""
    settings = SamplingConfig(max_new_tokens=256, temperature=0.8)
    assert cache_sizes(256) == [64, 256]
    asked = (params, prompts[:2], LENGTHS[:2], keys(range(2), range(2)))
    out = run(*asked, settings=settings)
    short = run(*asked, settings=dataclasses.replace(settings, max_new_tokens=130))
    np.testing.assert_array_equal(out["tokens"][:, :, :130], short["tokens"])
    assert (out["length"] == 256).all() and cache_sizes(130) == [130]


def test_tokens_depend_on_seed_item_and_sample_alone(params, prompts, drawn):
    separate = run(
        params,
        np.repeat(prompts, 3, axis=0),
        np.repeat(LENGTHS, 3),
        keys(range(8), range(3)).reshape(24, 1, 2),
    )
    # a prefix of one's own
    np.testing.assert_array_equal(separate["tokens"][:, 0], drawn["tokens"].reshape(24, -1))
    np.testing.assert_allclose(separate["logp"][:, 0], drawn["logp"].reshape(24, -1), atol=1e-5)
    order = [5, 0, 3]
    other = run(
        params,
        np.pad(prompts[order], ((0, 1), (0, 4))),
        np.append(LENGTHS[order], 0),
        keys([*order, 9], [2]),
    )
    # another batch, width and place
    np.testing.assert_array_equal(other["tokens"][:3, 0], drawn["tokens"][order, 2])
    assert other["length"][3, 0] == 0  # a dummy row draws nothing
    assert (
        run(params, prompts, LENGTHS, keys(range(8), range(3), seed=1))["tokens"] != drawn["tokens"]
    ).any()
    assert (drawn["tokens"][:, 0] != drawn["tokens"][:, 1]).any()


@pytest.mark.parametrize(
    "mode, mesh_shape",
    [
        ("pmap", None),
        ("shard_map", (2, 4, 1)),
        ("shard_map", (1, 4, 2)),
        ("shard_map", (2, 2, 2)),
        ("jit", (1, 4, 2)),
    ],
)
def test_eight_devices_give_the_tokens_of_one(params, prompts, drawn, mode, mesh_shape):
    """Of 6 prompts: the last shares are padding alone, and done before the others begin."""
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    sampler = make_sampler(CFG, SETTINGS, mode, mesh)
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    out = sampler(placed, prompts[:6], LENGTHS[:6], keys(range(6), range(3)))
    np.testing.assert_array_equal(np.asarray(out["tokens"]), drawn["tokens"][:6])
    np.testing.assert_allclose(np.asarray(out["logp"]), drawn["logp"][:6], atol=1e-5)
    assert len(set(np.asarray(out["length"]).ravel())) > 2


def test_weights_cast_once_give_the_tokens_of_weights_cast_at_each_use(params, prompts):
    """In bfloat16, against a loop in Python over float32 weights; the loop of `sample` closes over
    nothing wider.
    """
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    drawn = run(params, prompts, LENGTHS, keys(range(8), range(2)), cfg)
    prefix, state = jax.jit(lambda *a: start(a[0], cfg, SETTINGS, *a[1:]))(
        params, prompts, LENGTHS, keys(range(8), range(2))
    )
    state |= {"suffix": grow_suffix(cfg, state["suffix"], SETTINGS.max_new_tokens)}
    step = jax.jit(lambda params, prefix, state: decode_step(params, cfg, SETTINGS, prefix, state))
    for _ in range(SETTINGS.max_new_tokens - 1):
        state = step(params, prefix, state)
    np.testing.assert_array_equal(drawn["tokens"].reshape(16, -1), state["tokens"])
    np.testing.assert_array_equal(drawn["logp"].reshape(16, -1), state["logp"])


@pytest.mark.parametrize("mode, primitive", [("jit", "while"), ("shard_map", "shard_map")])
def test_weights_enter_the_loop_and_the_gather_in_the_type_of_the_model(
    params, prompts, mode, primitive
):
    cfg, mesh = dataclasses.replace(CFG, dtype="bfloat16"), make_mesh(1, 4, 2)
    shapes = {
        x.shape
        for path, x in jax.tree.leaves_with_path(params)
        if not str(path[-1]).endswith("scale']")
    }
    rows = batch_sharding(mesh).spec

    def draw(params, *arrays):
        return sample(params, cfg, SETTINGS, *arrays)

    fn = draw if mode == "jit" else map_rows(draw, cfg, mesh, (rows, rows, rows), rows)
    jaxpr = jax.make_jaxpr(fn)(params, prompts, LENGTHS, keys(range(8), range(2)))
    inputs = [
        v.aval
        for eqn in equations(jaxpr.jaxpr)
        for v in eqn.invars
        if eqn.primitive.name == primitive and v.aval.shape in shapes
    ]
    assert inputs and {aval.dtype for aval in inputs} == {jnp.dtype("bfloat16")}


@pytest.mark.torch
def test_greedy_text_is_that_of_transformers(params, prompts, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from grm_jax.checkpoint.huggingface import save_folder

    save_folder(tmp_path / "model", params, CFG)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    ).eval()
    out = run(
        params,
        prompts,
        LENGTHS,
        keys(range(8), [0]),
        settings=dataclasses.replace(SETTINGS, temperature=0.0),
    )
    for p, length in enumerate(LENGTHS):
        with torch.no_grad():
            ids = torch.tensor(prompts[p : p + 1, :length])
            made = model.generate(
                ids, max_new_tokens=13, do_sample=False, eos_token_id=[3, 7], pad_token_id=0
            )[0, length:].tolist()
        assert out["tokens"][p, 0, : out["length"][p, 0]].tolist() == made


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (4, 1.0), (0, 0.7), (5, 0.8)])
def test_tokens_are_drawn_from_the_distribution(top_k, top_p):
    logits = np.array([2.0, 1.2, 1.1, 0.3, 0.0, -0.5, -1.0, -1.0, -4.0, -np.inf], np.float32)
    temperature, draws = 0.7, 20_000
    drawn, logp = jax.jit(
        lambda k: choose_tokens(jnp.tile(logits, (draws, 1)), k, 4, temperature, top_k, top_p)
    )(np.random.default_rng(3).integers(0, 2**32, (draws, 2), dtype=np.uint32))
    whole = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    # of the uncut distribution
    np.testing.assert_allclose(np.exp(logp), whole[np.asarray(drawn)], rtol=1e-4)
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or None]
    if top_p < 1:
        among = whole[kept] / whole[kept].sum()
        kept = kept[: int(np.searchsorted(np.cumsum(among), top_p)) + 1]
    expected = np.zeros(len(logits))
    expected[kept] = whole[kept] / whole[kept].sum()
    counts = np.bincount(drawn, minlength=len(logits))
    assert not counts[expected == 0].any()
    live = expected * draws > 5
    chi2 = (((counts - expected * draws) ** 2)[live] / (expected * draws)[live]).sum()
    assert chi2 < 3 * live.sum() + 12, (counts, expected * draws)


def test_inverse_cdf_is_the_cumulative_sum():
    rng = np.random.default_rng(0)
    for V in (1, 2, 7, 64, 1000):
        probs = rng.dirichlet(np.full(V, 0.3), 400).astype(np.float32)
        probs[rng.random(probs.shape) < 0.3] = 0.0
        probs[:, -1] += 1e-3
        probs /= probs.sum(-1, keepdims=True)
        uniform = rng.random(400).astype(np.float32)
        token = np.asarray(inverse_cdf(jnp.asarray(probs), jnp.asarray(uniform)))
        cumulated = probs.astype(np.float64).cumsum(-1) / probs.astype(np.float64).sum(
            -1, keepdims=True
        )
        assert (probs[np.arange(400), token] > 0).all()
        assert (cumulated[np.arange(400), token] >= uniform - 1e-5).all()
        assert (
            cumulated[np.arange(400), token] - probs[np.arange(400), token] <= uniform + 1e-5
        ).all()


def test_inverse_cdf_of_gemmas_vocabulary_stays_exact():
    V = 256_000
    probs = np.full((3, V), 1.0 / V, np.float32)
    token = np.asarray(
        inverse_cdf(jnp.asarray(probs), jnp.array([0.0, 0.5, 1.0 - 2**-24], jnp.float32))
    )
    assert token[0] == 0 and abs(int(token[1]) - V // 2) <= 2 and token[2] >= V - 3


def requests(prompts):
    return [Request(prompts[p, : LENGTHS[p]].tolist(), f"item{p}", (0, 1, 2)) for p in range(8)]


def test_generate_gives_every_completion_once(params, prompts, drawn):
    asked, sampler = requests(prompts), make_sampler(CFG, SETTINGS)
    batches = list(generate(sampler, params, asked, seed=0, buckets=(6, 12), rows=9))
    assert [indices for indices, _ in batches] == [
        list(b.requests) for b in plan(asked, (6, 12), 9)
    ]
    found = {(c.item_id, c.sample): c for _, completions in batches for c in completions}
    assert len(found) == 24
    for p in range(8):
        for j in range(3):
            one = found[f"item{p}", j]
            np.testing.assert_array_equal(
                one.token_ids, drawn["tokens"][p, j, : drawn["length"][p, j]]
            )
            assert one.finished == drawn["finished"][p, j] and len(one.logp) == len(one.token_ids)


def test_equal_settings_share_their_compiled_programs():
    """Whoever asks for a sampler: a second call with equal arguments compiles nothing."""
    equal = dataclasses.replace(CFG), dataclasses.replace(SETTINGS)
    assert make_sampler(*equal) is make_sampler(CFG, SETTINGS)
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    same = make_mesh(replica=2, fsdp=2, tensor=2)
    assert make_sampler(*equal, "shard_map", same) is make_sampler(CFG, SETTINGS, "shard_map", mesh)
    other = dataclasses.replace(SETTINGS, temperature=0.25)
    assert make_sampler(CFG, other) is not make_sampler(CFG, SETTINGS)


def test_a_prompt_that_does_not_fit_is_named(prompts):
    with pytest.raises(ValueError, match="item3.*12 tokens.*widest bucket"):
        plan(requests(prompts), (6, 10), 9)
    with pytest.raises(ValueError, match="3 samples"):
        plan(requests(prompts), (12,), 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_and_no_text(params, temperature, value):
    broken = jax.tree.map(lambda x: x, params)
    broken["final_norm"] = {"scale": params["final_norm"]["scale"].at[0].set(value)}
    settings = SamplingConfig(max_new_tokens=4, temperature=temperature, stop_ids=(1,))
    sampler = make_sampler(dataclasses.replace(CFG, final_softcap=None), settings)
    asked = [Request([5, 6, 7], f"item {i}", (0, 1)) for i in range(2)]
    with pytest.raises(
        ValueError,
        match=r"item 'item 0', sample 0: the logits of token 0 behind a prompt of 3 tokens are not",
    ):
        list(generate(sampler, broken, asked, seed=0, buckets=(6,), rows=4))
