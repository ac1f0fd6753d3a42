"""What a run reads: the records of every split, instruction data, and digests of all of it."""

import collections
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments import run_config
from grm_jax.chat import FILE as CHAT
from grm_jax.chat import read_chat_template
from grm_jax.checkpoint.huggingface import GENERATION
from grm_jax.data.examples import best_responses, instruction_examples
from grm_jax.data.sources import UNIQUE, load_instructions, load_source, read_source
from grm_jax.data.world import (
    make_critiques,
    make_instructions,
    make_records,
    make_rubric_judgments,
)
from grm_jax.evaluation import store
from grm_jax.json_files import decode, read_object
from grm_jax.judgment.prompts import Template, load_template
from grm_jax.judgment.records import Record, read_records, write_records
from grm_jax.naming import source_digest
from grm_jax.reward_models.cloud import critic_example, longest_critic_prompt
from grm_jax.reward_models.description import (
    ADAPTERS,
    content_digest,
    layers_of,
    template_digest,
    tokenizer_digest,
)
from grm_jax.reward_models.grm import Prompter, prompt_length
from grm_jax.reward_models.llm_judge import longest_prompt
from grm_jax.reward_models.meta_rm import meta_prompt_length
from grm_jax.reward_models.pair_rm import longest_pair
from grm_jax.reward_models.scalar import longest_sequence
from grm_jax.reward_models.spec import added_tokens_digest, matmul_precision
from grm_jax.sampling.settings import Lengths
from grm_jax.tokenizer import ADDED_TOKENS, load_tokenizer
from grm_jax.whole_files import write_json

# of a tokenizer, beside its own file: {digest: the file that it is of}
BESIDE = {
    "chat": CHAT,
    "stop_ids": GENERATION,
    "added_tokens": ADDED_TOKENS,
    "beside": "tokenizer_config.json",
}
LEFT_OUT = {"tie": "no single best response", "long": "too long"}


class Inputs(NamedTuple):
    """records: of "train" and every split. left_out: [(id, its tokens, or why it is no record)] of
    each. general: instruction data, rows of "id", "prompt" and "completion".
    """

    records: dict[str, list[Record]]
    left_out: dict[str, list[tuple[str, int | str]]]
    general: list[dict]


class Measure(NamedTuple):
    """What reads the records of a split: the tokens of the longest input that it makes of a record,
    the most that it takes, and the field of the config that says so.
    """

    reader: str
    tokens: Callable[[Record], int]
    limit: int
    field: str


def load_inputs(
    config: ml_collections.ConfigDict, prompter: Prompter, meta: Template, lengths: Lengths
) -> Inputs:
    """Load what the data section of a config names.

    Raises ValueError where a training record has no gold, no record of a split fits what reads it
    or more are left out than data.max_left_out allows, of records, instructions or critiques, and
    where a test record is a training record.
    """
    sources = {"train": config.data.train}
    sources |= {split: config.data.eval[split] for split in config.eval.splits}
    measured = measures(config, prompter, lengths)
    records, left_out = {}, {}
    for split, source in sources.items():
        measure = measured["train" if split == "train" else "eval"]
        records[split], left_out[split] = _load_split(config, measure, split, source)
    if config.get("kind") is not None and all(len(r.responses) == 1 for r in records["train"]):
        raise ValueError(
            f"data for 'train': {config.kind} is trained on pairs, but all {len(records['train'])} "
            "records have one response; expected some with two or more"
        )
    _refuse_leaks(records)
    general = [
        row
        for source in run_config.sources(config.data.general)
        for row in _load_general(source, config, records["train"])
    ]
    sequences = lengths.sequence_buckets[-1]
    if "meta" in config:
        template = config.templates.meta
        longest = [meta_prompt_length(prompter.tokenizer, meta, r) for r in records["train"]]
        _check_share(config, f"Meta RM, template {template!r}: records", longest, sequences)
    examples = {}
    trains = "critic" if config.get("kind") == "cloud" else "rft"
    if trains in config and config[trains].general_fraction > 0:
        examples["data.general: instructions"] = instruction_examples(prompter.tokenizer, general)
    if config.get("kind") == "cloud":
        critiques = [r for source in config.data.critiques for r in load_critiques(source, config)]
        examples["data.critiques: critiques"] = [
            critic_example(prompter.tokenizer, record) for record in critiques
        ]
    for what, of in examples.items():
        if not of:
            raise ValueError(f"{what}: none to train on, expected at least one")
        _check_share(config, what, [len(example["tokens"]) for example in of], sequences)
    return Inputs(records, left_out, general)


