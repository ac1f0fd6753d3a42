"""An RL step does nothing twice, and nothing that is not used."""

import types

import pytest

from experiments import config_flags
from experiments.stages import rl
from grm_jax.judgment.rules import rule_reward
from grm_jax.models.config import load_config
from grm_jax.reward_models import grm
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.training.rollouts import rewards_of
from tests.experiments import micro
from tests.reward_models.judge_cases import PROMPTER, FakeSampler, record


def test_a_prompt_is_rendered_once_a_step_and_a_judgment_graded_once(monkeypatch):
    rendered, graded = [], []

    def counted(count, function):
        def f(*args):
            count.append(args)
            return function(*args)

        return f

    monkeypatch.setattr(
        grm, "render_prompt", counted(rendered, grm.render_prompt)
    )  # what `Prompter.ids` tokenizes
    monkeypatch.setattr(grm, "is_correct", counted(graded, grm.is_correct))
    records = [record("a", (9, 2)), record("b", (3, 1, 8)), record("c", (1,))]
    settings = types.SimpleNamespace(group_size=4, temperature=1.0)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(rl=settings, seed=0),
        prompter=PROMPTER,
        asking=types.SimpleNamespace(
            lengths=Lengths(prompt=512, completion=200, buckets=(256, 512), sequences=()),
            sampling=Sampling(rows=8),
        ),
    )
    rollouts = rl.roll_out(run, FakeSampler(), {}, records, step=0)
    judgments = [rollout.judgment for rollout in rollouts]
    rewards = rewards_of(rule_reward, judgments, [records[r.ask] for r in rollouts])
    assert [j["id"] for j in judgments] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert rewards == [1.0] * 12
    assert [args[1].id for args in rendered] == ["a", "b", "c"]
    assert len(graded) == len(judgments)


class Begun(Exception):
    pass


@pytest.mark.parametrize("beta", [0.0, 0.02])
def test_without_a_kl_no_reference_is_kept(monkeypatch, beta):
    """At beta 0 the policy that training starts from becomes the state; else it stays beside it."""
    policy, begun = object(), {}

    def begin(setup, stage, params, loss, settings, updates, donate):
        begun.update(params=params, donate=donate)
        raise Begun

    monkeypatch.setattr(rl, "begin", begin)
    monkeypatch.setattr(rl, "load_policy", lambda run, name: policy)
    config = micro.get_config()
    config.rl.update(beta=beta, drop_easy_prompts=False)
    run = types.SimpleNamespace(
        config=config,
        setup=None,
        asking=types.SimpleNamespace(lengths=config_flags.section(config, "lengths")),
        model_cfg=load_config(config_flags.model_folder(config)),
        train=[record("a", (9, 2)), record("b", (3, 1))],
    )
    with pytest.raises(Begun):
        rl.train(run)
    assert begun == {"params": policy, "donate": beta == 0}
