"""Computes what the engine runs: prefill into a pool of prompts, and decode in chunks of steps.

Pure functions of arrays. Those of the state have the shares D of the devices in front: a share has
groups g of rows B, the rows of a group read one entry of the pool.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grm_jax.models.attention import lay
from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import Decoder, cast_weights, lm_logits
from grm_jax.models.placement import DATA_AXES
from grm_jax.parallel.mesh import make_mesh, place_batch, shares
from grm_jax.sampling.logits import choose_tokens
from grm_jax.sampling.sampler import (
    SamplingConfig,
    apart,
    apart_laid,
    joined,
    joined_lifted,
    room,
    split_blocks,
    stored,
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Says what draws: a model's configuration, how tokens are chosen, and on which devices.

    mode, mesh: see `make_programs`.
    chunk: decode steps between two looks at which rows are done.
    cache_bytes: of the prompts' keys and values, on each device; 0: as many prompts as rows need.
    temperatures: whether each row has the temperature of its request, as in a server; else all have
        that of `scfg`.
    """

    cfg: ModelConfig
    scfg: SamplingConfig
    mode: str = "jit"
    mesh: Mesh | None = None
    chunk: int = 32
    cache_bytes: int = 0
    temperatures: bool = False


def split_weights(params: dict, cfg: ModelConfig) -> dict:
    """Casts parameters to cfg.dtype, and splits them into blocks where layers are unrolled.

    Done once for all calls of the programs: see `sampler.split_blocks`.
    """
    params = cast_weights(params, cfg)
    return params | {"blocks": apart(params["blocks"], cfg)}


def _joined(weights: dict, cfg: ModelConfig) -> dict:
    return weights | {"blocks": joined(weights["blocks"], cfg)}


def _last(cfg: ModelConfig, kv: Mapping, lengths_P: jax.Array) -> dict:
    """Lays out what decoding reads of keys and values [L, P, T, ...]: all T positions in global
    layers, the last min(T, window) of each row in local ones.
    """
    kept = {}
    for layer in cfg.stacks:
        segment = dict(kv[layer])
        T = segment["pos"].shape[-1]
        W = room(cfg, layer, T)
        if W < T:
            index_PW = jnp.maximum(lengths_P - W, 0)[:, None] + jnp.arange(W)
            segment = {
                name: jnp.take_along_axis(
                    x, index_PW.reshape(1, *index_PW.shape, *[1] * (x.ndim - 3)), axis=2
                )
                for name, x in segment.items()
            }
        kept[layer] = lay(segment)
    return kept


@jax.named_scope("prefill")
def compute_front(weights: dict, cfg: ModelConfig, front_F: jax.Array) -> dict:
    """Computes keys and values of the tokens that all prompts begin with: [L, 1, ...]."""
    F = front_F.shape[0]
    _, cache = Decoder(cfg).apply(
        {"params": _joined(weights, cfg)}, front_F[None], jnp.arange(F)[None], keep_kv=True
    )
    return _last(cfg, cache["kv"], jnp.full(1, F))


def _positions(kind: str) -> int:
    """The axis of positions, from behind, in an array of a segment that is laid out (`lay`)."""
    return -2 if kind == "values" else -1


def empty_pool(cfg: ModelConfig, kv_cache_dtype: str, parts: int, entries: int, width: int) -> dict:
    """Makes room for `entries` prompts of `width` tokens in each of `parts` shares.

    {layer_i: {keys [D, E, L, K, H, S], values, pos [D, E, S]}}, and hidden [D, E, d_model], the
    state behind the last token.
    """
    K, H, dtype = cfg.n_kv_heads, cfg.head_dim, jnp.dtype(cfg.dtype)
    pool: dict[str, Any] = {"hidden": jnp.zeros((parts, entries, cfg.d_model), dtype)}
    for layer, (_, L) in cfg.stacks.items():
        S = room(cfg, layer, width)
        segment = {
            "keys": jnp.zeros((parts, entries, L, K, H, S), dtype),
            "values": jnp.zeros((parts, entries, L, K, S, H), dtype),
            "pos": jnp.full((parts, entries, S), -1, jnp.int32),
        }
        pool |= stored({layer: segment}, kv_cache_dtype)
    return pool


