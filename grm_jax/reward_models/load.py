"""Makes the reward model itself from the description of a system in a config.

    {"name": "grm", "kind": "pointwise_grm", "path": FOLDER, "meta": FOLDER of a Meta RM,
     "templates": {"pointwise": NAME_OR_FILE, "single": ..., "rubric": ..., "meta": ...},
     "answer": "scores", "parsing": "strict", "rubric": True, "hint": False}
    {"name": "judge", "kind": "llm_judge" or "token_prob", "path": FOLDER,
     "templates": {"judge": NAME_OR_FILE}, "answer": "index"}
    {"name": "bt", "kind": "scalar" or "bradley_terry", "path": FOLDER}
    {"name": "pairs", "kind": "pair_rm", "path": FOLDER, "swap_average": False}
    {"name": "cloud", "kind": "cloud", "path": FOLDER of the head, "critic": FOLDER}
    {"name": "gpt", "kind": "remote", "base_url": URL, "model": NAME, ...}
    {"name": "length", "kind": "length" or "random" or "constant"}
    {"name": "mine", "kind": "package.module:function"}

pointwise_grm: "answer" may be "ten": single responses are scored from 1 to 10, as the paper does on
    ReaLMistake; "parsing": "released" reads scores as the code on the card of DeepSeek-GRM does,
    and keeps the strict reading beside it; "thinking_budget": tokens after which a thinking that
    has not ended is closed (llm_judge and token_prob have it too); "rubric": False leaves the
    rubrics of records out of sight; "principles": "once" lets all samples of a record go on from
    the principles of its greedy judgment; "hint": True tells it the best response, as half of
    rejective sampling does.
llm_judge, token_prob: "answer" may be "letter": [[A]], <answer>A</answer> or a letter in a box, as
    public pairwise judges write it.
scalar, bradley_terry: a sequence-classification folder with one label, of ours or public.
remote: further fields of `reward_models.remote_config.RemoteConfig` (docs/remote.md).
package.module:function: function(spec, asking, seed) -> RewardModel.

A FOLDER is what `description.model_folder` finds: "tiny", a Hugging Face folder, the work folder of
a run, a model of the hub. Its grm.json says which templates and answer the model was trained with.
A system may name the same ones; others are an error. Where a folder has no grm.json, a template
that a system does not name is that of `Asking`.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from grm_jax.chat import BUILT_IN_CHAT, read_chat_template
from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params
from grm_jax.checkpoint.peft import load_adapted, read_lora
from grm_jax.judgment.parsing import ANSWERS, CHOICES, PARSINGS, score_span
from grm_jax.judgment.prompts import Template, check_template, load_template, shows_rubric
from grm_jax.judgment.reasoning import template_marks
from grm_jax.judgment.records import Record
from grm_jax.models.config import ModelConfig, Numerics
from grm_jax.models.hf_config import load_config, read_config
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.naming import resolve
from grm_jax.parallel.mesh import param_shardings
from grm_jax.reward_models import baselines, description, pair_rm, remote_config
from grm_jax.reward_models import cloud as cloud_module
from grm_jax.reward_models.description import Description, content_digest
from grm_jax.reward_models.grm import NO_PRINCIPLES, NO_RUBRIC, Prompter, prompt_length
from grm_jax.reward_models.llm_judge import by_probability, llm_judge
from grm_jax.reward_models.meta_rm import add_logits, make_scorer, of_size
from grm_jax.reward_models.pointwise import pointwise_grm, with_principles_once
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.remote import Estimate, estimate, remote_judge
from grm_jax.reward_models.remote_config import RemoteConfig
from grm_jax.reward_models.scalar import load_scalar, padded_as_stated, scalar_rm
from grm_jax.sampling.engine import Drawing
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Asking:
    """Says how all systems of a comparison are asked.

    It holds devices, numerics, lengths, sampling, and the templates of those whose folder names
    none.

    samples_per_order: consecutive samples that show the responses in one order.
    templates_win: whether all are asked by these templates, whatever their folders say, as a run
        does that trains them.
    """

    mesh: Mesh
    numerics: Numerics
    lengths: Lengths
    sampling: Sampling
    templates: Mapping[str, Template]
    samples_per_order: int = 1
    templates_win: bool = False


class Policy(NamedTuple):
    """Holds a model that writes judgments, for who asks for them one at a time, as a server does.

    sampler_of: temperature -> what draws (`samplers`). buckets: widths of prompts. longest: prompt
        and completion, in tokens. hinted: see `pointwise_grm`.
    rate: puts the Meta RM's logits into judgments (`meta_rm.add_logits`): rate(judgments,
        {id: record}, widths of sequences, rows at once); None without one.
    """

    params: dict
    sampler_of: Callable[[float], Drawing]
    prompter: Prompter
    buckets: tuple[int, ...]
    longest: int
    hinted: bool
    rate: Callable[[Sequence[dict], Mapping[str, Record], Sequence[int], int], None] | None


class System(NamedTuple):
    """Holds a reward model that is known, and not loaded.

    name, kind: of its spec.
    identity: plain JSON with all that the text of a judgment depends on, by content; two systems
        that are equal in it may share their judgments.
    load: (seed, rows=None, sequences=None) -> RewardModel; rows at once, and widths of sequences,
        in place of those of `Asking`. The weights are loaded by the first call, and stay until
        `release`.
    view: from a judgment that `load`'s model gives to this system's own; None where they are the
        same.
    accepts: whether it can judge n responses; None where only the loaded model can tell.
    sampled: whether its samples differ; None where only the loaded model can tell.
    estimate: (records, samples) -> what they would ask of its server; None for what runs here.
    ready: raises ValueError where a key that its requests need is not there; asks nothing.
    span: n -> the largest difference of two scores in a judgment of n responses, None where it has
        no bound; None for a model of whose scores nothing is known, and for a kind of
        one's own, which says it once it is loaded.
    refuses: why it cannot judge by the rubric of a record, or go on from its principles, or None
        where it can; None for a model that does neither.
    policy: loads the weights of a pointwise_grm for who draws its judgments himself; None for other
        kinds, and for models with a thinking budget, principles written once or rubrics unseen.
    """

    name: str
    kind: str
    identity: dict[str, Any]
    load: Callable[..., RewardModel]
    release: Callable[[], None]
    view: Callable[[dict], dict] | None = None
    accepts: Callable[[int], bool] | None = None
    sampled: bool | None = None
    estimate: Callable[[Sequence[Record], int], Estimate] | None = None
    ready: Callable[[], object] | None = None
    span: Callable[[int], float | None] | None = None
    refuses: Callable[[Record], str | None] | None = None
    policy: Callable[[], Policy] | None = None


def describe(spec: Mapping, asking: Asking) -> System:
    """Checks the spec of a system and says what it is, before any weight is loaded.

    Raises ValueError, naming the system and the field: an unknown or missing field, a folder that
    is not there or holds another kind of model, a bad grm.json, a template that is not the one
    which the model was trained with, more positions than the model has.
    """
    name, kind = spec["name"], spec["kind"]
    try:
        if ":" in kind:
            found = _own(spec, asking)
        elif problem := wrong_fields(spec):
            raise ValueError(problem)
        else:
            found = KINDS[kind](spec, asking)
        identity = json.loads(json.dumps(found.identity, allow_nan=False))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"system {name!r}: {error}") from error
    build = functools.cache(found.loader)

    def load(
        seed: int, rows: int | None = None, sequences: tuple[int, ...] | None = None
    ) -> RewardModel:
        lengths = asking.lengths
        if sequences is not None:
            lengths = dataclasses.replace(lengths, sequences=sequences)
        batches = Batches(rows or asking.sampling.rows, lengths.buckets, lengths.sequence_buckets)
        model = build()(seed, batches)
        return model._replace(name=name, accepts=found.accepts or model.accepts)

    return System(
        name,
        kind,
        identity,
        load,
        build.cache_clear,
        found.view,
        found.accepts,
        found.sampled,
        found.estimate,
        found.ready,
        found.span,
        found.refuses,
        found.policy,
    )


def wrong_fields(spec: Mapping) -> str | None:
    """Says what is wrong with the kind and the names of a spec's fields.

    Returns None where nothing is, and for kinds of one's own.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or (kind not in KINDS and ":" not in kind):
        return (
            f'field "kind": expected one of {", ".join(KINDS)}, or package.module:function, got '
            f"{kind!r}"
        )
    if ":" in kind:
        return None
    optional, required = FIELDS[kind]
    missing = [field for field in required if spec.get(field) is None]
    unknown = [field for field in spec if field not in ("name", "kind", *required, *optional)]
    if missing:
        return f"kind {kind!r} needs the field{'s' * (len(missing) > 1)} {', '.join(missing)}"
    if unknown:
        return (
            f"unknown field {unknown[0]!r}; kind {kind!r} has "
            f"{', '.join((*required, *optional)) or 'no fields'}"
        )
    return None


