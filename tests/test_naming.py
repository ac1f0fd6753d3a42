"""Names in a config resolve to functions, or say what is near."""

import sys

import pytest

from grm_jax.losses import KL_ESTIMATORS, LOSSES, resolve
from grm_jax.naming import with_settings


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
