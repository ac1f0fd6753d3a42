"""Runs a decoder: one forward, as pure Flax modules, for trainer, sampler, reference and Meta RM.

What families of models do differently are switches of the config (`grm_jax.models.families`).

Keys carry their absolute position; a slot with position -1 is empty (padding, unused cache). Every
mask follows from positions alone: key s is visible to query t iff 0 <= pos_s <= pos_t, and
pos_t - pos_s < window in local layers. So training (one segment of keys), prefill and decode
(shared prefix + own suffix) are the same attention.

Parameters are stacked over blocks: every leaf has a leading axis of cfg.n_blocks, scanned or not.
Layers behind the last whole block are a shorter block of their own, "rest", with an axis of 1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from grm_jax.models.attention import LAID, Packed, attend, attend_after, quantize, softcap
from grm_jax.models.config import LOCAL, ModelConfig, RopeScaling
from grm_jax.models.linear import Weight, as_matrix, contract, matmul
from grm_jax.models.own_keys import attend_own_keys, prepare
from grm_jax.models.placement import split_rows


def rope_frequencies(half: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Returns the radians per position of the `half` pairs, slowed down as `scaling` says.

    On the host: exact on every accelerator.
    """
    frequency = theta ** (-np.arange(half) / half)
    if scaling is None:
        return frequency.astype(np.float32)
    share = np.zeros(half)  # of the frequency that stays
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        turns = scaling.original_max_positions * frequency / (2 * np.pi)
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - share) * frequency / scaling.factor + share * frequency).astype(np.float32)


def rope(
    x_BTNH: jax.Array,
    pos_BT: jax.Array,
    theta: float,
    scale: float = 1.0,
    scaling: RopeScaling | None = None,
) -> jax.Array:
    """Applies the rotary position embedding, times `scale`, in float32, rounded to x's dtype once.

    Half-split pairing: (x_i, x_{i + H/2}).
    """
    inverse_frequency = rope_frequencies(x_BTNH.shape[-1] // 2, theta, scaling)
    angle_BT1h = (pos_BT.astype(jnp.float32)[..., None] * inverse_frequency)[:, :, None, :]
    sin, cos = scale * jnp.sin(angle_BT1h), scale * jnp.cos(angle_BT1h)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x_BTNH.dtype
    )