def samplers(
    asking: Asking, model_cfg: ModelConfig, tokenizer: Tokenizer
) -> Callable[[float], Drawing]:
    """Returns temperature -> what draws a policy's completions (`rollout.generate`); 0 is greedy.

    The same compiled programs serve all who draw alike.
    """
    sampling, mesh = asking.sampling, None
    if sampling.sampler == "shard_map" or (sampling.sampler == "jit" and asking.mesh.size > 1):
        mesh = asking.mesh

    def sampler_of(temperature: float) -> Drawing:
        settings = SamplingConfig(
            max_new_tokens=asking.lengths.completion,
            temperature=temperature,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            kv_cache_dtype=sampling.kv_cache_dtype,
        )
        return Drawing(
            model_cfg, settings, sampling.sampler, mesh, sampling.chunk, sampling.cache_bytes
        )

    return sampler_of


class Batches(NamedTuple):
    """Holds the shapes of programs: rows at once, and what prompts and sequences are padded to."""

    rows: int
    buckets: tuple[int, ...]
    sequence_buckets: tuple[int, ...]


class _Kind(NamedTuple):
    """Holds what a kind says of a spec (see `System`).

    loader: () -> (seed, batches) -> model.
    """

    identity: dict
    loader: Callable[[], Callable[[int, Batches], RewardModel]]
    accepts: Callable[[int], bool] | None
    sampled: bool | None
    view: Callable[[dict], dict] | None = None
    estimate: Callable[[Sequence[Record], int], Estimate] | None = None
    ready: Callable[[], object] | None = None
    span: Callable[[int], float | None] | None = None
    refuses: Callable[[Record], str | None] | None = None
    policy: Callable[[], Policy] | None = None


