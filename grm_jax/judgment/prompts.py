"""Makes prompts: Jinja templates filled with a record's text in a given response order.

A template is rendered to the text of ONE user turn (Gemma has no system role); the judgment is the
model's turn. It sees:

    conversation   list of {"role", "content"}, oldest first
    responses      list of str, in prompt order
    n              number of responses
    reference      reference answer, or none
    low, high      lowest and highest score, by `grm_jax.judgment.rules.score_range`: 0 and 1 for
                   n = 1, else 1 and 10
    example        what the box should look like inside: "x, x" for n = 2
    rubric         criteria to judge by, list of {"name", "weight", "description"}; empty where the
                   record has none. A template that does not use it cannot be asked with one
    hint_index     number (from 1, in prompt order) of the best response where a hint is wanted and
                   n >= 2, else none

All text that comes from the record has been through `fenced` (grm_jax.judgment.fences) before the
template sees it, so a template cannot forget it; the filter `fenced` is there for other values and
does nothing to text that went through it. A name that is not in this list is an error. Built-in
templates: pointwise, pointwise_no_principles (ablation), single (one response, 0 or 1), judge
(LLM-as-a-judge: the box holds the number of the best response), meta (context of a judgment for the
Meta RM), rubric (each response gets a score for each criterion), scalar (conversation and responses
and nothing else: what PairRM and CLoud read), and
tiny_* for the small world.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from grm_jax.judgment.fences import fenced
from grm_jax.judgment.records import Record, Turn
from grm_jax.judgment.rules import best_index, score_range
from grm_jax.naming import resolve

TEMPLATES = Path(__file__).parent / "templates"
VARIABLES = (
    "conversation",
    "responses",
    "n",
    "reference",
    "low",
    "high",
    "example",
    "rubric",
    "hint_index",
)


@dataclasses.dataclass(frozen=True)
class Template:
    """Holds a prompt's text with all that it includes, independent of any file on disk.

    name: what messages call it.
    files: (file name, text) pairs; the first is rendered, and the others are what it includes,
        imports or extends, under the names that it calls them by. Two templates with equal files
        are equal.
    """

    name: str = dataclasses.field(compare=False)
    files: tuple[tuple[str, str], ...]

    def render(self, **values: Any) -> str:
        """Fills the template. Raises jinja2.TemplateError for a name that is not among `values`."""
        return _compiled(self.files).render(**values)


def load_template(name_or_path: str | os.PathLike) -> Template:
    """Reads a template by its built-in name, from a Jinja file, or from a function of one's own.

    name_or_path: "pointwise", say; anything with a path separator or the suffix .jinja is a file,
    which may include its neighbors and the built-in templates; `package.module:function` is called
    without arguments and returns the text, which may include the built-in templates. Raises
    ValueError when there is no such template, when it is not valid Jinja, and when it includes what
    is not there or what only rendering could tell.
    """
    name = os.fspath(name_or_path)
    is_file = "/" in name or os.sep in name or name.endswith(".jinja")
    if ":" in name and not is_file:
        text = resolve(name, {})()
        if not isinstance(text, str):
            raise ValueError(
                f"template {name!r}: expected the text of a template from this function, got "
                f"{type(text).__name__}"
            )
        return _with_includes(name, name, text, [TEMPLATES])
    path = Path(name) if is_file else TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        built_in = sorted(p.stem for p in TEMPLATES.glob("[!_]*.jinja"))
        raise ValueError(
            f"template {name!r}: no file {path}; built-in templates are {', '.join(built_in)}"
        )
    return _with_includes(name, path.name, _read(path), [path.parent, TEMPLATES])


def template_from_files(
    files: Mapping[str, str] | Iterable[tuple[str, str]], name: str | None = None
) -> Template:
    """Makes a template of (file name, text) pairs, such as a `Template` and a grm.json hold.

    files: the first is rendered; all that it includes must be among the others, and what nothing
    includes is left out. name: for messages; that of the first file where None. Raises ValueError
    as `load_template` does.
    """
    pairs: tuple[Any, ...]
    pairs = tuple(files.items() if isinstance(files, Mapping) else map(tuple, files))
    if not pairs or not all(
        len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str) for pair in pairs
    ):
        raise ValueError(
            f"template {name!r}: expected one or more file names, each with its text, got {pairs!r}"
        )
    return _gather(pairs[0][0] if name is None else name, pairs[0], dict(pairs).get)


def _with_includes(name: str, file: str, text: str, folders: Sequence[Path]) -> Template:
    """The template of a file's text, whose includes lie in the first of `folders` that has them."""
    loader = jinja2.FileSystemLoader(folders)

    def read(include: str) -> str | None:
        try:
            return loader.get_source(_environment(), include)[0]
        except jinja2.TemplateNotFound:
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"template {name!r}: {include} is not UTF-8 text: {error}") from error

    return _gather(name, (file, text), read)


