"""The hooks of mkdocs.yml: links out of docs/, code in tables, docstrings as Markdown."""

import importlib.util
import pathlib
import re
import textwrap

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="requirements-dev.txt has it")
griffe = pytest.importorskip("griffe", reason="requirements-dev.txt has it")


def hook(name: str):
    spec = importlib.util.spec_from_file_location(name, REPO / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_pages, site_docstrings = hook("site_pages"), hook("site_docstrings")


def test_links_lead_to_where_a_file_is_in_the_site():
    text = "[a](docs/judge.md#adapters) [b](LICENSE) [c](https://x.org) [d](#here) f[x](y, 4)"
    moved = "[a](judge.md#adapters) [b](source/LICENSE.md) [c](https://x.org) [d](#here) f[x](y, 4)"
    assert site_pages.moved(text, "README.md") == moved
    text = "[a](../../README.md) [b](../judge.md) [c](../../grm_jax/judge.py)"
    moved = "[a](../index.md) [b](../judge.md) [c](../source/grm_jax/judge.py.md)"
    assert site_pages.moved(text, "docs/first_hour/pod.md") == moved
    assert "def load(" in site_pages.shown("grm_jax/judge.py")


def test_code_in_tables_needs_no_escape_and_may_break_where_it_is_long():
    assert site_pages.with_cells(r"| `a\|b` | c\|d |") == r"| `a|b` | c\|d |"
    assert site_pages.with_cells(r"no table: `a\|b`") == r"no table: `a\|b`"
    name = "tests/x.py::test_" + "a" * 40
    assert site_pages.with_cells(f"| `{name}` |") == f"| `{name}`{{.long}} |"


def test_a_link_that_shows_a_file_name_shows_the_title_of_its_page():
    text = "[judge.md](judge.md#adapters) [`docs/judge.md`](judge.md) [judge](judge.md)"
    title = "Judging with a trained model"
    moved = f"[{title}](judge.md#adapters) [{title}](judge.md) [judge](judge.md)"
    assert site_pages.moved(text, "docs/remote.md") == moved
    text = "[9b_h100_16.md](plans/9b_h100_16.md) [x.md](https://x.org/x.md) [y.md](y.md)"
    assert site_pages.titled(text, "docs/scale.md") == text, "no title, or no page of ours"


def test_code_in_a_line_breaks_behind_signs_where_it_is_long_and_else_between_words():
    def shown(code):
        return site_pages.on_page_content(f"<p><code{code}</code></p>", None, None, None)

    assert shown(">a b") == "<p><code>a b</code></p>"
    word = '<span class="word">--a=&quot;b&quot;</span>'
    assert shown(">grm --a=&quot;b&quot;") == f"<p><code>grm {word}</code></p>"
    name = "--config." + "a" * 40
    assert shown(f">{name}") == f'<p><code><span class="word">--c</span>onfig.{"a" * 40}</code></p>'
    assert shown(' class="long">x/y.py::a_b') == (
        '<p><code class="long">x/<wbr>y.py::<wbr>a_<wbr>b</code></p>'
    )
    block = "<pre><span></span><code>a --b\n</code></pre>"
    assert site_pages.on_page_content(block, None, None, None) == block


def test_the_reference_has_every_module():
    named = re.findall(r"^::: (\S+)", "".join(site_pages.api_pages().values()), re.MULTILINE)
    there = {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        for path in (REPO / "grm_jax").rglob("*.py")
    }
    assert sorted(named) == sorted(there - {"grm_jax.__main__"})


def test_a_docstring_keeps_its_lists_its_code_and_its_signs():
    text = """Reads <a> of `<b>`.

    x, y: of *all* [B, C],
        and more.
    z: last.
    Then a line. w: no item, as its
    sentence goes on.

    kind: also none, with
    this line.
    Args:
      one: first.
      two: second,
        and more.

        a = <code>

    Raises ValueError.
    """
    assert site_docstrings.markdown(text.replace("\n    ", "\n")) == (
        "Reads &lt;a> of `<b>`.\n\n"
        "- `x, y`: of \\*all\\* \\[B, C\\], and more.\n"
        "- `z`: last.\n\n"
        "Then a line. w: no item, as its sentence goes on.\n\n"
        "kind: also none, with this line.\n\n"
        "**Args:**\n\n"
        "- `one`: first.\n"
        "- `two`: second, and more.\n\n"
        "    a = <code>\n\n"
        "Raises ValueError."
    )


def test_a_docstring_keeps_its_tables_bullets_and_quoted_keys():
    text = """Reads.

    | a | b_c |
    |---|---|
    | *d* | e |

    Rules hold:
    - text; *and*
      more_of_it.

    Returns, where there is some:
      "one", two/<s>: first.
      three@3: of `a_b(x,
        y_z)`, third_one.
    """
    assert site_docstrings.markdown(text.replace("\n    ", "\n")) == (
        "Reads.\n\n"
        "| a | b_c |\n|---|---|\n| *d* | e |\n\n"
        "Rules hold:\n\n"
        "- text; \\*and\\* more\\_of\\_it.\n\n"
        "Returns, where there is some:\n\n"
        '- `"one", two/<s>`: first.\n'
        "- `three@3`: of `a_b(x, y_z)`, third\\_one."
    )


def test_a_wrapped_line_is_no_item_and_a_name_of_the_object_is_one():
    text = """Does it. k: how often.

    It is as they are in the
    pool: each by itself.

    Letters: I items.

    system: of all. rows: at
    once; k, seed: these. other: no name. Raises it.
    """
    assert site_docstrings.markdown(
        text.replace("\n    ", "\n"), {"k", "seed", "rows", "system"}
    ) == (
        "Does it.\n\n"
        "- `k`: how often.\n\n"
        "It is as they are in the pool: each by itself.\n\n"
        "Letters: I items.\n\n"
        "- `system`: of all.\n"
        "- `rows`: at once.\n"
        "- `k, seed`: these. other: no name.\n\n"
        "Raises it."
    )


def test_the_head_of_a_class_has_its_fields_and_a_package_leaves_out_what_its_modules_show():
    code = """
        from typing import NamedTuple
        from pydantic import BaseModel, Field
        from flax import struct
        class Pair(NamedTuple):
            a: int
            b: str = "x"
            @property
            def c(self) -> int: ...
        class Body(BaseModel):
            model_config = {}
            n: int = Field(default=1, ge=1)
        class More(Body):
            m: int
        @struct.dataclass
        class State:
            s: float = struct.field(default=0.5)
        class Own:
            a: int
            def __init__(self, b: int): ...
    """
    files = {
        "__init__.py": "from p.m import Pair\n__all__ = ['Pair']\n",
        "m.py": textwrap.dedent(code),
    }
    extensions = griffe.load_extensions(site_docstrings.Plain)
    with griffe.temporary_visited_package("p", files, extensions=extensions) as package:
        heads = {
            cls.name: [
                (p.name, str(p.annotation), p.default and str(p.default)) for p in cls.parameters
            ][1:]
            for cls in package["m"].classes.values()
        }
        assert not package["Pair"].is_public
    assert heads == {
        "Pair": [("a", "int", None), ("b", "str", "'x'")],
        "Body": [("n", "int", "1")],
        "More": [("n", "int", "1"), ("m", "int", None)],
        "State": [("s", "float", "0.5")],
        "Own": [("b", "int", None)],
    }