def measures(
    config: ml_collections.ConfigDict, prompter: Prompter, lengths: Lengths
) -> dict[str, Measure]:
    """What reads the training records, and those of the splits: each paradigm its own input."""
    tokenizer, kind, field = prompter.tokenizer, config.get("kind"), "lengths.prompt"
    if kind == "cloud":
        tokens = functools.partial(longest_critic_prompt, tokenizer)
        reader = Measure("prompts of the critic", tokens, lengths.prompt, field)
    elif kind is not None:
        count = {"bradley_terry": longest_sequence, "pair_rm": longest_pair}[kind]
        limit, field = lengths.sequence_buckets[-1], "lengths.prompt + lengths.completion"
        reader = Measure(f"inputs of {kind}", functools.partial(count, tokenizer), limit, field)
    else:
        tokens = functools.partial(prompt_length, prompter)
        reader = Measure("prompts of the GRM", tokens, lengths.prompt, field)
    judge = reader
    if kind is None and prompter.answer == "index":
        # it is trained on lists, and asked in pairs
        tokens = functools.partial(longest_prompt, prompter)
        judge = Measure("prompts of the judge of pairs", tokens, lengths.prompt, field)
    return {"train": reader, "eval": judge}


def counts(left_out: Mapping[str, Sequence[tuple[str, int | str]]]) -> dict[str, dict[str, int]]:
    """{split: {reason: records}} of what was left out, without what was not."""
    return {
        split: dict(
            collections.Counter(
                LEFT_OUT["tie"] if isinstance(why, str) else LEFT_OUT["long"] for _, why in items
            )
        )
        for split, items in left_out.items()
    }


