"""Prefills, decodes one step, and loops over steps: pure functions of (parameters, arrays).

The k samples of a prompt share its prefix keys and values, computed and stored once; each has its
own suffix cache. Local layers keep the last `sliding_window` prompt positions of each row and a
ring of at most that many new ones. Randomness is a function of (seed, item id, sample index, step)
alone: see `sample_key` and `choose_tokens`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.models.attention import lay, lift, quantize
from grm_jax.models.config import LOCAL, ModelConfig
from grm_jax.models.decoder import Decoder, cast_weights, lm_logits
from grm_jax.sampling.logits import choose_tokens
from grm_jax.sampling.settings import DRAWING_RULES
from grm_jax.settings import NOT_NEGATIVE, POSITIVE, check


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Says how completions are drawn.

    temperature 0 is greedy; top_k 0 and top_p 1.0 are off; any id of stop_ids ends a row.
    kv_cache_dtype: see `settings.Sampling`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    kv_cache_dtype: str = "auto"
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0

    def __post_init__(self):
        rules = {"max_new_tokens": POSITIVE, "temperature": NOT_NEGATIVE}
        check(self, DRAWING_RULES | rules)


def sample_key(seed: int, item_id: str, sample: int) -> np.ndarray:
    """Returns the uint32[2] threefry key of one sample, from a stable hash.

    No device call; the same on every Python version.
    """
    digest = hashlib.blake2b(f"{seed}\0{item_id}\0{sample}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)


@jax.named_scope("prefill")
def prefill(
    params: dict, cfg: ModelConfig, prompts_PT: jax.Array, lengths_P: jax.Array
) -> tuple[dict, jax.Array]:
    """Runs right-padded prompts once.

    Returns their key/value prefix, laid out for decoding (`attention.lay`), and the float32
    logits_PV after the last token. Global layers keep all T positions, local layers the last
    min(T, window) of each row. A prompt of length 0 is a dummy row: its logits are meaningless.
    """
    T = prompts_PT.shape[1]
    pos_PT = jnp.where(jnp.arange(T) < lengths_P[:, None], jnp.arange(T), -1)
    hidden_PTD, cache = Decoder(cfg).apply({"params": params}, prompts_PT, pos_PT, keep_kv=True)
    # leaves of cache["kv"] have the blocks in front: k, v are LPTKH, pos is LPT
    W = min(T, cfg.sliding_window or T)
    index_PW = lengths_P[:, None] - W + jnp.arange(W)
    last_PW = jnp.maximum(index_PW, 0)

    def keep_window(segment):
        pos_LPW = jnp.take_along_axis(segment["pos"], last_PW[None], axis=2)
        return {
            "pos": jnp.where(index_PW >= 0, pos_LPW, -1),
            **{
                name: jnp.take_along_axis(segment[name], last_PW[None, :, :, None, None], axis=2)
                for name in ("k", "v")
            },
        }

    prefix = dict(cache["kv"])
    for name, (layer_type, _) in cfg.stacks.items():
        if layer_type == LOCAL and W < T:
            prefix[name] = keep_window(prefix[name])
    last_P1D = jnp.take_along_axis(hidden_PTD, jnp.maximum(lengths_P - 1, 0)[:, None, None], axis=1)
    laid = {name: lay(segment) for name, segment in prefix.items()}
    return laid, lm_logits(params, cfg, last_P1D[:, 0])


def cache_sizes(steps: int) -> list[int]:
    """Returns the slots of the suffix cache while `steps` tokens are drawn.

    One loop for each, and each is compiled: a quarter of long ones, so that early steps read
    little, and all.
    """
    return [-(-steps // 4), steps] if steps >= 256 else [steps]


def room(cfg: ModelConfig, layer: str, positions: int) -> int:
    """Counts the slots that `positions` need in a layer, named as in `cfg.stacks`."""
    local = cfg.stacks[layer][0] == LOCAL
    return min(positions, cfg.sliding_window or positions) if local else positions


def grow_suffix(cfg: ModelConfig, suffix: dict, steps: int) -> dict:
    """Makes room for `steps` new tokens of each row: local layers have min(steps, window) slots.

    Those are rings, and none has wrapped before it is full, so slots keep their index; new ones are
    empty (position -1).
    """

    def pad(x, slots, value):
        return jnp.pad(
            x,
            [(0, 0), (0, 0), (0, slots - x.shape[2])] + [(0, 0)] * (x.ndim - 3),
            constant_values=value,
        )

    grown = {}
    for layer, segment in suffix.items():
        slots = room(cfg, layer, steps)
        grown[layer] = {
            name: pad(x, slots, -1 if name == "pos" else 0) for name, x in segment.items()
        }
    return grown


def stored(cache: dict, kv_cache_dtype: str) -> dict:
    """Stores the segments {layer_i: Segment} of a cache as `settings.Sampling` says."""
    if kv_cache_dtype == "auto":
        return cache
    return {name: quantize(segment) for name, segment in cache.items()}


def empty_suffix(cfg: ModelConfig, rows: int, kv_cache_dtype: str = "auto") -> dict:
    """Makes a suffix cache without slots, for `grow_suffix`.

    Leaves k, v are [as cfg.stacks says, rows, slots, n_kv_heads, head_dim].
    """
    empty = {}
    for layer, (_, L) in cfg.stacks.items():
        kv = jnp.zeros((L, rows, 0, cfg.n_kv_heads, cfg.head_dim), jnp.dtype(cfg.dtype))
        empty[layer] = {"k": kv, "v": kv, "pos": jnp.zeros((L, rows, 0), jnp.int32)}
    return stored(empty, kv_cache_dtype)


def _record(scfg: SamplingConfig, state: dict, logits_BV: jax.Array) -> dict:
    """Choose token number state["step"] of every row that is not done, and write it down."""
    step, done_B = state["step"], state["done"]
    token_B, logp_B = choose_tokens(
        logits_BV, state["keys"], step, scfg.temperature, scfg.top_k, scfg.top_p
    )
    stop_B = jnp.isin(token_B, jnp.asarray(scfg.stop_ids, jnp.int32)) & ~done_B
    length_B = state["length"] + ~done_B
    return state | {
        "step": step + 1,
        "token": token_B,
        "tokens": state["tokens"].at[:, step].set(jnp.where(done_B, scfg.pad_id, token_B)),
        "logp": state["logp"].at[:, step].set(jnp.where(done_B, 0.0, logp_B)),
        "length": length_B,
        "finished": state["finished"] | stop_B,
        "done": done_B | stop_B | (length_B >= state["limit"]),
    }


def start(
    params: dict,
    cfg: ModelConfig,
    scfg: SamplingConfig,
    prompts_PT: jax.Array,
    lengths_P: jax.Array,
    keys_Pk2: jax.Array,
    limits_Pk: jax.Array | None = None,
) -> tuple[dict, dict[str, Any]]:
    """Prefills and chooses the first token of every row.

    Returns (prefix, state); row p * k + j is sample j of prompt p.
    """
    P, k = keys_Pk2.shape[:2]
    B, C = P * k, scfg.max_new_tokens
    limits_Pk = jnp.full((P, k), C, jnp.int32) if limits_Pk is None else limits_Pk
    prefix, logits_PV = prefill(params, cfg, prompts_PT, lengths_P)
    prompt_length_B = jnp.repeat(lengths_P, k, axis=0)
    state = {
        "step": jnp.int32(0),
        "prompt_length": prompt_length_B,
        "keys": keys_Pk2.reshape(B, 2),
        "limit": limits_Pk.reshape(B),
        "suffix": empty_suffix(cfg, B, scfg.kv_cache_dtype),
        "token": jnp.zeros(B, jnp.int32),
        "tokens": jnp.full((B, C), scfg.pad_id, jnp.int32),
        "logp": jnp.zeros((B, C), jnp.float32),
        "length": jnp.zeros(B, jnp.int32),
        "finished": jnp.zeros(B, bool),
        "done": prompt_length_B == 0,
    }
    prefix = stored(prefix, scfg.kv_cache_dtype)
    return prefix, _record(scfg, state, jnp.repeat(logits_PV, k, axis=0))


@jax.named_scope("decode")
def decode_step(
    params: dict, cfg: ModelConfig, scfg: SamplingConfig, prefix: dict, state: dict
) -> dict:
    """Feeds the token chosen last, and chooses the next one.

    Rows that are done run along and write padding.
    """
    slot_B = jnp.full_like(state["prompt_length"], state["step"] - 1)
    pos_B1 = (state["prompt_length"] + slot_B)[:, None]
    hidden_B1D, cache = Decoder(cfg).apply(
        {"params": params},
        state["token"][:, None],
        pos_B1,
        prefix=prefix,
        suffix=state["suffix"],
        slot_B=slot_B,
    )
    return _record(
        scfg, state | {"suffix": cache["suffix"]}, lm_logits(params, cfg, hidden_B1D[:, 0])
    )


def apart(stacked: Any, cfg: ModelConfig) -> Any:
    """Takes arrays that are stacked over blocks apart, where layers are unrolled.

    Layers behind the last whole block, of which there is one each, go with the first.
    """
    if cfg.scan_layers:
        return stacked
    length = {name: jax.tree.leaves(layer)[0].shape[0] for name, layer in stacked.items()}
    return [
        {
            name: jax.tree.map(lambda x, i=i: x[i], layer)
            for name, layer in stacked.items()
            if i < length[name]
        }
        for i in range(cfg.n_blocks)
    ]


def joined(blocks: Any, cfg: ModelConfig) -> Any:
    """Stacks up what `apart` took apart; the compiler folds slices of it away."""
    if cfg.scan_layers:
        return blocks
    return {
        name: jax.tree.map(
            lambda *x: jnp.stack(x), *(block[name] for block in blocks if name in block)
        )
        for name in blocks[0]
    }


def apart_laid(suffix: dict, cfg: ModelConfig) -> Any:
    """Takes a suffix apart for a loop of decode steps, each block laid out as `attend` reads it.

    Where layers are unrolled a step writes its keys in place either way, and the CPU reads them
    laid out three times as fast. A loop over blocks takes them out of the stack as they are.
    """
    if cfg.scan_layers:
        return suffix
    return apart({name: lay(segment) for name, segment in suffix.items()}, cfg)


def joined_lifted(blocks: Any, cfg: ModelConfig) -> dict:
    """Makes a suffix again of what `apart_laid` took apart."""
    if cfg.scan_layers:
        return blocks
    return {name: lift(segment) for name, segment in joined(blocks, cfg).items()}


def split_blocks(stacked: dict, cfg: ModelConfig) -> Callable[[], dict]:
    """Splits arrays that are stacked over blocks before a loop; the result stacks them up inside.

    An unrolled scan takes slices of the stack. XLA on the CPU does not hoist these out of the loop:
    every step would write a copy of every weight and of the prefix. Slices of a stack of what was
    split it folds away. The barrier keeps it from joining both first. A scan that is not unrolled
    needs the stack.
    """
    blocks = jax.lax.optimization_barrier(apart(stacked, cfg))
    return lambda: joined(blocks, cfg)


def _unfinished(state, axes):
    """Whether a row is not done, here or on any device along the axes."""
    here = jnp.any(~state["done"])
    return jax.lax.pmax(here.astype(jnp.int32), axes) > 0 if axes else here


def sample(
    params: dict,
    cfg: ModelConfig,
    scfg: SamplingConfig,
    prompts_PT: jax.Array,
    lengths_P: jax.Array,
    keys_Pk2: jax.Array,
    together: tuple[str, ...] = (),
    limits_Pk: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Draws k completions of each prompt.

    Args:
      params: parameters of `Decoder(cfg)`.
      prompts_PT: int32 token ids, right-padded.
      lengths_P: int32 prompt lengths; 0 marks a dummy row, which returns length 0.
      keys_Pk2: uint32, `sample_key` of every sample.
      together: axes of an enclosing `jax.shard_map` whose devices all decode until the last row of
        all of them is done.
      limits_Pk: int32, the most tokens of each sample, 1 to max_new_tokens; None: max_new_tokens.

    Returns:
      tokens: int32 [P, k, C] with C = max_new_tokens; the stop token is included, pad_id after it.
      logp: float32 [P, k, C], log-probability of each token (grm_jax.sampling.logits), 0 after the
        stop token.
      length: int32 [P, k], tokens written, stop token included.
      finished: bool [P, k], a stop token was seen (else the row was cut at its limit).
    """
    params = cast_weights(params, cfg)  # else every step would read them wide and write a copy
    prefix, state = start(params, cfg, scfg, prompts_PT, lengths_P, keys_Pk2, limits_Pk)
    weights, prefix_of = split_blocks(params["blocks"], cfg), split_blocks(prefix, cfg)

    def step(carry):
        state = carry[0] | {"suffix": joined(carry[0]["suffix"], cfg)}
        state = decode_step(params | {"blocks": weights()}, cfg, scfg, prefix_of(), state)
        return state | {"suffix": apart(state["suffix"], cfg)}, _unfinished(state, together)

    unfinished = _unfinished(state, together)
    for size in cache_sizes(scfg.max_new_tokens):
        state["suffix"] = apart_laid(grow_suffix(cfg, state["suffix"], size), cfg)
        state, unfinished = jax.lax.while_loop(
            lambda carry, size=size: (carry[0]["step"] < size) & carry[1], step, (state, unfinished)
        )
        state["suffix"] = joined_lifted(state["suffix"], cfg)
    P, k = keys_Pk2.shape[:2]
    return {
        name: state[name].reshape(P, k, *state[name].shape[1:])
        for name in ("tokens", "logp", "length", "finished")
    }
