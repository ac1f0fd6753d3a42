"""Docstrings of the package as Markdown, for the API pages of the site (an extension of griffe).

They are plain text in the form of the house: a sentence, then paragraphs, lines `name: what it is`
with their continuations indented, bullets, tables, and what is indented by itself, as it stands.
"""

import re
import textwrap
from collections.abc import Collection, Iterable

from griffe import (
    Alias,
    Class,
    Expr,
    ExprCall,
    Extension,
    Function,
    Object,
    Parameter,
    ParameterKind,
    Parameters,
)

NAME = r'"?[A-Za-z_][\w.*/@{}<>-]*"?'
ITEM = re.compile(rf"(?![A-Z][a-z]+: )({NAME}(?:, {NAME})*): (.*)")  # not "Letters: ..."
HEADING = re.compile(r"[A-Z].*:")  # "Args:", its lines indented
CODE = re.compile(r"(`[^`]*`)")


def escaped(text: str) -> str:
    """Escapes what Markdown would take for something else, outside backticks."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"([*\[\]_])", r"\\\1", part) for part in parts[::2]]
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def pieces(text: str, is_item: bool, names: Collection[str]) -> list[str]:
    """Makes Markdown of lines that belong together; what begins with a name is an item."""
    name = "|".join(map(re.escape, sorted(names))) or "(?!)"
    known = rf"(?:{name})(?:, (?:{name}))*: "
    made = []
    begins = known if is_item else f"{known}|Raises "
    for piece in re.split(rf"(?<=\.) (?={begins})", re.sub(rf"; (?={known})", ". ", text)):
        item = ITEM.fullmatch(piece) if is_item or re.match(known, piece) else None
        if item:
            made.append(f"- `{item[1]}`: {escaped(item[2])}")
        elif made and not made[-1].startswith("- "):
            made[-1] += f" {escaped(piece)}"
        else:
            made.append(escaped(piece))  # of a bullet as well
    return made


def joined(made: Iterable[str]) -> str:
    """Puts blank lines between paragraphs, and none between items."""
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(made))


def paragraph(text: str, names: Collection[str] = ()) -> str:
    """Makes Markdown of lines without a blank one between them."""
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines) or all(
        line.startswith("|") for line in lines
    ):
        return text
    blocks: list[tuple[bool, list[str]]] = []  # (it is an item, lines that belong together)
    for i, line in enumerate(lines):
        item, following = ITEM.fullmatch(line), "".join(lines[i + 1 : i + 2])
        if HEADING.fullmatch(line) and not item and following.startswith(" "):
            before, below = "\n".join(lines[:i]), "\n".join(lines[i + 1 :])
            head = escaped(line) if " " in line else f"**{line}**"
            parts = [paragraph(before, names)] if before else []
            return "\n\n".join([*parts, head, paragraph(textwrap.dedent(below), names)])
        begins = not blocks or blocks[-1][0] or lines[i - 1].endswith((".", ":"))
        ends = line.endswith(".") or following[:1] in ("", " ") or ITEM.fullmatch(following)
        if line.startswith("- ") or (item and begins and ends):
            blocks.append((True, [line]))
        elif blocks and (line.startswith(" ") or not blocks[-1][0]):
            blocks[-1][1].append(line.strip())
        else:
            blocks.append((False, [line.strip()]))
    return joined(
        piece for is_item, block in blocks for piece in pieces(" ".join(block), is_item, names)
    )


def markdown(docstring: str, names: Collection[str] = ()) -> str:
    """Makes Markdown of a docstring, whose first paragraph is a sentence."""
    first, *rest = re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n"))
    made = [joined(pieces(" ".join(first.split()), False, names))]
    return "\n\n".join([*made, *(paragraph(part, names) for part in rest)])


def names_of(obj: Object) -> set[str]:
    """Returns the names of what a function takes, or of what a class has."""
    if obj.is_class:
        init = obj.members.get("__init__")
        return set(obj.members) | (names_of(init) if init else set())
    return {parameter.name for parameter in obj.parameters} if obj.is_function else set()


def fields(cls: Class) -> list[Parameter]:
    """Returns the annotated attributes of a class and its bases, as parameters."""
    kind = ParameterKind.positional_or_keyword
    if "model_config" in cls.all_members:  # of pydantic
        kind = ParameterKind.keyword_only
    found = {}
    for owner in [*reversed(cls.mro()), cls]:
        for name, member in owner.members.items():
            if not member.is_attribute or not member.annotation or "property" in member.labels:
                continue
            value = member.value
            if isinstance(value, ExprCall) and str(value.function).lower().endswith("field"):
                given = {
                    getattr(a, "name", ""): a.value for a in value.arguments if isinstance(a, Expr)
                }
                value = given.get("default")
            found[name] = Parameter(name, annotation=member.annotation, kind=kind, default=value)
    return list(found.values())


class Plain(Extension):
    """Rewrites docstrings, and shows what griffe leaves out of the head of a class."""

    def on_object(self, *, obj: Object, **_) -> None:
        """Rewrites the docstring of every object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, names_of(obj))

    def on_class(self, *, cls: Class, **_) -> None:
        """Shows the fields of what is no dataclass: a NamedTuple, a body of a request."""
        if "__init__" not in cls.members and (found := fields(cls)):
            own = Parameter("self", kind=ParameterKind.positional_or_keyword)
            init = Function("__init__", parameters=Parameters(own, *found), returns="None")
            cls.set_member("__init__", init)

    def on_alias(self, *, alias: Alias, **_) -> None:
        """Leaves out of a package what one of its modules shows on the same page."""
        if alias.parent.is_module and alias.target_path.startswith(f"{alias.parent.path}."):
            alias.public = False
