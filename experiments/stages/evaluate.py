"""Judge every test split with every system, greedy and sampled, with the Meta RM's logit beside
each sampled judgment.
"""

from collections.abc import Callable

from experiments.stages.run import Run, load_meta, load_policy, policy_sampler
from grm_jax.judgment.records import Record
from grm_jax.reward_models.grm import judge_to_file, shuffled_asks
from grm_jax.reward_models.meta_rm import add_logits, make_scorer


def evaluation_stages(run: Run) -> list[tuple[str, Callable[[Run], None]]]:
    """One stage for each (system, split), so that a run that stops goes on where it was."""
    return [
        (f"eval_{system}_{split}", _stage(system, split))
        for system in run.config.eval.systems
        for split in run.config.eval.splits
    ]


def _stage(system: str, split: str) -> Callable[[Run], None]:
    def stage(run: Run) -> None:
        records, settings = run.evaluation[split], run.config.eval
        params = load_policy(run, system)
        if settings.greedy:
            _judge(
                run,
                f"eval_{system}_{split}_greedy",
                system,
                split,
                params,
                0.0,
                samples=1,
                per_order=1,
            )
        samples, per_order = max(settings.ks), min(settings.samples_per_order, max(settings.ks))
        finish = meta_scores(run, records)
        _judge(
            run,
            f"eval_{system}_{split}",
            system,
            split,
            params,
            settings.temperature,
            samples,
            per_order,
            finish,
        )

    return stage


def _judge(
    run, name, system, split, params, temperature, samples, per_order, finish=lambda rows: rows
):
    judge_to_file(
        run.judgments(name),
        policy_sampler(run, temperature),
        params,
        run.prompter,
        shuffled_asks(run.evaluation[split], samples, run.config.eval.seed, per_order),
        seed=run.config.eval.seed,
        temperature=temperature,
        buckets=run.config.lengths.buckets,
        rows=run.config.sampling.rows,
        labels={"split": split, "system": system, "stage": "eval"},
        finish=finish,
    )


def meta_scores(run: Run, records: list[Record]) -> Callable[[list[dict]], list[dict]]:
    """Adds the Meta RM's logits to judgment rows."""
    params, scorer = load_meta(run), make_scorer(run.cfg)
    by_id, tokenizer = {record.id: record for record in records}, run.prompter.tokenizer

    def finish(rows: list[dict]) -> list[dict]:
        add_logits(
            rows,
            by_id,
            scorer,
            params,
            tokenizer,
            run.meta_template,
            run.sequence_buckets,
            run.config.sampling.rows,
        )
        return rows

    return finish