class RMSNorm(nn.Module):
    """Computes x / rms(x) * (1 + w), statistics and product in float32, result in x's dtype.

    Without unit_offset x / rms(x) * w.
    """

    eps: float
    unit_offset: bool = True

    @nn.compact
    def __call__(self, x):
        initial = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        w_D = self.param("scale", initial, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        scale_D = w_D.astype(jnp.float32)
        return (x32 * (1.0 + scale_D if self.unit_offset else scale_D)).astype(x.dtype)


def _norm(cfg: ModelConfig, name: str) -> RMSNorm:
    return RMSNorm(cfg.norm_eps, cfg.family.unit_offset, name=name)


def _linear(module: nn.Module, name: str, shape: tuple[int, ...], inputs: int, dtype) -> Weight:
    """The weight [in..., out...] of a linear map as a matrix; it has `inputs` input axes."""
    initial = nn.initializers.normal(math.prod(shape[:inputs]) ** -0.5)
    return as_matrix(module.param(name, initial, shape, jnp.float32), inputs, dtype)


class Attention(nn.Module):
    """Computes grouped-query attention of one layer; `Decoder.__call__` explains the arguments."""

    cfg: ModelConfig
    layer_type: str

    @nn.compact
    def __call__(self, x_BTD, pos_BT, prefix, suffix, block, slot_B, own_rows=None):
        cfg, dtype = self.cfg, x_BTD.dtype
        D, N, K, H = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        local = self.layer_type == LOCAL

        def heads(name, n):
            x_BTF = matmul(x_BTD, _linear(self, name, (D, n, H), 1, dtype))
            if cfg.family.qkv_bias:
                bias_F = self.param(f"{name}_bias", nn.initializers.zeros, (n * H,), jnp.float32)
                x_BTF += bias_F.astype(dtype)
            return x_BTF.reshape(*x_BTD.shape[:2], n, H)

        q_BTNH, k_BTKH, v_BTKH = heads("q", N), heads("k", K), heads("v", K)
        if cfg.family.qk_norm:
            q_BTNH, k_BTKH = _norm(cfg, "q_norm")(q_BTNH), _norm(cfg, "k_norm")(k_BTKH)
        theta, scaling = cfg.rope_theta, cfg.rope_scaling
        if local and cfg.local_rope_theta is not None:
            theta, scaling = cfg.local_rope_theta, None
        q_BTNH = rope(q_BTNH, pos_BT, theta, cfg.query_scale, scaling)
        own = {"k": rope(k_BTKH, pos_BT, theta, 1.0, scaling), "v": v_BTKH, "pos": pos_BT}
        # decode: write this step into its (ring) slot, then read the slots of this block
        if suffix is not None:
            rows = jnp.arange(x_BTD.shape[0])
            slot = slot_B % suffix["pos"].shape[-1]
            at = (rows, slot) if block is None else (block, rows, slot)
            new = quantize(own) if suffix.keys() & {"k_scale", "keys_scale"} else own
            # behind `lay` positions are last of keys and of scales, last but one of values
            laid = {"keys": (rows, ..., slot), "values": (rows, slice(None), slot)}
            laid |= {"keys_scale": laid["keys"], "values_scale": laid["keys"]}
            plain = {of_laid: of_plain for of_plain, (of_laid, *_) in LAID.items()}
            suffix = {
                key: cache.at[laid.get(key, at)].set(new[plain[key] if key in plain else key][:, 0])
                for key, cache in suffix.items()
            }
            read = {
                name: cache if block is None else cache[block] for name, cache in suffix.items()
            }
            segments = [read]
        else:
            segments = [own]
        window = cfg.sliding_window if local else None
        if own_rows is not None:
            out_BTNH = attend_own_keys(
                cfg, self.layer_type, q_BTNH, own["k"], own["v"], pos_BT, own_rows
            )
        else:
            shared = [] if prefix is None else [prefix] if isinstance(prefix, dict) else [*prefix]
            if suffix is None and cfg.attention != "reference":
                out_BTNH = attend_after(q_BTNH, pos_BT, shared, own, window, cfg.attn_softcap)
            else:
                segments = shared + segments
                out_BTNH = attend(q_BTNH, pos_BT, segments, window, cfg.attn_softcap)
        o_FD = _linear(self, "o", (N, H, D), 2, dtype)
        out_BTD = matmul(out_BTNH.reshape(*x_BTD.shape[:2], N * H), o_FD)
        return out_BTD, own, suffix


_ACTIVATIONS = {
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class MLP(nn.Module):
    """Computes a gated MLP: GeGLU with tanh-approximate gelu, or SwiGLU."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        D, F, dtype = self.cfg.d_model, self.cfg.d_ff, x_BTD.dtype
        gate_BTF = matmul(x_BTD, _linear(self, "gate", (D, F), 1, dtype))
        up_BTF = matmul(x_BTD, _linear(self, "up", (D, F), 1, dtype))
        hidden_BTF = _ACTIVATIONS[self.cfg.family.activation](gate_BTF) * up_BTF
        return matmul(hidden_BTF, _linear(self, "down", (F, D), 1, dtype))


class Block(nn.Module):
    """Runs the repeating block of layers, or those behind the last one.

    Pre-norm (and post-norm, if the family has it) around attention and MLP, then the residual.

    layers: names of `cfg.stacks`.
    """

    cfg: ModelConfig
    keep_kv: bool
    layers: tuple[str, ...]

    @nn.compact
    def __call__(self, carry, inputs):
        x_BTD, pos_BT, slot_B, suffix, own_rows = carry
        block, prefix, own_suffix = inputs
        cfg, kept, written = self.cfg, {}, {}

        def behind(name, x_BTD):
            return _norm(cfg, name)(x_BTD) if cfg.family.post_norms else x_BTD

        layers = own_suffix if suffix is None else suffix
        for name in self.layers:
            layer_type, _ = cfg.stacks[name]
            attended, own, layer_suffix = Attention(cfg, layer_type, name=f"{name}_attn")(
                _norm(cfg, f"{name}_pre_attn")(x_BTD),
                pos_BT,
                None if prefix is None else prefix[name],
                None if layers is None else layers[name],
                block if own_suffix is None else None,
                slot_B,
                own_rows,
            )
            x_BTD = split_rows(x_BTD + behind(f"{name}_post_attn", attended))
            mlp_out = MLP(cfg, name=f"{name}_mlp")(_norm(cfg, f"{name}_pre_mlp")(x_BTD))
            x_BTD = split_rows(x_BTD + behind(f"{name}_post_mlp", mlp_out))
            if suffix is not None:
                suffix = suffix | {name: layer_suffix}
            elif own_suffix is not None:
                written[name] = layer_suffix
            if self.keep_kv:
                kept[name] = own
        return (x_BTD, pos_BT, slot_B, suffix, own_rows), (kept, written)


_REMAT = {"full": None, "dots": jax.checkpoint_policies.checkpoint_dots}


class Decoder(nn.Module):
    """Decodes: `Decoder(cfg).apply({"params": params}, tokens_BT, pos_BT)` gives hidden states."""

    cfg: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT,
        pos_BT,
        prefix=None,
        suffix=None,
        slot_B=None,
        keep_kv=False,
        packed: Packed | None = None,
    ):
        """Runs the decoder.

        Args:
          tokens_BT: int32 token ids; any id in padding.
          pos_BT: int32 absolute positions, -1 for padding (never seen as a key).
          prefix: read-only keys, {layer_i: Segment, or several, with a leading axis as long as
              cfg.stacks says}; may be shared by several rows.
          suffix: decode only (T = 1): cache that this step is written into, same layout with B
              rows; in int8 where it has scales (`attention.quantize`).
          slot_B: int32, the step number of each row; local layers use it modulo their ring size.
          keep_kv: also return this call's keys and values (prefill).
          packed: which tokens see each other, where a row holds several sequences; without prefix
              and suffix. Positions then count within a sequence.

        Returns:
          hidden_BTD after the final norm in cfg.dtype, and a dict with "kv" (keep_kv) and "suffix"
          (decode).
        """
        cfg = self.cfg
        own_rows = None
        if prefix is None and suffix is None:
            own_rows = prepare(cfg, pos_BT, packed)
        elif packed is not None:
            raise ValueError("packed: expected None beside a prefix or a suffix")
        dtype = jnp.dtype(cfg.dtype)
        embedding_VD = self.param(
            "embedding",
            nn.initializers.normal(cfg.d_model**-0.5),
            (cfg.vocab_size, cfg.d_model),
            jnp.float32,
        )
        x_BTD = split_rows(embedding_VD.astype(dtype)[tokens_BT])
        if cfg.family.scaled_embedding:
            x_BTD *= jnp.asarray(cfg.d_model**0.5, dtype)  # scale rounded to dtype

        def run(name, layers, x_BTD, length, scanned):
            """Run `length` blocks of these layers; returns x, keys and values, and the suffix."""
            block_cls = (
                Block
                if cfg.remat == "none"
                else nn.remat(Block, policy=_REMAT[cfg.remat], prevent_cse=not scanned)
            )
            stack = nn.scan(
                block_cls,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=length,
                unroll=1 if scanned else length,
            )
            before, own = (
                None if cache is None else {layer: cache[layer] for layer in layers}
                for cache in (prefix, suffix)
            )
            # a loop over blocks carries the suffix and writes into it; unrolled ones have their own
            carried, by_block = (own, None) if scanned else (None, own)
            carry = (x_BTD, pos_BT, slot_B, carried, own_rows)
            (x_BTD, _, _, carried, _), (kv, by_block) = stack(cfg, keep_kv, layers, name=name)(
                carry, (jnp.arange(length), before, by_block)
            )
            return x_BTD, kv, (carried if scanned else by_block) or {}

        names = tuple(cfg.stacks)
        layers, rest = names[: len(cfg.block)], names[len(cfg.block) :]
        x_BTD, kv, written = run("blocks", layers, x_BTD, cfg.n_blocks, cfg.scan_layers)
        if rest:
            x_BTD, kv_rest, written_rest = run("rest", rest, x_BTD, 1, False)
            kv, written = kv | kv_rest, written | written_rest
        hidden_BTD = split_rows(_norm(cfg, "final_norm")(x_BTD))
        return hidden_BTD, {"kv": kv, "suffix": written}


def cast_weights(params: dict, cfg: ModelConfig) -> dict:
    """Casts parameters as a forward pass does: to cfg.dtype, but for the scales of norms.

    Every use casts them so. Done once before a loop, the loop reads nothing wider; the results are
    the same. Done twice, it is the identity.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else x.astype(cfg.dtype), params
    )


def head_of(params: dict) -> jax.Array:
    """Returns the head_VD of parameters: their own, or the embedding where that is both."""
    return params.get("lm_head", params["embedding"])


def without_head(params: dict) -> dict:
    """Returns parameters without a head of their own: the backbone of a scalar model."""
    return {name: x for name, x in params.items() if name != "lm_head"}


@jax.named_scope("vocabulary")
def lm_logits(params: dict, cfg: ModelConfig, hidden_BTD: jax.Array) -> jax.Array:
    """Returns logits_BTV of the head in float32, with the final softcap.

    Training and sampling must both include the softcap.
    """
    head_VD = head_of(params).astype(hidden_BTD.dtype)
    return softcap(contract(hidden_BTD, head_VD, 1, jnp.float32), cfg.final_softcap)


def init_params(cfg: ModelConfig, key: jax.Array) -> dict:
    """Draws float32 parameters: normal with std fan_in**-0.5, norms that scale by 1, no biases."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(Decoder(cfg).init)(key, tokens, tokens)["params"]
    if cfg.tied_head:
        return params
    shape = (cfg.vocab_size, cfg.d_model)
    head_VD = cfg.d_model**-0.5 * jax.random.normal(jax.random.fold_in(key, 1), shape)
    return params | {"lm_head": head_VD}
