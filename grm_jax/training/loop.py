"""Loops over the steps of a training stage: a resumable state, batches on the mesh, late metrics.

Metrics come one step late. Plain functions around `training.step.make_train_step`. RFT, the Meta RM
and the scalar reward models are `fit` on examples; RL has a loop of its own and shares `begin` and
`save_state`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jax.sharding import Mesh

from grm_jax.checkpoint.state import open_checkpoints, restore_latest, save
from grm_jax.data.packing import longest_unit, pack_examples
from grm_jax.data.pipeline import make_batches
from grm_jax.models.config import ModelConfig
from grm_jax.models.lora import LoraConfig, merge, start_adapters
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import param_shardings, place_batch, shares
from grm_jax.progress import progress
from grm_jax.training.metrics import MetricsLog
from grm_jax.training.optimizer import OptimizerConfig, make_optimizer
from grm_jax.training.phases import Trace
from grm_jax.training.settings import ROW_MULTIPLE
from grm_jax.training.speed import Observed, fit_work, observed
from grm_jax.training.state import TrainState, abstract_state, init_state
from grm_jax.training.step import LossFn, adapted, make_train_step


class StageSettings(Protocol):
    """Names the settings that every training stage has.

    Batches count sequences; unless it is packed, a batch is cut into batch_size / micro_batch
    parts, whose gradients add up.
    """

    learning_rate: float
    batch_size: int
    micro_batch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """Holds what the training stages of a run share.

    folder: of metrics.jsonl, tensorboard/ and checkpoints/<stage>/.
    digest: of everything that the result depends on; a checkpoint of another digest is refused.
    sequence_buckets: lengths that batches are padded to, where nothing is packed; no sequence is
        longer than the last.
    row_lengths: lengths of the rows that sequences are packed into; () packs nothing.
    every, keep: steps between checkpoints, and how many of them stay.
    trace: steps of each stage that are traced (phases.py).
    """

    folder: pathlib.Path
    mesh: Mesh
    model_cfg: ModelConfig
    optimizer: OptimizerConfig
    lora: LoraConfig
    seed: int
    sequence_buckets: tuple[int, ...]
    every: int
    keep: int
    digest: str
    row_lengths: tuple[int, ...] = ()
    sinks: tuple[str, ...] = ("jsonl", "tensorboard")
    trace: Trace | None = None


class Training(NamedTuple):
    """Holds a stage that is ready to go on: its jitted step, schedule, checkpoints and state.

    extra: what was saved beside the state ({} at first).
    params_of: state -> the model's parameters. With adapters the state holds these alone, and they
        are merged into the frozen weights.
    """

    step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    params_of: Callable[[TrainState], dict]
    learning_rate: optax.Schedule
    checkpoints: Any
    state: TrainState
    extra: dict


class Trained(NamedTuple):
    """Holds what a stage leaves: the model's parameters, and the adapters merged into them.

    The adapters are None where there are none.
    """

    params: dict
    adapters: dict | None


def make_step(
    mesh: Mesh,
    optimizer_config: OptimizerConfig,
    params: dict,
    loss_fn: LossFn,
    settings: StageSettings,
    updates: int,
    row_lengths: Sequence[int] = (),
) -> tuple[Callable, optax.Schedule, optax.GradientTransformation, TrainState]:
    """Makes (jitted step, learning-rate schedule, optimizer, abstract state) of a training stage.

    The state is one of ShapeDtypeStructs laid over the mesh. `params` may be arrays or
    ShapeDtypeStructs: nothing is computed, so what is planned (planning/programs.py) is what is
    run. row_lengths: of packed rows.
    """
    optimizer, schedule = make_optimizer(optimizer_config, settings.learning_rate, updates)
    abstract = abstract_state(params, optimizer)
    shardings = param_shardings(mesh, abstract)
    parts = settings.batch_size // settings.micro_batch
    step = make_train_step(loss_fn, optimizer, parts, shardings, row_lengths)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )
    return step, schedule, optimizer, placed


def begin(
    setup: TrainSetup,
    stage: str,
    params: dict,
    loss_fn: LossFn,
    settings: StageSettings,
    updates: int,
    donate: bool = False,
    row_lengths: Sequence[int] | None = None,
) -> Training:
    """Makes a new training state from `params`, or restores the last one that this stage saved.

    updates: in all, for the schedule.
    donate: `params` are the state's from now on, and deleted; without it they stay on the devices
        beside it, as RL's reference must.
    row_lengths: of packed rows; None: those of the setup.

    With lora.rank > 0 `params` stay as they are and adapters beside them are trained
    (models/lora.py).
    """
    # what is trained: all weights, or adapters beside frozen ones
    frozen, merged, lora = None, None, setup.lora
    if lora.rank:
        donate, frozen = False, params
        merged = jax.jit(
            lambda frozen, adapters: merge(frozen, adapters, lora.scale),
            out_shardings=param_shardings(setup.mesh, frozen),
        )
        key = jax.random.key(setup.seed)
        params = start_adapters(setup.model_cfg, lora, frozen, key)
        loss_fn = adapted(loss_fn, lora.scale)

    def params_of(state: TrainState) -> dict:
        return state.params if merged is None else merged(frozen, state.params)

    step, schedule, optimizer, placed = make_step(
        setup.mesh,
        setup.optimizer,
        params,
        loss_fn,
        settings,
        updates,
        setup.row_lengths if row_lengths is None else row_lengths,
    )
    step = functools.partial(step, frozen=frozen)
    # where this stage was
    checkpoints = open_checkpoints(setup.folder / "checkpoints" / stage, setup.keep)
    restored = restore_latest(checkpoints, placed, setup.digest)
    if restored is None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, placed)
        state = init_state(params, optimizer, shardings, donate)
        return Training(step, params_of, schedule, checkpoints, state, {})
    if donate:
        jax.tree.map(lambda x: x.delete(), params)
    print(f"{stage}: goes on from update {int(restored[0].step)} of {updates}", flush=True)
    return Training(step, params_of, schedule, checkpoints, *restored)


def save_state(setup: TrainSetup, training: Training, state: TrainState, extra: dict) -> None:
    """Writes a checkpoint of the state, with what the loop needs beside it (JSON-able)."""
    save(training.checkpoints, int(state.step), state, extra, setup.digest)


def observe(setup: TrainSetup, stage: str, first: int) -> AbstractContextManager[Observed]:
    """Opens a context that gives (phases, late metrics, goodput) of a stage from a step on."""
    dtype, sinks = setup.model_cfg.dtype, bool(setup.sinks)
    return observed(setup.folder, stage, first, setup.mesh, dtype, sinks, setup.trace)


def leave(training: Training, stage: str, state: TrainState) -> None:
    """Ends this process, as a signal asked, once the checkpoint just begun is on disk."""
    training.checkpoints.close()
    processes.leave(f"{stage}, saved behind update {int(state.step)}")


def finish(setup: TrainSetup, training: Training, state: TrainState) -> Trained:
    """Closes the checkpoints of a stage that is done, and gives what it trained."""
    training.checkpoints.close()
    return Trained(training.params_of(state), state.params if setup.lora.rank else None)


def row_lengths_of(setup: TrainSetup, sources: Mapping[str, Sequence[dict]]) -> tuple[int, ...]:
    """Returns the setup's lengths of packed rows; with one more where two of a pair need it."""
    first_example = next(iter(sources.values()))[0]
    alone = sum(name.endswith("tokens") for name in first_example) == 1
    if alone or not setup.row_lengths:
        return setup.row_lengths
    longest = max(longest_unit(examples) for examples in sources.values())
    needed = -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    return setup.row_lengths + ((needed,) if needed > setup.row_lengths[-1] else ())


