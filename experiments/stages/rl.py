"""Rule-based online RL (paper, section 3.2): G rollouts a prompt, +1 or -1, group advantages, a
value-free loss, KL to the RFT policy.
"""

from collections.abc import Sequence

import numpy as np

from experiments import run_config
from experiments.stages.rft import trajectories
from experiments.stages.rollouts import restored, roll_out
from experiments.stages.workdir import Run, load_policy, save_model
from grm_jax.data.pipeline import make_batches
from grm_jax.evaluation import store
from grm_jax.judgment.records import Record
from grm_jax.judgment.rules import REWARDS, is_too_easy
from grm_jax.losses import ADVANTAGES, LossConfig, objective_mask
from grm_jax.naming import resolve
from grm_jax.parallel import processes
from grm_jax.progress import progress
from grm_jax.reward_models.system import samplers
from grm_jax.training.loop import Trained, begin, finish, leave, observe, save_state
from grm_jax.training.metrics import MetricsLog
from grm_jax.training.objectives import rl_objective
from grm_jax.training.rollouts import (
    Batching,
    consistency_rewards,
    packed_batching,
    padded_batching,
    rewards_of,
    rollout_metrics,
    sampler_gap,
)
from grm_jax.training.speed import engine_metrics, rl_work

# what the console shows beside the step: {name there: metric}
SHOWN = {"reward": "reward/mean", "kl": "kl", "entropy": "entropy"}


def train(run: Run) -> dict | None:
    """Train the RFT policy -> models/grm. Without steps the final model is that of RFT."""
    if not run.config.rl.steps:
        save_model(run, "grm", Trained(load_policy(run, "rft"), None))
        return {"note": "rl.steps is 0: the final model is the RFT model."}
    settings = run_config.section(run.config, "rl")
    setup, G, updates = run.setup, settings.group_size, settings.updates_per_rollout
    orders = settings.orders
    grouped = G * orders  # rollouts that are weighed against each other

    # what is trained on, and what for
    records = rl_prompts(run)
    prompts = make_batches(
        {"prompts": [{"index": i} for i in range(len(records))]},
        batch_size=settings.batch_size // grouped,
        seed=run.config.seed,
    )
    reward, advantage = (resolve(settings.reward, REWARDS), resolve(settings.advantage, ADVANTAGES))
    loss, loss_cfg = rl_objective(settings, run.model_cfg, run.asking.lengths.completion)

    # the RFT policy is where training starts; where the KL needs it, it stays as the reference
    policy = load_policy(run, "rft")
    reference = policy if loss_cfg.beta else None
    training = begin(
        setup, "rl", policy, loss, settings, settings.updates, donate=reference is None
    )
    del policy
    sampler = samplers(run.asking, run.model_cfg, run.tokenizer)(settings.temperature)
    batching = batches_of(run, loss_cfg)

    # where an earlier process stopped
    state, first = training.state, int(training.state.step) // updates
    ahead = None
    if training.extra:
        prompts.set_state(training.extra["batches"])
    if "ahead" in training.extra:
        ahead = restored(training.extra["ahead"], settings.batch_size)
    path = run.workdir / "trajectories" / "rl.jsonl"
    processes.on_main("rollouts on file", lambda: store.cut(path, lambda j: j["step"] < first))

    with (
        MetricsLog(setup.folder, "rl", first, setup.sinks) as log,
        store.appending(path) as file,
        progress("rl", settings.steps, done=first) as advance,
        processes.stop_signal("rl") as stopped,
        observe(setup, "rl", first) as (phases, late, goodput),
    ):
        on_host: dict[int, dict] = {}  # metrics of rollouts whose train step is still under way

        def write(rows):
            for step, row in rows:
                row |= on_host.pop(step) | {
                    "learning_rate": float(training.learning_rate((step + 1) * updates - 1))
                }
                log.write(step, row)
                advance(**{name: row[metric] for name, metric in SHOWN.items() if metric in row})

        saved = first * updates
        for step in phases.steps(first, settings.steps):
            # rollouts: G judgments of each prompt by the policy as it is now, or as it was up to
            # max_lag steps ago, when those of this step were put into the queue behind its own
            policy, position = training.params_of(state), prompts.get_state()
            phases.begin("rollout")
            if ahead is None:
                queued = range(step, min(step + settings.max_lag + 1, settings.steps))
                indices = {later: np.repeat(next(prompts)["index"], orders) for later in queued}
                ahead = roll_out(run, sampler, policy, records, indices)
            rollouts = ahead.take(step, stopped)
            if rollouts is None:  # asked to stop: as after the step before
                write(late.flush())
                goodput.mark(step)
                if int(state.step) > saved:
                    save_state(setup, training, state, {"batches": position})
                leave(training, "rl", state)
            phases.begin("host")
            chosen = [records[i] for i in ahead.records[step]]
            judgments = [rollout.judgment for rollout in rollouts]

            # rewards
            rewards = rewards_of(reward, judgments, [chosen[r.ask] for r in rollouts])
            if settings.consistency is not None:
                agreed = consistency_rewards(judgments, G)
                rewards = [r + settings.consistency * a for r, a in zip(rewards, agreed)]
            for judgment, value in zip(judgments, rewards, strict=True):
                judgment |= {"step": step, "reward": value}
            lengths = [len(rollout.prompt_ids) for rollout in rollouts]
            on_host[step] = rollout_metrics(judgments, lengths, grouped)
            if settings.consistency is not None:
                on_host[step]["both_orders_right"] = sum(agreed) / len(agreed)
            on_host[step] |= engine_metrics([ahead.counts[step]] if step in ahead.counts else [])
            on_host[step] |= {"lag": float(step - ahead.first)} if settings.max_lag else {}
            ahead = ahead if step < ahead.last else None

            # the batch, on the devices
            laid = batching.lay(
                [rollout.prompt_ids for rollout in rollouts],
                [rollout.completion_ids for rollout in rollouts],
                [rollout.logp for rollout in rollouts],
                G,
            )
            passes = (settings.old_logp == "trainer") + (reference is not None)
            completed = [len(rollout.completion_ids) for rollout in rollouts]
            adapters = run.setup.lora.rank > 0
            work = rl_work(
                run.model_cfg, lengths, completed, G, laid.positions, passes, updates, adapters
            )._replace(
                computed_tokens=laid.computed, needed_tokens=sum(lengths[::G]) + sum(completed)
            )
            batch = dict(laid.batch)

            # log-probabilities under the policy before the update, and under the reference
            phases.begin("logprobs")
            if settings.old_logp == "trainer":
                logp = batching.logprobs(policy, batch)
                on_host[step] |= sampler_gap(batch["old_logp"], logp, batch[laid.sampled])
                if settings.importance_sampling_correction:
                    batch["sampler_logp"] = batch["old_logp"]
                batch["old_logp"] = logp
            if reference is not None:
                batch["ref_logp"] = batching.logprobs(reference, batch)
            phases.until(batch.get("ref_logp", batch["old_logp"]))

            # advantages, and the rollouts that count
            rewards_B, penalty_B = np.array(rewards, np.float32), 0.0
            if loss_cfg.kl_in == "reward" and reference is not None:
                penalty_B = laid.to_rollouts(batching.penalty(batch))
            counted_B1 = objective_mask(np.ones((len(rewards), 1)), rewards_B, grouped, loss_cfg)
            batch |= laid.of_rollouts(
                {
                    "advantages": np.asarray(advantage(rewards_B, grouped, penalty_B), np.float32),
                    "mask": np.asarray(counted_B1, np.float32)[:, 0],
                }
            )

            # updates of the policy
            phases.begin("update")
            del policy  # its buffers may be the state's, which the step takes
            for _ in range(updates):
                state, metrics = training.step(state, batch)
            phases.until(metrics["loss"])

            # metrics of the step before, rollouts, an example
            phases.begin("host")
            write(late.push(step, metrics, [record.id for record in chosen], work))
            store.append(file, judgments)
            if step % run.config.log.example_every == 0:
                print(f"step {step}\n{example_text(chosen[0], judgments[:G])}", flush=True)

            # checkpoint
            stop = stopped()
            if stop or (step + 1) % setup.every == 0:
                write(late.flush())
                extra = {"batches": prompts.get_state()}
                if ahead is not None:  # their policy is not in the checkpoint, so they are
                    phases.begin("rollout")
                    extra["ahead"] = ahead.drained(step + 1)
                phases.begin("checkpoint")
                goodput.mark(step + 1)
                save_state(setup, training, state, extra)
                saved = int(state.step)
            if stop:
                leave(training, "rl", state)
        write(late.flush())
    save_model(run, "grm", finish(setup, training, state))