class _Folder(NamedTuple):
    """Holds what was seen of a model folder: everything but its tensors.

    base: the folder of the weights; another one than `path` where that has adapters.
    """

    path: pathlib.Path
    base: pathlib.Path
    cfg: ModelConfig
    description: Description | None
    architecture: str

    @property
    def identity(self) -> dict:
        own = read_chat_template(self.home_of_tokenizer, self.chat_args)
        chat = BUILT_IN_CHAT if own is None else dataclasses.asdict(own) | {"source": None}
        adapted = {} if self.base == self.path else {"base": content_digest(self.base)}
        return content_digest(self.path) | adapted | {"chat": chat}

    @property
    def home_of_tokenizer(self) -> pathlib.Path:
        own = any((self.path / name).is_file() for name in description.TOKENIZER_FILES[:2])
        return self.path if own else self.base

    @property
    def chat_args(self) -> Mapping[str, Any]:
        return (self.description and self.description.chat_args) or {}

    def tokenizer(self) -> Tokenizer:
        tokenizer = load_own_tokenizer(self.home_of_tokenizer, self.cfg, self.chat_args)
        if self.architecture == SCALAR and self.base == self.path:
            return padded_as_stated(tokenizer, self.path, self.cfg)
        return tokenizer

    def params(self, mesh: Mesh) -> dict:
        if self.base != self.path:
            return load_adapted(self.path, self.base, self.cfg, mesh, self.architecture)
        shardings = param_shardings(mesh, abstract_params(self.cfg, self.architecture))
        return load_params(self.path, self.cfg, shardings, architecture=self.architecture)


UNSEEN = 'the spec of this model says "rubric": False, so it sees none'
POLICIES = ("pointwise_grm", "llm_judge", "critic")  # kinds of grm.json that write text