def fit(
    setup: TrainSetup,
    stage: str,
    params: dict,
    loss_fn: LossFn,
    sources: Mapping[str, Sequence[dict]],
    weights: Mapping[str, float],
    settings: StageSettings,
) -> Trained:
    """Minimizes `loss_fn` over examples drawn from `sources` by weight.

    `params` are donated (see `begin`). Examples hold "id" and the fields of the loss's batch
    without "normalizer"; fields of positions have names that end in "positions". They are packed
    into rows (data/packing.py) where the setup has lengths of such, else padded.
    """
    row_lengths, collate = row_lengths_of(setup, sources), None
    if row_lengths:
        collate = functools.partial(pack_examples, lengths=row_lengths, rows=shares(setup.mesh))
    first_example = next(iter(sources.values()))[0]
    positions = [name for name in first_example if name.endswith("positions")]
    batches = make_batches(
        sources,
        batch_size=settings.batch_size,
        seed=setup.seed,
        buckets=setup.sequence_buckets,
        weights=weights,
        pad_values=dict.fromkeys(positions, -1),
        collate=collate,
    )
    training = begin(
        setup, stage, params, loss_fn, settings, settings.steps, True, row_lengths=row_lengths
    )
    state, first = training.state, int(training.state.step)
    if training.extra:
        batches.set_state(training.extra["batches"])
    with (
        MetricsLog(setup.folder, stage, first, setup.sinks) as log,
        progress(stage, settings.steps, done=first) as advance,
        processes.stop_signal(stage) as stopped,
        observe(setup, stage, first) as (phases, late, goodput),
    ):

        def write(rows):
            for step, row in rows:
                rate: Any = training.learning_rate(step)
                log.write(step, row | {"learning_rate": float(rate)})
                advance(loss=row["loss"])

        for step in phases.steps(first, settings.steps):
            # a batch, the same in every process; each device takes its rows
            host = next(batches)
            ids = host.pop("id")
            if row_lengths:
                computed, host = host["computed"], host["batch"]
                pos, learned = [host["positions"]], host.get("wanted")
            else:
                host.setdefault("mask", host.pop("valid"))
                pos, learned = [host[name] for name in positions], host["mask"]
                learned, computed = learned if learned.ndim > 1 else None, sum(x.size for x in pos)
            logits = 0 if learned is None else int(learned.sum())
            work = fit_work(setup.model_cfg, pos, logits, setup.lora.rank > 0)
            work = work._replace(computed_tokens=computed)
            batch = place_batch(setup.mesh, host, axis=1 if row_lengths else 0)
            # the update; the metrics that are written are those of the step before
            phases.begin("update")
            state, metrics = training.step(state, batch)
            phases.until(metrics["loss"])
            phases.begin("host")
            write(late.push(step, metrics, ids, work))
            # a checkpoint, now and then and where the process is asked to end
            stop = stopped()
            if stop or (step + 1) % setup.every == 0:
                write(late.flush())
                phases.begin("checkpoint")
                goodput.mark(step + 1)
                save_state(setup, training, state, {"batches": batches.get_state()})
            if stop:
                leave(training, stage, state)
        write(late.flush())
    return finish(setup, training, state)
