"""Prompts: Jinja templates filled with a record's text in a given response order.

A template is rendered to the text of ONE user turn (Gemma has no system role); the judgment is the
model's turn. It sees:

    conversation   list of {"role", "content"}, oldest first
    responses      list of str, in prompt order
    n              number of responses
    reference      reference answer, or none
    low, high      lowest and highest score, by `grm_jax.judgment.rules.score_range`: 0 and 1 for n
    = 1, else 1 and 10 example        what the box should look like inside: "x, x" for n = 2
    hint_index     number (from 1, in prompt order) of the best response where a hint is wanted and
    n >= 2, else none

All text that comes from the record has been through `fenced` (grm_jax.judgment.fences) before the
template sees it, so a template cannot forget it; the filter `fenced` is there for other values and
does nothing to text that went through it. A name that is not in this list is an error. Built-in
templates: pointwise, pointwise_no_principles (ablation), single (one response, 0 or 1), judge
(LLM-as-a-judge: the box holds the number of the best response), meta (context of a judgment for the
Meta RM), scalar (conversation and responses and nothing else: what PairRM and CLoud read), and
tiny_* for the small world.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import jinja2.sandbox

from grm_jax.judgment.fences import fenced
from grm_jax.judgment.records import Record
from grm_jax.judgment.rules import best_index, score_range

TEMPLATES = Path(__file__).parent / "templates"
VARIABLES = ("conversation", "responses", "n", "reference", "low", "high", "example", "hint_index")


def load_template(name_or_path: str | os.PathLike) -> jinja2.Template:
    """A built-in template by name ("pointwise"), or a file (anything with a path separator or the
    suffix .jinja).

    A file may include its neighbors and the built-in templates. Raises ValueError when it is not
    there or is not valid Jinja.
    """
    name = os.fspath(name_or_path)
    is_file = "/" in name or os.sep in name or name.endswith(".jinja")
    path = Path(name) if is_file else TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        built_in = sorted(p.stem for p in TEMPLATES.glob("[!_]*.jinja"))
        raise ValueError(
            f"template {name!r}: no file {path}; built-in templates are {', '.join(built_in)}"
        )
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader([path.parent, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = fenced
    try:
        return environment.get_template(path.name)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"template {error.filename or path}:{error.lineno}: {error.message}"
        ) from error


def render_prompt(
    template: jinja2.Template, record: Record, order: Sequence[int], hint: bool = False
) -> str:
    """The user turn that asks for a judgment of `record`, its responses shown in `order`
    (`grm_jax.judgment.records.response_order`).

    hint=True tells the best response: by the template where it uses `hint_index`, else by a last
        line
    "The best response is: Response {i}", where i is its number in the PROMPT. A record with one
        response has no best one; its last line
    says "The correct score is: {0 or 1}". Raises ValueError for an order that does not fit, a hint
    without gold rewards, and a template that uses an unknown name.
    """
    plain = _render(template, record, order, None)
    if not hint:
        return plain
    if record.rewards is None:
        raise ValueError(f"record {record.id!r}: a hint needs gold rewards")
    if len(record.responses) == 1:
        line = f"The correct score is: {record.rewards[0]:.0f}"
    else:
        hint_index = list(order).index(best_index(record.rewards)) + 1
        hinted = _render(template, record, order, hint_index)
        if hinted != plain:
            return hinted
        line = f"The best response is: Response {hint_index}"
    return f"{plain}{line}\n" if plain.endswith("\n") else f"{plain}\n{line}"


def render_meta_prompt(template: jinja2.Template, record: Record, order: Sequence[int]) -> str:
    """The user turn before a judgment that the Meta RM rates: the same conversation, and the
    responses in the order that the judge saw.

    The judgment's text follows as the assistant turn. The hint is never shown. Raises ValueError as
    `render_prompt` does.
    """
    return _render(template, record, order, None)


def _render(
    template: jinja2.Template, record: Record, order: Sequence[int], hint_index: int | None
) -> str:
    n = len(record.responses)
    if sorted(order) != list(range(n)):
        raise ValueError(
            f"record {record.id!r}: expected an order of 0 to {n - 1}, got {tuple(order)}"
        )
    low, high = score_range(n)
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
        )
    except jinja2.TemplateError as error:
        raise ValueError(
            f"template {template.filename}, record {record.id!r}: {error}; a template knows "
            f"{', '.join(VARIABLES)}"
        ) from error
