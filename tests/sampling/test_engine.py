"""The engine against the batch sampler, its slow twin: the same tokens whatever the slots, the
order of arrival, the chunks, the fronts and the devices.
"""

import dataclasses

import jax
import numpy as np
import pytest

from grm_jax.models import init_params
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.sampling import shapes
from grm_jax.sampling.engine import Drawing, Engine, batch_engine
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.rollout import Request, generate
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.sampling.shapes import entry_bytes, fold_of, places, shapes_of
from tests.sampling.test_sampler import CFG, SETTINGS

FRONT = 8  # tokens that all prompts begin with: more than the window
BUCKETS = (10, 16, 24)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2.5 * x, init_params(CFG, jax.random.key(1)))


def asked(front=0, limits=True):
    """Nine requests, two of one prompt, of 3 samples each with stop lengths of their own."""
    rng = np.random.default_rng(4)
    shared = rng.integers(8, 62, FRONT).tolist()
    prompts = [shared + rng.integers(8, 62, n).tolist() for n in (1, 9, 2, 16, 5, 12, 3, 7)]
    prompts.append(prompts[3])
    stops = rng.integers(1, 14, (9, 3)).tolist()
    return [
        Request(ids, f"item{i}", (0, 1, 2), tuple(stop) if limits else None, front)
        for i, (ids, stop) in enumerate(zip(prompts, stops))
    ]


def drawn(sampler, params, requests, rows=12):
    batches = list(generate(sampler, params, requests, 0, BUCKETS, rows))
    assert sorted(i for indices, _ in batches for i in indices) == list(range(len(requests)))
    for indices, completions in batches:
        told = [(c.item_id, c.sample) for c in completions]
        assert told == [(requests[i].item_id, s) for i in indices for s in requests[i].samples]
    return {(c.item_id, c.sample): c for _, completions in batches for c in completions}


def assert_same(got, expected, atol=1e-5):
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_array_equal(got[name].token_ids, one.token_ids)
        np.testing.assert_allclose(got[name].logp, one.logp, atol=atol)
        assert got[name].finished == one.finished


@pytest.fixture(scope="module")
def expected(params):
    found = drawn(make_sampler(CFG, SETTINGS), params, asked())
    lengths = {len(c.token_ids) for c in found.values()}
    assert len(lengths) > 6 and {c.finished for c in found.values()} == {True, False}
    return found


@pytest.mark.parametrize(
    "rows, chunk, front, scan_layers", [(12, 32, 0, False), (5, 3, FRONT, False), (32, 1, 0, True)]
)
def test_tokens_are_the_batch_samplers(params, expected, rows, chunk, front, scan_layers):
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
    drawing = Drawing(cfg, SETTINGS, chunk=chunk)
    assert_same(drawn(drawing, params, asked(front), rows), expected)


def test_a_completion_that_was_cut_goes_on_as_if_it_had_not_been(params, expected):
    """With the first tokens behind the prompt, whatever is drawn beside it."""
    cut = []
    for request in asked():
        for j, sample in enumerate(request.samples):
            ids = expected[request.item_id, sample].token_ids.tolist()
            begun = len(ids) // 2
            left = (request.limits[j] - begun,)
            prompt = [*request.prompt_ids, *ids[:begun]]
            cut.append(Request(prompt, request.item_id, (sample,), left, begun=begun))
    drawing = Drawing(CFG, SETTINGS, chunk=3)
    batches = generate(drawing, params, cut, 0, (10, 16, 24, 36), 12)
    got = {(c.item_id, c.sample): c for _, completions in batches for c in completions}
    assert len({request.begun for request in cut}) > 3
    for request in cut:
        whole = expected[request.item_id, request.samples[0]]
        rest = dataclasses.replace(
            whole, token_ids=whole.token_ids[request.begun :], logp=whole.logp[request.begun :]
        )
        assert_same({0: got[request.item_id, request.samples[0]]}, {0: rest}, atol=1e-4)
    with pytest.raises(ValueError, match="the engine alone goes on with a completion"):
        next(generate(make_sampler(CFG, SETTINGS), params, cut, 0, (36,), 12))
    with pytest.raises(ValueError, match="are said to stand in a prompt of 3"):
        next(generate(drawing, params, [Request([1, 2, 3], "a", begun=3)], 0, (8,), 4))