@jax.named_scope("prefill")
def prefill_into(
    weights: dict,
    cfg: ModelConfig,
    kv_cache_dtype: str,
    front_length: int,
    front: dict | None,
    pool: dict,
    prompts_DpT: jax.Array,
    lengths_Dp: jax.Array,
    entries_Dp: jax.Array,
) -> dict:
    """Runs what follows the front of right-padded prompts, and writes it into entries of the pool.

    An entry beyond the pool, and a length of 0, are a dummy row's: it is not written.
    """
    D, p, T = prompts_DpT.shape
    lengths_P = lengths_Dp.reshape(D * p)
    index_PT = jnp.broadcast_to(jnp.arange(T), (D * p, T))
    pos_PT = jnp.where(index_PT < lengths_P[:, None], front_length + index_PT, -1)
    hidden_PTD, cache = Decoder(cfg).apply(
        {"params": _joined(weights, cfg)},
        prompts_DpT.reshape(D * p, T),
        pos_PT,
        prefix=front,
        keep_kv=True,
    )
    last_P = jnp.maximum(lengths_P - 1, 0)
    new: dict[str, Any] = {"hidden": hidden_PTD[jnp.arange(D * p), last_P]}
    for name, segment in stored(_last(cfg, cache["kv"], lengths_P), kv_cache_dtype).items():
        more = pool[name]["pos"].shape[-1] - segment["pos"].shape[-1]
        new[name] = {kind: jnp.moveaxis(x, 0, 1) for kind, x in segment.items()} | {
            "pos": jnp.pad(segment["pos"][0], ((0, 0), (0, more)), constant_values=-1)
        }
    new = jax.tree.map(lambda x: x.reshape(D, p, *x.shape[1:]), new)

    def write(pool, new, entries_p):
        def put(path, old, fresh):
            part = [slice(None)] * (old.ndim - 1)
            if path[-1].key not in ("hidden", "pos"):
                axis = _positions(path[-1].key)
                part[axis] = slice(0, fresh.shape[axis])
            return old.at[(entries_p, *part)].set(fresh, mode="drop")

        return jax.tree_util.tree_map_with_path(put, pool, new)

    return _of_each(write, D)(pool, new, entries_Dp)


def _of_each(fn: Callable, parts: int) -> Callable:
    """Maps fn over the shares in front; the compiler sees a batch only where there are several."""
    if parts > 1:
        return jax.vmap(fn)
    return lambda *trees: jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], trees)))


def empty_rows(cfg: ModelConfig, scfg: SamplingConfig, parts: int, rows: int, slots: int) -> dict:
    """Makes the state of `rows` rows of each share, all done: none has a sample yet."""
    K, H, C = cfg.n_kv_heads, cfg.head_dim, scfg.max_new_tokens
    suffix = {}
    for layer, (_, L) in cfg.stacks.items():
        S = room(cfg, layer, slots)
        kv = jnp.zeros((parts, L, rows, S, K, H), jnp.dtype(cfg.dtype))
        pos = jnp.full((parts, L, rows, S), -1, jnp.int32)
        suffix |= stored({layer: {"k": kv, "v": kv, "pos": pos}}, scfg.kv_cache_dtype)
    return {
        "suffix": suffix,
        "token": jnp.zeros((parts, rows), jnp.int32),
        "tokens": jnp.zeros((parts, rows, C), jnp.int32),
        "logp": jnp.zeros((parts, rows, C), jnp.float32),
        "length": jnp.zeros((parts, rows), jnp.int32),
        "finished": jnp.zeros((parts, rows), bool),
        "done": jnp.ones((parts, rows), bool),
        "steps": jnp.zeros(parts, jnp.int32),
    }


def grow_rows(cfg: ModelConfig, slots: int, state: dict) -> dict:
    """Makes room for completions of `slots` tokens; no ring has wrapped before it is full."""

    def pad(path, x):
        more = room(cfg, path[0].key, slots) - x.shape[3]
        return jnp.pad(
            x,
            [(0, more if axis == 3 else 0) for axis in range(x.ndim)],
            constant_values=-1 if path[-1].key == "pos" else 0,
        )

    return state | {"suffix": jax.tree_util.tree_map_with_path(pad, state["suffix"])}


