"""The work folder of a run: what is set up for all stages, which stages are done, and where things
lie.

    .lock                  who runs here
    config.json            the resolved config, and digests of what the run reads: of no other run
    records/*.jsonl        the records that are used: train, every split, left_out.json
    trajectories/          judgments that are trained on (grm_jax/evaluation/store.py):
        <policy>/train/    of rejective sampling, hinted and unhinted, and for the Meta RM
        rl.jsonl           every rollout of RL, with its reward
        critic/train/      critiques, for CLoud
    judgments/             judgments of the evaluation (grm_jax/evaluation/judging.py)
    checkpoints/STAGE/     train state of a stage under way
    models/NAME/           finished models, as Hugging Face folders with a grm.json
    stages/STAGE.json      a stage that is done, its seconds, what a reader must know of it, and
                           the work folder that it was taken over from (reuse.py)
    metrics.jsonl          what training logged
    goodput.json           when each stage that trains began, and its seconds of useful steps
    profile/STAGE/         traces of the steps that --profile names (docs/profile.md)
    results.json, table.md, report.html   the evaluation

Of several processes process 0 alone writes these (each its shards of a checkpoint), and all read
them: the folder is one that all see.
"""

import dataclasses
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections

from experiments import run_config
from experiments.stages import inputs as inputs_module
from experiments.stages import reuse
from experiments.stages.inputs import Inputs, counts, digest, load_inputs, write_inputs
from grm_jax import locks
from grm_jax.chat import BUILT_IN_CHAT, OWN_CHAT
from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.checkpoint.peft import load_adapted, read_lora, save_adapters
from grm_jax.compile_cache import enable_compile_cache
from grm_jax.evaluation import store
from grm_jax.judgment.records import Record
from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import from_sizes
from grm_jax.models.heads import init_scalar_params
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.parallel import processes
from grm_jax.parallel.mesh import make_mesh, param_shardings, shares
from grm_jax.reward_models.description import Description, layers_of, write_description
from grm_jax.reward_models.grm import Prompter
from grm_jax.reward_models.load import describe
from grm_jax.reward_models.system import Asking, System
from grm_jax.tokenizer import Tokenizer, load_tokenizer
from grm_jax.training.loop import Trained, TrainSetup
from grm_jax.training.phases import trace_of
from grm_jax.whole_files import write_json

