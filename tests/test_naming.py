"""Names in a config resolve to functions, or say what is near."""

import ast
import hashlib
import importlib
import linecache
import shutil
import sys

import pytest

from grm_jax.losses import KL_ESTIMATORS, LOSSES, resolve
from grm_jax.naming import source_digest, with_settings


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    (tmp_path / "my_research.py").write_text("LIMIT = 3\ndef my_loss(*args):\n    return 0.0, {}\n")
    (tmp_path / "my_broken.py").write_text("import package_that_does_not_exist\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_short_and_dotted_names(user_modules):
    assert resolve("grpo", LOSSES) is LOSSES["grpo"]
    assert resolve("grm_jax.losses.grpo:grpo", LOSSES) is LOSSES["grpo"]
    assert resolve("my_research:my_loss", LOSSES)() == (0.0, {})


@pytest.mark.parametrize(
    "name, table, error, message",
    [
        ("grp", LOSSES, ValueError, r"unknown name 'grp'; did you mean .*grpo"),
        (
            "zzz",
            KL_ESTIMATORS,
            ValueError,
            r"unknown name 'zzz'; known names: k1, k2, k3, "
            r"or write package.module:function",
        ),
        ("my_research:", LOSSES, ValueError, "does not have the form package.module:function"),
        (".relative:f", LOSSES, ValueError, "does not have the form package.module:function"),
        ("my_reserch:my_loss", LOSSES, ValueError, "no module named 'my_reserch'"),
        (
            "my_research:my_los",
            LOSSES,
            ValueError,
            r"my_research.py\) has no 'my_los'; "
            r"did you mean my_loss\?",
        ),
        ("my_research:LIMIT", LOSSES, TypeError, "expected a function, found int"),
        ("my_broken:my_loss", LOSSES, ModuleNotFoundError, "package_that_does_not_exist"),
    ],
)
def test_errors(user_modules, name, table, error, message):
    with pytest.raises(error, match=message):
        resolve(name, table)


def test_a_module_in_the_current_folder_is_found_whatever_started_python(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
    # as a console script has it: its own folder in front, the current one nowhere
    here = {"", str(tmp_path)}
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in here])
    with pytest.raises(ValueError, match="no module named 'only_here'"):
        resolve("only_here:f", {})
    monkeypatch.chdir(tmp_path)
    assert resolve("only_here:f", {})() == 1
    assert resolve("only_here:f", {})() == 1 and sys.path.count(str(tmp_path)) == 1


def test_settings_are_checked_against_the_signature():
    def f(a, b, width, power=2.0):
        return a, b, width, power

    def anything(a, b, **settings):
        return settings

    assert with_settings(f, 2, {"width": 1})(3, 4) == (3, 4, 1, 2.0)
    assert with_settings(anything, 2, {"x": 1})(3, 4) == {"x": 1}
    assert with_settings(anything, 2, {}) is anything
    with pytest.raises(ValueError, match=r"f has no setting 'pwer'; did you mean power\?$"):
        with_settings(f, 2, {"width": 1, "pwer": 3})
    with pytest.raises(ValueError, match="f needs the setting 'width'$"):
        with_settings(f, 2, {})


HANDS_ON = {
    "a function": "from my_parts import loss\n",
    "a partial": "import functools, my_parts\nloss = functools.partial(my_parts.loss, width=2)\n",
    "an instance": "import my_parts\nloss = my_parts.Loss()\n",
}


@pytest.mark.parametrize("text", HANDS_ON.values(), ids=HANDS_ON)
def test_the_code_of_a_function_is_that_of_the_module_which_defines_it(tmp_path, monkeypatch, text):
    code = """
class Loss:
    def __call__(self):
        return 1.0


def loss(width=1):
    return 1.0
"""
    monkeypatch.syspath_prepend(tmp_path)

    def digest(parts, facade=text):
        for module, content in (("my_parts", parts), ("my_facade", facade)):
            (tmp_path / f"{module}.py").write_text(content)
            monkeypatch.delitem(sys.modules, module, raising=False)
        linecache.clearcache(), importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return source_digest("my_facade:loss")

    before = digest(code)
    assert digest("# a word\n" + code) == before
    assert digest(code.replace("1.0", "2.0")) != before
    assert digest(code, text + "more = 1\n") != before


def test_a_module_that_defines_its_function_is_digested_alone(user_modules, tmp_path):
    tree = ast.parse((tmp_path / "my_research.py").read_text())
    expected = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
    assert source_digest("my_research:my_loss") == expected
    assert source_digest("builtins:max") == ""
