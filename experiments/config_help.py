"""--help of a script: its flags, and every field of its presets with the comment that it has in the
preset's source.
"""

import ast
import io
import pathlib
import re
import shutil
import sys
import textwrap
import tokenize

import ml_collections
from absl import flags

REFERENCE = "spct_gemma2_27b"  # the preset whose comments name meaning and source of each field


def text(
    preset: pathlib.Path | None = None, config: ml_collections.ConfigDict | None = None
) -> str:
    """What --help prints: what the script does, its flags, and the fields of a preset if it has."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    for flag in _flags():
        name = f"  --{'[no]' * flag.boolean}{flag.name}"
        lines += ["", name + (f"={flag.default}" if flag.default is not None else "")]
        lines += _wrapped(flag.help, "      ")
    if preset is None:
        return "\n".join(lines)
    # where a preset is silent, the one that explains every field speaks
    about = comments(preset_path(REFERENCE)) | comments(preset)
    lines += [
        "",
        *_wrapped(
            f"Fields of {_shown(preset)}; --config.FIELD=VALUE sets another value, and --config of "
            "another preset shows its own:"
        ),
        "",
        *_field_lines(config, about),
        "",
        "--helpfull lists the flags of all libraries too.",
    ]
    return "\n".join(lines)


def fields(config, prefix="") -> list[str]:
    """All fields of a config, sections included."""
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ml_collections.ConfigDict):
            names += fields(value, f"{prefix}{name}.")
    return names


def comments(preset: pathlib.Path) -> dict[str, str]:
    """{field: the comment above it or behind it} of a preset and of those that it imports, whose
    comments come first.

    A field is where it is first given a value: config.FIELD = ..., NAME=... in the dict of a
    section, or in config.SECTION.update(...).
    """
    source = preset.read_text(encoding="utf-8")
    tree, found = ast.parse(source), {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "experiments.configs":
            for alias in node.names:
                for field, comment in comments(preset_path(alias.name)).items():
                    found.setdefault(field, comment)
    lines = _Comments(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            if field := _field(node.targets[0]):
                _describe(found, lines, field, node, node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "update":
            if field := _field(node.func.value):
                _describe_keywords(found, lines, field, node)
    return found


def preset_path(name: str) -> pathlib.Path:
    """The file of a preset in experiments/configs."""
    return pathlib.Path(__file__).with_name("configs") / f"{name}.py"


class _Comments:
    """Comments of a source by line: those that have a line of their own, and those behind code."""

    def __init__(self, source: str):
        self.alone, self.behind = {}, {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                (self.alone if alone else self.behind)[token.start[0]] = token.string[1:].strip()

    def above(self, line: int) -> list[str]:
        first = line
        while first - 1 in self.alone:
            first -= 1
        return [self.alone[i] for i in range(first, line)]


def _describe(found, lines, field, node, value):
    """Keep the comment of one field, and of the fields of its dict."""
    inner = _dict_call(value)
    last = node.lineno if inner is None else _first_line(inner) - 1
    words = lines.above(node.lineno)
    words += [lines.behind[i] for i in range(node.lineno, last + 1) if i in lines.behind]
    if inner is None and node.end_lineno != node.lineno and node.end_lineno in lines.behind:
        words.append(lines.behind[node.end_lineno])
    if words:
        found.setdefault(field, " ".join(words))
    if inner is not None:
        _describe_keywords(found, lines, field, inner)


def _describe_keywords(found, lines, field, call):
    # a comment belongs to the one field of its line
    rows = [call.lineno, *(keyword.lineno for keyword in call.keywords)]
    for keyword in call.keywords:
        if keyword.arg is not None and rows.count(keyword.lineno) == 1:
            _describe(found, lines, f"{field}.{keyword.arg}", keyword, keyword.value)


def _first_line(call) -> int:
    """The line of a dict's first field."""
    return min((keyword.lineno for keyword in call.keywords), default=call.lineno + 1)


def _dict_call(value):
    """The call dict(...) in dict(...) or ConfigDict(dict(...)); None for another value."""
    if isinstance(value, ast.Call):
        name = getattr(value.func, "id", getattr(value.func, "attr", ""))
        if name == "ConfigDict" and value.args:
            return _dict_call(value.args[0])
        if name == "dict":
            return value
    return None


def _field(node) -> str | None:
    """ "a.b" of the expression config.a.b; None for another."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    is_field = isinstance(node, ast.Name) and node.id == "config" and names
    return ".".join(reversed(names)) if is_field else None


def _flags() -> list[flags.Flag]:
    """The flags of the script and of the modules of experiments, without absl's own."""
    of_modules = flags.FLAGS.flags_by_module_dict()
    own = [m for m in of_modules if m == sys.argv[0] or m.startswith("experiments.")]
    return sorted((flag for m in own for flag in of_modules[m]), key=lambda flag: flag.name)


def _field_lines(config, about, prefix="") -> list[str]:
    lines = []
    for name, value in config.items():
        field = prefix + name
        section = isinstance(value, ml_collections.ConfigDict)
        shown = "" if section else f" = {textwrap.shorten(repr(value), 72)}"
        lines.append(f"  {field}{shown}")
        lines += _wrapped(about.get(field, ""), "      ")
        if section:
            lines += _field_lines(value, about, f"{field}.")
    return lines


def _wrapped(words: str, indent: str = "") -> list[str]:
    width = max(60, min(100, shutil.get_terminal_size((100, 24)).columns))
    words = re.sub(r"\s+", " ", words or "")
    return textwrap.wrap(words, width, initial_indent=indent, subsequent_indent=indent)


def _shown(path: pathlib.Path) -> str:
    """A path from the working directory, where it lies below it."""
    here = pathlib.Path.cwd()
    return str(path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path)
