"""Trains Tunix' toy transformer for a step with its GRPOLearner, the server its reward.

python run_tunix.py: prints what the learner computed, as a line of JSON.
"""

import json

import jax
import numpy as np
import optax
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.reward_manager import SequenceRewardManager
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.tests.test_common import MockVocab, ModelConfig, ToyTransformer

from grm_jax.adapters.tunix import grm_reward

WORDS = "none begin end Reverse the list: 1.fox 2.ant 3.hen Sort 1.owl 2.bee".split()
OPENING, ANSWER = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
TASKS = ["Reverse the list: 1.fox 2.ant 3.hen", "Sort the list:" + " 1.owl 2.bee" * 20]
PROMPTS = [f"{OPENING} {task} {ANSWER}" for task in TASKS]  # words apart, for the toy tokenizer


def main() -> None:
    tokenizer = MockVocab({word: i for i, word in enumerate(WORDS)})
    sizes = ModelConfig(vocab_size=len(WORDS))
    policy = ToyTransformer(sizes, rngs=nnx.Rngs(0))
    frozen = ToyTransformer(sizes, rngs=nnx.Rngs(0))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=policy,
        reference=frozen,
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.sgd(1e-3), eval_every_n_steps=10, max_steps=1
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=4, max_prompt_length=64, kv_cache_size=128
            ),
        ),
    )
    seen = {}

    def keep(prompts, completions, rewards, advantages, **columns):
        seen.update(prompts=list(prompts), completions=list(completions))
        seen.update(rewards=np.asarray(rewards).tolist(), advantages=advantages.tolist())
        return {}

    reward = grm_reward(k=4, seed=3, scalar="wins")
    settings = GRPOConfig(num_generations=4)
    GRPOLearner(cluster, settings, reward_fns=[reward], metric_fns=[keep]).train(
        [{"prompts": np.array(PROMPTS)}]
    )
    manager = SequenceRewardManager([reward], settings)
    logged = manager(seen["prompts"], seen["completions"])["log_metrics"]
    seen["by_function"] = logged["rewards/grm"][0].tolist()
    print(json.dumps(seen | {"tasks": {p: f" {task}" for p, task in zip(PROMPTS, TASKS)}}))


if __name__ == "__main__":
    main()