def write_inputs(folder: pathlib.Path, inputs: Inputs) -> None:
    """Write down what is used and what is left out; a file that says so already is not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in inputs.records.items():
        path = folder / f"{split}.jsonl"
        if not path.is_file() or read_records(path) != records:
            write_records(path, records)
    path, plain = folder / "left_out.json", json.loads(json.dumps(inputs.left_out))
    if not path.is_file() or decode(path.read_bytes(), str(path)) != plain:
        write_json(path, plain)


def digests(
    config: ml_collections.ConfigDict, templates: Mapping[str, Template], inputs: Inputs
) -> dict:
    """Digests of what training reads, by content, whatever the files are called."""
    critiques = {}
    if "critic" in config:
        records = [r for source in config.data.critiques for r in load_critiques(source, config)]
        critiques["data.critiques"] = records_digest(records)
    return (
        critiques
        | {
            "data.train": records_digest(inputs.records["train"]),
            "data.general": digest(inputs.general),
        }
        | models_and_templates(config, templates)
    )


def eval_digests(inputs: Inputs) -> dict[str, str]:
    """Digests of the records of the test splits, which training does not read."""
    return {
        f"data.eval.{split}": records_digest(records)
        for split, records in inputs.records.items()
        if split != "train"
    }


def models_and_templates(
    config: ml_collections.ConfigDict, templates: Mapping[str, Template]
) -> dict:
    """Digests of the folders and templates that a config names, and how products are rounded where
    that is said.
    """
    folder, tokenizer = run_config.model_folder(config), run_config.tokenizer_path(config)
    beside: dict[str, Any] = {}
    if functions := user_functions(config):
        beside["functions"] = functions
    if precision := matmul_precision():
        beside["matmul_precision"] = precision
    if "critic" in config:
        start = run_config.critic_folder(config)
        beside["critic"] = {} if start is None else _model_digest(start)
    found = beside | {
        "templates": {name: template_digest(template) for name, template in templates.items()},
        # a model that is drawn at random is a function of the config
        "model": {} if folder is None else _model_digest(folder),
        "tokenizer": _tokenizer_digest(tokenizer),
    }
    return what_matters(found)


def _model_digest(folder: pathlib.Path) -> dict[str, str]:
    """The digests of a model's parts. Adapters are part of the weights, with their scale; where
    what they are upon lies does not matter.
    """
    base, *adapters = layers_of(folder)
    parts = content_digest(base)
    for layer in adapters:
        stated = read_object(layer / ADAPTERS)
        stated.pop("base_model_name_or_path", None)
        weights = content_digest(layer).get("weights")
        parts["weights"] = f"{parts.get('weights')} {weights} {digest(stated)}"
    return parts


def _tokenizer_digest(path: pathlib.Path) -> dict[str, Any]:
    """The digests of what ids are read from, and of what writes chats in them and ends them.

    "chat" is None where there is no chat_template.jinja. The others are there where they say
    something: what is in them is read with no other file.
    """
    home = path.parent if path.is_file() else path
    template = read_chat_template(home, {}) if (home / CHAT).is_file() else None
    found: dict[str, Any] = {"chat": None if template is None else digest(template.text)}
    if (home / GENERATION).is_file() and (further := load_tokenizer(path).further_stop_ids):
        found["stop_ids"] = list(further)
    if added := added_tokens_digest(path):
        found["added_tokens"] = added
    return tokenizer_digest(path) | found


def changed(before: Mapping, now: Mapping) -> list[str]:
    """The names, dotted, of what was read before and is another now (`digests`).

    What earlier versions of this package did not write down counts as unchanged: how products are
    rounded, and BESIDE of a tokenizer.
    """
    if "chat" not in (before.get("tokenizer") or {}):
        now = {name: value for name, value in now.items() if name != "matmul_precision"}
        own = now.get("tokenizer", {})
        now["tokenizer"] = {name: value for name, value in own.items() if name not in BESIDE}
    return store.differing(before, now)


def what_matters(digests: Mapping) -> dict:
    """Digests without those of files that nothing reads: a tokenizer beside weights is read where
    `tokenizer` names it alone, and weights where `model` or `critic` do. A config may hold the ids
    of a tokenizer's control tokens.
    """
    parts = {
        "model": ("weights", "config"),
        "critic": ("weights",),
        "tokenizer": ("tokenizer", "config", *BESIDE),
    }
    return {
        name: {part: text for part, text in value.items() if part in (*parts[name], "file")}
        if name in parts
        else value
        for name, value in digests.items()
    }


def file_digests(config: ml_collections.ConfigDict) -> dict[str, list]:
    """{data field: [digest of each file or folder that it names]}, whatever can be read of them."""
    fields = [("data.train", config.data.train), ("data.general", config.data.general)]
    fields += [(f"data.eval.{split}", config.data.eval[split]) for split in config.eval.splits]
    fields += [("data.critiques", config.data.get("critiques", ()))]
    found = {}
    for field, value in fields:
        paths = [s["path"] for s in run_config.sources(value) if "path" in s]
        if paths:
            found[field] = [
                {str(file.relative_to(path)): content_digest(file)["file"] for file in _files(path)}
                for path in map(pathlib.Path, paths)
            ]
    return found


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def place_of(config: ml_collections.ConfigDict, field: str) -> str:
    """Where the config says that an input comes from, in words for a message; field: a key of
    `digests`, with all that is below it (model.config).
    """
    section, _, name = field.partition(".")
    if section == "data":
        node = config.data
        for step in name.split("."):
            node = node[step]
        sources = run_config.sources(node)
        words = [str(s.get("path") or s.get("hub") or f"the world's {s}") for s in sources]
    elif section == "templates":
        words = [config.templates.get(name)]
    elif section == "tokenizer":
        path = run_config.tokenizer_path(config)
        home = path.parent if path is not None and path.is_file() else path
        files = BESIDE | {"config": "config.json"}
        words = [f"{home}/{files[name]}" if name in files else str(path)]
    elif section == "matmul_precision":
        words = [f"JAX_DEFAULT_MATMUL_PRECISION={matmul_precision() or ''}"]
    elif section == "functions":
        words = [config.rl.get(name.partition(".")[2])]
    else:
        folder = (config.critic if section == "critic" else config.model).path
        words = [f"{folder}/config.json" if name == "config" else str(folder)]
    return ", ".join(map(str, words)) or "none"


def refuse_changed_tests(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, inputs: Inputs
) -> None:
    """ValueError where a test record that is judged here already has another content now.

    More or fewer records may be asked for.
    """
    for split, records in inputs.records.items():
        if split != "train":
            refuse_changed_records(workdir, split, records, place_of(config, f"data.eval.{split}"))


def refuse_changed_records(
    workdir: pathlib.Path, name: str, records: Sequence[Record], place: str
) -> None:
    """ValueError where a record of a benchmark that is judged here has another content now."""
    path = workdir / "records" / f"{name}.jsonl"
    if not path.is_file() or not any((workdir / "judgments").glob(f"*/{name}/*.jsonl")):
        return
    before = {record.id: store.record_digest(record) for record in read_records(path)}
    now = {record.id: store.record_digest(record) for record in records}
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise ValueError(
            f"{path} has judgments, and {len(changed)} of its records are others now ({place}), "
            f"first {changed[0]!r}. Bring them back, or choose another --workdir."
        )


def records_digest(records: Sequence[Record]) -> str:
    """`digest` of records in their order."""
    return digest([store.record_digest(record) for record in records])


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


def _load_split(
    config, measure: Measure, split: str, source
) -> tuple[list[Record], list[tuple[str, int | str]]]:
    """(records of a split that fit what reads them, [(id, tokens or why)] of the others)."""
    read, left_out = [], []
    first: dict[str, str] = {}
    for one in run_config.sources(source):
        records, tied = _load(one, config, split)
        place = str(one.get("path") or one.get("hub") or one)
        for record in records:
            if record.id in first:
                raise ValueError(
                    f'data for {split!r}: field "id": {record.id!r} of {place} is used in '
                    f"{first[record.id]} already; {UNIQUE}"
                )
            first[record.id] = place
        read += records
        left_out += [(item, LEFT_OUT["tie"]) for item in tied]
    missing = next((record.id for record in read if record.rewards is None), None)
    if missing is not None and split == "train":
        raise ValueError(
            f"data for {split!r}: record {missing!r} has no gold; expected rewards or best"
        )
    given = next((record.id for record in read if record.principles), None)
    if given is not None and split == "train":
        raise ValueError(
            f'data for {split!r}: record {given!r}: field "principles": expected none to train on, '
            "as judgments are to write their own"
        )
    alone = next((r.id for r in read if r.rubric and len(r.responses) == 1), None)
    if alone is not None and split == "train":
        raise ValueError(
            f"data for {split!r}: record {alone!r} has one response and a rubric, whose total is "
            "neither right nor wrong; expected two or more responses to train on"
        )
    kept, long = [], []
    for record in read:
        tokens = measure.tokens(record)
        if tokens <= measure.limit:
            kept.append(record)
        else:
            long.append((record.id, tokens))
    longer = ", ".join(f"{name} ({tokens})" for name, tokens in long[:5])
    longer += ", ..." if len(long) > 5 else ""
    tied = f"; {len(left_out)} without a single best response are left out" if left_out else ""
    print(
        f"data {split}: {len(kept)} records; {len(long)} longer than {measure.limit} tokens are "
        "left out"
        + (f": {longer}; all in records/left_out.json; {measure.reader} count" if longer else "")
        + tied,
        flush=True,
    )
    if not kept:
        shortest = f"; the shortest has {min(tokens for _, tokens in long)} tokens" if long else ""
        raise ValueError(
            f"data for {split!r}: no record is left of the {len(read) + len(left_out)} that were "
            f"read: {len(long)} {measure.reader} are longer than {measure.field} = {measure.limit} "
            f"tokens{shortest}; {len(left_out)} have no single best response"
        )
    share, most = len(long + left_out) / len(read + left_out), config.data.max_left_out
    if share > most:
        ties = f", and {len(left_out)} have no single best response" if left_out else ""
        raise ValueError(
            f"data for {split!r}: {len(long)} of {len(read + left_out)} records are longer than "
            f"{measure.field} = {measure.limit} tokens{ties}, more than data.max_left_out = "
            f"{most:g} allows (counted are {measure.reader}); raise one of the two"
        )
    limit = config.eval.records if split != "train" else 0
    return kept[:limit] if limit else kept, left_out + long


def _check_share(config, what: str, lengths: Sequence[int], limit: int) -> None:
    """ValueError where more are longer than `limit` than data.max_left_out allows."""
    long, most = sum(length > limit for length in lengths), config.data.max_left_out
    if long:
        print(f"{what}: {long} of {len(lengths)} are longer than {limit} tokens", flush=True)
    if lengths and (long == len(lengths) or long / len(lengths) > most):
        raise ValueError(
            f"{what}: {long} of {len(lengths)} are longer than lengths.prompt + lengths.completion "
            f"= {limit} tokens, more than data.max_left_out = {most:g} allows; raise one of the two"
        )


def load_critiques(source: Mapping, config: ml_collections.ConfigDict) -> list[Record]:
    """Load critiques of single responses, for the critic of CLoud."""
    if "world" in source:
        return make_critiques(source["items"], config.seed)
    return load_source(source)


def _load(source, config, split) -> tuple[list[Record], list[str]]:
    """(records, ids of rows without a single best response) of a source."""
    if "world" in source:
        # the same test records whatever the seed of the run
        seed = config.seed if split == "train" else source.get("seed", 0)
        return make_records(source["world"], source.get("items", config.eval.records), seed), []
    return read_source(source)


def _load_general(source, config, train: Sequence[Record]) -> list[dict]:
    if source.get("world") == "rubric_judgments":
        if config.templates.get("rubric") is None:
            raise ValueError(
                "data.general: rubric_judgments are prompts of templates.rubric; expected the "
                "name of a template there, tiny_rubric say, got None"
            )
        template = load_template(config.templates.rubric)
        return make_rubric_judgments(template, source["items"], config.seed)
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
