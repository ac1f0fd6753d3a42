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
from grm_jax.judgment.rules import REWARDS, is_too_easy
from grm_jax.losses import ADVANTAGES, LossConfig, kl_penalty, objective_mask, policy_loss, resolve
from grm_jax.models.config import Gemma2Config
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import place_batch
from grm_jax.progress import progress
from grm_jax.reward_models.grm import Ask, Drawn, judge, read_rows, with_prompts
from grm_jax.training.metrics import LateMetrics, MetricsLog
from grm_jax.training.rollouts import rewards_of, rollout_batch, rollout_metrics, sampler_gap
from grm_jax.training.step import LossFn, make_logprob_fn, rl_loss

# what the console shows beside the step: {name there: metric}
SHOWN = {"reward": "reward/mean", "kl": "kl", "entropy": "entropy"}


def train(run: Run) -> None:
    """Train the RFT policy -> models/grm."""
    settings, G, updates = (
        run.config.rl,
        run.config.rl.group_size,
        run.config.rl.updates_per_rollout,
    )

    # what is trained on, and what for
    records = rl_prompts(run)
    prompts = make_batches(
        {"prompts": [{"index": i} for i in range(len(records))]},
        batch_size=settings.batch_size // G,
        seed=run.config.seed,
    )
    reward, advantage = (resolve(settings.reward, REWARDS), resolve(settings.advantage, ADVANTAGES))
    loss, cfg = objective(run.config, run.cfg)

    # the RFT policy is where training starts; where the KL needs it, it stays as the reference
    policy = load_policy(run, "rft")
    reference = policy if cfg.beta else None
    steps = settings.steps * updates
    training = begin(run, "rl", policy, loss, settings, steps, donate=reference is None)
    del policy
    sampler = policy_sampler(run, settings.temperature)
    logprobs = make_logprob_fn(
        run.cfg, settings.temperature, settings.batch_size // settings.micro_batch
    )

    # where an earlier process stopped
    state, first = training.state, int(training.state.step) // updates
    if training.extra:
        prompts.set_state(training.extra["batches"])
    path = run.judgments("rl")
    processes.on_main("rollouts on file", lambda: keep_steps_before(path, first))

    with (
        MetricsLog(run.workdir, "rl", first, run.config.log.sinks) as log,
        open(processes.written(path), "a") as file,
        progress("rl", settings.steps, done=first) as advance,
        processes.stop_signal() as stopped,
    ):
        late = LateMetrics()
        on_host: dict[int, dict] = {}  # metrics of rollouts whose train step is still under way

        def write(rows):
            for step, row in rows:
                row |= on_host.pop(step) | {
                    "learning_rate": float(training.learning_rate((step + 1) * updates - 1))
                }
                log.write(step, row)
                advance(**{name: row[metric] for name, metric in SHOWN.items() if metric in row})

        for step in range(first, settings.steps):
            # rollouts: G judgments of each prompt by the policy as it is now
            chosen = [records[i] for i in next(prompts)["index_B"]]
            policy = training.params_of(state)
            rollouts = roll_out(run, sampler, policy, chosen, step)
            judgments = [rollout.row for rollout in rollouts]

            # rewards
            rewards = rewards_of(reward, judgments, [chosen[r.ask] for r in rollouts])
            for judgment, value in zip(judgments, rewards, strict=True):
                judgment["reward"] = value
            lengths = [len(rollout.prompt_ids) for rollout in rollouts]
            on_host[step] = rollout_metrics(judgments, lengths, G)

            # the batch, on the devices
            batch = rollout_batch(
                [rollout.prompt_ids for rollout in rollouts],
                [rollout.completion_ids for rollout in rollouts],
                [rollout.logp for rollout in rollouts],
                run.sequence_buckets,
            )
            batch = place_batch(run.mesh, batch | {"rewards": np.array(rewards, np.float32)})
            rewards_B = batch.pop("rewards")

            # log-probabilities under the policy that sampled, and under the reference
            if settings.old_logp == "trainer":
                logp_BT = logprobs(policy, batch["tokens"], batch["positions"])
                on_host[step] |= sampler_gap(batch["old_logp"], logp_BT, batch["mask"])
                batch["old_logp"] = logp_BT
            if reference is not None:
                batch["ref_logp"] = logprobs(reference, batch["tokens"], batch["positions"])

            # advantages, and the tokens that count
            penalty_B = kl_penalty(batch["old_logp"], batch.get("ref_logp"), batch["mask"], cfg)
            batch["advantages"] = advantage(rewards_B, G, penalty_B)
            batch["mask"] = objective_mask(batch["mask"], rewards_B, G, cfg)

            # updates of the policy
            del policy  # its buffers may be the state's, which the step takes
            for _ in range(updates):
                state, metrics = training.step(state, batch)

            # metrics of the step before, rollouts, an example
            tokens = int(on_host[step]["num_tokens"])
            write(late.push(step, metrics, [record.id for record in chosen], tokens=tokens))
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in judgments))
            if step % run.config.log.example_every == 0:
                print(f"step {step}\n{example_text(chosen[0], judgments[:G])}", flush=True)

            # checkpoint
            stop = stopped()
            if stop or (step + 1) % run.config.checkpoint.every == 0:
                write(late.flush())
                file.flush()
                if processes.is_main():
                    os.fsync(file.fileno())
                save_state(run, training, state, {"batches": prompts.get_state()})
            if stop:
                leave(training, "rl", state)
        write(late.flush())
    training.checkpoints.close()
    save_model(run, "grm", training, state)


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
    loss = policy_loss(settings.loss, settings.loss_args)
    return rl_loss(model, loss, cfg, settings.temperature), cfg


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
    asks = with_prompts(run.prompter, asks)
    width = bucket_length(max(len(ask.prompt_ids) for ask in asks), run.config.lengths.buckets)
    batches = judge(
        sampler,
        params,
        run.prompter,
        asks,
        seed=seed,
        temperature=settings.temperature,
        buckets=(width,),
        rows=min(len(asks) * G, run.config.sampling.rows // G * G),
        labels={"split": "train", "system": "grm", "stage": "rl", "step": step},
    )
    drawn = [rollout for batch in batches for rollout in batch]
    return sorted(drawn, key=lambda rollout: (rollout.ask, rollout.row["sample"]))


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
