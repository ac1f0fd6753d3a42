"""Meta RM (paper, section 4 and C.1): a scalar head on the policy's architecture, trained to tell
correct judgments from wrong ones.
"""

from experiments.stages.rft import trajectories
from experiments.stages.workdir import Run, load_policy, save_model, system, with_head
from grm_jax.data.examples import fitting
from grm_jax.evaluation import store
from grm_jax.evaluation.judging import Pass, judge_pass
from grm_jax.reward_models.meta_rm import meta_examples
from grm_jax.training.loop import fit
from grm_jax.training.step import meta_loss


def sample_own(run: Run) -> None:
    """Draw judgments of the training records by the policies that the Meta RM will judge ->
    trajectories/<policy>/.
    """
    settings, seed = run.config.meta, run.config.seed + 1
    way = Pass("sampled", tuple(range(settings.own_samples)), settings.temperature)
    for name in settings.policies:
        policy, path = system(run, name), _own(run, name)
        store.claim(path.parent, policy.identity)
        judge_pass(
            path, lambda policy=policy: policy.load(seed), run.train, way, f"meta_sample, {name}"
        )


def _own(run: Run, policy: str):
    return run.trajectories(policy) / "own" / f"sampled-seed{run.config.seed + 1}.jsonl"


def train(run: Run) -> None:
    """Train on the unhinted RFT-stage trajectories and the policies' own judgments ->
    models/meta.
    """
    judgments = trajectories(run)
    for name in run.config.meta.policies:
        judgments += store.in_drawn_order(
            store.read_all(
                _own(run, name),
                run.train,
                range(run.config.meta.own_samples),
                ("hinted", "order", "text"),
            ),
            run.train,
        )
    records, template = {record.id: record for record in run.train}, run.asking.templates["meta"]
    examples = meta_examples(run.tokenizer, template, records, judgments)
    limit = run.setup.sequence_buckets[-1]
    kept = fitting(examples, limit)
    share, most = 1 - len(kept) / max(len(examples), 1), run.config.data.max_left_out
    if not kept or share > most:
        raise ValueError(
            f"meta: {len(examples) - len(kept)} of {len(examples)} judgments are longer than "
            f"lengths.prompt + lengths.completion = {limit} tokens with the Meta RM's template, "
            f"more than data.max_left_out = {most:g} allows; raise one of the two"
        )
    print(
        f"meta: {len(kept)} judgments ({len(examples) - len(kept)} longer than {limit} tokens left "
        f"out), {sum(e['labels'] for e in kept) / len(kept):.3f} of them correct",
        flush=True,
    )
    start = with_head(run, load_policy(run, run.config.meta.policies[-1]))
    loss, weights = meta_loss(run.model_cfg), {"judgments": 1.0}
    trained = fit(run.setup, "meta", start, loss, {"judgments": kept}, weights, run.config.meta)
    save_model(run, "meta", trained, kind="meta_rm")
