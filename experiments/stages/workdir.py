"""The work folder of a run: what is set up for all stages, which stages are done, and where things
lie.

    config.json            the resolved config, and digests of what the run reads: of no other run
    records/*.jsonl        the records that are used: train, every split, left_out.json
    trajectories/          judgments that are trained on (grm_jax/evaluation/store.py):
        <policy>/train/    of rejective sampling, hinted and unhinted, and for the Meta RM
        rl.jsonl           every rollout of RL, with its reward
        critic/train/      critiques, for CLoud
    judgments/             judgments of the evaluation (grm_jax/evaluation/judging.py)
    checkpoints/STAGE/     train state of a stage under way
    models/NAME/           finished models, as Hugging Face folders with a grm.json
    stages/STAGE.json      a stage that is done, its seconds, and what a reader must know of it
    metrics.jsonl          what training logged
    results.json, table.md, report.html   the evaluation

Of several processes process 0 alone writes these (each its shards of a checkpoint), and all read
them: the folder is one that all see.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections

from experiments import config_flags
from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.checkpoint.peft import save_adapters
from grm_jax.compile_cache import enable_compile_cache
from grm_jax.data.examples import best_responses
from grm_jax.data.sources import load_instructions, load_source
from grm_jax.data.world import make_instructions, make_records
from grm_jax.evaluation import store
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import Record, write_records
from grm_jax.models import Gemma2Config, init_params
from grm_jax.models.config import from_sizes, load_config
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh, param_shardings, shares
from grm_jax.reward_models.description import (
    Description,
    content_digest,
    template_digest,
    write_description,
)
from grm_jax.reward_models.grm import Prompter, split_by_length
from grm_jax.reward_models.load import Asking, System, describe
from grm_jax.tokenizer import Tokenizer, load_tokenizer
from grm_jax.training.loop import Trained, TrainSetup


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: everything a stage may read. Stages write to `workdir` only."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    base: pathlib.Path  # folder of the model that training starts from
    asking: Asking
    setup: TrainSetup
    prompter: Prompter
    train: list[Record]
    evaluation: dict[str, list[Record]]
    general: list[dict]

    @property
    def model_cfg(self) -> Gemma2Config:
        return self.setup.model_cfg

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompter.tokenizer

    def folder(self, policy: str) -> pathlib.Path:
        """The model folder of "base", or of a model that a stage has finished."""
        return self.base if policy == "base" else self.workdir / "models" / policy

    def trajectories(self, policy: str) -> pathlib.Path:
        """Where a policy's judgments of the training records lie."""
        return self.workdir / "trajectories" / policy / "train"


def start_processes() -> None:
    """Join the processes of this job, if it has several, before anything that needs a device. All
    but process 0 fall silent but for errors.
    """
    job = processes.initialize()
    jax.config.update("jax_threefry_partitionable", True)
    enable_compile_cache()
    if job.count > 1:
        print(
            f"process {job.index} of {job.count} on {socket.gethostname()}, by {job.launcher}",
            flush=True,
        )
        if not processes.is_main():
            sys.stdout = open(os.devnull, "w")


