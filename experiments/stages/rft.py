"""Rejective fine-tuning (paper, section 3.2): sample with and without a hint, keep what agrees with
the gold, fine-tune on it.
"""

import json
import os

import numpy as np

from experiments.stages.run import Run, load_policy, policy_sampler
from experiments.stages.train import fit
from grm_jax.judgment.records import Record, response_order
from grm_jax.judgment.rules import accept_hinted, accept_unhinted, is_too_easy
from grm_jax.parallel import processes
from grm_jax.reward_models.grm import Ask, judge_to_file, read_rows, shuffled_asks
from grm_jax.training.step import rft_loss

SAMPLES = "rft_sample"  # judgments/rft_sample.jsonl
NOTHING_ACCEPTED = (
    "No judgment of the base model was accepted: RFT trained on general instruction data alone "
    "and taught nothing about judging."
)


def sample_trajectories(run: Run) -> None:
    """Draw the unhinted and hinted judgments of every training record and write down which are
    accepted, and why.
    """
    settings = run.config.rft
    asks = shuffled_asks(run.train, settings.samples, run.config.seed)
    for record in run.train:
        for sample in range(settings.samples, settings.samples + settings.hinted_samples):
            order = response_order(run.config.seed, record.id, sample, len(record.responses))
            asks.append(Ask(record, order, (sample,), record.id, hinted=True))
    path = run.judgments(SAMPLES)
    judge_to_file(
        path,
        policy_sampler(run, settings.temperature),
        load_policy(run, "base"),
        run.prompter,
        asks,
        seed=run.config.seed,
        temperature=settings.temperature,
        buckets=run.config.lengths.buckets,
        rows=run.config.sampling.rows,
        labels={"split": "train", "system": "base", "stage": SAMPLES},
    )
    rows = write_accepted(run, read_rows(path))
    reasons = {
        hinted: [row["reason"] for row in rows if row["hinted"] == hinted]
        for hinted in (False, True)
    }
    for hinted, found in reasons.items():
        counts = ", ".join(f"{reason} {found.count(reason)}" for reason in sorted(set(found)))
        print(f"{'hinted' if hinted else 'unhinted'} {len(found)}: {counts}", flush=True)


def write_accepted(run: Run, rows: list[dict]) -> list[dict]:
    """Decide which of the trajectories are accepted; they become judgments/rft_sample.jsonl, whole
    or not at all, and are returned.
    """
    rows = with_acceptance(
        rows, run.config.rft.drop_too_easy, run.config.rft.keep_hinted_of_too_easy
    )
    path = run.judgments(SAMPLES)
    # by all, before another file takes the place of this one
    processes.barrier("trajectories read")
    whole = path.with_suffix(".tmp")
    if processes.is_main():
        whole.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        os.replace(whole, path)
    return rows


def with_acceptance(
    rows: list[dict], drop_too_easy: bool, keep_hinted_of_too_easy: bool
) -> list[dict]:
    """The rows with `accepted` and `reason`, decided record by record."""
    by_record: dict[str, list[dict]] = {}
    for row in rows:
        by_record.setdefault(row["id"], []).append(row)
    for group in by_record.values():
        unhinted = [row for row in group if not row["hinted"]]
        correct = [row["correct"] for row in unhinted]
        decisions = accept_unhinted(correct, [row["failure"] for row in unhinted], drop_too_easy)
        easy = drop_too_easy and is_too_easy(correct)
        hinted = [row for row in group if row["hinted"]]
        decisions += [
            accept_hinted(row["correct"], row["failure"], easy, keep_hinted_of_too_easy)
            for row in hinted
        ]
        for row, decision in zip(unhinted + hinted, decisions):
            row["accepted"], row["reason"] = decision.accepted, decision.reason
    return rows


def supervised_example(example_id: str, prompt_ids: list[int], completion_ids: list[int]) -> dict:
    """Tokens, positions, and a mask that is 1 on the completion."""
    ids = np.array([*prompt_ids, *completion_ids])
    mask = np.zeros(len(ids), np.float32)
    mask[len(prompt_ids) :] = 1.0
    return {"id": example_id, "tokens": ids, "positions": np.arange(len(ids)), "mask": mask}


def general_examples(run: Run) -> list[dict]:
    """The run's general instruction data as `supervised_example`s."""
    tokenizer = run.prompter.tokenizer
    return [
        supervised_example(
            g["id"], tokenizer.chat_prompt(g["prompt"]), tokenizer.chat_completion(g["completion"])
        )
        for g in run.general
    ]


def without_principles(text: str) -> str:
    """A judgment from its analysis on; as it is where it has no analysis."""
    return text[max(0, text.find("Analysis:")) :]


def training_sources(run: Run) -> tuple[dict[str, list], dict[str, float]]:
    """{source: examples} and their shares: accepted judgments, the hint taken out of the prompt,
    and general instruction data.

    Without an accepted judgment the general data stand alone. ValueError if there are none either.
    """
    tokenizer, by_id, settings = (
        run.prompter.tokenizer,
        {record.id: record for record in run.train},
        run.config.rft,
    )
    wanted = [
        row
        for row in read_rows(run.judgments(SAMPLES))
        if ("hinted" if row["hinted"] else "unhinted") in settings.trajectories
    ]
    accepted = [row for row in wanted if row["accepted"]]

    def judged(record: Record, row: dict) -> dict:
        text = row["text"] if settings.principles else without_principles(row["text"])
        return supervised_example(
            record.id, run.prompter.ids(record, row["order"]), tokenizer.chat_completion(text)
        )

    fraction = settings.general_fraction
    shares = {"judgments": 1.0 - fraction, "general": fraction}
    sources = {"judgments": [judged(by_id[row["id"]], row) for row in accepted]}
    if fraction > 0:
        sources["general"] = general_examples(run)
    for name, examples in sources.items():
        sources[name] = [
            example for example in examples if len(example["tokens"]) <= run.sequence_buckets[-1]
        ]
        print(f"rft: {name}: {len(sources[name])} of {len(examples)} examples fit", flush=True)
    sources = {name: examples for name, examples in sources.items() if examples}
    if not sources:
        raise ValueError(
            f"{run.judgments(SAMPLES)}: no trajectory was accepted, so there is nothing to "
            "fine-tune on"
        )
    return sources, {name: shares[name] for name in sources}


def train(run: Run) -> str | None:
    """Fine-tune the base policy on the accepted trajectories -> models/rft. Returns a warning if
    there were none.
    """
    sources, weights = training_sources(run)
    fit(run, "rft", load_policy(run, "base"), rft_loss(run.cfg), sources, weights, run.config.rft)
    return None if "judgments" in sources or not run.config.rft.trajectories else NOTHING_ACCEPTED