def _pointwise(spec, asking) -> _Kind:
    folder = _folder(spec, "path", asking, POLICIES)
    answer, hint = _answer(spec, asking, folder), spec.get("hint", False)
    sees = spec.get("rubric", True)  # the rubrics of records
    parsing, budget = _parsing(spec, answer), _thinking_budget(spec, asking, folder)
    pointwise, single = (_template(spec, asking, r, folder) for r in ("pointwise", "single"))
    rubric, once = _rubric_template(spec, asking, answer, folder), _once(spec, answer, folder)
    meta: tuple[_Folder, Template] | None = None
    if spec.get("meta"):
        rater = _folder(spec, "meta", asking, ("meta_rm",), ("meta",))
        meta = rater, _template(spec, asking, "meta", rater, folder)
    identity = {
        "kind": "pointwise_grm",
        "answer": answer,
        **({} if parsing == "strict" else {"parsing": parsing}),
        **({} if budget is None else {"thinking_budget": budget}),
        "templates": _digests(pointwise=pointwise, single=single)
        | ({} if rubric in (None, load_template("rubric")) else _digests(rubric=rubric)),
        "hint": hint,
        "samples_per_order": asking.samples_per_order,
        "meta": meta and meta[0].identity | {"templates": _digests(meta=meta[1])},
        **({} if sees else {"rubric": False}),
        **({} if once is None else {"principles": once}),
        **folder.identity,
        **_asked(asking),
    }
    prompter_of = functools.cache(
        lambda: Prompter(
            folder.tokenizer(), pointwise, single, answer, parsing, budget, rubric=rubric
        )
    )

    def policy() -> Policy:
        prompter = prompter_of()
        return Policy(
            folder.params(asking.mesh),
            samplers(asking, folder.cfg, prompter.tokenizer),
            prompter,
            asking.lengths.buckets,
            asking.lengths.prompt + asking.lengths.completion,
            hint,
            _meta_rater(*meta, asking) if meta else None,
        )

    def loader():
        loaded = policy()

        def build(seed: int, batches: Batches) -> RewardModel:
            model = pointwise_grm(
                spec["name"],
                loaded.sampler_of,
                loaded.params,
                loaded.prompter,
                seed=seed,
                buckets=batches.buckets,
                rows=batches.rows,
                per_order=asking.samples_per_order,
                hinted=hint,
            )
            if once is not None:
                longest = max(batches.buckets)

                def fits(record: Record) -> bool:
                    return prompt_length(loaded.prompter, record, hint) <= longest

                model = with_principles_once(model, fits, batches.rows)
            if not sees:
                model = _without_rubrics(model)
            return model if loaded.rate is None else _guided(model, loaded.rate, batches)

        return build

    fewest = 2 if answer in CHOICES else 1
    span = functools.partial(score_span, answer=answer)
    refuses = functools.partial(_refuses, prompter_of, rubric, sees, asking.lengths.prompt)
    # a thinking budget draws in two turns, as do principles that are written once, and without
    # rubrics records change: these know the model
    plain = budget is None and sees and once is None
    return _Kind(
        identity,
        loader,
        lambda n: n >= fewest,
        sampled=True,
        span=span,
        refuses=refuses,
        policy=policy if plain else None,
    )


def _refuses(
    prompter_of: Callable[[], Prompter],
    rubric: Template | None,
    sees_rubrics: bool,
    limit: int,
    record: Record,
) -> str | None:
    """Says why a policy cannot judge by the rubric of a record, or go on from its principles; None
    where it can.
    """
    if record.rubric and not sees_rubrics:
        return UNSEEN
    if record.rubric and rubric is None:
        return NO_RUBRIC
    prompter = prompter_of()
    if record.principles and not prompter.goes_on:
        return NO_PRINCIPLES
    plain = dataclasses.replace(record, rubric=(), principles="")
    tokens = prompt_length(prompter, record, hint=False)
    if tokens <= limit or prompt_length(prompter, plain, hint=False) > limit:  # too long without it
        return None
    return f"the prompt has {tokens} tokens with it; expected at most {limit}"


def _once(spec: Mapping, answer: str, folder: _Folder) -> str | None:
    """The field "principles": "once", or None where each judgment writes its own."""
    once = spec.get("principles")
    if once not in (None, "once"):
        raise ValueError(f'field "principles": expected "once" or none, got {once!r}')
    if once and (answer in CHOICES or folder.tokenizer().thinking is not None):
        raise ValueError(f'field "principles": {NO_PRINCIPLES}')
    return once


def _without_rubrics(model: RewardModel) -> RewardModel:
    """A model that is asked the same, and sees no rubric."""

    def judge(records: Sequence[Record], *args: Any, **kwargs: Any) -> Iterator[list[dict]]:
        plain = [dataclasses.replace(record, rubric=()) for record in records]
        yield from model.judge(plain, *args, **kwargs)

    return model._replace(judge=judge)