def setup(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Load everything a run needs, check it, and write down which records are used and which are
    left out.

    Raises ValueError, before any compute, for what cannot be right, and for a work folder that
    holds a run of another config or of other inputs.
    """
    # the model, and how it is asked
    tokenizer = load_tokenizer(config_flags.tokenizer_path(config))
    templates = {name: load_template(template) for name, template in config.templates.items()}
    prompter = Prompter(tokenizer, templates["pointwise"], templates["single"], config.answer)
    mesh = make_mesh(**config.mesh)
    model_cfg = _model_config(config, tokenizer, mesh)
    for stage in config_flags.STAGES:
        if stage in config:
            config_flags.section(config, stage).check_shares(stage, shares(mesh))
    print(
        f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; model {model_cfg}",
        flush=True,
    )
    lengths = config_flags.section(config, "lengths")
    asking = Asking(
        mesh=mesh,
        numerics=config_flags.section(config, "model"),
        lengths=lengths,
        sampling=config_flags.section(config, "sampling"),
        templates=templates,
        templates_win=True,
    )
    # the records, those of the test splits kept apart from training
    records, left_out = {}, {}
    sources = {"train": config.data.train}
    sources |= {split: config.data.eval[split] for split in config.eval.splits}
    for split, source in sources.items():
        records[split], left_out[split] = _load_split(config, prompter, split, source)
    _refuse_leaks(records)
    general = [
        row
        for source in config_flags.sources(config.data.general)
        for row in _load_general(source, config, records["train"])
    ]
    # what the run reads, by content: a run goes on with nothing else
    base = workdir / "models" / "base"
    if config.model.random_init is None:
        base = config_flags.model_folder(config)
    inputs = _inputs(config, templates, records["train"], general)
    digest = config_flags.config_digest(config)
    processes.on_main("config", lambda: _claim(workdir, config, digest, inputs))
    if processes.is_main():
        for split in records:
            path = workdir / "records" / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_records(path, records[split])
        store.write_json(workdir / "records" / "left_out.json", left_out)
    train_setup = TrainSetup(
        folder=workdir,
        mesh=mesh,
        model_cfg=model_cfg,
        optimizer=config_flags.section(config, "optimizer"),
        lora=config_flags.section(config, "lora"),
        seed=config.seed,
        sequence_buckets=lengths.sequence_buckets,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        digest=_digest({"config": digest, "inputs": inputs}),
        sinks=tuple(config.log.sinks),
    )
    evaluation = {split: records[split] for split in config.eval.splits}
    run = Run(
        config, workdir, base, asking, train_setup, prompter, records["train"], evaluation, general
    )
    if config.model.random_init is not None and not (base / "config.json").is_file():
        params = jax.jit(
            lambda key: init_params(model_cfg, key),
            out_shardings=param_shardings(mesh, abstract_params(model_cfg)),
        )(jax.random.key(config.seed))
        save_model(run, "base", Trained(params, None))
    return run


# ---- stages


def run_stage(run: Run, name: str, stage: Callable[[Run], Mapping | None]) -> None:
    """Run a stage unless the work folder says that it is done.

    What the stage returns goes into stages/NAME.json beside its seconds: "note", a sentence for
    the report, "funnel", counts of rejective sampling.
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
    about = {"note": None} | dict(stage(run) or {})
    seconds = time.time() - began
    if processes.is_main():
        marker.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(marker, {"seconds": seconds} | about)
    print(
        f"== {name}: {seconds:.0f} s" + (f". {about['note']}" if about["note"] else ""), flush=True
    )


def about_stages(workdir: pathlib.Path) -> dict:
    """{"timings_s": {stage: seconds}, "notes": [text], "funnel": counts of rejective sampling} of
    the stages that are done, in the order in which they ended.
    """
    markers = sorted((workdir / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = {path.stem: json.loads(path.read_text()) for path in markers}
    return {
        "timings_s": {name: stage["seconds"] for name, stage in stages.items()},
        "notes": [stage["note"] for stage in stages.values() if stage["note"]],
        "funnel": next((stage["funnel"] for stage in stages.values() if "funnel" in stage), {}),
    }


# ---- models


def system(run: Run, policy: str, samples_per_order: int = 1, **fields) -> System:
    """A policy of this run as a system that judges; `fields` are those of its spec."""
    spec = {"name": policy, "kind": "pointwise_grm", "path": str(run.folder(policy))}
    asking = dataclasses.replace(run.asking, samples_per_order=samples_per_order)
    return describe(spec | {"answer": run.config.answer} | fields, asking)


def load_policy(run: Run, name: str) -> dict:
    """Parameters of "base", "rft", "grm" or another policy, placed on the mesh."""
    return load_model(run, run.folder(name))


def load_model(run: Run, folder: pathlib.Path, architecture: str = CAUSAL_LM) -> dict:
    """Parameters of a folder of the run's architecture, placed on the mesh."""
    shardings = param_shardings(run.setup.mesh, abstract_params(run.model_cfg, architecture))
    return load_params(folder, run.model_cfg, shardings, architecture=architecture)


def with_head(run: Run, policy: dict) -> dict:
    """A scalar model with a fresh head on the policy, whose arrays it takes over."""
    key = jax.random.key(run.config.seed)
    shardings = param_shardings(run.setup.mesh, abstract_params(run.model_cfg, SCALAR))
    return jax.jit(
        lambda backbone: init_scalar_params(run.model_cfg, backbone, key),
        out_shardings=shardings,
        donate_argnums=0,
    )(policy)


def save_model(
    run: Run, name: str, trained: Trained, kind: str = "pointwise_grm", **described
) -> None:
    """Write models/<name>, a Hugging Face folder with the run's tokenizer and a grm.json that says
    how it is asked. Adapters are merged; those of RFT and RL are in adapters/<name> too.
    """
    if trained.adapters is not None and name in ("rft", "grm"):
        start = run.folder("rft") if name == "grm" else run.base
        save_adapters(
            run.workdir / "adapters" / name, trained.adapters, run.model_cfg, run.setup.lora, start
        )
    scalar = kind not in ("pointwise_grm", "llm_judge", "critic")
    folder = run.workdir / "models" / name
    save_folder(
        folder,
        trained.params,
        run.model_cfg,
        tokenizer_files_from=config_flags.tokenizer_path(run.config),
        architecture=SCALAR if scalar else CAUSAL_LM,
    )
    if processes.is_main():
        write_description(folder, _description(run, kind, **described))


def _description(run: Run, kind: str, **described) -> Description:
    templates, lengths = run.asking.templates, run.asking.lengths
    roles = {"meta_rm": {"meta": "meta"}}.get(kind, {})
    if kind == "pointwise_grm" and run.config.answer == "index":
        kind, roles = "llm_judge", {"judge": "pointwise"}
    elif kind == "pointwise_grm":
        roles = {"pointwise": "pointwise", "single": "single"}
    return Description(
        kind=kind,
        templates={role: templates[name] for role, name in roles.items()},
        answer=run.config.answer,
        lengths={"prompt": lengths.prompt, "completion": lengths.completion},
        temperature=run.config.eval.get("temperature"),
        **described,
    )


def _model_config(config, tokenizer: Tokenizer, mesh) -> Gemma2Config:
    numerics = config_flags.section(config, "model").resolve(mesh.devices.flat[0].platform)
    if config.model.random_init is not None:
        model_cfg = from_sizes(config.model.random_init, tokenizer.vocab_size, **numerics)
    else:
        model_cfg = load_config(config_flags.model_folder(config), **numerics)
    if model_cfg.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model_cfg.vocab_size} "
            "embeddings"
        )
    return model_cfg


# ---- records


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


# ---- identity


def _inputs(config, templates, train: Sequence[Record], general: Sequence[dict]) -> dict:
    """Digests of what training reads, by content, whatever the files are called."""
    folder, tokenizer = config_flags.model_folder(config), config_flags.tokenizer_path(config)
    return {
        "data.train": _digest([store.record_digest(record) for record in train]),
        "data.general": _digest(list(general)),
        "templates": {name: template_digest(template) for name, template in templates.items()},
        # a model that is drawn at random is a function of the config
        "model": {} if folder is None else content_digest(folder),
        "tokenizer": content_digest(tokenizer),
    }


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(workdir: pathlib.Path, config, digest: str, inputs: dict) -> None:
    """Make the folder this run's; ValueError if it holds a run of another config or other inputs.
    What is there stays as it is."""
    path = workdir / "config.json"
    plain = json.loads(json.dumps(config.to_dict()))
    if path.is_file():
        old = json.loads(path.read_text())
        changed = store.differing(
            config_flags.of_results(old["config"]), config_flags.of_results(plain)
        )
        if old["digest"] != digest:
            raise ValueError(
                f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
                "Choose another --workdir."
            )
        changed = store.differing(old.get("inputs", {}), inputs)
        if changed:
            raise ValueError(
                f"{workdir} holds a run of other inputs; what was read then for "
                f"{', '.join(changed)} had another content. Bring it back, or choose another "
                "--workdir."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    store.write_json(path, {"digest": digest, "inputs": inputs, "config": plain})
