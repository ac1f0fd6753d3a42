"""What all stages share: config, mesh, model, tokenizer, records; which stages are done; where
things lie in the work folder.

    config.json                 the resolved config and its digest; another config in the same
    folder is refused records/{train,SPLIT}.jsonl the records that are used, general.jsonl the
    instruction data judgments/*.jsonl           every judgment ever drawn, with its verdict
    checkpoints/STAGE/          train state of a stage under way
    models/{rft,grm,meta}/      finished models, as Hugging Face folders
    stages/STAGE.json           a stage that is done, its seconds, and what a reader of the results
    must know of it

Of several processes process 0 alone writes these (each its shards of a checkpoint), and all read
them: the folder is one that all see.
"""

import dataclasses
import functools
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from experiments import config_flags
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.data.sources import load_instructions, load_source
from grm_jax.data.world import make_instructions, make_records
from grm_jax.judgment.prompts import Template, load_template
from grm_jax.judgment.records import Record, write_records
from grm_jax.judgment.rules import best_index
from grm_jax.models import Gemma2Config, init_params
from grm_jax.models.config import alternating, load_config
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh, param_shardings, shares
from grm_jax.reward_models.grm import Prompter, split_by_length
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of SPCT: everything a stage may read. Stages write to `workdir` only."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    cfg: Gemma2Config
    prompter: Prompter
    meta_template: Template
    train: list[Record]
    evaluation: dict[str, list[Record]]
    general: list[dict]

    @property
    def sequence_buckets(self) -> tuple[int, ...]:
        return config_flags.sequence_buckets(self.config)

    def judgments(self, name: str) -> pathlib.Path:
        return self.workdir / "judgments" / f"{name}.jsonl"


def start_processes() -> None:
    """Join the processes of this job, if it has several, before anything that needs a device. All
    but process 0 fall silent but for errors.
    """
    found = processes.initialize()
    jax.config.update("jax_threefry_partitionable", True)
    if found.count > 1:
        print(
            f"process {found.index} of {found.count} on {socket.gethostname()}, by "
            f"{found.launcher}",
            flush=True,
        )
        if not processes.is_main():
            sys.stdout = open(os.devnull, "w")


