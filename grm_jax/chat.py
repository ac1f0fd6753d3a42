"""Renders chat templates: a model folder's own as transformers does, with contents that stay text.

A template's own words hold control tokens, which become ids. Contents (prompts, responses,
judgments) may hold the same strings, and must not become them. So every control string in a content
is cut behind its first character by a mark, a character that nothing else in the chat holds; the
template is rendered with the marked contents, and the text is split at the marks. A piece that is
encoded on its own cannot be completed by its neighbor. A chat whose contents hold no control string
is one piece: the text, and so the ids, of `transformers.apply_chat_template`. The outer ends of a
content get a mark too where the template's own words would complete a control string there.

Templates are sandboxed programs of the folder's author; they see role and content of each turn, the
names of the special tokens (`bos_token`), and the switches that the user sets, such as
`enable_thinking`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from grm_jax.json_files import read_object, shown

FILE, CONFIG, TOKENS = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
# what a template can end in: its own refusal, a fault of its own, a value that it did not expect
_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    ValueError,
)
Turns = Sequence[tuple[str, str]]  # (role, content), oldest first
# what grm.json calls the format of a folder: one of the two below, or the folder's own template
BUILT_IN_CHAT, OWN_CHAT = "gemma", "template"
START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
# Gemma's turns and no turns at all, as `Tokenizer.chat` and `Tokenizer.chat_prompt` write them
# without Jinja: a system turn goes in front of the turn behind it
GEMMA = """\
{{ bos_token }}{% set ns = namespace(instructions='') %}{% for message in messages %}\
{% if message['role'] == 'system' %}\
{% set ns.instructions = ns.instructions + (message['content'] | trim) + '\\n\\n' %}\
{% else %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}\
{{ ns.instructions + (message['content'] | trim) + '<end_of_turn>\\n' }}\
{% set ns.instructions = '' %}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
PLAIN = """\
{{ bos_token }}{% set ns = namespace(instructions='', first=true) %}{% for message in messages %}\
{% if message['role'] == 'system' %}\
{% set ns.instructions = ns.instructions + (message['content'] | trim) + '\\n\\n' %}\
{% else %}\
{{ ('' if ns.first else '\\n') + ns.instructions + (message['content'] | trim) }}\
{% set ns.instructions = '' %}{% set ns.first = false %}\
{% endif %}{% endfor %}\
{{ '\\n' if add_generation_prompt else eos_token }}
"""
# chats by which Gemma's template is known: (turns, whether up to where the model begins to write)
_ASKED = (("user", " What is 6 x 7?\n"), ("assistant", "\nIt is 42. "), ("user", "And 6 x 8?"))
PROBES = (
    (_ASKED[:1], True),
    (_ASKED[:1], False),
    (_ASKED[:2], False),
    (_ASKED, True),
    (_ASKED, False),
    ((("system", "Be brief."), ("user", "What is 6 x 7?")), True),
)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Holds a folder's own chat template.

    text: Jinja. values: what it sees beside the turns: special tokens by name, and switches.
    source: the file, for messages.
    """

    text: str
    values: Mapping[str, Any]
    source: str = dataclasses.field(default="chat template", compare=False)


def read_chat_template(folder: Path, values: Mapping[str, Any]) -> ChatTemplate | None:
    """Reads the chat template of a model folder; None where one that is built in does.

    It is chat_template.jinja, else the field "chat_template" of tokenizer_config.json, of several
    the one named "default". Gemma's own, which refuses system turns and turns out of order and
    writes others as GEMMA does, counts as that: what writes PROBES as GEMMA.

    values: what it is given, beside the turns.

    Raises ValueError, naming the file, for what is no template.
    """
    file, text = folder / FILE, None
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    elif (folder / CONFIG).is_file():
        file = folder / CONFIG
        text = _default(read_object(file).get("chat_template"), file)
    if text is None or text.strip() in ("", GEMMA.strip(), PLAIN.strip()):
        return None
    template = ChatTemplate(text, dict(values), str(file))
    if START_OF_TURN in text and END_OF_TURN in text and _writes_as_gemma(template):
        return None
    return template


def _writes_as_gemma(template: ChatTemplate) -> bool:
    """Whether a template writes chats as GEMMA does, as far as PROBES show it."""
    _compiled(template)  # what is no template at all is an error
    # whatever the folder calls them, and where: bos_token may be an id in its config.json
    values = {**template.values, "bos_token": "<bos>", "eos_token": "<eos>"}
    theirs, gemma = ChatTemplate(template.text, values), ChatTemplate(GEMMA, values)
    try:
        return all(
            render(theirs, turns, prompt) == render(gemma, turns, prompt)
            for turns, prompt in PROBES
        )
    except ValueError:  # it refuses turns that Gemma's own writes
        return False


def _default(stated: Any, file: Path) -> str | None:
    if isinstance(stated, list) and all(isinstance(t, dict) for t in stated):
        named = {str(t.get("name")): t.get("template") for t in stated}
        if named and "default" not in named:
            raise ValueError(
                f'{file}: field "chat_template": expected one of the name "default", got '
                f"{', '.join(named)}; {FILE} with the right one goes before it"
            )
        stated = named.get("default")
    if stated is not None and not isinstance(stated, str):
        raise ValueError(
            f'{file}: field "chat_template": expected a text, or a list of objects with "name" and '
            f'"template", got {shown(stated)}'
        )
    return stated


def special_tokens(folder: Path) -> dict[str, str]:
    """Reads the special tokens that a folder names, {"bos_token": text}.

    Raises ValueError, naming file and field, for one that is no text.
    """
    tokens: dict[str, str] = {}
    for file in (folder / CONFIG, folder / TOKENS):
        if not file.is_file():
            continue
        stated = read_object(file)
        for name in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"):
            text = stated.get(name)
            if text is None:
                continue
            content = text.get("content") if isinstance(text, dict) else text  # of an AddedToken
            if not isinstance(content, str):
                raise ValueError(
                    f'{file}: field "{name}": expected a text, or an object with a text '
                    f'"content", got {shown(text)}'
                )
            tokens[name] = content
        if "added_tokens_decoder" in stated:  # a newer form, beside which the other file is stale
            break
    return tokens


def render(template: ChatTemplate, turns: Turns, prompt: bool) -> str:
    """Writes turns as the template does; prompt: up to where the model begins to write.

    For a template that refuses system turns, these go in front of the turn behind them, a blank
    line between. Raises ValueError for turns that it refuses even so.
    """
    joined, compiled = _joined(turns), _compiled(template)
    try:
        return _render(template, compiled, turns, prompt)
    except _FAULTS as error:
        if joined == list(turns):
            raise _refused(template, turns, error) from error
    try:
        return _render(template, compiled, joined, prompt)
    except _FAULTS as error:
        raise _refused(template, turns, error) from error


def render_pieces(
    template: ChatTemplate, turns: Turns, prompt: bool, control: Sequence[str]
) -> list[str]:
    """Writes turns as `render` does, in pieces to be encoded apart.

    control: the strings that no content may become. Only the template's own of these stand whole
    in the pieces; where the contents hold none, there is one piece.
    """
    if not control:
        return [render(template, turns, prompt)]
    cut, edge = _unused(template.text, *(content for _, content in turns), *control)
    parts = _parts(tuple(control))
    marked = [
        (role, _with_edges(_with_cuts(content, parts, cut), parts, edge)) for role, content in turns
    ]
    return _edges_settled(render(template, marked, prompt), parts, cut, edge).split(cut)


def end_of_turn(template: ChatTemplate, control: Sequence[str]) -> str | None:
    """Finds the control string that the template writes behind the model's turn; None for none."""
    said = "The answer is 42."
    _, _, behind = render(template, [("user", "Hello."), ("assistant", said)], False).rpartition(
        said
    )
    behind = behind.lstrip()
    return max((text for text in control if behind.startswith(text)), key=len, default=None)