def _judge(spec, asking) -> _Kind:
    folder = _folder(spec, "path", asking, POLICIES)
    template, said = _template(spec, asking, "judge", folder), folder.description
    own = said.answer if said is not None and said.answer in CHOICES else "index"
    answer = spec.get("answer") or own
    if answer not in CHOICES:
        raise ValueError(f'field "answer": expected one of {", ".join(CHOICES)}, got {answer!r}')
    budget = _thinking_budget(spec, asking, folder)
    identity = {
        "kind": "llm_judge",
        **({} if budget is None else {"thinking_budget": budget}),
        "answer": answer,
        "templates": _digests(judge=template),
        **folder.identity,
        **_asked(asking),
    }

    def loader():
        params, tokenizer = folder.params(asking.mesh), folder.tokenizer()
        prompter = Prompter(tokenizer, template, template, answer, thinking_budget=budget)
        sampler_of = samplers(asking, folder.cfg, tokenizer)
        return lambda seed, batches: llm_judge(
            spec["name"],
            sampler_of,
            params,
            prompter,
            seed=seed,
            buckets=batches.buckets,
            rows=batches.rows,
        )

    view = by_probability if spec["kind"] == "token_prob" else None
    # a response scores the pairs that it won, or their probabilities
    none = f"a {spec['kind']} judges by none"
    return _Kind(
        identity,
        loader,
        lambda n: n >= 2,
        sampled=True,
        view=view,
        span=lambda n: n - 1,
        refuses=lambda record: NO_PRINCIPLES if record.principles else none,
    )


def _scalar(spec, asking) -> _Kind:
    folder = _folder(spec, "path", asking, ("bradley_terry",))
    if folder.base != folder.path:
        raise ValueError(f'field "path": expected a whole model, got the adapters of {folder.path}')
    identity = {"kind": "scalar", **folder.identity, **_asked(asking)}

    def loader():
        params, cfg, tokenizer = load_scalar(folder.path, asking.mesh, **_numerics(asking))
        return lambda seed, batches: scalar_rm(
            spec["name"],
            params,
            cfg,
            tokenizer,
            buckets=batches.sequence_buckets,
            rows=batches.rows,
        )

    return _Kind(identity, loader, lambda n: n >= 1, sampled=False)


def _pair_rm(spec, asking) -> _Kind:
    folder = _folder(spec, "path", asking, ("pair_rm",))
    swap_average = spec.get("swap_average", False)
    identity = {
        "kind": "pair_rm",
        "swap_average": swap_average,
        "templates": _digests(pair=pair_rm.TEMPLATE),
        **folder.identity,
        **_asked(asking),
    }

    def loader():
        params, tokenizer = folder.params(asking.mesh), folder.tokenizer()
        return lambda seed, batches: pair_rm.pair_rm(
            spec["name"],
            params,
            folder.cfg,
            tokenizer,
            seed=seed,
            buckets=batches.sequence_buckets,
            rows=batches.rows,
            swap_average=swap_average,
        )

    return _Kind(identity, loader, lambda n: n >= 2, sampled=False)


def _cloud(spec, asking) -> _Kind:
    head = _folder(spec, "path", asking, ("cloud",))
    critic = _folder(spec, "critic", asking, POLICIES, ("critic", "grm"))
    identity = {
        "kind": "cloud",
        "critic": critic.identity,
        "templates": _digests(critic=cloud_module.TEMPLATE),
        **head.identity,
        **_asked(asking),
    }

    def loader():
        tokenizer = critic.tokenizer()
        critic_params, head_params = critic.params(asking.mesh), head.params(asking.mesh)
        sampler_of = samplers(asking, critic.cfg, tokenizer)
        return lambda seed, batches: cloud_module.cloud(
            spec["name"],
            sampler_of,
            critic_params,
            head_params,
            critic.cfg,
            tokenizer,
            seed=seed,
            buckets=batches.buckets,
            sequence_buckets=batches.sequence_buckets,
            completion=asking.lengths.completion,
            rows=batches.rows,
        )

    return _Kind(identity, loader, lambda n: n >= 1, sampled=True)


