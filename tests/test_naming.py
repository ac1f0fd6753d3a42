"""Names in a config resolve to functions, or say what is near."""

import jax.numpy as jnp
import pytest

from grm_jax.losses import KL_ESTIMATORS, LOSSES, LossConfig, resolve


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


def test_a_misspelt_kl_or_aggregation_in_the_config_is_named():
    arrays = [jnp.zeros((1, 2))] * 3 + [jnp.zeros(1), jnp.ones((1, 2))]
    with pytest.raises(ValueError, match="unknown name 'k4'; did you mean"):
        LOSSES["grpo"](*arrays, LossConfig(kl="k4"))
    with pytest.raises(ValueError, match="did you mean token_mean"):
        LOSSES["grpo"](*arrays, LossConfig(aggregation="tokens_mean"))
