"""Reward models with a scalar head: Bradley-Terry, PairRM, CLoud (paper, App C.2). Their training;
the finished model goes through the evaluator.

    models/{bradley_terry,pair_rm,cloud}/   the scalar model; models/critic/ beside the last one
    trajectories/critic/train/              CLoud: the critiques that its head is trained on
"""

import collections
import pathlib
from collections.abc import Callable

from experiments import run_config
from experiments.stages.inputs import load_critiques
from experiments.stages.workdir import Run, load_model, load_policy, save_model, with_head
from grm_jax.data.examples import fitting, instruction_examples
from grm_jax.evaluation import store
from grm_jax.evaluation.judging import Pass, judge_pass
from grm_jax.judgment.records import Record
from grm_jax.reward_models.cloud import critic, critic_example, head_examples
from grm_jax.reward_models.description import content_digest
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.pair_rm import pair_examples
from grm_jax.reward_models.scalar import preference_examples
from grm_jax.reward_models.system import System, samplers
from grm_jax.training.loop import fit
from grm_jax.training.step import LossFn, meta_loss, preference_loss, rft_loss

Stages = list[tuple[str, Callable[[Run], None]]]


def training_stages(run: Run) -> Stages:
    """The stages that train `config.kind`."""
    return {
        "bradley_terry": [("bradley_terry", train_bradley_terry)],
        "pair_rm": [("pair_rm", train_pair_rm)],
        "cloud": [
            ("critic", train_critic),
            ("critiques", sample_critiques),
            ("cloud", train_cloud),
        ],
    }[run.config.kind]


def trained(run: Run) -> list[System]:
    """The finished model of `config.kind`, as a system to evaluate."""
    kind = run.config.kind
    spec = {"name": kind, "kind": kind, "path": str(run.folder(kind))}
    if kind == "cloud":
        spec["critic"] = str(run.folder("critic"))
    return [describe(spec, run.asking)]


def train_bradley_terry(run: Run) -> None:
    """All gold pairs of the training records -> models/bradley_terry."""
    loss = preference_loss(run.model_cfg, run.config.bradley_terry.center)
    _fit_scalar(run, "bradley_terry", loss, preference_examples(run.tokenizer, run.train))


def train_pair_rm(run: Run) -> None:
    """All gold pairs of the training records, in both orders -> models/pair_rm."""
    _fit_scalar(run, "pair_rm", meta_loss(run.model_cfg), pair_examples(run.tokenizer, run.train))


def train_critic(run: Run) -> None:
    """Fine-tune a policy on critiques of single responses, with general instruction data ->
    models/critic.
    """
    settings = run.config.critic
    critiques = [
        record
        for source in run.config.data.critiques
        for record in load_critiques(source, run.config)
    ]
    fraction = settings.general_fraction
    shares = {"critiques": 1.0 - fraction, "general": fraction}
    sources = {"critiques": [critic_example(run.tokenizer, record) for record in critiques]}
    if fraction > 0:
        sources["general"] = instruction_examples(run.tokenizer, run.general)
    sources = {
        name: _fitting(run, f"critic: {name}", examples) for name, examples in sources.items()
    }
    folder = run_config.critic_folder(run.config)
    start = load_policy(run, "base") if folder is None else load_model(run, folder)
    loss = rft_loss(run.model_cfg)
    trained_critic = fit(run.setup, "critic", start, loss, sources, shares, settings)
    save_model(run, "critic", trained_critic, kind="critic")


def sample_critiques(run: Run) -> None:
    """Draw critiques of the responses of every training record by the critic ->
    trajectories/critic/.
    """
    settings, folder, lengths = run.config.cloud, run.folder("critic"), run.asking.lengths

    def load():
        return critic(
            "critic",
            samplers(run.asking, run.model_cfg, run.tokenizer),
            load_model(run, folder),
            run.tokenizer,
            seed=run.config.seed,
            buckets=lengths.buckets,
            rows=run.asking.sampling.rows,
        )

    path = _critiques(run)
    sizes = {"prompt": lengths.prompt, "completion": lengths.completion}
    store.claim(path.parent, {"kind": "critic", "model": content_digest(folder)} | sizes)
    way = Pass("sampled", tuple(range(settings.samples)), settings.temperature)
    judge_pass(path, load, _criticized(run), way, "critiques")


def _criticized(run: Run) -> list[Record]:
    """The training records that make pairs."""
    return [record for record in run.train if len(record.responses) > 1]


def _critiques(run: Run) -> pathlib.Path:
    return run.trajectories("critic") / f"sampled-seed{run.config.seed}.jsonl"


def train_cloud(run: Run) -> None:
    """All gold pairs of the training records, each response with its sampled critique ->
    models/cloud.
    """
    by_id, examples = {record.id: record for record in run.train}, []
    failures: collections.Counter[str] = collections.Counter()
    critiques = store.read_all(
        _critiques(run), _criticized(run), range(run.config.cloud.samples), ("critiques",)
    )
    for judgment in store.in_drawn_order(critiques, run.train):
        if judgment["failure"] is None:
            record = by_id[judgment["id"]]
            examples += head_examples(run.tokenizer, record, judgment["critiques"])
        else:
            failures[judgment["failure"]] += 1
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(failures.items())) or "none"
    print(f"cloud: samples of records that failed and are left out: {counts}", flush=True)
    _fit_scalar(run, "cloud", preference_loss(run.model_cfg), examples)


def _fit_scalar(run: Run, name: str, loss: LossFn, examples: list[dict]) -> None:
    """Train a scalar head, and the base model below it, on the examples that fit ->
    models/<name>.
    """
    start, pairs = with_head(run, load_policy(run, "base")), _fitting(run, name, examples)
    settings = run.config[name]
    head = fit(run.setup, name, start, loss, {"pairs": pairs}, {"pairs": 1.0}, settings)
    save_model(run, name, head, kind=name)


def _fitting(run: Run, label: str, examples: list[dict]) -> list[dict]:
    """The examples whose sequences fit the largest bucket; the others are counted, never cut."""
    limit = run.setup.sequence_buckets[-1]
    kept, most = fitting(examples, limit), run.config.data.max_left_out
    print(f"{label}: {len(kept)} of {len(examples)} examples fit {limit} tokens", flush=True)
    if not examples:
        raise ValueError(
            f"{label}: no example to train on; expected records of two or more responses, of which "
            "one is better than another"
        )
    if not kept or 1 - len(kept) / len(examples) > most:
        raise ValueError(
            f"{label}: only {len(kept)} of {len(examples)} examples fit lengths.prompt + "
            f"lengths.completion = {limit} tokens, and data.max_left_out = {most:g}; raise one of "
            "the two"
        )
    return kept
