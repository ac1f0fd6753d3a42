"""An RL step does nothing twice, and nothing that is not used."""

import collections
import types

import jax.numpy as jnp
import pytest

from experiments import run_config
from experiments.stages import rft, rl
from grm_jax.judgment.rules import rule_reward
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models import grm
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.training import loop, rollouts
from grm_jax.training.metrics import read_metrics
from grm_jax.training.rollouts import rewards_of, rollout_metrics
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
    settings = types.SimpleNamespace(group_size=4, temperature=1.0, consistency=None)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(rl=settings, seed=0),
        prompter=PROMPTER,
        asking=types.SimpleNamespace(
            lengths=Lengths(prompt=512, completion=200, buckets=(256, 512), sequences=()),
            sampling=Sampling(rows=8),
        ),
    )
    drawn = rl.roll_out(run, FakeSampler(), {}, records, {0: range(3)}).take(0)
    judgments = [rollout.judgment for rollout in drawn]
    rewards = rewards_of(rule_reward, judgments, [records[r.ask] for r in drawn])
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
        asking=types.SimpleNamespace(lengths=run_config.section(config, "lengths")),
        model_cfg=load_config(run_config.model_folder(config)),
        train=[record("a", (9, 2)), record("b", (3, 1))],
    )
    with pytest.raises(Begun):
        rl.train(run)
    assert begun == {"params": policy, "donate": beta == 0}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "fields, passes",
    [
        ({"beta": 0.0, "old_logp": "sampler"}, 0),
        ({"beta": 0.0, "old_logp": "trainer"}, 1),
        ({"beta": 0.02, "old_logp": "sampler"}, 1),
        ({"beta": 0.02, "old_logp": "trainer"}, 2),
        # the penalty in the reward needs the reference too
        ({"beta": 0.02, "old_logp": "sampler", "kl_in": "reward", "kl": "k1"}, 1),
        ({"beta": 0.0, "old_logp": "sampler", "kl_in": "reward"}, 0),
        # both orders of a record are weighed against each other, and described together
        ({"beta": 0.0, "old_logp": "sampler", "consistency": 0.5}, 0),
    ],
)
def test_a_step_runs_no_policy_whose_answer_nothing_uses(
    monkeypatch, tmp_path, fields, passes, packed
):
    """Forward passes beside sampling and the update, renderings and gradings, of two steps."""
    counts, described = collections.Counter(), []
    records = [record("a", (9, 2)), record("b", (3, 1))]
    config = micro.get_config()
    config.rl.update(drop_easy_prompts=False, steps=2, **fields)
    config.log.sinks = ("jsonl",)

    def counted(name, function):
        def f(*args):
            counts[name] += 1
            return function(*args)

        return f

    def step(state, batch):
        assert ("ref_logp" in batch) == (fields["beta"] > 0)
        counts["updates"] += 1
        metrics = {
            "loss": jnp.float32(0.5),
            "grad_norm": jnp.float32(1),
            "nonfinite": jnp.float32(0),
        }
        return types.SimpleNamespace(step=state.step + 1, params={}), metrics

    training = loop.Training(
        step,
        lambda state: state.params,
        lambda step: 0.1,
        None,
        types.SimpleNamespace(step=0, params={}),
        {},
    )
    monkeypatch.setattr(grm, "render_prompt", counted("rendered", grm.render_prompt))
    monkeypatch.setattr(grm, "is_correct", counted("graded", grm.is_correct))

    def describe(judgments, lengths, group_size):
        described.append(group_size)
        return rollout_metrics(judgments, lengths, group_size)

    monkeypatch.setattr(rl, "rollout_metrics", describe)
    monkeypatch.setattr(rl, "begin", lambda *args, **kwargs: training)
    monkeypatch.setattr(rl, "load_policy", lambda run, name: counts.update([f"load {name}"]) or {})
    monkeypatch.setattr(rl, "samplers", lambda *args: lambda temperature: FakeSampler())
    monkeypatch.setattr(rollouts, "place_batch", lambda mesh, batch, axis=0: batch)
    monkeypatch.setattr(rollouts, "shares", lambda mesh: 2)
    monkeypatch.setattr(rl, "finish", lambda *args: None)
    monkeypatch.setattr(rl, "save_state", lambda *args: None)
    monkeypatch.setattr(rl, "save_model", lambda *args: None)
    of_rows = counted("passes", lambda params, tokens, positions, *_: jnp.zeros(tokens.shape))
    of_packed = counted("passes", lambda params, batch: jnp.zeros(batch["tokens"].shape))
    monkeypatch.setattr(rollouts, "make_logprob_fn", lambda *args: of_rows)
    monkeypatch.setattr(rollouts, "make_packed_logprob_fn", lambda *args: of_packed)
    model_cfg = load_config(run_config.model_folder(config))
    setup = types.SimpleNamespace(
        folder=tmp_path,
        mesh=make_mesh(),
        model_cfg=model_cfg,
        sinks=("jsonl",),
        every=9,
        sequence_buckets=(1024,),
        row_lengths=(1024, 2048) if packed else (),
        lora=LoraConfig(rank=0),
        trace=None,
    )
    run = types.SimpleNamespace(
        config=config,
        setup=setup,
        workdir=tmp_path,
        tokenizer=PROMPTER.tokenizer,
        prompter=PROMPTER,
        asking=types.SimpleNamespace(
            lengths=Lengths(prompt=512, completion=200, buckets=(512,), sequences=()),
            sampling=Sampling(rows=8),
        ),
        model_cfg=model_cfg,
        train=records,
    )
    rl.train(run)
    drawn = 2 * config.rl.batch_size
    assert counts == {
        "load rft": 1,
        "rendered": drawn // config.rl.group_size,
        "graded": drawn,
        "updates": 2,
        **({"passes": 2 * passes} if passes else {}),
    }
    orders = 2 if "consistency" in fields else 1
    assert described == [config.rl.group_size * orders] * 2
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [0.5, 0.5] and "kl" not in rows[0]
    # the prompt of a group is needed once
    assert all(row["needed_tokens"] < row["num_tokens"] for row in rows)
    assert all(row["needed_tokens"] < row["computed_tokens"] for row in rows)


@pytest.mark.parametrize(
    "module, section, start, name", [(rft, "rft", "base", "rft"), (rl, "rl", "rft", "grm")]
)
def test_a_stage_of_no_steps_passes_its_start_on_and_says_so(
    monkeypatch, module, section, start, name
):
    saved, config = {}, micro.get_config()
    config[section].steps = 0
    assert run_config.section(run_config.finish(config), section).updates == 0
    monkeypatch.setattr(module, "load_policy", lambda run, policy: {"of": policy})
    monkeypatch.setattr(
        module, "save_model", lambda run, model, trained: saved.update({model: trained})
    )
    about = module.train(types.SimpleNamespace(config=config))
    assert saved == {name: loop.Trained({"of": start}, None)}
    assert about["note"].startswith(f"{section}.steps is 0: the ")
