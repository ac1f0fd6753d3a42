"""Runs the sampler on one device, on replicas with `jax.pmap`, or over a mesh: same tokens.

Over a mesh with `jax.shard_map` or GSPMD. Prompts (with all their samples) are split over devices;
the number of prompts is padded to a multiple with dummy rows. Weights are cast to cfg.dtype before
they are gathered or copied to other devices. Where the mesh goes over several processes, all of
them make the same calls with the same prompts, and get all completions.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from grm_jax.models.config import ModelConfig
from grm_jax.models.decoder import cast_weights
from grm_jax.models.placement import DATA_AXES
from grm_jax.parallel.mesh import batch_sharding, place_batch, shares
from grm_jax.parallel.processes import to_host
from grm_jax.sampling.sampler import SamplingConfig, sample


@functools.cache
def make_sampler(
    cfg: ModelConfig, scfg: SamplingConfig, mode: str = "jit", mesh: Mesh | None = None
) -> Callable:
    """Returns `fn(params, prompts_PT, lengths_P, keys_Pk2, limits_Pk=None) -> dict`.

    Arguments and result as in `grm_jax.sampling.sampler.sample`. Equal arguments get the same
    function, with the programs that it has compiled.

    These are the modes:
      "jit": one program. With a mesh, prompts are split over its (replica, fsdp) axes and
        parameters keep whatever sharding they come with (GSPMD inserts the collectives).
      "pmap": every local device holds the whole model and takes a share of the prompts. No mesh.
      "shard_map": each (replica, fsdp) group runs its own loop; parameters are whole within a
        group, or split over the mesh's tensor axis, which stays with GSPMD. A group stops when its
        own rows are finished or, with a tensor axis, when those of all are: collectives that the
        compiler puts into the loop may need every device of the mesh.
    """
    together = (
        DATA_AXES if mode == "shard_map" and mesh is not None and mesh.shape["tensor"] > 1 else ()
    )

    def run(params, prompts_PT, lengths_P, keys_Pk2, limits_Pk):
        return sample(params, cfg, scfg, prompts_PT, lengths_P, keys_Pk2, together, limits_Pk)

    def with_limits(fn):
        def call(params, prompts_PT, lengths_P, keys_Pk2, limits_Pk=None):
            if limits_Pk is None:
                limits_Pk = np.full(keys_Pk2.shape[:2], scfg.max_new_tokens, np.int32)
            return fn(params, prompts_PT, lengths_P, keys_Pk2, limits_Pk)

        return call

    if mode == "pmap":
        if mesh is not None:
            raise ValueError("mode 'pmap' takes no mesh: it runs one replica on each local device")
        if jax.process_count() > 1:
            raise ValueError(
                "mode 'pmap' runs on the devices of one process; with several take 'shard_map', "
                "which splits the prompts over all"
            )
        devices = jax.local_device_count()
        cast, mapped = (
            jax.jit(functools.partial(cast_weights, cfg=cfg)),
            jax.pmap(run, in_axes=(None, 0, 0, 0, 0)),
        )

        def split(params, *arrays):
            out = mapped(cast(params), *(a.reshape(devices, -1, *a.shape[1:]) for a in arrays))
            return {name: a.reshape(-1, *a.shape[2:]) for name, a in out.items()}

        return with_limits(_padded(split, devices))
    if mode == "jit" and mesh is None:
        return with_limits(jax.jit(run))
    if mode not in ("jit", "shard_map"):
        raise ValueError(f"sampler mode is {mode!r}; expected 'jit', 'pmap' or 'shard_map'")
    if mesh is None:
        raise ValueError("mode 'shard_map' needs a mesh with the axes replica and fsdp")
    rows = batch_sharding(mesh)
    if mode == "shard_map":
        run = map_rows(run, cfg, mesh, (rows.spec,) * 4, rows.spec)
    jitted = jax.jit(run, in_shardings=(None, rows, rows, rows, rows), out_shardings=rows)
    return with_limits(
        _padded(
            lambda params, *arrays: jitted(
                params,
                *place_batch(mesh, {str(i): array for i, array in enumerate(arrays)}).values(),
            ),
            shares(mesh),
        )
    )


def map_rows(
    fn: Callable, cfg: ModelConfig, mesh: Mesh, in_specs: tuple, out_specs: Any
) -> Callable:
    """Maps fn(params, *arrays) over the data axes with `jax.shard_map`.

    Parameters are cast to cfg.dtype where they lie, then gathered over these axes; the tensor axis
    stays with GSPMD.
    """
    mapped = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(P(), *in_specs),
        out_specs=out_specs,
        axis_names=set(DATA_AXES),
        check_vma=False,
    )
    return lambda params, *arrays: mapped(cast_weights(params, cfg), *arrays)


def _padded(fn: Callable, shares: int) -> Callable:
    """Pad the prompts to a multiple of `shares` with dummy rows (length 0), and drop them from the
    result, whose arrays go to the host.
    """

    def call(params, *arrays):
        prompts = arrays[0].shape[0]
        extra = -prompts % shares
        arrays = [np.pad(np.asarray(a), [(0, extra)] + [(0, 0)] * (np.ndim(a) - 1)) for a in arrays]
        return {name: to_host(a)[:prompts] for name, a in fn(params, *arrays).items()}

    return call