def _remote(spec, asking) -> _Kind:
    """Asks by the template of pointwise scores or, where the answer is a choice, of a judge."""
    answer = _answer(spec, asking)
    _parsing(spec, answer)
    role = "judge" if answer in CHOICES else "pointwise"
    templates: dict[str, Any] = {
        "template": _template(spec, asking, role),
        "single_template": _template(spec, asking, "single"),
    }
    rubric = _rubric_template(spec, asking, answer)
    if rubric is not None:
        templates["rubric_template"] = rubric
    given = {name: value for name, value in spec.items() if name not in ("kind", "templates")}
    arguments: dict[str, Any] = {"max_tokens": asking.lengths.completion, **templates, **given}
    stated = {
        field.name: arguments.get(field.name, field.default)
        for field in dataclasses.fields(RemoteConfig)
        if field.name not in (*NOT_ANSWERS, *IF_GIVEN)
    }
    stated |= {name: arguments[name] for name in IF_GIVEN if arguments.get(name)}
    named = {role: t for role, t in templates.items() if t != load_template("rubric")}
    identity = {"kind": "remote", "templates": _digests(**named), **stated}
    remote_judge(**arguments)  # says what cannot work; nothing is asked
    fewest = 2 if answer in CHOICES else 1
    about = {field: value for field, value in arguments.items() if field != "name"}
    of_requests = {field: value for field, value in about.items() if field not in templates}
    return _Kind(
        identity,
        lambda: lambda seed, batches: remote_judge(**({"seed": seed} | arguments)),
        lambda n: n >= fewest,
        sampled=True,
        estimate=lambda records, samples: estimate(records, samples, **about),
        ready=lambda: remote_config.headers_of(remote_config.read_config(of_requests)),
        span=functools.partial(score_span, answer=answer),
        refuses=lambda record: (
            NO_PRINCIPLES if record.principles else NO_RUBRIC if rubric is None else None
        ),
    )


def _baseline(spec, asking) -> _Kind:
    make = BASELINES[spec["kind"]]
    return _Kind(
        {"kind": spec["kind"]},
        lambda: lambda seed, batches: make(seed),
        lambda n: n >= 1,
        sampled=spec["kind"] == "random",
    )


def _own(spec, asking) -> _Kind:
    """Describes a kind of one's own.

    What it is, is for its function to say, so its identity is all that the function gets, and the
    content of the files and model folders that it names.
    """
    function = resolve(spec["kind"], {})
    identity = {name: value for name, value in spec.items() if name != "name"}
    for field, value in _texts({name: spec[name] for name in identity}):
        path = pathlib.Path(value)
        is_model = field in ("path", "meta", "critic") or (path / "config.json").is_file()
        is_file = (os.sep in value or path.suffix) and path.is_file()
        if is_file or (is_model and path.is_dir()):
            identity[f"content of {field}"] = content_digest(path)
    identity |= _asked(asking) | {
        "templates of the config": _digests(**asking.templates),
        "samples_per_order": asking.samples_per_order,
    }

    def loader():
        make = functools.lru_cache(maxsize=1)(lambda seed: function(dict(spec), asking, seed))
        return lambda seed, batches: make(seed)

    return _Kind(identity, loader, None, None, refuses=lambda record: None)


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field, text) of every text in a tree of plain data."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, (Mapping, list, tuple)):
        for name, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(part, f"{field}.{name}".lstrip("."))


BASELINES = {
    "length": lambda seed: baselines.length_only(),
    "random": baselines.random_scores,
    "constant": lambda seed: baselines.constant(),
}
KINDS: dict[str, Callable[[Mapping, Asking], _Kind]] = {
    "pointwise_grm": _pointwise,
    "llm_judge": _judge,
    "token_prob": _judge,
    "scalar": _scalar,
    "bradley_terry": _scalar,
    "pair_rm": _pair_rm,
    "cloud": _cloud,
    "remote": _remote,
    **dict.fromkeys(BASELINES, _baseline),
}
REMOTE_FIELDS = tuple(field.name for field in dataclasses.fields(RemoteConfig))
# of a remote system: these do not change what it answers
NOT_ANSWERS = (
    "base_url",
    "api_key_env",
    "rename",
    "stop_reasons",
    "concurrency",
    "timeout_s",
    "retries",
    "failures_in_a_row",
    "price_per_million",
)
# these stand in its identity where they are given: judgments of before they were there are found
IF_GIVEN = ("system_prompt", "extra_body", "extra_headers", "parsing")
FIELDS = {  # kind: (optional, required), beside name and kind
    "pointwise_grm": (
        (
            "meta",
            "templates",
            "answer",
            "parsing",
            "thinking_budget",
            "hint",
            "rubric",
            "principles",
        ),
        ("path",),
    ),
    "llm_judge": (("templates", "answer", "thinking_budget"), ("path",)),
    "token_prob": (("templates", "answer", "thinking_budget"), ("path",)),
    "scalar": ((), ("path",)),
    "bradley_terry": ((), ("path",)),
    "pair_rm": (("swap_average",), ("path",)),
    "cloud": ((), ("path", "critic")),
    "remote": (("templates", *REMOTE_FIELDS[2:]), REMOTE_FIELDS[:2]),  # a base_url and a model
    **dict.fromkeys(BASELINES, ((), ())),
}