def setup(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Load everything a run needs, check it, and write down which records are used and which are
    left out.
    """
    processes.on_main("config", lambda: _refuse_other_config(config, workdir))
    tokenizer = load_tokenizer(config_flags.tokenizer_path(config))
    prompter = Prompter(
        tokenizer,
        load_template(config.templates.pointwise),
        load_template(config.templates.single),
        config.answer,
    )
    mesh = make_mesh(**config.mesh)
    numerics = config_flags.numerics(config, mesh.devices.flat[0].platform)
    if config.model.random_init is not None:
        sizes = config.model.random_init.to_dict()
        cfg = Gemma2Config(
            vocab_size=tokenizer.vocab_size,
            layer_types=alternating(sizes["n_layers"]),
            **sizes,
            **numerics,
        )
    else:
        cfg = load_config(config_flags.model_folder(config), **numerics)
    if cfg.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {cfg.vocab_size} "
            "embeddings"
        )

    for stage in config_flags.STAGES:
        if stage in config:
            config_flags.check_micro_batch(config, stage, shares(mesh))
    print(f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; model {cfg}", flush=True)
    sources = {"train": config.data.train} | {
        split: config.data.eval[split] for split in config.eval.splits
    }
    records, left_out = {}, {}
    for split, source in sources.items():
        found = [
            record for one in config_flags.sources(source) for record in _load(one, config, split)
        ]
        missing = next((r.id for r in found if r.rewards is None), None)
        if missing is not None:
            raise ValueError(
                f"data for {split!r}: record {missing!r} has no gold; expected rewards or best"
            )
        records[split], left_out[split] = split_by_length(prompter, found, config.lengths.prompt)
        if split != "train" and config.eval.records:
            records[split] = records[split][: config.eval.records]
        if processes.is_main():
            write_records(_made(workdir / "records" / f"{split}.jsonl"), records[split])
        longer = ", ".join(f"{name} ({tokens})" for name, tokens in left_out[split][:5]) + (
            ", ..." if len(left_out[split]) > 5 else ""
        )
        print(
            f"data {split}: {len(records[split])} records; {len(left_out[split])} longer than "
            f"{config.lengths.prompt} tokens are left out"
            + (f": {longer}; all in records/left_out.json" if longer else ""),
            flush=True,
        )
        if not records[split]:
            raise ValueError(
                f"data for {split!r}: no record is left; the shortest prompt over the limit has "
                f"{min(n for _, n in left_out[split])} tokens"
            )
    _refuse_leaks(records)
    general = [
        row
        for one in config_flags.sources(config.data.general)
        for row in _load_general(one, config, records["train"])
    ]
    evaluation = {split: records[split] for split in config.eval.splits}
    if processes.is_main():
        (workdir / "records" / "left_out.json").write_text(json.dumps(left_out, indent=1) + "\n")
        claim = {"digest": config_flags.config_digest(config), "config": config.to_dict()}
        (workdir / "config.tmp").write_text(json.dumps(claim, indent=1) + "\n")
        (workdir / "config.tmp").rename(workdir / "config.json")
    return Run(
        config,
        workdir,
        mesh,
        cfg,
        prompter,
        load_template(config.templates.meta),
        records["train"],
        evaluation,
        general,
    )


def _made(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _refuse_other_config(config, workdir):
    path = workdir / "config.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["digest"] != config_flags.config_digest(config):
            old, new = (
                _flat(config_flags.of_results(one))
                for one in (found["config"], json.loads(json.dumps(config.to_dict())))
            )
            changed = sorted(
                name for name in old.keys() | new.keys() if old.get(name) != new.get(name)
            )
            raise ValueError(
                f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
                "Choose another --workdir."
            )


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _load(source, config, split):
    if "world" in source:
        # the same test records whatever the seed of the run
        seed = config.seed if split == "train" else source.get("seed", 0)
        return make_records(source["world"], source.get("items", config.eval.records), seed)
    return load_source(source)


def _load_general(source, config, train):
    if "world" in source:
        return make_instructions(source["items"], config.seed)
    if "records" in source:
        return best_responses(train)
    return load_instructions(source)


def best_responses(records: list[Record]) -> list[dict[str, str]]:
    """Instruction data from preference records: the conversation asks, its best response answers.
    Wrong single responses are left out.
    """
    rows = []
    for record in records:
        if len(record.responses) > 1 or record.rewards[0] == 1:
            turns = [
                turn.content if len(record.conversation) == 1 else f"{turn.role}: {turn.content}"
                for turn in record.conversation
            ]
            rows.append(
                {
                    "id": record.id,
                    "prompt": "\n\n".join(turns),
                    "completion": record.responses[best_index(record.rewards)],
                }
            )
    return rows


def _refuse_leaks(records: dict[str, list[Record]]) -> None:
    """No test record may be a training record, in whatever order its responses stand."""

    def content(record):
        return tuple(t.content for t in record.conversation), tuple(sorted(record.responses))

    seen = {content(record): record.id for record in records["train"]}
    for split, found in records.items():
        for record in found if split != "train" else ():
            if content(record) in seen:
                raise ValueError(
                    f"record {record.id!r} of {split!r} is also the training record "
                    f"{seen[content(record)]!r}"
                )


def run_stage(run: Run, name: str, stage: Callable[[Run], str | None]) -> None:
    """Run a stage unless the work folder says that it is done. What the stage returns is a note for
    results.json and the report.
    """
    marker = run.workdir / "stages" / f"{name}.json"
    done = processes.on_main(
        f"before {name}", lambda: json.loads(marker.read_text()) if marker.is_file() else None
    )
    if done:
        print(f"== {name}: done before ({done['seconds']:.0f} s)", flush=True)
        return
    print(f"== {name}", flush=True)
    began = time.time()
    note = stage(run)
    seconds = time.time() - began
    if processes.is_main():
        _made(marker).with_suffix(".tmp").write_text(
            json.dumps({"seconds": seconds, "note": note}) + "\n"
        )
        marker.with_suffix(".tmp").rename(marker)
    print(f"== {name}: {seconds:.0f} s" + (f". {note}" if note else ""), flush=True)


def finished_stages(run: Run) -> dict[str, dict]:
    """{stage: {"seconds", "note"}} in the order in which they ended."""
    markers = sorted((run.workdir / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem: json.loads(path.read_text()) for path in markers}


def load_policy(run: Run, name: str) -> dict:
    """Parameters of "base", "rft" or "grm", placed on the mesh."""
    shardings = param_shardings(run.mesh, abstract_params(run.cfg))
    if name != "base":
        return load_params(run.workdir / "models" / name, run.cfg, shardings)
    if run.config.model.random_init is not None:
        return jax.jit(lambda key: init_params(run.cfg, key), out_shardings=shardings)(
            jax.random.key(run.config.seed)
        )
    return load_params(config_flags.model_folder(run.config), run.cfg, shardings)


def with_head(run: Run, policy: dict) -> dict:
    """A scalar model with a fresh head on the policy, whose arrays it takes over."""
    key, shardings = (
        jax.random.key(run.config.seed),
        param_shardings(run.mesh, abstract_params(run.cfg, SCALAR)),
    )
    return jax.jit(
        lambda backbone: init_scalar_params(run.cfg, backbone, key),
        out_shardings=shardings,
        donate_argnums=0,
    )(policy)


def load_meta(run: Run) -> dict:
    """Parameters of the trained Meta RM, placed on the mesh."""
    shardings = param_shardings(run.mesh, abstract_params(run.cfg, SCALAR))
    return load_params(run.workdir / "models" / "meta", run.cfg, shardings, architecture=SCALAR)


def policy_sampler(run: Run, temperature: float) -> Callable:
    """The sampler of this run at a temperature (0 is greedy)."""
    return sampler_of(run.cfg, run.prompter.tokenizer, run.config, run.mesh, temperature)


def sampler_of(
    cfg: Gemma2Config,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    temperature: float,
) -> Callable:
    """The sampler of a model at a temperature, as the sections lengths and sampling of a config
    have it.
    """
    sampling = config.sampling
    settings = SamplingConfig(
        max_new_tokens=config.lengths.completion,
        temperature=temperature,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    used = (
        mesh
        if sampling.sampler == "shard_map" or (sampling.sampler == "jit" and mesh.size > 1)
        else None
    )
    return _sampler(cfg, settings, sampling.sampler, used)


_sampler = functools.cache(make_sampler)  # one program for all that sample alike
