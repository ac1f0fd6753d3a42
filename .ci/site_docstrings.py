"""Docstrings of the package as Markdown, for the API pages of the site (an extension of griffe).

They are plain text in the form of the house: a sentence, then paragraphs, lines `name: what it is`
with their continuations indented, and what is indented by itself, as it stands.
"""

import re
import textwrap

from griffe import Extension

ITEM = re.compile(r"([A-Za-z_][\w.*/{}<>-]*(?:, [A-Za-z_][\w.*/{}<>-]*)*): (.*)")
HEADING = re.compile(r"[A-Z]\w*:")  # "Args:", its lines indented
CODE = re.compile(r"(`[^`]*`)")


def escaped(line: str) -> str:
    """Escapes what Markdown would take for something else, outside backticks."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"([*\[\]_])", r"\\\1", part) for part in parts[::2]]
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def paragraph(text: str) -> str:
    """Makes Markdown of lines without a blank one between them."""
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        return text
    blocks: list[list[str]] = []  # lines that belong together; an item's begin with "- "
    for i, line in enumerate(lines):
        item, following = ITEM.fullmatch(line), "".join(lines[i + 1 : i + 2])
        if HEADING.fullmatch(line) and following.startswith(" "):
            before, below = "\n".join(lines[:i]), "\n".join(lines[i + 1 :])
            parts = [paragraph(before)] if before else []
            return "\n\n".join([*parts, f"**{line}**", paragraph(textwrap.dedent(below))])
        ends = line.endswith(".") or following[:1] in ("", " ") or ITEM.fullmatch(following)
        if item and ends:
            blocks.append([f"- `{item[1]}`: {escaped(item[2])}"])
        elif blocks and (line.startswith(" ") or not blocks[-1][0].startswith("- ")):
            blocks[-1].append(escaped(line.strip()))
        else:
            blocks.append([escaped(line.strip())])
    out, was_item = "", False
    for block in blocks:
        is_item = block[0].startswith("- ")
        out += ("\n" if was_item and is_item else "\n\n" if out else "") + " ".join(block)
        was_item = is_item
    return out


def markdown(docstring: str) -> str:
    """Makes Markdown of a docstring, whose first paragraph is a sentence."""
    first, *rest = re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n"))
    return "\n\n".join([escaped(" ".join(first.split())), *map(paragraph, rest)])


class Plain(Extension):
    """Rewrites the docstring of every object."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
