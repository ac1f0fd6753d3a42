"""Rule-based online RL (paper, section 3.2): G rollouts a prompt, +1 or -1, group advantages, a
value-free loss, KL to the RFT policy.
"""

import json
import os
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from experiments.stages.rft import SAMPLES
from experiments.stages.run import Run, load_policy, policy_sampler
from experiments.stages.train import begin, example_text, leave, save_model, save_state
from grm_jax.data.pipeline import bucket_length, make_batches
from grm_jax.judgment.records import Record, response_order
from grm_jax.judgment.rules import is_too_easy, rule_reward
from grm_jax.losses import ADVANTAGES, LOSSES, LossConfig, kl_penalty, objective_mask, resolve
from grm_jax.models.config import Gemma2Config
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import place_batch
from grm_jax.progress import progress
from grm_jax.reward_models.grm import Ask, Drawn, judge, read_rows
from grm_jax.training.metrics import LateMetrics, MetricsLog
from grm_jax.training.rollout_metrics import rollout_metrics, sampler_gap
from grm_jax.training.step import LossFn, make_logprob_fn, rl_loss


def rl_prompts(run: Run) -> list[Record]:
    """The training records, without those that every unhinted RFT sample got right (config
    rl.drop_easy_prompts).
    """
    if not run.config.rl.drop_easy_prompts:
        return run.train
    correct: dict[str, list[bool]] = {}
    for row in read_rows(run.judgments(SAMPLES)):
        if not row["hinted"]:
            correct.setdefault(row["id"], []).append(row["correct"])
    kept = [record for record in run.train if not is_too_easy(correct[record.id])]
    print(
        f"RL prompts: {len(kept)} of {len(run.train)} records; the others are too easy", flush=True
    )
    return kept


