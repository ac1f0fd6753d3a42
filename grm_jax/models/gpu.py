"""Attends with tokamax's kernels for GPUs (Pallas: Mosaic or Triton), which skip masked blocks.

There is no array of logits of all pairs. The slow twin is `grm_jax.models.attention.attend`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from grm_jax.models.attention import Packed, stretches
from grm_jax.models.placement import map_rows_and_heads

KERNELS = ("mosaic_gpu", "triton", "xla_chunked")  # the first that takes device and arguments


class SeenKeys(NamedTuple):
    """Says which keys the queries of each row see: made once for all layers of a kind.

    visible_BTS: where packing decides it, a byte a pair; else None.
    start_BT: the first key that a query sees. The kernels leave out the blocks before it.
    """

    visible_BTS: jax.Array | None
    start_BT: jax.Array


def seen_keys(pos_BT: jax.Array, packed: Packed | None, window: int | None) -> SeenKeys:
    """Finds what queries see, from the layout of the rows (`stretches` says which it may be)."""
    start_BT, end_BT, own_BT = stretches(pos_BT, packed, window)
    if packed is None:
        return SeenKeys(None, own_BT)
    index_T = jnp.arange(pos_BT.shape[1])
    start_BT1, end_BT1, own_BT1 = (x[..., None] for x in (start_BT, end_BT, own_BT))
    trunk_BTS = (start_BT1 <= index_T) & (index_T < end_BT1)
    visible_BTS = trunk_BTS | ((own_BT1 <= index_T) & (index_T <= index_T[:, None]))
    return SeenKeys(visible_BTS, jnp.where(start_BT < end_BT, start_BT, own_BT))


@jax.named_scope("attention")
def tokamax_attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, seen: SeenKeys, cap: float | None
) -> jax.Array:
    """Attends from every row to its own keys, forward and backward by kernels; BTNH in q's dtype.

    Queries are scaled already. Logits, softcap and softmax are float32. In padding the result is
    finite, and another one than that of `attend`. On a mesh each device has its own rows and heads:
    `map_rows_and_heads`. On a platform without kernels tokamax's plain JAX in chunks takes their
    place.

    Masks with a first key are not in tokamax's public function, hence the private names, of the
    one version that the extra `gpu` installs.
    """
    from absl import flags
    from tokamax._src.ops.attention import api, base  # pyright: ignore[reportMissingImports]

    if not flags.FLAGS.is_parsed():  # tokamax would parse the command line, and refuse our flags
        flags.FLAGS.mark_as_parsed()

    def one_device(q, k, v, seen):
        visible = None if seen.visible_BTS is None else seen.visible_BTS[:, None]
        mask = base.Mask(visible, k_start=seen.start_BT[:, None], is_causal=True)
        refused = []
        for name in KERNELS:
            kernel = api.IMPLEMENTATIONS.get(name)
            if kernel is None:
                continue
            try:
                return kernel(q, k, v, mask=mask, logits_scale=1.0, logits_soft_cap=cap)
            except NotImplementedError as error:
                refused.append(f"{name}: {error}")
        raise NotImplementedError("no kernel of tokamax takes this call: " + "; ".join(refused))

    return map_rows_and_heads(one_device, q_BTNH, k_BTKH, v_BTKH, seen)
