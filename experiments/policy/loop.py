"""Tunes the policy by RL with any judge as its reward: GRPO on groups of responses to one prompt.

The pieces are the library's: the engine that draws, the group advantage, the loss and its KL to the
policy that training began from, checkpoints. `reward(prompts, texts, seed) -> numbers` is the form
in which trainers ask for rewards; a NaN is a response that got none.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.policy import writer as writing
from experiments.policy.writer import Drawn, Writer
from grm_jax.data.world.tasks import Query
from grm_jax.data.world.writing import gold, make_queries, read_response
from grm_jax.evaluation import store
from grm_jax.losses import ADVANTAGES
from grm_jax.progress import progress
from grm_jax.training.loop import begin, finish, save_state
from grm_jax.training.objectives import rl_objective
from grm_jax.training.rollouts import padded_batching
from grm_jax.training.settings import RlConfig

Reward = Callable[[Sequence[str], Sequence[str], int], Sequence[float]]


def without_gaps(rewards_B: Sequence[float], group_size: int) -> np.ndarray:
    """Puts the mean of its group in the place of a reward that is missing, so that the response
    has no advantage; 0 where a whole group has none. Returns float32[B].
    """
    rewards_PG = np.asarray(rewards_B, np.float32).reshape(-1, group_size)
    known_PG = np.isfinite(rewards_PG)
    total_P = np.where(known_PG, rewards_PG, 0).sum(axis=1)
    mean_P1 = (total_P / np.maximum(known_PG.sum(axis=1), 1))[:, None]
    return np.where(known_PG, rewards_PG, mean_P1).reshape(-1).astype(np.float32)


def described(queries: Sequence[Query], drawn: Sequence[Sequence[Drawn]]) -> dict[str, float]:
    """What a batch of responses is like: gold, length in tokens, and the share that carries each
    thing which never makes a response right.
    """
    texts = [one.text for row in drawn for one in row]
    read = [r for r in map(read_response, texts) if r is not None]
    share = {
        "filler": sum(bool(r.filler) for r in read),
        "certain": sum(r.certain for r in read),
        "bold": sum(r.bold for r in read),
        "unread": len(texts) - len(read),
    }
    return {
        "gold": float(np.mean([gold(q, d.text) for q, row in zip(queries, drawn) for d in row])),
        "tokens": float(np.mean([len(d.completion.token_ids) for row in drawn for d in row])),
        **{name: count / len(texts) for name, count in share.items()},
    }


def tune(
    writer: Writer,
    params: dict,
    reward: Reward,
    rl: RlConfig,
    folder: pathlib.Path,
    seed: int,
    every: int = 20,
    of: str = "",
) -> dict:
    """Trains `params` for rl.steps, and returns the new ones.

    of: what `params` and `reward` are. A checkpoint of another `of` or `rl` is an error.

    Writes a line for each step to folder/steps.jsonl: the judge's mean reward and the gold of the
    same responses, the KL per response, entropy. Run again, it goes on from its last checkpoint,
    with the same result.
    """
    of = f"{json.dumps(dataclasses.asdict(rl))} {of}"
    setup = writing.train_setup(writer, folder, seed, rl.steps, every, of)
    loss, loss_cfg = rl_objective(rl, writer.cfg, writing.COMPLETION)
    training = begin(setup, "rl", params, loss, rl, rl.steps)  # `params` stay, as the reference
    batching = padded_batching(
        writer.cfg, setup.mesh, loss_cfg, rl.temperature, (writing.SEQUENCE,), 1
    )
    advantage, G = ADVANTAGES[rl.advantage], rl.group_size
    state, first = training.state, int(training.state.step)
    path = folder / "steps.jsonl"
    store.cut(path, lambda row: row["step"] < first)
    with open(path, "a", encoding="utf-8") as file, progress("rl", rl.steps, done=first) as advance:
        for step in range(first, rl.steps):
            policy = training.params_of(state)
            # G responses to each prompt, and what the judge says of them
            queries = make_queries(rl.batch_size // G, seed * 100_000 + step)
            prompts = [query.text for query in queries]
            row = {"step": step}
            drawn = writing.draw(writer, policy, prompts, G, seed, f"rl/{step}", rl.temperature)
            flat = [one for group in drawn for one in group]
            asked = [prompt for prompt in prompts for _ in range(G)]
            rewards = reward(asked, [one.text for one in flat], seed * 100_000 + step)
            # the batch, and one update
            laid = batching.lay(
                [one.prompt_ids for one in flat],
                [one.completion.token_ids for one in flat],
                [one.completion.logp for one in flat],
                G,
            )
            batch = dict(laid.batch)
            batch["ref_logp"] = batching.logprobs(params, batch)
            given_B = without_gaps(rewards, G)
            batch |= laid.of_rollouts(
                {
                    "advantages": np.asarray(advantage(given_B, G), np.float32),
                    "mask": np.ones(len(flat), np.float32),
                }
            )
            gap_B = np.asarray(((batch["old_logp"] - batch["ref_logp"]) * batch["mask"]).sum(1))
            state, metrics = training.step(state, batch)
            row |= described(queries, drawn) | {
                "reward": float(np.nanmean(rewards)),
                "missing": float(np.mean(~np.isfinite(rewards))),
                "kl": float(gap_B.mean()),  # nats a response, from samples
                "entropy": float(metrics["entropy"]),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            advance(reward=row["reward"], gold=row["gold"])
            if (step + 1) % every == 0:
                save_state(setup, training, state, {})
    return finish(setup, training, state).params