def piece_encoder(
    control: Mapping[str, int],
    encode: Callable[[str], list[int]],
    parse: Callable[[str], list[int]] | None,
    prefix: str = "",
    behind: str = "",
) -> Callable[[Sequence[str]], list[int]]:
    """Makes the function that turns the pieces of a chat into ids, control strings into theirs.

    A piece is one call of `parse`, so that text is merged as transformers merges it, with all that
    a tokenizer does about its added tokens. Words behind a cut go through `encode`, which makes no
    control token and puts no space in front; so does all of a piece of which `parse` would make
    other control tokens than are written (a normalizer can), or where there is no `parse`.

    prefix, behind: the space before a text, and before what follows a control token, for want of
        `parse`.
    """
    longest_first = sorted(control, key=len, reverse=True)
    strings = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if control else "(?!)")
    ids = set(control.values())

    def between(text: str, prefix: str) -> list[int]:
        words, *rest = strings.split(text)
        encoded = encode(prefix + words) if words else []
        for string, words in zip(rest[::2], rest[1::2]):
            encoded += [control[string], *(encode(behind + words) if words else [])]
        return encoded

    def encode_pieces(pieces: Sequence[str]) -> list[int]:
        encoded: list[int] = []
        for number, piece in enumerate(pieces):
            written = [*strings.finditer(piece)]
            start = 0
            if number > 0:
                start = written[0].start() if written else len(piece)
                encoded += encode(piece[:start])
            parsed = None if parse is None else parse(piece[start:])
            if parsed is None or [i for i in parsed if i in ids] != [
                control[m[0]] for m in written
            ]:
                parsed = between(piece[start:], "" if number else prefix)
            encoded += parsed
        return encoded

    return encode_pieces


