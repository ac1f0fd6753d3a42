"""What a run reads: the records of every split, instruction data, and digests of all of it."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments import config_flags
from grm_jax.data.examples import best_responses
from grm_jax.data.sources import load_instructions, load_source
from grm_jax.data.world import make_critiques, make_instructions, make_records
from grm_jax.evaluation import store
from grm_jax.judgment.prompts import Template
from grm_jax.judgment.records import Record, read_records, write_records
from grm_jax.naming import source_digest
from grm_jax.reward_models.description import content_digest, template_digest
from grm_jax.reward_models.grm import Prompter, split_by_length


class Inputs(NamedTuple):
    """records: of "train" and every split; left_out: [(id, prompt tokens)] of each, too long for
    the model. general: instruction data, rows of "id", "prompt" and "completion".
    """

    records: dict[str, list[Record]]
    left_out: dict[str, list[tuple[str, int]]]
    general: list[dict]


def load_inputs(config: ml_collections.ConfigDict, prompter: Prompter) -> Inputs:
    """Load what the data section of a config names.

    Raises ValueError where a training record has no gold, no record of a split fits the model or
    more are too long than data.max_left_out allows, and where a test record is a training record.
    """
    sources = {"train": config.data.train}
    sources |= {split: config.data.eval[split] for split in config.eval.splits}
    records, left_out = {}, {}
    for split, source in sources.items():
        records[split], left_out[split] = _load_split(config, prompter, split, source)
    _refuse_leaks(records)
    general = [
        row
        for source in config_flags.sources(config.data.general)
        for row in _load_general(source, config, records["train"])
    ]
    return Inputs(records, left_out, general)


def write_inputs(folder: pathlib.Path, inputs: Inputs) -> None:
    """Write down what is used and what is left out; a file that says so already is not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in inputs.records.items():
        path = folder / f"{split}.jsonl"
        if not path.is_file() or read_records(path) != records:
            write_records(path, records)
    path, plain = folder / "left_out.json", json.loads(json.dumps(inputs.left_out))
    if not path.is_file() or json.loads(path.read_text()) != plain:
        store.write_json(path, plain)


def digests(
    config: ml_collections.ConfigDict, templates: Mapping[str, Template], inputs: Inputs
) -> dict:
    """Digests of what training reads, by content, whatever the files are called."""
    folder, tokenizer = config_flags.model_folder(config), config_flags.tokenizer_path(config)
    beside: dict[str, Any] = {}
    if functions := user_functions(config):
        beside["functions"] = functions
    if "critic" in config:
        records = [r for source in config.data.critiques for r in load_critiques(source, config)]
        start = config_flags.critic_folder(config)
        beside["data.critiques"] = digest([store.record_digest(record) for record in records])
        beside["critic"] = {} if start is None else content_digest(start)
    return beside | {
        "data.train": digest([store.record_digest(record) for record in inputs.records["train"]]),
        "data.general": digest(inputs.general),
        "templates": {name: template_digest(template) for name, template in templates.items()},
        # a model that is drawn at random is a function of the config
        "model": {} if folder is None else content_digest(folder),
        "tokenizer": content_digest(tokenizer),
    }


def user_functions(config: Mapping) -> dict[str, dict[str, str]]:
    """{section: {field: digest}} of the user's own functions that training calls, by the code of
    their modules.
    """
    section = config.get("rl", {})
    named = {
        name: source_digest(section[name])
        for name in ("loss", "reward", "advantage", "kl", "aggregation")
        if ":" in (section.get(name) or "")
    }
    return {"rl": named} if named else {}


def digest(value: object) -> str:
    """16 hexadecimal digits of a value that is plain JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load_split(config, prompter, split, source) -> tuple[list[Record], list[tuple[str, int]]]:
    """(records of a split whose prompt fits, [(id, prompt tokens)] of the others)."""
    found = [record for one in config_flags.sources(source) for record in _load(one, config, split)]
    missing = next((record.id for record in found if record.rewards is None), None)
    if missing is not None and split == "train":
        raise ValueError(
            f"data for {split!r}: record {missing!r} has no gold; expected rewards or best"
        )
    kept, left_out = split_by_length(prompter, found, config.lengths.prompt)
    longer = ", ".join(f"{name} ({tokens})" for name, tokens in left_out[:5])
    longer += ", ..." if len(left_out) > 5 else ""
    print(
        f"data {split}: {len(kept)} records; {len(left_out)} longer than {config.lengths.prompt} "
        "tokens are left out" + (f": {longer}; all in records/left_out.json" if longer else ""),
        flush=True,
    )
    if not kept:
        shortest = min(tokens for _, tokens in left_out) if left_out else "none"
        raise ValueError(
            f"data for {split!r}: no record is left; the shortest prompt over the limit has "
            f"{shortest} tokens"
        )
    share, most = len(left_out) / len(found), config.data.max_left_out
    if share > most:
        raise ValueError(
            f"data for {split!r}: {len(left_out)} of {len(found)} records are longer than "
            f"lengths.prompt = {config.lengths.prompt} tokens, more than data.max_left_out = "
            f"{most:g} allows; raise one of the two"
        )
    limit = config.eval.records if split != "train" else 0
    return kept[:limit] if limit else kept, left_out


def load_critiques(source: Mapping, config: ml_collections.ConfigDict) -> list[Record]:
    """Load critiques of single responses, for the critic of CLoud."""
    if "world" in source:
        return make_critiques(source["items"], config.seed)
    return load_source(source)


def _load(source, config, split) -> list[Record]:
    if "world" in source:
        # the same test records whatever the seed of the run
        seed = config.seed if split == "train" else source.get("seed", 0)
        return make_records(source["world"], source.get("items", config.eval.records), seed)
    return load_source(source)


def _load_general(source, config, train: Sequence[Record]) -> list[dict]:
    if "world" in source:
        return make_instructions(source["items"], config.seed)
    if "records" in source:
        return best_responses(train)
    return load_instructions(source)


def _refuse_leaks(records: Mapping[str, Sequence[Record]]) -> None:
    """No test record may be a training record, in whatever order its responses stand."""

    def content(record):
        return tuple(t.content for t in record.conversation), tuple(sorted(record.responses))

    seen = {content(record): record.id for record in records["train"]}
    for split in records:
        for record in records[split] if split != "train" else ():
            if content(record) in seen:
                raise ValueError(
                    f"record {record.id!r} of {split!r} is also the training record "
                    f"{seen[content(record)]!r}"
                )
