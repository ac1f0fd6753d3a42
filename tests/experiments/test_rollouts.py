"""Rollouts of several steps, drawn in one queue: which policy draws what, and what a stop keeps."""

import contextlib
import types

import jax
import numpy as np
import pytest

from experiments import run_config
from experiments.stages import rl, workdir
from grm_jax.evaluation import store
from grm_jax.judgment.records import response_order
from grm_jax.parallel.mesh import make_mesh
from grm_jax.reward_models.grm import Ask, judge
from grm_jax.sampling.mapped import make_sampler
from grm_jax.training.metrics import MEASURED, read_metrics
from tests.experiments import micro

STEPS = 5


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """f(name, **fields of rl) -> a run whose RFT policy is the base model."""

    def make(name, every=100, **fields):
        config = micro.get_config()
        config.rl.update(
            drop_easy_prompts=False,
            steps=STEPS,
            old_logp="trainer",
            importance_sampling_correction=True,
            learning_rate=3e-3,  # far enough for weights that differ from 1
            **fields,
        )
        config.checkpoint.every = every
        config.log.sinks = ("jsonl",)
        folder = tmp_path_factory.mktemp(name)
        return workdir.setup(run_config.finish(config), folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "load_policy", lambda run, name: workdir.load_policy(run, "base"))
        one = jax.devices()[:1]  # programs for 8 take minutes to compile
        patch.setattr(workdir, "make_mesh", lambda **sizes: make_mesh(1, 1, 1, one))
        yield make


def rows_of(run):
    """What a run logged, but for what is measured."""
    return [
        {name: x for name, x in row.items() if not name.startswith(MEASURED)}
        for row in read_metrics(run.workdir / "metrics.jsonl")
    ]


def judgments_of(run):
    return list(store.read(run.workdir / "trajectories/rl.jsonl"))


def weights_of(run):
    return (run.workdir / "models/grm/model.safetensors").read_bytes()


def twin(run, max_lag, monkeypatch):
    """Trains with each step's rollouts drawn when they are due, on their own, by the batch sampler,
    from parameters that were kept on the host.
    """
    history, begin = [], rl.begin

    def begin_and_keep(*args, **kwargs):
        training = begin(*args, **kwargs)
        history.append(jax.device_get(training.state.params))

        def step(state, batch):
            state, metrics = training.step(state, batch)
            history.append(jax.device_get(state.params))
            return state, metrics

        return training._replace(step=step)

    def draw(run, sampler, step, records):
        asks = [
            Ask(
                r,
                response_order(0, f"{r.id}@{step}.{p}", 0, len(r.responses)),
                (0, 1, 2, 3),
                f"{r.id}@{step}.{p}",
            )
            for p, r in enumerate(records)
        ]
        blocks = judge(
            make_sampler(sampler.cfg, sampler.scfg, sampler.mode, sampler.mesh),
            jax.device_put(history[step - step % (max_lag + 1)]),
            run.prompter,
            asks,
            seed=0,
            temperature=1.0,
            buckets=(80,),
            rows=8,
        )
        drawn = [rollout for block in blocks for rollout in block]
        return sorted(drawn, key=lambda rollout: (rollout.ask, rollout.judgment["sample"]))

    def roll_out(run, sampler, params, records, chosen):
        return types.SimpleNamespace(
            first=min(chosen),
            last=max(chosen),
            records=chosen,
            counts={},
            take=lambda step, stopped: draw(run, sampler, step, [records[i] for i in chosen[step]]),
        )

    monkeypatch.setattr(rl, "begin", begin_and_keep)
    monkeypatch.setattr(rl, "roll_out", roll_out)
    rl.train(run)


@pytest.mark.parametrize(
    "max_lag", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_lagged_run_is_one_that_keeps_older_parameters(make_run, monkeypatch, max_lag):
    """Three steps together are more than the queue has rows for at once; the last are one less."""
    run, slow = (make_run(name, max_lag=max_lag) for name in ("lagged", "twin"))
    rl.train(run)
    twin(slow, max_lag, monkeypatch)
    rows, want = rows_of(run), rows_of(slow)
    assert [j["text"] for j in judgments_of(run)] == [j["text"] for j in judgments_of(slow)]
    for row, wanted in zip(rows, want, strict=True):
        assert row.keys() - wanted.keys() == {name for name in row if name.startswith("engine/")}
        for name, value in wanted.items():
            if name not in ("stage", "time"):
                np.testing.assert_allclose(row[name], value, rtol=2e-3, atol=2e-5, err_msg=name)
    if max_lag:
        assert [row["lag"] for row in rows] == [step % (max_lag + 1) for step in range(STEPS)]
        # the weights do something, and only where the policy has moved
        apart = [row["importance_weight_max"] - 1 for row in rows]
        assert all((x > 0.01) == (row["lag"] > 0) for x, row in zip(apart, rows))


@pytest.mark.parametrize("asked_to_stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_ends_while_rollouts_are_ahead_goes_on_with_the_same_bits(
    make_run, monkeypatch, asked_to_stop
):
    """What is ahead at a checkpoint lies in it, since the policy that draws it does not."""
    whole, run = (make_run(name, every=3, max_lag=1) for name in ("whole", "stopped"))
    rl.train(whole)
    append = store.append

    def killed(file, judgments):
        append(file, judgments)
        if judgments[0]["step"] == 4:  # update 3 is saved, when step 3's rollouts are ahead
            raise Killed

    @contextlib.contextmanager
    def asked(label):
        # behind step 0, when step 1's rollouts are ahead
        yield lambda: bool(judgments_of(run))

    def left(training, stage, state):
        training.checkpoints.close()
        raise Killed

    with monkeypatch.context() as patch:
        if asked_to_stop:
            patch.setattr(rl.processes, "stop_signal", asked)
            patch.setattr(rl, "leave", left)
        else:
            patch.setattr(rl.store, "append", killed)
        with pytest.raises(Killed):
            rl.train(run)
    rl.train(run)
    assert rows_of(run) == rows_of(whole)
    assert judgments_of(run) == judgments_of(whole)
    assert weights_of(run) == weights_of(whole)


def test_both_orders_of_a_record_are_one_group_and_agreement_is_rewarded(make_run, monkeypatch):
    run, given = make_run("both", consistency=0.5), []
    advantage = rl.ADVANTAGES["group"]
    monkeypatch.setitem(
        rl.ADVANTAGES, "group", lambda r, G, penalty: given.append(G) or advantage(r, G, penalty)
    )
    rl.train(run)
    judgments = sorted(judgments_of(run), key=lambda j: j["step"])
    assert given == [8] * STEPS and len(judgments) == 8 * STEPS
    agreed = 0
    for step in range(STEPS):
        rows = judgments[8 * step : 8 * step + 8]
        assert len({row["id"] for row in rows}) == 1
        first, second = rows[:4], rows[4:]
        assert all(row["order"] == first[0]["order"] for row in first)
        assert all(row["order"] == first[0]["order"][::-1] for row in second)
        lists = len(first[0]["order"]) > 1
        for own, other in ((first, second), (second, first)):
            share = sum(row["correct"] for row in other) / 4
            for row in own:
                term = 0.5 * share if row["correct"] and lists else 0.0
                assert row["reward"] == (1.0 if row["correct"] else -1.0) + term
                agreed += term > 0
    assert agreed
    logged = [row["both_orders_right"] for row in rows_of(run)]
    assert len(logged) == STEPS and 0 < max(logged) <= 1
