"""Keeps checkpoints of a training stage, and checks that what comes back is what went in.

Orbax for the arrays, JSON for the rest. One folder per stage and in it one folder per step. Orbax
writes a step under a temporary name and renames it when it is complete, so a run killed while
writing leaves the previous checkpoint in force. The v0 `CheckpointManager` is used: the names of
Orbax v1 still move.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from grm_jax.parallel import processes

log = logging.getLogger(__name__)


class UnreadableCheckpoints(RuntimeError):
    """Says that a folder holds checkpoints, and none of them can be restored."""


class NotWhatWasSaved(RuntimeError):
    """Says that a checkpoint was read without error, but not with the step or checksum it had."""


def open_checkpoints(folder: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """Opens a stage's checkpoints, made where missing; the last `keep` >= 1 are kept.

    Close the manager at the end of the stage. Removes, with a warning, what a killed run had begun
    to write. Keep several: one that turns out damaged is stepped over. Of several processes each
    writes its own shards, and all must open, save, restore and close in step.
    """
    folder = pathlib.Path(folder).absolute()
    for torn in sorted(folder.glob("*.orbax-checkpoint-tmp*")):
        log.warning("%s: incomplete, the run stopped while writing it; removed", torn)
        if processes.is_main():  # at once, where Orbax would do it some time later
            shutil.rmtree(torn, ignore_errors=True)
    keep_last = ocp.checkpoint_managers.LatestN(keep)
    options = ocp.CheckpointManagerOptions(preservation_policy=keep_last)
    handlers = {"state": ocp.StandardCheckpointHandler(), "header": ocp.JsonCheckpointHandler()}
    manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    # JAX counts the polls, and Orbax's would upset those of processes.stop_signal
    manager.reached_preemption = lambda step: False
    return manager


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, extra: dict[str, Any], digest: str
) -> None:
    """Writes the checkpoint of `step`. Returns once the arrays are copied from the device.

    state: pytree of arrays whose attribute `step` equals `step`.
    extra: whatever else the run needs to go on, JSON-able: stage, seed, position of the data
        iterator.
    digest: of all that a run must agree in to go on from here, such as its config and what it read.

    `manager.wait_until_finished()` waits for the disk, as do the next save and `close`. Raises
    ValueError if the steps differ, or if a checkpoint as late is already on disk.
    """
    if int(state.step) != step:
        raise ValueError(
            f"{manager.directory}: asked to save step {step}, but the state is at step "
            f"{int(state.step)}"
        )
    header = {
        "step": step,
        "checksum": checksum(state),
        "config_digest": digest,
        "arrays": _arrays(state),
        "extra": extra,
    }
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), header=ocp.args.JsonSave(header))
    if not manager.save(step, args=items):
        raise ValueError(
            f"{manager.directory}: step {step} not saved; on disk are steps "
            f"{sorted(manager.all_steps())}"
        )


def restore_latest(
    manager: ocp.CheckpointManager, abstract_state: Any, digest: str
) -> tuple[Any, dict[str, Any]] | None:
    """Restores (state, extra) of the newest checkpoint that is whole, or None where there is none.

    abstract_state: tree of `jax.ShapeDtypeStruct`, each with the sharding to restore it to (None:
        the first device). It need not be the sharding, nor the mesh, of the run that saved.

    A checkpoint that cannot be read (torn while it was written: a file is cut or missing) is passed
    over with a warning. Once one before it is restored, it is renamed to <step>.damaged, or to
    <step>.damaged.2 and so on where that is there, so that the run can write that step again.

    Raises:
      ValueError: the checkpoint was written under another config, or its shapes or dtypes differ
        from `abstract_state`.
      NotWhatWasSaved: step or checksum of what was read differ from those recorded. No torn file
        looks like that, so a person decides.
      UnreadableCheckpoints: there are checkpoints, but all are damaged. To start again in silence
        would hide that.
    """
    damaged = []
    for step in processes.on_main(
        "steps on disk", lambda: sorted(manager.all_steps(), reverse=True)
    ):
        folder = pathlib.Path(manager.directory) / str(step)
        header, error = processes.on_main(
            f"header of {folder}",
            lambda folder=folder: _tried(ocp.JsonCheckpointHandler().restore, folder / "header"),
        )
        if error:
            damaged.append(_warn(folder, error))
            continue
        if header["config_digest"] != digest:
            raise ValueError(
                f"{folder}: written under config {header['config_digest']}, this run has {digest}; "
                "go on with the config that it was started with, or choose another work folder"
            )
        _check_arrays(folder, header["arrays"], abstract_state)
        # by the handler: the manager's restore ends in a barrier, which a process whose own files
        # are torn would not reach
        state, error = _tried(
            ocp.StandardCheckpointHandler().restore,
            folder / "state",
            args=ocp.args.StandardRestore(_placed(abstract_state)),
        )
        if not processes.in_all(f"state of {folder}", error is None):
            damaged.append(_warn(folder, error or "the files of another process cannot be read"))
            continue
        read, recorded = (int(state.step), checksum(state)), (step, header["checksum"])
        if read != recorded:
            raise NotWhatWasSaved(
                f"{folder}: step and checksum are {read}, {recorded} were recorded when it "
                "was saved. Bits changed on disk or on the way to the "
                f"devices; to go on from the checkpoint before it, move this folder away"
            )
        if damaged and processes.is_main():
            for bad in damaged:
                bad.rename(_free_name(bad.with_name(f"{bad.name}.damaged")))
        processes.barrier("damaged checkpoints renamed")
        manager.reload()
        return state, header["extra"]
    if damaged:
        raise UnreadableCheckpoints(
            f"no checkpoint can be restored; damaged are {', '.join(map(str, damaged))}. Bring one "
            "back, or remove them: the stage then begins anew"
        )
    return None


def checksum(tree: Any) -> str:
    """Returns 16 hex digits of the exact bits of every array in a tree, the same on every mesh.

    Integer sums wrap, and so do not depend on their order: sharded arrays are summed where they
    lie. Each element is weighted by an odd number made from its index, so changed and moved
    elements both show. Not a cryptographic hash.
    """
    return hashlib.sha256(
        processes.to_host(_leaf_sums(jax.tree.leaves(tree))).tobytes()
    ).hexdigest()[:16]


@jax.jit
def _leaf_sums(leaves):
    def leaf_sum(x):
        bits = jax.lax.bitcast_convert_type(
            x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        ).astype(jnp.uint32)
        weight = jnp.ones(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            weight = weight * jnp.uint32(2654435761) + 2 * index  # stays odd
        return jnp.sum(bits * weight, dtype=jnp.uint32)

    return jnp.stack([leaf_sum(x) for x in leaves])


def _arrays(tree):
    """{path: "dtype[shape]"} of every leaf."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in leaves
    }


def _check_arrays(folder, found, abstract_state):
    expected = _arrays(abstract_state)
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"{folder}: {path} is {found.get(path, 'absent')} in the checkpoint, "
                f"{expected.get(path, 'absent')} in this run"
            )


def _placed(abstract_state):
    """The same tree with a sharding on every leaf; without one Orbax would go by that of the run
    that saved.
    """
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first),
        abstract_state,
    )


def _tried(function, *args, **keywords) -> tuple[Any, str | None]:
    """(result, None), or (None, what went wrong): Orbax, TensorStore, JSON and the file system each
    raise their own.
    """
    try:
        return function(*args, **keywords), None
    except Exception as error:
        # TensorStore tells its whole configuration
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _free_name(path: pathlib.Path) -> pathlib.Path:
    """The path itself, else with .2, .3, ... behind it: the first that is not there."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def _warn(folder, reason):
    log.warning("%s is damaged (%.300s); trying the checkpoint before it", folder, reason)
    return folder