@pytest.mark.parametrize(
    "mode, mesh_shape", [("pmap", None), ("shard_map", (1, 4, 2)), ("jit", (2, 2, 2))]
)
def test_eight_devices_give_the_tokens_of_one(params, expected, mode, mesh_shape):
    """Of prompts that one device would hold: some devices have none, and one prompt has more
    samples than the rows of its device.
    """
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    drawing = Drawing(CFG, SETTINGS, mode, mesh, chunk=5)
    assert_same(drawn(drawing, placed, asked(FRONT), rows=16), expected)


def finished(engine, requests):
    """What is drawn, and the shapes that the engine went through: groups, fold, slots."""
    for request in requests:
        engine.submit(request)
    found, seen, dispatch = {}, set(), engine._dispatch

    def watched():
        dispatch()
        seen.add((engine.groups, engine.fold, engine.slots))

    engine._dispatch = watched
    while engine.pending:
        for _, completions in engine.collect():
            found |= {(c.item_id, c.sample): c for c in completions}
    return found, seen


@pytest.mark.parametrize(
    "mode, mesh_shape, scan_layers, shared",
    [
        ("jit", None, False, 4),
        ("jit", None, True, 3),
        ("pmap", None, False, 3),
        ("shard_map", (1, 4, 2), False, 3),
        ("jit", (2, 2, 2), False, 4),
    ],
)
def test_rows_that_read_a_prompt_in_any_order(
    params, expected, mode, mesh_shape, scan_layers, shared
):
    """Beside rows of other prompts; one that finds no place there waits."""
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
    front = asked()[0].prompt_ids[:FRONT]
    drawing = Drawing(cfg, SETTINGS, mode, mesh, chunk=2)
    engine = Engine(drawing, placed, 0, (24,), 6, 1, 6, front, shared=shared)
    assert engine._shares() and places(6, shared) < 6
    assert_same(finished(engine, asked(FRONT))[0], expected)


def test_rows_that_move_compile_nothing_new(params, monkeypatch):
    """Other lengths, in another order, once a queue has gone through all shapes."""
    monkeypatch.setattr(shapes, "FEWEST", 4)
    settings = dataclasses.replace(SETTINGS, stop_ids=())
    rng, compiled = np.random.default_rng(3), []
    prompts = rng.integers(8, 62, (5, 7)).tolist()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    for queue in range(2):
        requests = [
            Request(ids, f"{i}", (0, 1, 2, 3, 4), tuple(rng.integers(1, 14, 5).tolist()))
            for i, ids in enumerate(rng.permutation(prompts).tolist())
        ]
        compiled.clear()
        engine = batch_engine(Drawing(CFG, settings, chunk=1), params, requests, 0, BUCKETS, 16)
        found, seen = finished(engine, requests)
        assert [len(found[r.item_id, j].token_ids) for r in requests for j in r.samples] == [
            limit for r in requests for limit in r.limits
        ]
        assert engine.shared == 4 and seen == {(16, 1, 13), (8, 1, 13), (4, 1, 13)}
        assert any("backend_compile" in name for name in compiled) == (queue == 0), compiled


INT8 = dataclasses.replace(SETTINGS, kv_cache_dtype="int8")


@pytest.fixture(scope="module")
def expected_int8(params, expected):
    """Of the batch sampler; close to that in float32, and not the same."""
    found = drawn(make_sampler(CFG, INT8), params, asked())
    first = {name: (c.logp[0], expected[name].logp[0]) for name, c in found.items()}
    assert {a == b for a, b in first.values()} == {True}  # chosen behind the prompt, as prefilled
    both = [(c.logp, expected[name].logp) for name, c in found.items()]
    off = [abs(a[1] - b[1]) for a, b in both if min(len(a), len(b)) > 1]
    assert 1e-4 < np.median(off) < 0.05
    return found


