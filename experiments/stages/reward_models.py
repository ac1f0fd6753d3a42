"""From the description of a reward model in a config to the model itself.

    {"name": "grm", "kind": "pointwise_grm", "path": FOLDER, "meta": FOLDER of a Meta RM,
     "templates": {"pointwise": NAME_OR_FILE, "single", "meta"}, "answer": "scores", or "ten":
     single responses are scored from 1 to 10, as the paper does on ReaLMistake}
    {"name": "judge", "kind": "llm_judge" or "token_prob", "path": FOLDER, "templates": {"judge":
        NAME_OR_FILE}}
    {"name": "bt", "kind": "scalar" or "bradley_terry", "path": FOLDER}    a sequence-classification
        folder with one label, of ours or public
    {"name": "pairs", "kind": "pair_rm", "path": FOLDER, "swap_average": False}
    {"name": "cloud", "kind": "cloud", "path": FOLDER of the head, "critic": FOLDER}
    {"name": "gpt", "kind": "remote", "base_url": URL, "model": NAME, ...}    further arguments of
        reward_models.remote.remote_judge
    {"name": "length", "kind": "length"}, or "random", "constant"
    {"name": "mine", "kind": "package.module:function"}    function(spec, seed) -> RewardModel

Folders are in Hugging Face's layout; "tiny" is the one in the package. Templates that a system does
not name are those of the config.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from experiments.config_flags import folder_of, numerics, sequence_buckets
from experiments.stages.run import sampler_of
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import Record
from grm_jax.models.config import load_config
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.naming import resolve
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.reward_models import baselines
from grm_jax.reward_models.cloud import cloud
from grm_jax.reward_models.grm import Prompter
from grm_jax.reward_models.llm_judge import llm_judge
from grm_jax.reward_models.meta_rm import add_logits, make_scorer
from grm_jax.reward_models.pair_rm import pair_rm
from grm_jax.reward_models.pointwise import pointwise_grm
from grm_jax.reward_models.protocol import RewardModel
from grm_jax.reward_models.remote import remote_judge
from grm_jax.reward_models.scalar import load_scalar, scalar_rm
from grm_jax.tokenizer import load_tokenizer

Maker = Callable[[int], RewardModel]


def load_reward_model(
    spec: Mapping, config: ml_collections.ConfigDict, seed: int = 0
) -> RewardModel:
    """The model of a spec; `config` has the sections model, mesh, templates, lengths and sampling
    of experiments/configs/evaluate.py.
    """
    return reward_model_maker(spec, config)(seed)


def reward_model_maker(spec: Mapping, config: ml_collections.ConfigDict) -> Maker:
    """seed -> the model of a spec, which is loaded once. Raises ValueError for a field that its
    kind does not know.
    """
    name, kind = spec["name"], spec["kind"]
    if ":" in kind:
        function = resolve(kind, {})
        return lambda seed: function(dict(spec), seed)
    if problem := wrong_fields(spec):
        raise ValueError(f"system {name!r}: {problem}")
    if kind == "remote":
        return _remote(spec, config)
    if kind in BASELINES:
        return lambda seed: BASELINES[kind](seed)._replace(name=name)
    return KINDS[kind](spec, config)


def wrong_fields(spec: Mapping) -> str | None:
    """What is wrong with the names of a spec's fields; None for kinds of one's own."""
    if ":" in spec["kind"]:
        return None
    optional, required = FIELDS[spec["kind"]]
    missing = [field for field in required if spec.get(field) is None]
    unknown = [field for field in spec if field not in ("name", "kind", *required, *optional)]
    if missing:
        return (
            f"kind {spec['kind']!r} needs the field{'s' * (len(missing) > 1)} {', '.join(missing)}"
        )
    if unknown:
        return (
            f"unknown field {unknown[0]!r}; kind {spec['kind']!r} has "
            f"{', '.join((*required, *optional)) or 'no fields'}"
        )
    return None


def _pointwise(spec, config) -> Maker:
    params, cfg, tokenizer, mesh = _load(spec["path"], config)
    prompter = Prompter(
        tokenizer,
        _template(spec, config, "pointwise"),
        _template(spec, config, "single"),
        spec.get("answer", "scores"),
    )
    settings = _settings(config)
    guide = _meta_guide(spec, config) if spec.get("meta") else lambda model: model
    per_order = min(config.sampling.samples_per_order, max(config.ks))
    samplers = functools.partial(sampler_of, cfg, tokenizer, config, mesh)
    return lambda seed: guide(
        pointwise_grm(
            spec["name"], samplers, params, prompter, seed=seed, per_order=per_order, **settings
        )
    )


def _judge(spec, config) -> Maker:
    params, cfg, tokenizer, mesh = _load(spec["path"], config)
    template = _template(spec, config, "judge")
    prompter = Prompter(tokenizer, template, template, answer="index")
    settings = {"token_prob": spec["kind"] == "token_prob", **_settings(config)}
    samplers = functools.partial(sampler_of, cfg, tokenizer, config, mesh)
    return lambda seed: llm_judge(spec["name"], samplers, params, prompter, seed=seed, **settings)


def _scalar(spec, config) -> Maker:
    mesh = make_mesh(**config.mesh)
    params, cfg, tokenizer = load_scalar(
        folder_of(spec["path"]), mesh, **numerics(config, mesh.devices.flat[0].platform)
    )
    model = scalar_rm(
        spec["name"],
        params,
        cfg,
        tokenizer,
        buckets=sequence_buckets(config),
        rows=config.sampling.rows,
    )
    return lambda seed: model


def _pair_rm(spec, config) -> Maker:
    params, cfg, tokenizer, _ = _load(spec["path"], config, SCALAR)
    return lambda seed: pair_rm(
        spec["name"],
        params,
        cfg,
        tokenizer,
        seed=seed,
        buckets=sequence_buckets(config),
        rows=config.sampling.rows,
        swap_average=spec.get("swap_average", False),
    )


def _cloud(spec, config) -> Maker:
    head, _, _, _ = _load(spec["path"], config, SCALAR)
    critic, cfg, tokenizer, mesh = _load(spec["critic"], config)
    samplers = functools.partial(sampler_of, cfg, tokenizer, config, mesh)
    return lambda seed: cloud(
        spec["name"],
        samplers,
        critic,
        head,
        cfg,
        tokenizer,
        seed=seed,
        sequence_buckets=sequence_buckets(config),
        completion=config.lengths.completion,
        **_settings(config),
    )


def _remote(spec, config) -> Maker:
    """The prompt is the template of pointwise scores or, with answer "index", of a judge."""
    given = {name: value for name, value in spec.items() if name not in ("kind", "templates")}
    list_template = _template(
        spec, config, "judge" if spec.get("answer") == "index" else "pointwise"
    )
    templates = {"template": list_template, "single_template": _template(spec, config, "single")}
    return lambda seed: remote_judge(
        **({"max_tokens": config.lengths.completion, "seed": seed, **templates} | given)
    )


BASELINES = {
    "length": lambda seed: baselines.length_only(),
    "random": baselines.random_scores,
    "constant": lambda seed: baselines.constant(),
}
KINDS: dict[str, Callable] = {
    "pointwise_grm": _pointwise,
    "llm_judge": _judge,
    "token_prob": _judge,
    "scalar": _scalar,
    "bradley_terry": _scalar,
    "pair_rm": _pair_rm,
    "cloud": _cloud,
    "remote": _remote,
    **BASELINES,
}
SET_HERE = ("name", "base_url", "model", "template", "single_template", "seed")
REMOTE_FIELDS = tuple(
    field for field in inspect.signature(remote_judge).parameters if field not in SET_HERE
)
FIELDS = {  # kind: (optional, required), beside name and kind
    "pointwise_grm": (("meta", "templates", "answer"), ("path",)),
    "llm_judge": (("templates",), ("path",)),
    "token_prob": (("templates",), ("path",)),
    "scalar": ((), ("path",)),
    "bradley_terry": ((), ("path",)),
    "pair_rm": (("swap_average",), ("path",)),
    "cloud": ((), ("path", "critic")),
    "remote": (("templates", *REMOTE_FIELDS), ("base_url", "model")),
    **dict.fromkeys(BASELINES, ((), ())),
}


def _settings(config) -> dict:
    return {"buckets": tuple(config.lengths.buckets), "rows": config.sampling.rows}


def _template(spec, config, name):
    return load_template((spec.get("templates") or {}).get(name, config.templates[name]))


def _load(path, config, architecture=CAUSAL_LM):
    """(params on the mesh, cfg, tokenizer, mesh) of a Hugging Face folder."""
    folder, mesh = folder_of(path), make_mesh(**config.mesh)
    cfg = load_config(folder, **numerics(config, mesh.devices.flat[0].platform))
    params = load_params(
        folder,
        cfg,
        param_shardings(mesh, abstract_params(cfg, architecture)),
        architecture=architecture,
    )
    return params, cfg, load_tokenizer(folder), mesh


def _meta_guide(spec, config) -> Callable[[RewardModel], RewardModel]:
    """Puts the Meta RM's logit beside every sampled judgment that parsed; greedy ones are not voted
    on.
    """
    params, cfg, tokenizer, _ = _load(spec["meta"], config, SCALAR)
    template, scorer = _template(spec, config, "meta"), make_scorer(cfg)

    def guide(model: RewardModel) -> RewardModel:
        def judge(
            records: Sequence[Record],
            samples: Sequence[int] = (0,),
            temperature: float = 0.0,
            swapped: bool = False,
        ) -> Iterator[list[dict]]:
            by_id = {record.id: record for record in records}
            for block in model.judge(records, samples, temperature, swapped):
                if temperature > 0:
                    add_logits(
                        block,
                        by_id,
                        scorer,
                        params,
                        tokenizer,
                        template,
                        sequence_buckets(config),
                        config.sampling.rows,
                    )
                yield block

        return model._replace(judge=judge)

    return guide
