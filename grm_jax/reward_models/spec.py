"""Reads the fields of a system's spec: the folders it names, its templates and its answer.

Each raises ValueError that begins with the field that is wrong. None loads a weight.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from grm_jax.chat import BUILT_IN_CHAT, OWN_CHAT, read_chat_template
from grm_jax.checkpoint.huggingface import GENERATION, load_own_tokenizer
from grm_jax.checkpoint.peft import load_adapted, read_lora
from grm_jax.judgment.parsing import ANSWERS, CHOICES, PARSINGS
from grm_jax.judgment.prompts import Template, check_template, load_template, shows_rubric
from grm_jax.judgment.reasoning import template_marks
from grm_jax.models.config import ModelConfig
from grm_jax.models.hf_config import load_config, read_config
from grm_jax.models.table import CAUSAL_LM, SCALAR, abstract_params
from grm_jax.parallel.mesh import param_shardings
from grm_jax.reward_models import description
from grm_jax.reward_models.description import Description, content_digest, tokenizer_digest
from grm_jax.reward_models.grm import NO_PRINCIPLES
from grm_jax.reward_models.scalar import padded_as_stated
from grm_jax.reward_models.system import Asking
from grm_jax.tokenizer import ADDED_TOKENS, Tokenizer

POLICIES = ("pointwise_grm", "llm_judge", "critic")  # kinds of grm.json that write text


class Folder(NamedTuple):
    """Holds what was seen of a model folder: everything but its tensors.

    layers: the folder of the weights, then those of adapters upon it; `path` is the last.
    asked_tokenizer, asked_chat_args: of `Asking`, in place of the folder's own.
    """

    layers: tuple[pathlib.Path, ...]
    cfg: ModelConfig
    description: Description | None
    architecture: str
    asked_tokenizer: pathlib.Path | None = None
    asked_chat_args: Mapping[str, Any] | None = None

    @property
    def path(self) -> pathlib.Path:
        """The folder itself."""
        return self.layers[-1]

    @property
    def is_adapted(self) -> bool:
        """Whether it has adapters, in place of weights."""
        return len(self.layers) > 1

    @property
    def identity(self) -> dict:
        """Its content by digests, and how it writes a chat."""
        own = read_chat_template(self.home_of_tokenizer, self.chat_args)
        chat = BUILT_IN_CHAT if own is None else dataclasses.asdict(own) | {"source": None}
        below = [content_digest(folder) for folder in self.layers[:-1]]
        adapted = {"base": below[0]} if below else {}
        adapted |= {"adapters below": below[1:]} if below[1:] else {}
        parts: dict[str, Any] = {**content_digest(self.path)}
        if self.asked_tokenizer is not None:
            asked = tokenizer_digest(self.asked_tokenizer)
            own_ids = tokenizer_digest(description.tokenizer_home(self.layers))
            if not asked.items() <= own_ids.items():
                parts["tokenizer"] = asked
        return parts | adapted | {"chat": chat} | self._beside

    @property
    def _beside(self) -> dict:
        """What its answers depend on of files that `content_digest` leaves out: ids that end a text
        by generation_config.json alone, and tokens added to a SentencePiece model.
        """
        home, found = self.home_of_tokenizer, {}
        stated = any((layer / GENERATION).is_file() for layer in (home, *self.layers))
        if self.architecture == CAUSAL_LM and stated:
            if further := self.tokenizer().further_stop_ids:
                found["stop_ids"] = list(further)
        if added := added_tokens_digest(self.tokenizer_path):
            found["added_tokens"] = added
        return found

    @property
    def tokenizer_path(self) -> pathlib.Path:
        """The folder or file of its tokenizer: adapters may have one of their own."""
        return self.asked_tokenizer or description.tokenizer_home(self.layers)

    @property
    def home_of_tokenizer(self) -> pathlib.Path:
        """The folder of its tokenizer."""
        path = self.tokenizer_path
        return path.parent if path.is_file() else path

    @property
    def chat_args(self) -> Mapping[str, Any]:
        """The switches of its chat template."""
        if self.asked_chat_args is not None:
            return self.asked_chat_args
        return (self.description and self.description.chat_args) or {}

    def tokenizer(self) -> Tokenizer:
        """Reads its tokenizer, and the ids that end its texts, which the base may state alone."""
        layers = () if self.asked_tokenizer else self.layers
        tokenizer = load_own_tokenizer(self.tokenizer_path, self.cfg, self.chat_args, layers)
        if self.architecture == SCALAR and not self.is_adapted:
            return padded_as_stated(tokenizer, self.path, self.cfg)
        return tokenizer

    def params(self, mesh: Mesh) -> dict:
        """Loads its weights, adapters merged, onto a mesh."""
        return load_adapted(self.layers, self.cfg, mesh, self.architecture)


def folder_of(
    spec: Mapping,
    field: str,
    asking: Asking,
    kinds: tuple[str, ...],
    parts: tuple[str, ...] = description.JUDGES,
) -> Folder:
    """Looks at the folder that a spec names in `field`.

    It must hold a model of one of `kinds` (of grm.json).
    """
    try:
        path = description.model_folder(spec[field], parts)
        layers = base, *adapters = description.layers_of(path)
        cfg = load_config(base, **numerics_of(asking))
        architecture = CAUSAL_LM if kinds == POLICIES else SCALAR
        for folder in adapters:
            read_lora(folder, cfg, architecture if folder == path else CAUSAL_LM)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(f'field "{field}": {error}') from error
    stated = read_config(base).get("architectures")
    expected = getattr(cfg.family, CAUSAL_LM if adapters else architecture)
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
    own = (asking.tokenizer, asking.chat_args) if kinds == POLICIES else (None, None)
    if said is not None and said.chat is not None and own[0] is None:  # chats are the folder's
        home = description.tokenizer_home(layers)
        template = read_chat_template(home, said.chat_args or {})
        found = BUILT_IN_CHAT if template is None else OWN_CHAT
        if said.chat != found:
            why = f"{home} has no other" if template is None else f"that of {template.source}"
            raise ValueError(
                f'field "{field}": {path / description.FILE}: field "chat": expected {found!r}, '
                f"{why}, got {said.chat!r}; bring back the files of the tokenizer that it was "
                "trained with, or leave the field out"
            )
    lengths = asking.lengths
    if lengths.prompt + lengths.completion > cfg.max_positions:
        raise ValueError(
            f'field "{field}": {path} has {cfg.max_positions} positions; expected at least those '
            f"of the longest prompt and completion, {lengths.prompt} + {lengths.completion}"
        )
    try:  # now, and not when its turn comes to be loaded
        param_shardings(asking.mesh, abstract_params(cfg, architecture))
    except ValueError as error:
        raise ValueError(f'field "{field}": {path}: {error}') from error
    return Folder(layers, cfg, said, architecture, *own)


def added_tokens_digest(path: pathlib.Path) -> str | None:
    """Digests the tokens added to a SentencePiece model; None for none, and for tokenizer.json."""
    if path.is_file():
        added, has_all = path.parent / ADDED_TOKENS, path.suffix == ".json"
    else:
        added, has_all = path / ADDED_TOKENS, (path / "tokenizer.json").is_file()
    return content_digest(added)["file"] if added.is_file() and not has_all else None


RESPONSES_OF = {  # of a template's check
    "pointwise": 2,
    "single": 1,
    "rubric": 2,
    "judge": 2,
    "meta": 2,
}


def template_of(spec: Mapping, asking: Asking, role: str, *folders: Folder) -> Template:
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


def _chosen_template(spec: Mapping, asking: Asking, role: str, *folders: Folder) -> Template:
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


def rubric_template_of(
    spec: Mapping, asking: Asking, answer: str, *folders: Folder
) -> Template | None:
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
    template = template_of(spec, asking, "rubric", *folders)
    if not shows_rubric(template):
        raise ValueError(
            f'field "templates.rubric": {template.name!r} shows no rubric; expected a template '
            "that uses `rubric`"
        )
    return template


def answer_of(spec: Mapping, asking: Asking, folder: Folder | None = None) -> str:
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


def parsing_of(spec: Mapping, answer: str) -> str:
    """Says how scores are read."""
    parsing = spec.get("parsing") or "strict"
    if parsing not in PARSINGS:
        raise ValueError(f'field "parsing": expected one of {", ".join(PARSINGS)}, got {parsing!r}')
    if parsing != "strict" and answer in CHOICES:
        raise ValueError(
            f'field "parsing": {parsing!r} reads scores, and the answer is {answer!r}; leave it out'
        )
    return parsing


def thinking_budget_of(spec: Mapping, asking: Asking, folder: Folder) -> int | None:
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


def numerics_of(asking: Asking) -> dict:
    """Returns the fields of `ModelConfig` that `asking` says, on its devices."""
    return asking.numerics.resolve(asking.mesh.devices.flat[0].platform)


def matmul_precision() -> str | None:
    """Returns jax_default_matmul_precision, by which products are rounded; None where not set."""
    return jax.config.jax_default_matmul_precision  # pyright: ignore


def asked_of(asking: Asking) -> dict:
    """Returns what any local model's judgment depends on, beside its folder and its templates."""
    stored = asking.sampling.kv_cache_dtype
    precision = matmul_precision()
    return {
        **({} if stored == "auto" else {"kv_cache_dtype": stored}),
        **({} if precision is None else {"matmul_precision": precision}),
        "dtype": asking.numerics.dtype,
        "lengths": {"prompt": asking.lengths.prompt, "completion": asking.lengths.completion},
        "top_p": asking.sampling.top_p,
        "top_k": asking.sampling.top_k,
    }


def template_digests(**templates: Template) -> dict[str, str]:
    """Returns role -> digest of its template, for an identity."""
    return {role: description.template_digest(template) for role, template in templates.items()}


def principles_of(spec: Mapping, answer: str, folder: Folder) -> str | None:
    """Says whether principles are written once a record: "once", or None."""
    once = spec.get("principles")
    if once not in (None, "once"):
        raise ValueError(f'field "principles": expected "once" or none, got {once!r}')
    if once and (answer in CHOICES or folder.tokenizer().thinking is not None):
        raise ValueError(f'field "principles": {NO_PRINCIPLES}')
    return once