def take_rows(state: dict, index_DB: jax.Array) -> dict:
    """Keeps the rows of this index, in its order; at -1 there is a row without a sample."""
    D, rows = index_DB.shape[0], {name: x for name, x in state.items() if name != "steps"}

    def take(path, x):
        axis = 1 if path[0].key == "suffix" else 0
        return _of_each(lambda index, x: jnp.take(x, index, axis=axis, mode="clip"), D)(index_DB, x)

    taken = jax.tree_util.tree_map_with_path(take, rows)
    done_DB = taken["done"] | (index_DB < 0)
    return taken | {"done": done_DB, "steps": state["steps"]}


@jax.named_scope("decode")
def decode_chunk(
    weights: dict,
    cfg: ModelConfig,
    scfg: SamplingConfig,
    width: int,
    front: dict | None,
    pool: dict,
    state: dict,
    rows: dict,
    most_steps: int,
    together: tuple[str, ...] = (),
) -> dict:
    """Decodes up to `most_steps` tokens of every row that is not done.

    rows: what the host says of them. entry [D, g] of each group of rows; keys [D, B, 2],
        prompt_length, limit, begun (tokens of the completion that the prompt ends in), fresh
        (begins now) [D, B]; temperature [D, B], where each row has its own; waits bool [D, groups],
        whether more samples of a group's prompt wait; enough [D]: ends once so many rows that
        somebody waits for are free. row [D, g, f], place [D, B]: who reads which entry, in any
        order (`attend`); without them the rows of a group lie side by side.
    width: positions of the longest prompt that is read, behind the front.
    together: axes of an enclosing `jax.shard_map` whose devices all go on until the last is done.

    Returns the state; its "steps" are those that each share has taken.
    """
    D, g = rows["entry"].shape
    B, groups = rows["fresh"].shape[1], rows["waits"].shape[1]
    fold = B // groups

    def flat(x_DB):
        return x_DB.reshape(D * B, *x_DB.shape[2:])

    # what the groups read, copied once a chunk
    def gather(name, kind, block=None):
        def one(pool_E, entry_g):
            part = pool_E[entry_g] if block is None else pool_E[entry_g, block]
            return jax.lax.slice_in_dim(part, 0, S, axis=part.ndim + _positions(kind))

        S = room(cfg, name, width)
        got = _of_each(one, D)(pool[name][kind], rows["entry"])
        return got.reshape(D * g, *got.shape[2:])

    # the same with all blocks in front, an entry at a time: one gather of entries as large as these
    # XLA cuts into hundreds on a TPU, which compiles for minutes and takes more memory
    def of_entries(name, kind):
        def one(pool_E, entry_g):
            def put(i, out):
                entry = jax.lax.dynamic_index_in_dim(pool_E, entry_g[i], 0, keepdims=False)
                entry = jax.lax.slice_in_dim(entry, 0, S, axis=entry.ndim + _positions(kind))
                return jax.lax.dynamic_update_index_in_dim(out, entry, i, 1)

            L, *shape = pool_E.shape[1:]
            shape[_positions(kind)] = S
            return jax.lax.fori_loop(0, g, put, jnp.zeros((L, g, *shape), pool_E.dtype))

        S = room(cfg, name, width)
        got = jnp.moveaxis(_of_each(one, D)(pool[name][kind], rows["entry"]), 0, 1)
        return got.reshape(got.shape[0], D * g, *got.shape[3:])

    seating = {}
    if "row" in rows:
        share_D, f = jnp.arange(D), rows["row"].shape[2]
        row_Dgf = rows["row"] + share_D[:, None, None] * B
        place_DB = rows["place"] + share_D[:, None] * g * f
        seating = {"row": row_Dgf.reshape(D * g, f), "place": place_DB.reshape(D * B)}
    kinds = [kind for kind in pool["layer_0"] if kind != "pos"]
    pos = {name: gather(name, "pos") for name in cfg.stacks}
    if cfg.scan_layers:
        laid = {
            name: {kind: of_entries(name, kind) for kind in kinds}
            | {
                kind: jnp.broadcast_to(x, (L, *x.shape))
                for kind, x in ({"pos": pos[name]} | seating).items()
            }
            for name, (_, L) in cfg.stacks.items()
        }
        prefix_of = split_blocks(laid, cfg)
    else:
        blocks = jax.lax.optimization_barrier(
            [
                {
                    name: {kind: gather(name, kind, block) for kind in kinds}
                    | {"pos": pos[name]}
                    | seating
                    for name, (_, L) in cfg.stacks.items()
                    if block < L
                }
                for block in range(cfg.n_blocks)
            ]
        )

        def prefix_of():
            return joined(blocks, cfg)

    # what follows the front in prefill attends to it as computed, as to a prompt's own beginning
    front_of = None if front is None else split_blocks(stored(front, scfg.kv_cache_dtype), cfg)

    def prefix():
        own = prefix_of()
        if front_of is None:
            return own
        shared = front_of()
        return {name: (shared[name], own[name]) for name in cfg.stacks}

    prompt_hidden_BD = _of_each(lambda hidden, entry: hidden[entry], D)(
        pool["hidden"], rows["entry"]
    ).reshape(D * g, -1)
    if seating:
        prompt_hidden_BD = prompt_hidden_BD[seating["place"] // seating["row"].shape[1]]
    else:
        prompt_hidden_BD = jnp.repeat(prompt_hidden_BD, fold, axis=0)
    keys_B2, prompt_B, limit_B, begun_B = (
        flat(rows[name]) for name in ("keys", "prompt_length", "limit", "begun")
    )
    temperature = flat(rows["temperature"]) if "temperature" in rows else scfg.temperature
    fresh_B, free_DB = flat(rows["fresh"]), state["done"] & ~rows["fresh"]

    def reset(path, x):
        x = jnp.swapaxes(x, 0, 1)
        x = x.reshape(x.shape[0], D * B, *x.shape[3:])
        if path[-1].key == "pos":
            x = jnp.where(fresh_B[None, :, None], -1, x)
        return x

    suffix = jax.tree_util.tree_map_with_path(reset, state["suffix"])
    carry = {
        name: flat(state[name]) for name in ("token", "tokens", "logp", "length", "finished")
    } | {
        "suffix": apart_laid(suffix, cfg),
        "length": jnp.where(fresh_B, 0, flat(state["length"])),
        "finished": flat(state["finished"]) & ~fresh_B,
        "done": flat(state["done"]) & ~fresh_B,
        "step": jnp.int32(0),
        "steps": jnp.zeros(D, jnp.int32),
    }

    def goes_on(carry):
        done_DB = carry["done"].reshape(D, B)
        ended_Dgf = (done_DB & ~free_DB).reshape(D, groups, fold)
        whole_Dg = done_DB.reshape(D, groups, fold).all(-1) & ended_Dgf.any(-1)
        freed_D = jnp.where(rows["waits"], ended_Dgf.sum(-1), whole_Dg * fold).sum(-1)
        more = (~done_DB).any() & (freed_D < rows["enough"]).any()
        if together:
            more = jax.lax.pmax(more.astype(jnp.int32), together) > 0
        return more & (carry["step"] < most_steps)

    def step(carry):
        done_B, length_B = carry["done"], carry["length"]
        slot_B = jnp.maximum(length_B - 1, 0)
        # a row that begins has the state behind its prompt; it, and one that is done, writes a key
        # that nobody sees
        begins_B = length_B == 0
        pos_B = jnp.where(done_B | begins_B, -1, prompt_B + slot_B)
        params = _joined(weights, cfg)
        hidden_B1D, cache = Decoder(cfg).apply(
            {"params": params},
            carry["token"][:, None],
            pos_B[:, None],
            prefix=prefix(),
            suffix=joined(carry["suffix"], cfg),
            slot_B=slot_B,
        )
        hidden_BD = jnp.where(begins_B[:, None], prompt_hidden_BD, hidden_B1D[:, 0])
        token_B, logp_B = choose_tokens(
            lm_logits(params, cfg, hidden_BD),
            keys_B2,
            begun_B + length_B,
            temperature,
            scfg.top_k,
            scfg.top_p,
        )
        stop_B = jnp.isin(token_B, jnp.asarray(scfg.stop_ids, jnp.int32)) & ~done_B
        at = (jnp.arange(D * B), jnp.where(done_B, scfg.max_new_tokens, length_B))
        length_B = length_B + ~done_B
        return carry | {
            "suffix": apart(cache["suffix"], cfg),
            "token": jnp.where(done_B, carry["token"], token_B),
            "tokens": carry["tokens"].at[at].set(token_B, mode="drop"),
            "logp": carry["logp"].at[at].set(logp_B, mode="drop"),
            "length": length_B,
            "finished": carry["finished"] | stop_B,
            "done": done_B | stop_B | (length_B >= limit_B),
            "step": carry["step"] + 1,
            "steps": carry["steps"] + 1,
        }

    end = jax.lax.while_loop(goes_on, step, carry)

    def back(x):
        return jnp.swapaxes(x.reshape(x.shape[0], D, B, *x.shape[2:]), 0, 1)

    return {
        name: end[name].reshape(D, B, *end[name].shape[1:])
        for name in ("token", "tokens", "logp", "length", "finished", "done")
    } | {"suffix": jax.tree.map(back, joined_lifted(end["suffix"], cfg)), "steps": end["steps"]}


def weight_shardings(cfg: ModelConfig, mode: str, mesh: Mesh, params: dict) -> dict:
    """Says where `split_weights` of placed parameters lie on a mesh: see `Programs`."""
    kept = {"jit": mesh.axis_names, "shard_map": ("tensor",), "pmap": ()}[mode]

    def where(x):
        spec = getattr(getattr(x, "sharding", None), "spec", P())
        return NamedSharding(mesh, P(*(axis if axis in kept else None for axis in spec)))

    placed = jax.tree.map(where, params)
    if not cfg.scan_layers:
        block = jax.tree.map(lambda x: NamedSharding(mesh, P(*x.spec[1:])), placed["blocks"])
        placed = placed | {"blocks": [block] * cfg.n_blocks}
    return placed


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Says where pool and rows lie: shares over the data axes, heads over `tensor`."""

    def where(path, x):
        name = path[-1].key.removesuffix("_scale")
        heads = {"keys": 3, "values": 3, "k": 4, "v": 4}.get(name)
        spec = P(DATA_AXES)
        if heads and x.shape[heads] % mesh.shape["tensor"] == 0:
            spec = P(DATA_AXES, *[None] * (heads - 1), "tensor")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(where, tree)


class Programs:
    """Holds the compiled programs of one `Drawing`, and where their arrays lie.

    These are the modes:

    "jit": one device without a mesh. With one, shares lie over its (replica, fsdp) axes and
        parameters keep their sharding (GSPMD inserts the collectives).
    "pmap": a whole model on each local device.
    "shard_map": each (replica, fsdp) group runs its own loop, with parameters whole over these
        axes.

    See `sampling.mapped.make_sampler`, which maps the slow twin.
    """

    def __init__(self, drawing: Drawing):
        mode, mesh = drawing.mode, drawing.mesh
        if mode == "pmap":
            if mesh is not None:
                raise ValueError(
                    "mode 'pmap' takes no mesh: it runs one replica on each local device"
                )
            if jax.process_count() > 1:
                raise ValueError(
                    "mode 'pmap' runs on the devices of one process; with several take "
                    "'shard_map', which splits the prompts over all"
                )
            mesh = make_mesh(jax.local_device_count(), 1, 1, jax.local_devices())
        elif mode not in ("jit", "shard_map"):
            raise ValueError(f"sampler mode is {mode!r}; expected 'jit', 'pmap' or 'shard_map'")
        elif mode == "shard_map" and mesh is None:
            raise ValueError("mode 'shard_map' needs a mesh with the axes replica and fsdp")
        self.drawing, self.mode, self.mesh = drawing, mode, mesh
        self.cfg, self.scfg = drawing.cfg, drawing.scfg
        self.parts = 1 if mesh is None else shares(mesh)
        self.front = jax.jit(lambda weights, front_F: compute_front(weights, self.cfg, front_F))
        self._split = functools.cache(self._split_to)
        self.prefill = functools.cache(self._prefill)
        self.chunk = functools.cache(self._chunk)
        self.grow = functools.cache(
            lambda slots: jax.jit(lambda state: self._placed(grow_rows(self.cfg, slots, state)))
        )
        self.take = jax.jit(lambda state, index: self._placed(take_rows(state, index)))
        self.rows = functools.cache(
            lambda rows, slots: jax.jit(
                lambda: self._placed(empty_rows(self.cfg, self.scfg, self.parts, rows, slots))
            )
        )
        self.pool = functools.cache(
            lambda entries, width: jax.jit(
                lambda: self._placed(
                    empty_pool(self.cfg, self.scfg.kv_cache_dtype, self.parts, entries, width)
                )
            )
        )

    def weights(self, params: dict) -> dict:
        """Lays the parameters where and as the programs read them."""
        if self.mesh is None:
            # arrays of a mesh of one device leave it: the state has none, and its type would change
            # behind the first chunk
            def alone(x):
                devices = list(x.devices()) if isinstance(x, jax.Array) else []
                return jax.device_put(x, devices[0]) if len(devices) == 1 else x

            return self._split(None)(jax.tree.map(alone, params))
        if self.mode == "pmap":
            return jax.device_put(self._split(None)(params), NamedSharding(self.mesh, P()))
        leaves, treedef = jax.tree.flatten(weight_shardings(self.cfg, self.mode, self.mesh, params))
        return self._split((treedef, *leaves))(params)

    def _split_to(self, where: tuple | None) -> Callable:
        split = functools.partial(split_weights, cfg=self.cfg)
        if where is None:
            return jax.jit(split)
        return jax.jit(split, out_shardings=jax.tree.unflatten(where[0], where[1:]))

    def beside(self, weights: dict, tree: Any) -> Any:
        """Puts a new pool or state on the one device of the weights, where a first chunk leaves it.

        Else the second chunk would be compiled for another kind of argument.
        """
        if self.mesh is not None:
            return tree
        return jax.device_put(tree, *jax.tree.leaves(weights)[0].devices())

    def place(self, arrays: Any) -> Any:
        """Splits host arrays over the shares in front."""
        if self.mesh is None:
            return arrays
        leaves, treedef = jax.tree.flatten(arrays)
        placed = place_batch(self.mesh, {str(i): leaf for i, leaf in enumerate(leaves)})
        return jax.tree.unflatten(treedef, placed.values())

    def _placed(self, tree: Any) -> Any:
        """Pins arrays of the state: shares over the data axes, heads over `tensor`."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, state_shardings(self.mesh, tree))

    def _mapped(self, fn: Callable, whole: int) -> Callable:
        """Maps fn(*whole arguments, *split ones) over the shares, where each runs its own loop."""
        if self.mesh is None or self.mode == "jit":
            return fn

        def mapped(*args):
            specs = tuple(
                jax.tree.map(lambda _, i=i: P() if i < whole else P(DATA_AXES), arg)
                for i, arg in enumerate(args)
            )
            return jax.shard_map(
                fn,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=P(DATA_AXES),
                axis_names=set(DATA_AXES),
                check_vma=False,
            )(*args)

        return mapped

    def _prefill(self, front_length: int) -> Callable:
        dtype = self.scfg.kv_cache_dtype

        def run(weights, front, pool, prompts, lengths, entries):
            return prefill_into(
                weights, self.cfg, dtype, front_length, front, pool, prompts, lengths, entries
            )

        mapped = self._mapped(run, 2)

        def prefill(*args):
            return self._placed(mapped(*args))

        return jax.jit(prefill, donate_argnums=2)

    def _chunk(self, width: int) -> Callable:
        manual = self.mode != "jit" and self.mesh is not None
        together = DATA_AXES if manual and self.mesh.shape["tensor"] > 1 else ()

        def run(weights, front, pool, state, rows):
            return decode_chunk(
                weights,
                self.cfg,
                self.scfg,
                width,
                front,
                pool,
                state,
                rows,
                self.drawing.chunk,
                together,
            )

        mapped = self._mapped(run, 2)

        def decode(*args):
            return self._placed(mapped(*args))

        return jax.jit(decode, donate_argnums=3)


make_programs = functools.cache(Programs)  # equal drawings share what was compiled
