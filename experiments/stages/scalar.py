"""Reward models with a scalar head: Bradley-Terry, PairRM, CLoud (paper, App C.2). Their training,
and the finished model on held-out records.

    models/{bradley_terry,pair_rm,cloud}/   the scalar model; models/critic/ beside the last one
    judgments/critiques.jsonl               CLoud: the critiques that its head is trained on, one
    line a record judgments/eval_SPLIT.jsonl              rows of the finished model
    (grm_jax/reward_models/protocol.py) held_out.json                           their accuracy
"""

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments import config_flags
from experiments.stages.rft import general_examples
from experiments.stages.run import Run, load_policy, policy_sampler, with_head
from experiments.stages.train import fit
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.data.sources import load_source
from grm_jax.data.world import make_critiques
from grm_jax.judgment.records import Record
from grm_jax.judgment.voting import expected_credit, vote
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import param_shardings
from grm_jax.progress import progress
from grm_jax.reward_models.cloud import cloud, critic_example, head_examples, write_critiques
from grm_jax.reward_models.grm import read_rows
from grm_jax.reward_models.pair_rm import pair_examples, pair_rm
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.scalar import gold_pairs, preference_examples, scalar_rm
from grm_jax.training.step import meta_loss, preference_loss, rft_loss

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


def train_bradley_terry(run: Run) -> None:
    """All gold pairs of the training records -> models/bradley_terry."""
    loss = preference_loss(run.cfg, run.config.bradley_terry.center)
    _fit_scalar(run, "bradley_terry", loss, preference_examples(run.prompter.tokenizer, run.train))


def train_pair_rm(run: Run) -> None:
    """All gold pairs of the training records, in both orders -> models/pair_rm."""
    _fit_scalar(
        run, "pair_rm", meta_loss(run.cfg), pair_examples(run.prompter.tokenizer, run.train)
    )


def train_critic(run: Run) -> None:
    """Fine-tune a policy on critiques of single responses, with general instruction data ->
    models/critic.
    """
    settings, tokenizer = run.config.critic, run.prompter.tokenizer
    critiques = [
        record
        for source in run.config.data.critiques
        for record in _load_critiques(source, run.config.seed)
    ]
    shares = {"critiques": 1.0 - settings.general_fraction, "general": settings.general_fraction}
    sources = {"critiques": [critic_example(tokenizer, record) for record in critiques]}
    if settings.general_fraction > 0:
        sources["general"] = general_examples(run)
    sources = {
        name: _fitting(run, f"critic: {name}", examples) for name, examples in sources.items()
    }
    folder = config_flags.critic_folder(run.config)
    start = load_policy(run, "base") if folder is None else _params(run, folder)
    fit(run, "critic", start, rft_loss(run.cfg), sources, shares, settings)


def sample_critiques(run: Run) -> None:
    """Critiques of the responses of every training record by the critic; a file that was cut short
    is continued behind its last whole line.
    """
    settings, path = run.config.cloud, run.judgments("critiques")
    done = set(processes.on_main("critiques on file", lambda: _critiqued(path)))
    records = [record for record in run.train if len(record.responses) > 1]
    left = [record for record in records if record.id not in done]
    blocks = write_critiques(
        policy_sampler(run, settings.temperature),
        _params(run, run.workdir / "models" / "critic"),
        run.prompter.tokenizer,
        left,
        range(settings.samples),
        seed=run.config.seed,
        buckets=run.config.lengths.buckets,
        rows=run.config.sampling.rows,
    )
    with (
        open(processes.written(path), "a") as file,
        progress("critiques", len(records), "records", len(records) - len(left)) as advance,
        processes.stop_signal() as stopped,
    ):
        for block in blocks:
            of_record: dict[str, list[dict]] = {}
            for one in block:
                of_record.setdefault(one.record.id, []).append(
                    {"sample": one.sample, "texts": one.texts, "failure": one.failure}
                )
            file.write(
                "".join(
                    json.dumps({"id": name, "critiques": found}, ensure_ascii=False) + "\n"
                    for name, found in of_record.items()
                )
            )
            file.flush()
            advance(len(of_record))
            if stopped():
                processes.leave("critiques, what was drawn is on file")


