"""Meta RM (paper, section 4 and C.1): a scalar head on the policy's architecture, trained to tell
correct judgments from wrong ones.
"""

from experiments.stages.rft import SAMPLES
from experiments.stages.run import Run, load_policy, policy_sampler, with_head
from experiments.stages.train import fit
from grm_jax.models.table import SCALAR
from grm_jax.reward_models.grm import judge_to_file, read_rows, shuffled_asks
from grm_jax.reward_models.meta_rm import meta_examples
from grm_jax.training.step import meta_loss


def sample_own(run: Run) -> None:
    """Judgments of the training records by the policies that the Meta RM will judge."""
    settings = run.config.meta
    for name in settings.policies:
        judge_to_file(
            run.judgments(f"meta_sample_{name}"),
            policy_sampler(run, settings.temperature),
            load_policy(run, name),
            run.prompter,
            shuffled_asks(run.train, settings.own_samples, run.config.seed + 1),
            seed=run.config.seed + 1,
            temperature=settings.temperature,
            buckets=run.config.lengths.buckets,
            rows=run.config.sampling.rows,
            labels={"split": "train", "system": name, "stage": "meta_sample"},
        )


def train(run: Run) -> None:
    """Train on the unhinted RFT-stage trajectories and the policies' own judgments ->
    models/meta.
    """
    rows = read_rows(run.judgments(SAMPLES))
    for name in run.config.meta.policies:
        rows += read_rows(run.judgments(f"meta_sample_{name}"))
    records = {record.id: record for record in run.train}
    examples = meta_examples(run.prompter.tokenizer, run.meta_template, records, rows)
    limit = run.sequence_buckets[-1]
    kept = [example for example in examples if len(example["tokens"]) <= limit]
    print(
        f"meta: {len(kept)} judgments ({len(examples) - len(kept)} longer than {limit} tokens "
        "left out), "
        f"{sum(e['labels'] for e in kept) / len(kept):.3f} of them correct",
        flush=True,
    )
    start = with_head(run, load_policy(run, run.config.meta.policies[-1]))
    fit(
        run,
        "meta",
        start,
        meta_loss(run.cfg),
        {"judgments": kept},
        {"judgments": 1.0},
        run.config.meta,
        architecture=SCALAR,
    )
