"""Docstrings of the package as Markdown, for the API pages of the site (an extension of griffe).

They are plain text in the form of the house: a sentence, then paragraphs, lines `name: what it is`
with their continuations indented, and what is indented by itself, as it stands.
"""

import re
import textwrap

from griffe import Extension

ITEM = re.compile(r"([A-Za-z_][\w.*/{}<>-]*(?:, [A-Za-z_][\w.*/{}<>-]*)*): (.*)")
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
    blocks: list[list[str]] = []
    for line in lines:
        item = ITEM.fullmatch(line)
        if item:
            blocks.append([f"- `{item[1]}`: {escaped(item[2])}"])
        elif blocks and (line.startswith(" ") or not blocks[-1][0].startswith("- ")):
            blocks[-1].append(escaped(line.strip()))
        else:
            blocks.append([escaped(line.strip())])
    out = ""
    for block in blocks:
        text = " ".join(block)
        in_list = text.startswith("- ") and "\n- " in f"\n{out}".rpartition("\n\n")[2]
        out += ("" if not out else "\n" if in_list else "\n\n") + text
    return out


def markdown(docstring: str) -> str:
    """Makes Markdown of a docstring."""
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n"))
    return "\n\n".join(map(paragraph, paragraphs))


class Plain(Extension):
    """Rewrites the docstring of every object."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