def _critiqued(path: pathlib.Path) -> list[str]:
    """The records whose critiques are on file; a line that was cut short is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    whole = path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1]
    path.write_bytes(whole)
    return [json.loads(line)["id"] for line in whole.splitlines()]


def train_cloud(run: Run) -> None:
    """All gold pairs of the training records, each response with its sampled critique ->
    models/cloud.
    """
    tokenizer, by_id, examples, failures = (
        run.prompter.tokenizer,
        {record.id: record for record in run.train},
        [],
        [],
    )
    for line in read_rows(run.judgments("critiques")):
        for one in line["critiques"]:
            if one["failure"] is None:
                examples += head_examples(tokenizer, by_id[line["id"]], one["texts"])
            else:
                failures.append(one["failure"])
    counts = (
        ", ".join(f"{reason} {failures.count(reason)}" for reason in sorted(set(failures)))
        or "none"
    )
    print(f"cloud: samples of records that failed and are left out: {counts}", flush=True)
    _fit_scalar(run, "cloud", preference_loss(run.cfg), examples)


def trained(run: Run) -> RewardModel:
    """The finished model of `config.kind`."""
    kind, tokenizer, rows = run.config.kind, run.prompter.tokenizer, run.config.sampling.rows
    params = _params(run, run.workdir / "models" / kind, SCALAR)
    if kind == "bradley_terry":
        return scalar_rm(kind, params, run.cfg, tokenizer, buckets=run.sequence_buckets, rows=rows)
    if kind == "pair_rm":
        return pair_rm(
            kind,
            params,
            run.cfg,
            tokenizer,
            seed=run.config.eval.seed,
            buckets=run.sequence_buckets,
            rows=rows,
        )
    return cloud(
        kind,
        lambda temperature: policy_sampler(run, temperature),
        _params(run, run.workdir / "models" / "critic"),
        params,
        run.cfg,
        tokenizer,
        seed=run.config.eval.seed,
        buckets=run.config.lengths.buckets,
        sequence_buckets=run.sequence_buckets,
        rows=rows,
        completion=run.config.lengths.completion,
    )


def judge_held_out(run: Run) -> None:
    """The finished model on every split, one sample of each record -> judgments/eval_SPLIT.jsonl,
    held_out.json.
    """
    model, results = trained(run), {}
    for split, records in run.evaluation.items():
        records = [
            record
            for record in records
            if model.accepts(len(record.responses)) and len(record.responses) > 1
        ]
        if not records:
            continue
        rows = []
        with processes.stop_signal() as stopped:
            for block in model.judge(
                records, temperature=run.config.cloud.temperature if model.sampled else 0.0
            ):
                rows += block
                if stopped():
                    processes.leave(f"held_out, {split}: judged anew")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if processes.is_main():
            run.judgments(f"eval_{split}").parent.mkdir(parents=True, exist_ok=True)
            run.judgments(f"eval_{split}").write_text(text)
        results[split] = held_out_accuracy(rows)
        print(
            f"{split}: "
            + "  ".join(f"{name} {value:.4g}" for name, value in results[split].items()),
            flush=True,
        )
    if processes.is_main():
        (run.workdir / "held_out.json").write_text(
            json.dumps({"kind": run.config.kind, "splits": results}, indent=1) + "\n"
        )


def held_out_accuracy(rows: Sequence[dict]) -> dict[str, float]:
    """accuracy: 1/t for a tie of t that includes the best response; pair_accuracy: of all gold
    pairs, ties half; failures: rows without scores.
    """
    scored = [row for row in rows if row["scores"] is not None]
    credit, pairs = [], []
    for row in scored:
        scores = row["scores"]
        credit.append(expected_credit(vote([scores]), row["rewards"]))
        pairs += [
            (1 + np.sign(scores[better] - scores[worse])) / 2
            for better, worse in gold_pairs(row["rewards"])
        ]
    mean = {
        name: float(np.mean(values))
        for name, values in (("accuracy", credit), ("pair_accuracy", pairs))
        if values
    }
    return {"items": len(rows)} | mean | {"failures": len(rows) - len(scored)}


def _load_critiques(source: dict, seed: int) -> list[Record]:
    return make_critiques(source["items"], seed) if "world" in source else load_source(source)


def _fit_scalar(run: Run, name: str, loss: Callable, examples: list[dict]) -> None:
    """Train a scalar head, and the base model below it, on the examples that fit ->
    models/<name>.
    """
    start = with_head(run, load_policy(run, "base"))
    fit(
        run,
        name,
        start,
        loss,
        {"pairs": _fitting(run, name, examples)},
        {"pairs": 1.0},
        run.config[name],
        architecture=SCALAR,
    )


def _fitting(run: Run, label: str, examples: list[dict]) -> list[dict]:
    """The examples whose sequences fit the largest bucket; the others are counted, never cut."""
    limit = run.sequence_buckets[-1]
    kept = [
        example
        for example in examples
        if all(len(value) <= limit for name, value in example.items() if name.endswith("tokens"))
    ]
    print(f"{label}: {len(kept)} of {len(examples)} examples fit {limit} tokens", flush=True)
    if not kept:
        raise ValueError(
            f"{label}: no example to train on; expected records of two or more responses with "
            f"gold, of at most {limit} tokens"
        )
    return kept


def _params(run: Run, folder, architecture: str = CAUSAL_LM) -> dict:
    return load_params(
        folder,
        run.cfg,
        param_shardings(run.mesh, abstract_params(run.cfg, architecture)),
        architecture=architecture,
    )