def _gather(name: str, first: tuple[str, str], read: Callable[[str], str | None]) -> Template:
    """Follows what a file includes, imports or extends, file by file; `read` gives the text of one,
    or None where there is none.
    """
    files, waiting = {}, [first]
    while waiting:
        file, text = waiting.pop(0)
        files[file] = text
        where = name if file == first[0] else f"{name} ({file})"
        try:
            tree = _environment().parse(text)
            _environment().compile(text, file)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"template {where}:{error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError) as error:  # of Python, for what is nested too deeply
            raise ValueError(f"template {where}: cannot be compiled: {error}") from error
        optional = {
            include
            for node in tree.find_all(jinja2.nodes.Include)
            if node.ignore_missing or not isinstance(getattr(node.template, "value", None), str)
            for include in jinja2.meta.find_referenced_templates(
                jinja2.nodes.Template([node], lineno=node.lineno)
            )
        }
        for include in jinja2.meta.find_referenced_templates(tree):
            if include is None:
                raise ValueError(
                    f"template {where}: it includes, imports or extends a file whose name only "
                    "rendering could tell; expected the name as a plain string"
                )
            if include in files or include in dict(waiting):
                continue
            text = read(include)
            if text is not None:
                waiting.append((include, text))
            elif include not in optional:
                raise ValueError(f"template {where}: it includes {include!r}, which is not there")
    return Template(name, tuple(files.items()))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"template {path}: not UTF-8 text: {error}") from error


def _environment(loader: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = fenced
    return environment


@functools.cache
def shows_rubric(template: Template) -> bool:
    """Says whether a template, or a file that it includes, uses the variable `rubric`."""
    return any(
        "rubric" in jinja2.meta.find_undeclared_variables(_environment().parse(text))
        for _, text in template.files
    )


@functools.cache
def _compiled(files: tuple[tuple[str, str], ...]) -> jinja2.Template:
    return _environment(jinja2.DictLoader(dict(files))).get_template(files[0][0])


def render_prompt(
    template: Template, record: Record, order: Sequence[int], hint: bool = False
) -> str:
    """Writes the user turn that asks for a judgment of `record`, its responses in `order`.

    order: as `grm_jax.judgment.records.response_order` draws it.
    hint: tell the best response, by the template where it uses `hint_index`, else by a last line
        "The best response is: Response {i}", where i is its number in the PROMPT. A record with one
        response has no best one; its last line says "The correct score is: {0 or 1}".

    Raises ValueError for an order that does not fit, a hint without gold rewards or for one
    response with a rubric, a template that uses an unknown name, and one that does not show the
    rubric of the record.
    """
    if record.rubric and not shows_rubric(template):
        raise ValueError(
            f'record {record.id!r}: field "rubric": template {template.name!r} shows none, so the '
            "judge would not know of it; expected one that uses `rubric`"
        )
    plain = _render(template, record, order, None)
    if not hint:
        return plain
    if record.rewards is None:
        raise ValueError(f"record {record.id!r}: a hint needs gold rewards")
    if len(record.responses) == 1:
        if record.rubric:
            raise ValueError(
                f"record {record.id!r}: a hint for one response with a rubric; expected two or "
                "more responses: a single one is no best, and gold has no scores of criteria"
            )
        line = f"The correct score is: {record.rewards[0]:.0f}"
    else:
        hint_index = list(order).index(best_index(record.rewards)) + 1
        hinted = _render(template, record, order, hint_index)
        if hinted != plain:
            return hinted
        line = f"The best response is: Response {hint_index}"
    return f"{plain}{line}\n" if plain.endswith("\n") else f"{plain}\n{line}"


def check_template(template: Template, n: int) -> None:
    """Raises ValueError unless the prompt for n responses shows conversation and responses.

    A text that was saved with another tool's fields in it, such as {response}, renders without an
    error, and the model then judges nothing.
    """
    texts = [f"Whatisasked{n}", *(f"Whatisanswered{i}" for i in range(n))]
    record = Record("a record of the check", (Turn("user", texts[0]),), tuple(texts[1:]))
    prompt = render_prompt(template, record, range(n))
    shown = [prompt.find(text) for text in texts]
    what = ["the user's turn", *(f"response {i + 1}" for i in range(n))]
    missing = [name for name, place in zip(what, shown) if place < 0]
    if missing:
        raise ValueError(
            f"template {template.name}: its prompt for {n} response{'s' * (n > 1)} does not show "
            f"{', '.join(missing)}; a template is Jinja, and shows what it judges by the names "
            f"{', '.join(VARIABLES)}"
        )
    if shown[1:] != sorted(shown[1:]):
        raise ValueError(
            f"template {template.name}: it shows the responses in another order than it is given "
            "them, and scores are read in that order"
        )


def render_meta_prompt(template: Template, record: Record, order: Sequence[int]) -> str:
    """Writes the user turn before a judgment that the Meta RM rates.

    The same conversation, and the responses in the order that the judge saw. The judgment's text
    follows as the assistant turn. The hint is never shown. Raises ValueError as `render_prompt`
    does.
    """
    return _render(template, record, order, None)


def _render(
    template: Template, record: Record, order: Sequence[int], hint_index: int | None
) -> str:
    n = len(record.responses)
    if sorted(order) != list(range(n)):
        raise ValueError(
            f"record {record.id!r}: expected an order of 0 to {n - 1}, got {tuple(order)}"
        )
    low, high = score_range(2 if record.rubric else n)
    try:
        return template.render(
            conversation=[
                {"role": turn.role, "content": fenced(turn.content)} for turn in record.conversation
            ],
            responses=[fenced(record.responses[i]) for i in order],
            n=n,
            low=low,
            high=high,
            hint_index=hint_index,
            reference=None if record.reference is None else fenced(record.reference),
            example=", ".join(["x"] * n),
            rubric=[
                {
                    "name": fenced(criterion.name),
                    "weight": criterion.weight,
                    "description": fenced(criterion.description),
                }
                for criterion in record.rubric
            ],
        )
    except jinja2.TemplateError as error:
        raise ValueError(
            f"template {template.name}, record {record.id!r}: {error}; a template knows "
            f"{', '.join(VARIABLES)}"
        ) from error