def _compiled(template: ChatTemplate) -> jinja2.Template:
    # its environment is the one that templates are written for: filters, globals, sandbox
    from transformers.utils.chat_template_utils import _compile_jinja_template  # takes a second

    try:
        return _compile_jinja_template(template.text)
    except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError) as error:
        raise ValueError(f"{template.source}: not a chat template: {error}") from error


def _render(template: ChatTemplate, compiled: jinja2.Template, turns: Turns, prompt: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    # tools and documents: absent, as in a call of transformers without them
    values = {"tools": None, "documents": None, **template.values}
    return compiled.render(messages=messages, add_generation_prompt=prompt, **values)


def _joined(turns: Turns) -> list[tuple[str, str]]:
    """Turns with each system turn put in front of the turn behind it."""
    joined, instructions = [], ""
    for role, content in turns:
        if role == "system":
            instructions += f"{content.strip()}\n\n"
        else:
            joined.append((role, instructions + content))
            instructions = ""
    return joined


def _refused(template: ChatTemplate, turns: Turns, error: Exception) -> ValueError:
    roles = ", ".join(role for role, _ in turns)
    return ValueError(f"{template.source}: turns of {roles}: {error}")


def _unused(*texts: str) -> tuple[str, str]:
    """Two characters, of a private plane, that no text holds."""
    held = set().union(*texts)
    free = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in held)
    return next(free), next(free)


class _Parts(NamedTuple):
    """Holds control strings as they are looked for.

    inside: finds each place where one begins; its group is the longest. heads, tails: with what one
    may end or begin, without the rest; those that white space would hide from `trim` are left out.
    """

    inside: re.Pattern[str]
    heads: tuple[str, ...]
    tails: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def _parts(control: tuple[str, ...]) -> _Parts:
    longest_first = sorted(control, key=len, reverse=True)
    splits = [(text[:i], text[i:]) for text in control for i in range(1, len(text))]
    return _Parts(
        re.compile("(?=(" + "|".join(map(re.escape, longest_first)) + "))"),
        tuple({head for head, _ in splits if not head[-1].isspace()}),
        tuple({tail for _, tail in splits if not tail[0].isspace()}),
    )


def _with_cuts(content: str, parts: _Parts, cut: str) -> str:
    cuts = [match.start() + 1 for match in parts.inside.finditer(content)]
    pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)])]
    return cut.join(pieces)


def _with_edges(content: str, parts: _Parts, edge: str) -> str:
    """Marks the ends of a content that begins or ends like a part of a control string."""
    begins, ends = content.startswith(parts.tails), content.endswith(parts.heads)
    return (edge if begins else "") + content + (edge if ends else "")


def _edges_settled(text: str, parts: _Parts, cut: str, edge: str) -> str:
    """Makes a cut of every edge that lies within a control string, and drops the others."""
    first, *others = text.split(edge)
    if not others:
        return text
    whole = "".join([first, *others])
    spans = [(match.start(1), match.end(1)) for match in parts.inside.finditer(whole)]
    settled, end = [first], len(first)
    for part in others:
        settled += [cut if any(a < end < b for a, b in spans) else "", part]
        end += len(part)
    return "".join(settled)
