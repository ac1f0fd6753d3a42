"""What the training stages share: a state that resumes, batches on the mesh, and the supervised
loop of RFT and Meta RM.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from experiments import config_flags
from experiments.stages.run import Run
from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.checkpoint.peft import save_adapters
from grm_jax.checkpoint.state import open_checkpoints, restore_latest, save
from grm_jax.data.pipeline import make_batches
from grm_jax.judgment.records import Record
from grm_jax.models.lora import LoraConfig, merge, start_adapters
from grm_jax.models.table import CAUSAL_LM
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import param_shardings, place_batch
from grm_jax.progress import progress
from grm_jax.training.metrics import LateMetrics, MetricsLog
from grm_jax.training.optimizer import make_optimizer
from grm_jax.training.state import TrainState, abstract_state, init_state
from grm_jax.training.step import adapted, make_train_step


class Training(NamedTuple):
    """A stage that is ready to go on: its jitted step, schedule, checkpoints, state, and what was
    saved beside the state ({} at first).

    params_of: state -> the model's parameters. With config.lora the state holds adapters, and they
        are merged here.
    """

    step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    params_of: Callable[[TrainState], dict]
    learning_rate: optax.Schedule
    checkpoints: Any
    state: TrainState
    extra: dict


def make_step(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    params: dict,
    loss_fn: Callable,
    settings: ml_collections.ConfigDict,
    updates: int,
) -> tuple[Callable, optax.Schedule, optax.GradientTransformation, TrainState]:
    """(jitted step, learning-rate schedule, optimizer, state as ShapeDtypeStructs laid over the
    mesh) of a training stage.

    `params` may be arrays or ShapeDtypeStructs: nothing is computed, so what is planned is what is
    run (experiments/plan.py).
    """
    optimizer, schedule = make_optimizer(config.optimizer, settings.learning_rate, updates)
    abstract = abstract_state(params, optimizer)
    shardings = param_shardings(mesh, abstract)
    step = make_train_step(
        loss_fn, optimizer, settings.batch_size // settings.micro_batch, shardings
    )
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )
    return step, schedule, optimizer, placed


def begin(
    run: Run,
    stage: str,
    params: dict,
    loss_fn: Callable,
    settings: ml_collections.ConfigDict,
    updates: int,
    donate: bool = False,
) -> Training:
    """A new training state from `params`, or the last one that this stage saved; `updates` in all
    are scheduled.

    donate: `params` are the state's from now on, and deleted; without it they stay on the devices
    beside it, as RL's reference must. With config.lora.rank > 0 `params` stay as they are and
    adapters beside them are trained (models/lora.py).
    """
    frozen, merged = None, None
    if run.config.lora.rank:
        donate = False
        lora, frozen = lora_config(run.config), params
        merged = jax.jit(
            lambda frozen, adapters: merge(frozen, adapters, lora.scale),
            out_shardings=param_shardings(run.mesh, frozen),
        )
        params, loss_fn = (
            start_adapters(run.cfg, lora, frozen, jax.random.key(run.config.seed)),
            adapted(loss_fn, lora.scale),
        )

    def params_of(state: TrainState) -> dict:
        return state.params if merged is None else merged(frozen, state.params)

    step, schedule, optimizer, placed = make_step(
        run.config, run.mesh, params, loss_fn, settings, updates
    )
    step = functools.partial(step, frozen=frozen)
    checkpoints = open_checkpoints(run.workdir / "checkpoints" / stage, run.config.checkpoint.keep)
    found = restore_latest(checkpoints, placed, config_flags.config_digest(run.config))
    if found is None:
        state = init_state(
            params, optimizer, jax.tree.map(lambda leaf: leaf.sharding, placed), donate
        )
        return Training(step, params_of, schedule, checkpoints, state, {})
    if donate:
        jax.tree.map(lambda x: x.delete(), params)
    print(f"{stage}: goes on from update {int(found[0].step)} of {updates}", flush=True)
    return Training(step, params_of, schedule, checkpoints, *found)


def lora_config(config: ml_collections.ConfigDict) -> LoraConfig:
    return LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))


def save_state(run: Run, training: Training, state: TrainState, extra: dict) -> None:
    save(
        training.checkpoints, int(state.step), state, extra, config_flags.config_digest(run.config)
    )


def save_model(
    run: Run, name: str, training: Training, state: TrainState, architecture: str = CAUSAL_LM
) -> None:
    """models/<name>, a Hugging Face folder with the run's tokenizer. Adapters are merged; those of
    RFT and RL are in adapters/<name> too.
    """
    source = config_flags.tokenizer_path(run.config)
    if run.config.lora.rank and name in ("rft", "grm"):
        base = (
            run.workdir / "models" / "rft"
            if name == "grm"
            else config_flags.model_folder(run.config) or "random"
        )
        save_adapters(
            run.workdir / "adapters" / name, state.params, run.cfg, lora_config(run.config), base
        )
    save_folder(
        run.workdir / "models" / name,
        training.params_of(state),
        run.cfg,
        tokenizer_files_from=source,
        architecture=architecture,
    )


def leave(training: Training, stage: str, state: TrainState) -> None:
    """End this process, as SIGTERM asked, once the checkpoint just begun is on disk."""
    training.checkpoints.close()
    processes.leave(f"{stage}, saved behind update {int(state.step)}")


def fit(
    run: Run,
    stage: str,
    params: dict,
    loss_fn: Callable,
    sources: dict[str, Sequence[dict]],
    weights: dict[str, float],
    settings: ml_collections.ConfigDict,
    architecture: str = CAUSAL_LM,
) -> None:
    """Minimize `loss_fn` over examples drawn from `sources` by weight -> models/<stage>. `params`
    are donated (see `begin`).

    Examples hold "id" and the fields of the loss's batch without "normalizer"; fields of positions
    have names that end in "positions".
    """
    positions = [name for name in next(iter(sources.values()))[0] if name.endswith("positions")]
    batches = make_batches(
        sources,
        batch_size=settings.batch_size,
        seed=run.config.seed,
        buckets=run.sequence_buckets,
        weights=weights,
        pad_values=dict.fromkeys(positions, -1),
    )
    training, late = (
        begin(run, stage, params, loss_fn, settings, settings.steps, donate=True),
        LateMetrics(),
    )
    state, first = training.state, int(training.state.step)
    if training.extra:
        batches.set_state(training.extra["batches"])
    with (
        MetricsLog(run.workdir, stage, first, run.config.log.sinks) as log,
        progress(stage, settings.steps, done=first) as advance,
        processes.stop_signal() as stopped,
    ):

        def write(rows):
            for step, row in rows:
                log.write(step, row | {"learning_rate": float(training.learning_rate(step))})
                advance(loss=row["loss"])

        for step in range(first, settings.steps):
            host = {name.rsplit("_", 1)[0]: value for name, value in next(batches).items()}
            ids, valid = host.pop("id"), host.pop("valid")
            host.setdefault("mask", valid)
            state, metrics = training.step(state, place_batch(run.mesh, host))
            write(
                late.push(
                    step,
                    metrics,
                    ids,
                    tokens=sum(int((host[name] >= 0).sum()) for name in positions),
                )
            )
            stop = stopped()
            if stop or (step + 1) % run.config.checkpoint.every == 0:
                write(late.flush())
                save_state(run, training, state, {"batches": batches.get_state()})
            if stop:
                leave(training, stage, state)
        write(late.flush())
    training.checkpoints.close()
    save_model(run, stage, training, state, architecture)


def example_text(record: Record, rows: Sequence[dict], limit: int = 600) -> str:
    """One judged record for a person to read: query, responses with their gold, one judgment, the
    verdicts of all.
    """

    def short(text):
        return text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"

    lines = [
        f"-- {record.id} ({record.domain})",
        f"   query: {short(record.conversation[-1].content)}",
    ]
    for i, (response, reward) in enumerate(zip(record.responses, record.rewards)):
        lines.append(f"   response {i} (gold {reward:g}): {short(response)}")
    lines.append(f"   judgment, responses shown as {rows[0]['order']}:")
    lines += [f"   | {line}" for line in short(rows[0]["text"]).splitlines()]
    verdicts = [row["scores"] if row["scores"] is not None else row["failure"] for row in rows]
    return "\n".join(
        [
            *lines,
            f"   scores: {'; '.join(map(str, verdicts))}   correct: "
            f"{sum(row['correct'] for row in rows)} of {len(rows)}",
        ]
    )