@pytest.mark.parametrize(
    "rows, chunk, front, scan_layers, mode, mesh_shape",
    [
        (5, 3, FRONT, False, "jit", None),
        (32, 1, FRONT, True, "jit", None),
        (16, 5, FRONT, False, "shard_map", (1, 4, 2)),
        (16, 5, FRONT, False, "pmap", None),
    ],
)
def test_a_cache_in_int8_draws_what_the_batch_sampler_draws_with_it(
    params, expected_int8, rows, chunk, front, scan_layers, mode, mesh_shape
):
    """A number between two steps may round to the other one, which log-probabilities show."""
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    placed = params if mesh is None else jax.device_put(params, param_shardings(mesh, params))
    cfg = dataclasses.replace(CFG, scan_layers=scan_layers)
    found = drawn(Drawing(cfg, INT8, mode, mesh, chunk), placed, asked(front), rows)
    assert_same(found, expected_int8, atol=1e-2)


def test_memory_of_a_cache_in_int8():
    """Of a prompt in the pool and of a row: 1 byte a number and 4 a head and position; positions
    and the state behind the prompt stay.
    """
    S, heads = 24, 2 * CFG.n_layers * CFG.n_kv_heads
    local = CFG.n_layers // 2 * 2 * CFG.n_kv_heads
    numbers = S * (heads - local) + CFG.sliding_window * local  # heads of positions
    for dtype, size in (("auto", 4 * CFG.head_dim), ("int8", CFG.head_dim + 4)):
        settings = dataclasses.replace(SETTINGS, kv_cache_dtype=dtype)
        rest = 4 * CFG.d_model + 4 * (S + CFG.sliding_window)
        assert entry_bytes(CFG, S, dtype) == rest + size * numbers
        engine = Engine(Drawing(CFG, settings), init_params(CFG, jax.random.key(1)), 0, (S,), 3)
        assert sum(x.nbytes for x in jax.tree.leaves(engine.pool)) == 3 * (rest + size * numbers)
        kv = [
            x for i in (0, 1) for n, x in engine.state["suffix"][f"layer_{i}"].items() if n != "pos"
        ]
        slots = SETTINGS.max_new_tokens
        numbers_of_row = slots * (heads - local) + CFG.sliding_window * local
        assert sum(x.nbytes for x in kv) == 3 * size * numbers_of_row


def test_requests_that_arrive_while_it_runs_and_a_cancelled_one(params, expected):
    requests = asked(FRONT)
    drawing = Drawing(CFG, SETTINGS, chunk=2)
    engine = batch_engine(drawing, params, requests, 0, BUCKETS, 6, requests[0].prompt_ids[:FRONT])
    tickets = {engine.submit(request): request for request in requests[:3]}
    found, waiting, cancelled = {}, requests[3:], None
    while engine.pending:
        for ticket, completions in engine.collect():
            assert [c.item_id for c in completions] == [tickets[ticket].item_id] * 3
            found |= {(c.item_id, c.sample): c for c in completions}
        if waiting:
            request = waiting.pop(0)
            tickets[engine.submit(request)] = request
            if len(waiting) == 3:
                cancelled = max(tickets)
                engine.cancel(cancelled)
    gone = tickets[cancelled].item_id
    assert_same(found, {name: c for name, c in expected.items() if name[0] != gone})
    assert engine.collect() == []


