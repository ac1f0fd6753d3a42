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
llm_judge, token_prob, scalar, bradley_terry, pair_rm, cloud: see no rubric.
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

from grm_jax.judgment.parsing import CHOICES, score_bounds, score_span
from grm_jax.judgment.prompts import Template, load_template
from grm_jax.judgment.records import Record
from grm_jax.naming import resolve
from grm_jax.reward_models import baselines, pair_rm, remote_config
from grm_jax.reward_models import cloud as cloud_module
from grm_jax.reward_models.description import content_digest
from grm_jax.reward_models.grm import NO_PRINCIPLES, NO_RUBRIC, Prompter, prompt_length
from grm_jax.reward_models.llm_judge import by_probability, llm_judge
from grm_jax.reward_models.meta_rm import add_logits, guided, make_scorer
from grm_jax.reward_models.pointwise import pointwise_grm, with_principles_once, without_rubrics
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.remote import Estimate, estimate, remote_judge
from grm_jax.reward_models.remote_config import IF_GIVEN, NOT_ANSWERS, RemoteConfig
from grm_jax.reward_models.scalar import load_scalar, scalar_rm
from grm_jax.reward_models.spec import (
    POLICIES,
    Folder,
    answer_of,
    asked_of,
    folder_of,
    numerics_of,
    parsing_of,
    principles_of,
    rubric_template_of,
    template_digests,
    template_of,
    thinking_budget_of,
)
from grm_jax.reward_models.system import Asking, Batches, Policy, System, samplers


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
        if kind in SEE_NO_RUBRIC:
            model = without_rubrics(model)
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
        found.bounds,
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
    bounds: Callable[[int], tuple[float, float]] | None = None
    refuses: Callable[[Record], str | None] | None = None
    policy: Callable[[], Policy] | None = None


UNSEEN = 'the spec of this model says "rubric": False, so it sees none'


def _pointwise(spec, asking) -> _Kind:
    folder = folder_of(spec, "path", asking, POLICIES)
    answer, hint = answer_of(spec, asking, folder), spec.get("hint", False)
    sees = spec.get("rubric", True)  # the rubrics of records
    parsing, budget = parsing_of(spec, answer), thinking_budget_of(spec, asking, folder)
    pointwise, single = (template_of(spec, asking, r, folder) for r in ("pointwise", "single"))
    rubric = rubric_template_of(spec, asking, answer, folder)
    once = principles_of(spec, answer, folder)
    meta: tuple[Folder, Template] | None = None
    if spec.get("meta"):
        rater = folder_of(spec, "meta", asking, ("meta_rm",), ("meta",))
        meta = rater, template_of(spec, asking, "meta", rater, folder)
    identity = {
        "kind": "pointwise_grm",
        "answer": answer,
        **({} if parsing == "strict" else {"parsing": parsing}),
        **({} if budget is None else {"thinking_budget": budget}),
        "templates": template_digests(pointwise=pointwise, single=single)
        | ({} if rubric in (None, load_template("rubric")) else template_digests(rubric=rubric)),
        "hint": hint,
        "samples_per_order": asking.samples_per_order,
        "meta": meta and meta[0].identity | {"templates": template_digests(meta=meta[1])},
        **({} if sees else {"rubric": False}),
        **({} if once is None else {"principles": once}),
        **folder.identity,
        **asked_of(asking),
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
                model = without_rubrics(model)
            if loaded.rate is not None:
                model = guided(model, loaded.rate, batches.sequence_buckets, batches.rows)
            return model

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
        bounds=functools.partial(score_bounds, answer=answer),
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


def _judge(spec, asking) -> _Kind:
    folder = folder_of(spec, "path", asking, POLICIES)
    template, said = template_of(spec, asking, "judge", folder), folder.description
    own = said.answer if said is not None and said.answer in CHOICES else "index"
    answer = spec.get("answer") or own
    if answer not in CHOICES:
        raise ValueError(f'field "answer": expected one of {", ".join(CHOICES)}, got {answer!r}')
    budget = thinking_budget_of(spec, asking, folder)
    identity = {
        "kind": "llm_judge",
        **({} if budget is None else {"thinking_budget": budget}),
        "answer": answer,
        "templates": template_digests(judge=template),
        **folder.identity,
        **asked_of(asking),
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
        bounds=lambda n: (0, n - 1),
        refuses=lambda record: NO_PRINCIPLES if record.principles else none,
    )


def _scalar(spec, asking) -> _Kind:
    folder = folder_of(spec, "path", asking, ("bradley_terry",))
    if folder.is_adapted:
        raise ValueError(f'field "path": expected a whole model, got the adapters of {folder.path}')
    identity = {"kind": "scalar", **folder.identity, **asked_of(asking)}

    def loader():
        params, cfg, tokenizer = load_scalar(
            folder.path, asking.mesh, folder.chat_args, **numerics_of(asking)
        )
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
    folder = folder_of(spec, "path", asking, ("pair_rm",))
    swap_average = spec.get("swap_average", False)
    identity = {
        "kind": "pair_rm",
        "swap_average": swap_average,
        "templates": template_digests(pair=pair_rm.TEMPLATE),
        **folder.identity,
        **asked_of(asking),
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

    bounds = lambda n: (0, n - 1)  # noqa: E731  # of the others, those it wins against
    return _Kind(identity, loader, lambda n: n >= 2, sampled=False, bounds=bounds)


def _cloud(spec, asking) -> _Kind:
    head = folder_of(spec, "path", asking, ("cloud",))
    critic = folder_of(spec, "critic", asking, POLICIES, ("critic", "grm"))
    identity = {
        "kind": "cloud",
        "critic": critic.identity,
        "templates": template_digests(critic=cloud_module.TEMPLATE),
        **head.identity,
        **asked_of(asking),
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
    answer = answer_of(spec, asking)
    parsing_of(spec, answer)
    role = "judge" if answer in CHOICES else "pointwise"
    templates: dict[str, Any] = {
        "template": template_of(spec, asking, role),
        "single_template": template_of(spec, asking, "single"),
    }
    rubric = rubric_template_of(spec, asking, answer)
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
    identity = {"kind": "remote", "templates": template_digests(**named), **stated}
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
        bounds=functools.partial(score_bounds, answer=answer),
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
    identity |= asked_of(asking) | {
        "templates of the config": template_digests(**asking.templates),
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
# their training knows no rubric: they judge a record that has one as if it had none
SEE_NO_RUBRIC = ("llm_judge", "token_prob", "scalar", "bradley_terry", "pair_rm", "cloud")
REMOTE_FIELDS = tuple(field.name for field in dataclasses.fields(RemoteConfig))
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


def _meta_rater(meta: Folder, template: Template, asking: Asking) -> Callable[..., None]:
    """Makes what puts the Meta RM's logits into judgments (`Policy.rate`)."""
    params, tokenizer = meta.params(asking.mesh), meta.tokenizer()
    scorer = make_scorer(meta.cfg)

    def rate(judgments, by_id, widths, rows):
        add_logits(judgments, by_id, scorer, params, tokenizer, template, widths, rows)

    return rate