def batches_of(run: Run, loss_cfg: LossConfig) -> Batching:
    """How rollouts become batches: packed, or padded where config packing.rows is ()."""
    settings, setup = run_config.section(run.config, "rl"), run.setup
    common = (run.model_cfg, setup.mesh, loss_cfg, settings.temperature)
    if setup.row_lengths:
        return packed_batching(*common, run.asking.lengths.completion, setup.row_lengths)
    parts = settings.batch_size // settings.micro_batch
    return padded_batching(*common, setup.sequence_buckets, parts)


def rl_prompts(run: Run) -> list[Record]:
    """The training records, without those that every unhinted RFT sample got right (config
    rl.drop_easy_prompts).
    """
    if not run.config.rl.drop_easy_prompts:
        return run.train
    correct: dict[str, list[bool]] = {}
    for judgment in trajectories(run):
        if not judgment["hinted"]:
            correct.setdefault(judgment["id"], []).append(judgment["correct"])
    kept = [record for record in run.train if not is_too_easy(correct[record.id])]
    if not kept:
        raise ValueError(
            f"rl.drop_easy_prompts: every unhinted judgment of all {len(run.train)} records is "
            "correct, so none is left to train on; give harder records, or switch it off"
        )
    print(
        f"RL prompts: {len(kept)} of {len(run.train)} records; the others are too easy", flush=True
    )
    return kept


def example_text(record: Record, judgments: Sequence[dict], limit: int = 600) -> str:
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
    lines.append(f"   judgment, responses shown as {judgments[0]['order']}:")
    lines += [f"   | {line}" for line in short(judgments[0]["text"]).splitlines()]
    verdicts = [j["scores"] if j["scores"] is not None else j["failure"] for j in judgments]
    return "\n".join(
        [
            *lines,
            f"   scores: {'; '.join(map(str, verdicts))}   correct: "
            f"{sum(row['correct'] for row in judgments)} of {len(judgments)}",
        ]
    )