def test_a_prompt_is_computed_once_and_again_once_it_was_evicted(params, expected):
    """Counted in tokens, with and without a front; the pool holds two prompts."""
    requests = asked()
    front = tuple(requests[0].prompt_ids[:FRONT])
    different = {tuple(request.prompt_ids) for request in requests}
    whole, rest = (sum(len(ids) - n for ids in different) for n in (0, FRONT))
    for begin, needed in (((), whole), (front, FRONT + rest)):
        engine = Engine(Drawing(CFG, SETTINGS), params, 0, BUCKETS, 2, 2, 2, begin)
        found, _ = finished(engine, requests)
        assert_same(found, expected)
        assert engine.counts.needed_prefill == needed < engine.counts.prefilled
        assert engine.counts.needed_decode == sum(len(c.token_ids) for c in found.values())
        assert engine.counts.needed_decode <= engine.counts.decoded
        engine.submit(requests[0])  # evicted by now
        engine.submit(requests[5])
        while engine.pending:
            engine.collect()
        again = sum(len(requests[i].prompt_ids) - len(begin) for i in (0, 5))
        assert needed < engine.counts.needed_prefill <= needed + again


@pytest.mark.parametrize(
    "prompts, samples, sizes",
    [
        (20, 1, {(16, 1, 64), (8, 1, 256), (4, 1, 256)}),
        (3, 7, {(2, 8, 64), (2, 4, 256), (2, 2, 256)}),
    ],
)
def test_long_completions_and_the_tail_in_fewer_rows(params, monkeypatch, prompts, samples, sizes):
    """A cache that grows from a quarter, and ever fewer rows for the last that are alive: of each
    prompt, or of fewer prompts.
    """
    monkeypatch.setattr(shapes, "FEWEST", 4)
    settings = SamplingConfig(max_new_tokens=256, temperature=0.8)
    rng = np.random.default_rng(1)
    limits = iter([*rng.integers(1, 60, 18), 256, 200, 33])
    requests = [
        Request(
            rng.integers(8, 62, 7).tolist(),
            f"{i}",
            tuple(range(samples)),
            tuple(int(next(limits)) for _ in range(samples)),
        )
        for i in range(prompts)
    ]
    slow = drawn(make_sampler(CFG, settings), params, requests, rows=20)
    groups, fold, _ = max(sizes, key=lambda size: size[0] * size[1])
    engine = Engine(Drawing(CFG, settings), params, 0, (10,), groups, fold)
    found, seen = finished(engine, requests)
    assert_same(found, slow)
    assert seen >= sizes


@pytest.mark.parametrize("mesh_shape", [None, (2, 4, 1)])
def test_equal_drawings_share_their_compiled_programs(params, mesh_shape):
    """A second queue compiles nothing, however many chunks it takes; nor does another device's
    parameter lead to other programs behind the first chunk.
    """
    mesh = make_mesh(*mesh_shape) if mesh_shape else None
    where = make_mesh(1, 1, 1, jax.devices()[:1]) if mesh is None else mesh
    placed = jax.device_put(params, param_shardings(where, params))
    mode = "jit" if mesh is None else "shard_map"
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    for limits, new in ((1, True), (9, False)):
        compiled.clear()
        drawing = Drawing(dataclasses.replace(CFG), SETTINGS, mode, mesh, chunk=2)
        requests = [Request([9, 8, 7 + i], f"{i}", (0, 1), (limits, limits)) for i in range(8)]
        assert len(list(generate(drawing, placed, requests, 0, BUCKETS, 16))) >= 1
        assert any("backend_compile" in name for name in compiled) == new, compiled