def _folder(spec, field, asking, kinds, parts=description.JUDGES) -> _Folder:
    """Looks at the folder that a spec names in `field`.

    It must hold a model of one of `kinds` (of grm.json).
    """
    try:
        path = description.model_folder(spec[field], parts)
        base = description.base_folder(path)
        cfg = load_config(base, **_numerics(asking))
        architecture = CAUSAL_LM if kinds == POLICIES else SCALAR
        if base != path:
            read_lora(path, cfg, architecture)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(f'field "{field}": {error}') from error
    stated = read_config(base).get("architectures")
    expected = getattr(cfg.family, architecture if base == path else CAUSAL_LM)
    if stated and expected not in stated:
        raise ValueError(
            f'field "{field}": expected a folder with a {expected}, but '
            f"{base / 'config.json'} says {', '.join(map(str, stated))}"
        )
    said = description.read_description(path)
    if said is not None and said.kind not in kinds:
        raise ValueError(
            f'field "{field}": expected a folder of kind {" or ".join(kinds)}, but '
            f"{path / description.FILE} says {said.kind!r}"
        )
    lengths = asking.lengths
    if lengths.prompt + lengths.completion > cfg.max_positions:
        raise ValueError(
            f'field "{field}": {path} has {cfg.max_positions} positions; expected at least those '
            f"of the longest prompt and completion, {lengths.prompt} + {lengths.completion}"
        )
    return _Folder(path, base, cfg, said, architecture)


RESPONSES_OF = {  # of a template's check
    "pointwise": 2,
    "single": 1,
    "rubric": 2,
    "judge": 2,
    "meta": 2,
}


def _template(spec, asking, role, *folders: _Folder) -> Template:
    """Finds the template of a role, and checks that it shows what is judged.

    A run that has trained with its templates is not told so now.
    """
    template = _chosen_template(spec, asking, role, *folders)
    if asking.templates_win:
        return template
    try:
        check_template(template, RESPONSES_OF[role])
    except ValueError as error:
        raise ValueError(f'field "templates.{role}": {error}') from error
    return template


def _chosen_template(spec, asking, role, *folders: _Folder) -> Template:
    """Finds the template of a role.

    It is what the first of the folders says that has a word on it, which a spec may repeat; else
    the spec's, else that of `asking`.
    """
    if asking.templates_win and role in asking.templates:
        return asking.templates[role]
    named = (spec.get("templates") or {}).get(role)
    own = named if named is None or isinstance(named, Template) else load_template(named)
    for folder in folders:
        said = folder.description and folder.description.templates.get(role)
        if not said:
            continue
        if own is not None and own != said:
            ours, theirs = dict(own.files), dict(said.files)
            different = sorted(file for file in ours | theirs if ours.get(file) != theirs.get(file))
            raise ValueError(
                f'field "templates.{role}": {own.name!r} is asked for, but the model was trained '
                f"with {said.name!r} of {folder.path / description.FILE}; they differ in "
                f"{', '.join(different) or 'their order'}. Leave the field out, or change that file"
            )
        return said
    template = asking.templates.get(role) if own is None else own
    if template is None:
        raise ValueError(
            f'field "templates.{role}": missing; expected the name of a template or a file, as no '
            f"{description.FILE} says which one it is"
        )
    return template