WORK = ("stages", "trajectories", "checkpoints")  # what a run goes on from


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
    left_out: dict[str, dict[str, int]]  # of "train" and every split: {reason: records}
    general: list[dict]
    inputs: dict  # digests of what was read
    stages: tuple[str, ...] | None = None  # to run; None: all
    givers: tuple[pathlib.Path, ...] = ()  # work folders that finished work is taken over from

    @property
    def model_cfg(self) -> ModelConfig:
        return self.setup.model_cfg

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompter.tokenizer

    def wants(self, stage: str) -> bool:
        """Whether a stage is among those that were asked for."""
        return self.stages is None or stage in self.stages

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
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def setup(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Load everything a run needs, check it, and write down which records are used and which are
    left out.

    Raises ValueError, before any compute, for what cannot be right, and for a work folder that
    holds a run of another config or of other inputs.
    """
    config_digest = processes.on_main("config", lambda: _digest_of_config(workdir, config))
    # the model, and how it is asked
    switches = run_config.section(config, "tokenizer").chat_args
    begin = None if config.tokenizer.path is not None else run_config.model_folder(config)
    layers = () if begin is None else layers_of(begin)
    tokenizer = load_tokenizer(run_config.tokenizer_path(config), switches, layers)
    templates = run_config.load_templates(config)
    prompter = Prompter(
        tokenizer,
        templates["pointwise"],
        templates["single"],
        config.answer,
        rubric=templates.get("rubric"),
    )
    mesh = make_mesh(**config.mesh)
    model_cfg = _model_config(config, tokenizer, mesh)
    for stage in run_config.STAGES:
        if stage in config:
            run_config.section(config, stage).check_shares(stage, shares(mesh))
    print(
        f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; model {model_cfg}",
        flush=True,
    )
    lengths = run_config.section(config, "lengths")
    asking = Asking(
        mesh=mesh,
        numerics=run_config.section(config, "model"),
        lengths=lengths,
        sampling=run_config.section(config, "sampling"),
        templates=templates,
        templates_win=True,
    )
    # the records, those of the test splits kept apart from training; a run goes on with no others
    inputs = load_inputs(config, prompter, templates["meta"], lengths)
    digests = inputs_module.digests(config, templates, inputs)
    hold(workdir)
    read = processes.on_main(
        "inputs", lambda: _claim(workdir, config, config_digest, digests, inputs)
    )
    if processes.is_main():
        write_inputs(workdir / "records", inputs)
    base = run_config.model_folder(config) or workdir / "models" / "base"
    train_setup = TrainSetup(
        folder=workdir,
        mesh=mesh,
        model_cfg=model_cfg,
        optimizer=run_config.section(config, "optimizer"),
        lora=run_config.section(config, "lora"),
        seed=config.seed,
        sequence_buckets=lengths.sequence_buckets,
        row_lengths=run_config.section(config, "packing").lengths(lengths.sequence_buckets[-1]),
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        digest=digest({"config": config_digest, "inputs": read}),
        sinks=tuple(config.log.sinks),
    )
    evaluation = dict(inputs.records)
    train = evaluation.pop("train")
    run = Run(
        config,
        workdir,
        base,
        asking,
        train_setup,
        prompter,
        train,
        evaluation,
        counts(inputs.left_out),
        inputs.general,
        read | inputs_module.eval_digests(inputs),
    )
    if config.model.random_init is not None and not (base / "config.json").is_file():
        params = jax.jit(
            lambda key: init_params(model_cfg, key),
            out_shardings=param_shardings(mesh, abstract_params(model_cfg)),
        )(jax.random.key(config.seed))
        save_model(run, "base", Trained(params, None))
    return run


def begin(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stages: Sequence[str] = (),
    takes: Sequence[str] = (),
    profile: str = "",
) -> Run:
    """`setup`, and which stages are to run.

    stages, takes: what --stages and --from say (reuse.py). profile: what --profile says.
    """

    def prepare() -> tuple[list[str], list[str]]:
        names, folders = reuse.stages_of(config), reuse.givers(takes, workdir)
        reuse.take_over(workdir, names, folders)
        return reuse.chosen(stages, workdir, names), [str(folder) for folder in folders]

    run = setup(config, workdir)
    chosen, folders = processes.on_main("stages", prepare)
    givers = tuple(pathlib.Path(folder) for folder in folders)
    traced = dataclasses.replace(run.setup, trace=trace_of(profile, workdir / "profile"))
    return dataclasses.replace(run, stages=tuple(chosen), givers=givers, setup=traced)


# ---- stages


def run_stage(run: Run, name: str, stage: Callable[[Run], Mapping | None]) -> None:
    """Run a stage unless the work folder says that it is done, or it is none of those asked for.

    What the stage returns goes into stages/NAME.json beside its seconds: "note", a sentence for
    the report, "funnel", counts of rejective sampling; and the models that it left, by content.
    """
    marker = run.workdir / "stages" / f"{name}.json"
    done = processes.on_main(f"before {name}", lambda: reuse.done(run.workdir, name))
    if done:
        print(f"== {name}: done before ({done['seconds']:.0f} s)", flush=True)
        return
    if not run.wants(name):
        return
    for before in reuse.STAGES[name].after if name in reuse.STAGES else ():
        processes.on_main(
            f"model of {before}", lambda before=before: reuse.need_models(run.workdir, before)
        )
    print(f"== {name}", flush=True)
    began = time.time()
    about = {"note": None} | dict(stage(run) or {})
    seconds = time.time() - began
    if processes.is_main():
        marker.parent.mkdir(parents=True, exist_ok=True)
        models = reuse.model_digests(run.workdir, name)
        write_json(marker, {"seconds": seconds} | about | {"models": models})
    print(
        f"== {name}: {seconds:.0f} s" + (f". {about['note']}" if about["note"] else ""), flush=True
    )


def about_stages(workdir: pathlib.Path) -> dict:
    """{"timings_s": {stage: seconds}, "notes": [text], "funnel": counts of rejective sampling} of
    the stages that are done, in the order in which they ended.
    """
    markers = sorted((workdir / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = {path.stem: reuse.read_marker(path) for path in markers}
    notes = [stage["note"] for stage in stages.values() if stage.get("note")]
    taken: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if "from" in stage:
            taken.setdefault(stage["from"], []).append(name)
    notes += [f"Taken over from {giver}: {', '.join(names)}." for giver, names in taken.items()]
    return {
        "timings_s": {name: stage["seconds"] for name, stage in stages.items()},
        "notes": notes,
        "funnel": next((stage["funnel"] for stage in stages.values() if "funnel" in stage), {}),
    }


# ---- models


def system(run: Run, policy: str, samples_per_order: int = 1, **fields) -> System:
    """A policy of this run as a system that judges; `fields` are those of its spec.

    The model that it starts from is asked as it is trained, with the run's tokenizer and switches;
    those that it made have them in their folders.
    """
    spec = {"name": policy, "kind": "pointwise_grm", "path": str(run.folder(policy))}
    asking = dataclasses.replace(run.asking, samples_per_order=samples_per_order)
    if policy == "base" and run.config.model.path is not None:
        stated = run_config.section(run.config, "tokenizer")
        asking = dataclasses.replace(
            asking,
            tokenizer=stated.path and run_config.tokenizer_path(run.config),
            chat_args=stated.chat_args,
        )
    return describe(spec | {"answer": run.config.answer} | fields, asking)


def load_policy(run: Run, name: str) -> dict:
    """Parameters of "base", "rft", "grm" or another policy, placed on the mesh."""
    return load_model(run, run.folder(name))


def load_model(run: Run, folder: pathlib.Path, architecture: str = CAUSAL_LM) -> dict:
    """Parameters of a folder of the run's architecture, adapters merged, placed on the mesh."""
    return load_adapted(layers_of(folder), run.model_cfg, run.setup.mesh, architecture)


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
    how it is asked. Adapters are merged; those of RFT, RL and the Meta RM are in adapters/<name>
    too.
    """
    scalar = kind not in ("pointwise_grm", "llm_judge", "critic")
    architecture = SCALAR if scalar else CAUSAL_LM
    if trained.adapters is not None and name in ("rft", "grm", "meta"):
        before = {"rft": "base", "grm": "rft"}.get(name) or run.config.meta.policies[-1]
        save_adapters(
            run.workdir / "adapters" / name,
            trained.adapters,
            run.model_cfg,
            run.setup.lora,
            run.folder(before),
            tokenizer_files_from=run_config.tokenizer_path(run.config),
            architecture=architecture,
        )
        if processes.is_main():
            write_description(run.workdir / "adapters" / name, _description(run, kind, **described))
    folder = run.workdir / "models" / name
    save_folder(
        folder,
        trained.params,
        run.model_cfg,
        tokenizer_files_from=run_config.tokenizer_path(run.config),
        architecture=architecture,
    )
    if processes.is_main():
        write_description(folder, _description(run, kind, **described))
    # the others were back earlier; what comes next may read the folder
    processes.barrier(f"models/{name} written")


def _description(run: Run, kind: str, **described) -> Description:
    templates, lengths = run.asking.templates, run.asking.lengths
    roles = {"meta_rm": {"meta": "meta"}}.get(kind, {})
    if kind == "pointwise_grm" and run.config.answer == "index":
        kind, roles = "llm_judge", {"judge": "pointwise"}
    elif kind == "pointwise_grm":
        roles = {role: role for role in ("pointwise", "single", "rubric") if role in templates}
    return Description(
        kind=kind,
        templates={role: templates[name] for role, name in roles.items()},
        answer=run.config.answer,
        lengths={"prompt": lengths.prompt, "completion": lengths.completion},
        temperature=run.config.eval.get("temperature"),
        chat=BUILT_IN_CHAT if run.tokenizer.template is None else OWN_CHAT,
        chat_args=run_config.section(run.config, "tokenizer").chat_args,
        **described,
    )


def _model_config(config, tokenizer: Tokenizer, mesh) -> ModelConfig:
    numerics = run_config.section(config, "model").resolve(mesh.devices.flat[0].platform)
    if config.model.random_init is not None:
        model_cfg = from_sizes(config.model.random_init, tokenizer.vocab_size, **numerics)
    else:
        base, *adapters = layers_of(run_config.model_folder(config))
        model_cfg = load_config(base, **numerics)
        for folder in adapters:
            read_lora(folder, model_cfg)
    if model_cfg.vocab_size < tokenizer.vocab_size and model_cfg.vocab_size < tokenizer.rows_needed:
        raise ValueError(
            f"the tokenizer has {tokenizer.rows_needed} ids, the model only {model_cfg.vocab_size} "
            "embeddings"
        )
    longest = config.lengths.prompt + config.lengths.completion
    if longest > model_cfg.max_positions:
        raise ValueError(
            f"lengths: the longest prompt and completion have {config.lengths.prompt} + "
            f"{config.lengths.completion} tokens, the model has {model_cfg.max_positions} "
            "positions; expected no more than those"
        )
    try:
        param_shardings(mesh, abstract_params(model_cfg))
    except ValueError as error:
        raise ValueError(f"mesh.fsdp: {error}") from error
    return model_cfg


# ---- whose the folder is


def hold(workdir: pathlib.Path) -> None:
    """Keep the folder for this process until it ends. ValueError, saying who has it, if another
    does.
    """
    if not processes.is_main():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        locks.hold(workdir / ".lock", str(workdir))
    except ValueError as error:
        raise ValueError(f"{error}. Wait for it, or choose another --workdir.") from None


def _digest_of_config(workdir: pathlib.Path, config) -> str:
    """The digest of the config, as it was when the run began. ValueError if the folder holds a run
    of another one; where what is read lies does not matter, `_claim` knows it by content.
    """
    path = workdir / "config.json"
    old = reuse.read_run(path) if path.is_file() else None
    work = [name for name in WORK if any((workdir / name).rglob("*"))]
    if old is None and work:
        raise ValueError(
            f"{workdir} holds {', '.join(work)} and no config.json, which says of which run they "
            "are. Bring it back, or choose another --workdir."
        )
    if old is None or old["digest"] == run_config.config_digest(config):
        return run_config.config_digest(config)
    then, now = (
        run_config.of_results(plain, but=run_config.BY_CONTENT if "inputs" in old else ())
        for plain in (old["config"], json.loads(json.dumps(config.to_dict())))
    )
    if changed := store.differing(then, now):
        raise ValueError(
            f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
            f"Choose another --workdir; --from={workdir} there takes over the stages that are "
            "finished and do not depend on it."
        )
    return old["digest"]


def _claim(
    workdir: pathlib.Path, config, config_digest: str, digests: dict, inputs: Inputs
) -> dict:
    """Make the folder this run's; ValueError if it holds a run that read something else.

    Returns the digests of what the run began with: a file that nothing reads may be another now.
    """
    path = workdir / "config.json"
    old = reuse.read_run(path) if path.is_file() else {}
    before = inputs_module.what_matters(old.get("inputs", digests))
    if changed := inputs_module.changed(before, digests):
        places = dict.fromkeys(inputs_module.place_of(config, field) for field in changed)
        raise ValueError(
            f"{workdir} holds a run of other inputs; what was read then for "
            f"{', '.join(changed)} had another content ({', '.join(places)}). Bring it back, or "
            "choose another --workdir."
        )
    inputs_module.refuse_changed_tests(config, workdir, inputs)
    workdir.mkdir(parents=True, exist_ok=True)
    read = old.get("inputs", digests)
    claim = {
        "digest": config_digest,
        "inputs": read,
        "files": inputs_module.file_digests(config),
        "config": json.loads(json.dumps(config.to_dict())),
    }
    write_json(path, claim)
    return read