def test_requests_that_do_not_fit_are_named(params):
    engine = Engine(Drawing(CFG, SETTINGS), params, 0, (10, 16), 2, front=[9] * FRONT)
    for ids, limits, said in (
        ([9] * 25, None, "item a: prompt of 25 tokens; expected 1 to 24"),
        ([9] * 8, None, "does not begin with the front of 8 tokens"),
        ([8] * 12, None, "does not begin with the front of 8 tokens"),
        ([9] * 12, (0,), "positive number of tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            engine.submit(Request(ids, "a", (0,), limits))
    for limits in (None, ()):
        with pytest.raises(ValueError, match="item a: asks for 0 samples; expected 1 or more"):
            engine.submit(Request([9] * 12, "a", (), limits))
    assert not engine.pending
    with pytest.raises(ValueError, match="sampler mode is 'all'"):
        Engine(Drawing(CFG, SETTINGS, "all"), params, 0, (10,), 1)


def test_rows_of_a_group(params):
    assert [fold_of(k, 64, "cpu") for k in (1, 2, 4, 6.5, 32)] == [
        *((1, 1), (1, 1), (1, 4), (1, 4), (1, 8))
    ]
    assert [fold_of(k, 64, "tpu") for k in (1, 4, 6.5, 32)] == [(1, 1), (4, 1), (4, 1), (8, 1)]
    assert fold_of(32, 3, "tpu") == (2, 1) and fold_of(6, 64, "cpu", even=2) == (2, 1)

    def rows_of(samples, rows):
        requests = [Request([9, 8, 7 + i], f"{i}", tuple(range(k))) for i, k in enumerate(samples)]
        engine = batch_engine(Drawing(CFG, SETTINGS), params, requests, 0, BUCKETS, rows)
        return engine.groups, engine.fold, engine.shared

    # nothing waits: all samples of a prompt together, and no group has a row without a sample
    assert [rows_of(k, 16) for k in ([16], [4] * 4, [6, 6], [7, 8])] == [
        *((1, 16, 1), (4, 4, 1), (8, 2, 1), (16, 1, 4))
    ]
    assert rows_of([4] * 5, 16) == (16, 1, 4)
    assert shapes_of(4, 8) == [(4, 8), (4, 4), (4, 2)]
    assert shapes_of(12, 2) == [(12, 2), (12, 1)]
    assert shapes_of(16, 8, "tpu") == [(16, 8), (16, 2)]
    assert shapes_of(32, 1, "tpu") == [(32, 1), (8, 1)] and shapes_of(16, 1, "tpu") == [(16, 1)]
    assert shapes_of(4, 1) == [(4, 1)]


def test_requests_with_temperatures_and_seeds_of_their_own(params):
    """As in a server, where `step` gives the host a turn between any two chunks; a request that is
    watched is seen to grow, and what was cancelled leaves nothing behind.
    """
    # of seed 5 one draw falls on the border of two tokens, where the last bits decide
    settings = [(0.0, 0), (0.8, 4), (0.8, 6), (1.7, 0)]
    plain = [dataclasses.replace(request, limits=None) for request in asked()]
    own = [
        dataclasses.replace(request, temperature=temperature, seed=seed)
        for request, (temperature, seed) in zip(plain, settings * 3)
    ]
    expected = {}
    for request, alone in zip(own, plain):
        scfg = dataclasses.replace(SETTINGS, temperature=request.temperature)
        twin = generate(make_sampler(CFG, scfg), params, [alone], request.seed, BUCKETS, 3)
        expected |= {(c.item_id, c.sample): c for _, drawn_ in twin for c in drawn_}
    drawing = Drawing(CFG, SETTINGS, chunk=2, temperatures=True)
    engine = batch_engine(drawing, params, own, 3, BUCKETS, 8)
    tickets = [engine.submit(request) for request in own]
    gone = engine.submit(Request([9] * 12, "gone", (0, 1), temperature=1.0))
    seen, found, steps = [], {}, 0
    engine.watch(tickets[1], lambda place, tokens: seen.append((place, tokens)))
    engine.cancel(gone)
    while engine.pending:
        complete, steps = engine.step(), steps + 1
        found |= {(c.item_id, c.sample): c for _, drawn_ in complete for c in drawn_}
    assert_same(found, expected)
    assert steps > 3 and len({len(tokens) for place, tokens in seen if place == 0}) > 1
    for place, tokens in seen:
        whole = found[own[1].item_id, place].token_ids
        np.testing.assert_array_equal(tokens, whole[: len(tokens)])
    assert (9,) * 12 not in engine.known and len(engine.known) <= engine.entries