def _rubric_template(spec, asking, answer: str, *folders: _Folder) -> Template | None:
    """Finds the template for records with a rubric; None for a model that judges by none.

    A model that was trained with others alone is asked by one only where the spec says which.
    """
    named = "rubric" in (spec.get("templates") or {})
    trained = any(folder.description is not None for folder in folders)
    if answer in CHOICES or not spec.get("rubric", True):
        return None
    if trained and not named and not asking.templates_win:
        said = next(folder.description for folder in folders if folder.description is not None)
        return said.templates.get("rubric")
    if not named and "rubric" not in asking.templates:
        return None
    template = _template(spec, asking, "rubric", *folders)
    if not shows_rubric(template):
        raise ValueError(
            f'field "templates.rubric": {template.name!r} shows no rubric; expected a template '
            "that uses `rubric`"
        )
    return template


def _answer(spec, asking, folder: _Folder | None = None) -> str:
    """Says what the box holds: the spec's word, else the folder's.

    A model that writes the number of the best response has no scores to give, and the other way
    round.
    """
    said = folder and folder.description
    own = said and said.kind == "pointwise_grm" and not asking.templates_win
    said = said.answer if own else None
    answer = spec.get("answer") or said or "scores"
    if answer not in ANSWERS:
        raise ValueError(f'field "answer": expected one of {", ".join(ANSWERS)}, got {answer!r}')
    if said and (said in CHOICES or answer in CHOICES) and said != answer:
        raise ValueError(
            f'field "answer": {answer!r} is asked for, but the model was trained with {said!r} of '
            f"{folder.path / description.FILE}"
        )
    return answer


def _parsing(spec, answer: str) -> str:
    """Says how scores are read."""
    parsing = spec.get("parsing") or "strict"
    if parsing not in PARSINGS:
        raise ValueError(f'field "parsing": expected one of {", ".join(PARSINGS)}, got {parsing!r}')
    if parsing != "strict" and answer in CHOICES:
        raise ValueError(
            f'field "parsing": {parsing!r} reads scores, and the answer is {answer!r}; leave it out'
        )
    return parsing


def _thinking_budget(spec, asking, folder: _Folder) -> int | None:
    """Says how many tokens a judge may think; None for as many as its completion has."""
    budget, longest = spec.get("thinking_budget"), asking.lengths.completion
    if budget is None:
        return None
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget < longest:
        raise ValueError(
            f'field "thinking_budget": expected 1 to {longest - 1} tokens, fewer than the longest '
            f"completion, got {budget!r}"
        )
    template = read_chat_template(folder.home_of_tokenizer, folder.chat_args)
    if template is None or template_marks(template.text) is None:
        raise ValueError(
            f'field "thinking_budget": the chat template of {folder.path} marks no thinking, so '
            "none can be closed; leave the field out"
        )
    return budget


def _numerics(asking) -> dict:
    return asking.numerics.resolve(asking.mesh.devices.flat[0].platform)


def _asked(asking) -> dict:
    """Returns what any local model's judgment depends on, beside its folder and its templates."""
    stored = asking.sampling.kv_cache_dtype
    return ({} if stored == "auto" else {"kv_cache_dtype": stored}) | {
        "dtype": asking.numerics.dtype,
        "lengths": {"prompt": asking.lengths.prompt, "completion": asking.lengths.completion},
        "top_p": asking.sampling.top_p,
        "top_k": asking.sampling.top_k,
    }


def _digests(**templates: Template) -> dict[str, str]:
    return {role: description.template_digest(template) for role, template in templates.items()}


def _meta_rater(meta: _Folder, template: Template, asking: Asking) -> Callable[..., None]:
    """Makes what puts the Meta RM's logits into judgments (`Policy.rate`)."""
    params, tokenizer = meta.params(asking.mesh), meta.tokenizer()
    scorer = make_scorer(meta.cfg)

    def rate(judgments, by_id, widths, rows):
        add_logits(judgments, by_id, scorer, params, tokenizer, template, widths, rows)

    return rate


def _guided(model: RewardModel, rate: Callable[..., None], batches: Batches) -> RewardModel:
    """Puts the Meta RM's logit beside every sampled judgment that parsed.

    Greedy ones are not voted on.
    """

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        blocks = model.judge(records, samples, temperature, swapped)
        if temperature == 0:
            yield from blocks
            return
        by_id = {record.id: record for record in records}
        for block in of_size(blocks, batches.rows):
            rate(block, by_id, batches.sequence_buckets, batches.rows)
            yield block

    return model._replace(judge=judge)