def roll_out(
    run: Run, sampler: Callable, params: dict, records: list[Record], step: int
) -> list[Drawn]:
    """G judgments of each record under the current policy; rows p*G ... p*G + G - 1 are the group
    of record p.
    """
    G, seed, settings = run.config.rl.group_size, run.config.seed, run.config.rl
    asks = []
    for p, record in enumerate(records):
        # another order and other samples each time the record comes round
        key = f"{record.id}@{step}.{p}"
        asks.append(
            Ask(record, response_order(seed, key, 0, len(record.responses)), tuple(range(G)), key)
        )
    longest = max(len(run.prompter.ids(ask.record, ask.order)) for ask in asks)
    width, rows = (
        bucket_length(longest, run.config.lengths.buckets),
        min(len(asks) * G, run.config.sampling.rows // G * G),
    )
    labels = {"split": "train", "system": "grm", "stage": "rl", "step": step}
    batches = judge(
        sampler,
        params,
        run.prompter,
        asks,
        seed=seed,
        temperature=settings.temperature,
        buckets=(width,),
        rows=rows,
        labels=labels,
    )
    drawn = sorted(
        (one for batch in batches for one in batch), key=lambda one: (one.ask, one.row["sample"])
    )
    for one in drawn:
        one.row["reward"] = rule_reward(one.row["scores"], one.row["rewards"])
    return drawn


def train_batch(run: Run, drawn: list[Drawn]) -> dict[str, np.ndarray]:
    """Tokens, positions, completion mask and sampled log-probabilities of rollouts, right-padded to
    a common bucket.
    """
    width = bucket_length(
        max(len(one.prompt_ids) + len(one.completion_ids) for one in drawn), run.sequence_buckets
    )
    shape = (len(drawn), width)
    tokens, positions = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    mask, old_logp = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, one in enumerate(drawn):
        start, end = len(one.prompt_ids), len(one.prompt_ids) + len(one.completion_ids)
        tokens[row, :start], tokens[row, start:end] = one.prompt_ids, one.completion_ids
        positions[row, :end] = np.arange(end)
        mask[row, start:end], old_logp[row, start:end] = 1.0, one.logp
    return {"tokens": tokens, "positions": positions, "mask": mask, "old_logp": old_logp}


def objective(config: ml_collections.ConfigDict, model: Gemma2Config) -> tuple[LossFn, LossConfig]:
    """The loss of the RL step, and the settings that it shares with KL penalty and mask."""
    settings = config.rl
    cfg = LossConfig(
        beta=settings.beta,
        kl=settings.kl,
        kl_in=settings.kl_in,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        aggregation=settings.aggregation,
        max_length=config.lengths.completion,
        zero_variance=settings.zero_variance,
    )
    return rl_loss(model, resolve(settings.loss, LOSSES), cfg, settings.temperature), cfg


def train(run: Run) -> None:
    """Train the RFT policy -> models/grm."""
    settings, G = run.config.rl, run.config.rl.group_size
    records = rl_prompts(run)
    batches = make_batches(
        {"prompts": [{"index": i} for i in range(len(records))]},
        batch_size=settings.batch_size // G,
        seed=run.config.seed,
    )
    advantage = resolve(settings.advantage, ADVANTAGES)
    reference = load_policy(run, "rft")
    logprobs = make_logprob_fn(
        run.cfg, settings.temperature, settings.batch_size // settings.micro_batch
    )
    sampler = policy_sampler(run, settings.temperature)
    loss, cfg = objective(run.config, run.cfg)

    updates = settings.updates_per_rollout
    training, late = (
        begin(run, "rl", reference, loss, settings, settings.steps * updates),
        LateMetrics(),
    )
    state, first = training.state, int(training.state.step) // updates
    if training.extra:
        batches.set_state(training.extra["batches"])
    rollouts = run.judgments("rl")
    processes.on_main("rollouts on file", lambda: keep_steps_before(rollouts, first))
    with (
        MetricsLog(run.workdir, "rl", first) as log,
        open(processes.written(rollouts), "a") as file,
        progress("rl", settings.steps, done=first) as advance,
        processes.stop_signal() as stopped,
    ):
        on_host: dict[int, dict] = {}  # metrics of rollouts whose train step is still under way

        def write(rows):
            for step, row in rows:
                row |= on_host.pop(step) | {
                    "learning_rate": float(training.learning_rate((step + 1) * updates - 1))
                }
                log.write(step, row)
                advance(reward=row["reward/mean"], kl=row.get("kl", 0.0), entropy=row["entropy"])

        for step in range(first, settings.steps):
            chosen = [records[i] for i in next(batches)["index"]]
            policy = training.params_of(state)
            drawn = roll_out(run, sampler, policy, chosen, step)
            judged = [one.row for one in drawn]
            rewards = np.array([row["reward"] for row in judged], np.float32)
            batch = place_batch(run.mesh, train_batch(run, drawn) | {"rewards": rewards})
            rewards_B = batch.pop("rewards")
            on_host[step] = metrics_of(drawn, G)
            if settings.old_logp == "trainer":
                logp_BT = logprobs(policy, batch["tokens"], batch["positions"])
                on_host[step] |= sampler_gap(batch["old_logp"], logp_BT, batch["mask"])
                batch["old_logp"] = logp_BT
            batch["ref_logp"] = logprobs(reference, batch["tokens"], batch["positions"])
            penalty_B = kl_penalty(batch["old_logp"], batch["ref_logp"], batch["mask"], cfg)
            batch["advantages"] = advantage(rewards_B, G, penalty_B)
            batch["mask"] = objective_mask(batch["mask"], rewards_B, G, cfg)
            del policy  # its buffers may be the state's, which the step takes
            for _ in range(updates):
                state, metrics = training.step(state, batch)
            write(
                late.push(
                    step,
                    metrics,
                    [record.id for record in chosen],
                    tokens=int(on_host[step]["num_tokens"]),
                )
            )
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in judged))
            if step % run.config.log.example_every == 0:
                print(f"step {step}\n{example_text(chosen[0], judged[:G])}", flush=True)
            stop = stopped()
            if stop or (step + 1) % run.config.checkpoint.every == 0:
                write(late.flush())
                file.flush()
                if processes.is_main():
                    os.fsync(file.fileno())
                save_state(run, training, state, {"batches": batches.get_state()})
            if stop:
                leave(training, "rl", state)
        write(late.flush())
    training.checkpoints.close()
    save_model(run, "grm", training, state)


def metrics_of(drawn: list[Drawn], group_size: int) -> dict[str, float]:
    rows = [one.row for one in drawn]
    columns = (
        [len(one.prompt_ids) for one in drawn],
        [row["tokens"] for row in rows],
        [row["finish"] == "length" for row in rows],
    )
    return rollout_metrics(
        group_size,
        *columns,
        *([row[name] for row in rows] for name in ("reward", "correct", "scores", "failure")),
    )


def keep_steps_before(path: pathlib.Path, step: int) -> None:
    """Leave only the rollouts of steps before `step` in a judgments file: the later ones are drawn
    again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with open(path, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] >= step:
                file.seek(-len(line), os.SEEK_CUR)
                file.truncate()
                return
