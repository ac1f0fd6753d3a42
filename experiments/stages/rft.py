"""Rejective fine-tuning (paper, section 3.2): sample with and without a hint, keep what agrees with
the gold, fine-tune on it.
"""

import collections

from experiments.stages.workdir import Run, load_policy, save_model, system
from grm_jax.data.examples import fitting, instruction_examples, supervised_example
from grm_jax.evaluation import store
from grm_jax.evaluation.judging import Pass, judge_pass
from grm_jax.judgment.reasoning import blanked
from grm_jax.judgment.records import Record
from grm_jax.judgment.rules import accept_hinted, accept_unhinted, is_too_easy
from grm_jax.training.loop import Trained, fit
from grm_jax.training.step import rft_loss

NOTHING_ACCEPTED = (
    "No judgment of the base model was accepted: RFT trained on general instruction data alone "
    "and taught nothing about judging."
)


def sample_trajectories(run: Run) -> dict:
    """Draw the unhinted and hinted judgments of every training record -> trajectories/base/."""
    settings, folder = run.config.rft, run.trajectories("base")
    for hint, samples in drawn_samples(run).items():
        base = system(run, "base", hint=hint)
        name = "hinted" if hint else "unhinted"
        store.claim(folder / name, base.identity)
        judge_pass(
            folder / name / f"sampled-seed{run.config.seed}.jsonl",
            lambda base=base: base.load(run.config.seed),
            run.train,
            Pass("sampled", samples, settings.temperature),
            f"rft_sample, {name}",
        )
    return {"funnel": funnel(trajectories(run))}


def drawn_samples(run: Run) -> dict[bool, tuple[int, ...]]:
    """{whether they are hinted: samples that are drawn of each training record}."""
    settings = run.config.rft
    samples = tuple(range(settings.samples + settings.hinted_samples))
    return {False: samples[: settings.samples], True: samples[settings.samples :]}


def trajectories(run: Run) -> list[dict]:
    """The base's judgments of the training records with `accepted` and `reason`, decided record by
    record.
    """
    folder, name = run.trajectories("base"), f"sampled-seed{run.config.seed}.jsonl"
    settings, judgments = run.config.rft, []
    for hint, samples in drawn_samples(run).items():
        path = folder / ("hinted" if hint else "unhinted") / name
        needed = ("hinted", "correct", "order", "text")
        judgments += store.read_all(path, run.train, samples, needed)
    return with_acceptance(
        store.in_drawn_order(judgments, run.train),
        settings.drop_too_easy,
        settings.keep_hinted_of_too_easy,
    )


def with_acceptance(
    judgments: list[dict], drop_too_easy: bool, keep_hinted_of_too_easy: bool
) -> list[dict]:
    """The judgments with `accepted` and `reason`, decided record by record."""
    by_record: dict[str, list[dict]] = {}
    for judgment in judgments:
        by_record.setdefault(judgment["id"], []).append(judgment)
    for group in by_record.values():
        unhinted = [judgment for judgment in group if not judgment["hinted"]]
        hinted = [judgment for judgment in group if judgment["hinted"]]
        correct = [judgment["correct"] for judgment in unhinted]
        failures = [judgment["failure"] for judgment in unhinted]
        easy = drop_too_easy and is_too_easy(correct)
        decisions = accept_unhinted(correct, failures, drop_too_easy)
        decisions += [
            accept_hinted(j["correct"], j["failure"], easy, keep_hinted_of_too_easy) for j in hinted
        ]
        for judgment, decision in zip(unhinted + hinted, decisions, strict=True):
            judgment["accepted"], judgment["reason"] = decision.accepted, decision.reason
    return judgments


def funnel(judgments: list[dict]) -> dict[str, dict[str, int]]:
    """Count {"unhinted" | "hinted": {reason: judgments}}, the commonest reason first."""
    counts: dict[str, collections.Counter] = {}
    for judgment in judgments:
        way = "hinted" if judgment["hinted"] else "unhinted"
        counts.setdefault(way, collections.Counter())[judgment["reason"]] += 1
    for way, reasons in counts.items():
        shares = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        print(f"{way} {reasons.total()}: {shares}", flush=True)
    return {way: dict(reasons.most_common()) for way, reasons in counts.items()}


def without_principles(text: str) -> str:
    """A judgment from its analysis on; as it is where it has no analysis."""
    return text[max(0, blanked(text).find("Analysis:")) :]


def training_sources(run: Run) -> tuple[dict[str, list], dict[str, float]]:
    """{source: examples} and their shares: accepted judgments, the hint taken out of the prompt,
    and general instruction data.

    Without an accepted judgment the general data stand alone. ValueError if there are none either.
    """
    settings, by_id = run.config.rft, {record.id: record for record in run.train}
    accepted = [
        judgment
        for judgment in trajectories(run)
        if judgment["accepted"]
        and ("hinted" if judgment["hinted"] else "unhinted") in settings.trajectories
    ]

    def judged(record: Record, judgment: dict) -> dict:
        text = judgment["text"] if settings.principles else without_principles(judgment["text"])
        prompt = run.prompter.ids(record, judgment["order"])
        return supervised_example(record.id, prompt, run.tokenizer.chat_completion(text))

    fraction = settings.general_fraction
    shares = {"judgments": 1.0 - fraction, "general": fraction}
    sources = {"judgments": [judged(by_id[judgment["id"]], judgment) for judgment in accepted]}
    if fraction > 0:
        sources["general"] = instruction_examples(run.tokenizer, run.general)
    for name, examples in sources.items():
        sources[name] = fitting(examples, run.setup.sequence_buckets[-1])
        print(f"rft: {name}: {len(sources[name])} of {len(examples)} examples fit", flush=True)
    sources = {name: examples for name, examples in sources.items() if examples}
    if not sources:
        raise ValueError(
            f"{run.trajectories('base')}: no trajectory was accepted, so there is nothing to "
            "fine-tune on"
        )
    return sources, {name: shares[name] for name in sources}


def train(run: Run) -> dict:
    """Fine-tune the base policy on the accepted trajectories -> models/rft. The note is a warning
    if there were none. Without steps the RFT model is the base.
    """
    if not run.config.rft.steps:
        save_model(run, "rft", Trained(load_policy(run, "base"), None))
        return {"note": "rft.steps is 0: the RFT model is the base model."}
    sources, weights = training_sources(run)
    base, loss = load_policy(run, "base"), rft_loss(run.model_cfg)
    trained = fit(run.setup, "rft", base, loss, sources, weights, run.config.rft)
    save_model(run, "rft", trained)
    taught = "judgments" in sources or not run.config.rft.trajectories
    return {"note": None if taught else NOTHING_ACCEPTED}
