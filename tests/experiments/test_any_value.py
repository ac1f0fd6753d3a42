"""Whatever value a field of a preset is given, a run's check is content, or names the field."""

import functools
import math
import pathlib

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections.config_flags import config_flags as ml_config_flags

from experiments import config_flags, config_help, run_config, sweep

PRESETS = sorted(
    path
    for path in (pathlib.Path(config_flags.__file__).parent / "configs").glob("*.py")
    if path.name != "__init__.py"
)
HERE = [path for path in PRESETS if path.stem.startswith("tiny")]  # their models are in the package
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 7, 10**30, -(10**30), 2**31, 2**63, 0.0, -0.5, 1e-300])
OTHERS = [
    None,
    True,
    False,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "text",
    "\ud800",
    "a/../b",
    b"x",
]
SIMPLE = st.one_of(
    NUMBERS, st.sampled_from(OTHERS), st.text(max_size=3), st.floats(), st.integers()
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["path", "world", "kind", "a"]), inner, max_size=2),
    ),
    max_leaves=4,
)


@functools.cache
def preset(path: pathlib.Path) -> ml_collections.ConfigDict:
    return ml_config_flags._LoadConfigModule("preset", str(path)).get_config()


FIELDS = [(path, field) for path in PRESETS for field in config_help.fields(preset(path))]


def said(error: BaseException) -> str:
    text = str(error)
    text.encode("utf-8", "surrogatepass")
    return text


def names(text: str, field: str) -> bool:
    """Whether a message names a field, or a section or a field of a section that it is in."""
    parts = field.split("[")[0].split(".")
    return any(part in text for part in parts)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(where=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_any_field_is_right_or_named(where, value):
    path, field = where
    config = ml_collections.ConfigDict(preset(path).to_dict())
    try:
        with config.ignore_type():
            config.update_from_flattened_dict({field: value})
    except (ValueError, TypeError, KeyError, AttributeError):
        return  # ml_collections itself has no such config
    try:
        run_config.finish(config, files=path in HERE)
    except ValueError as error:
        text = said(error)
        assert names(text, field) and ("expected" in text or ":" in text), text


def shown(value) -> str:
    return value if isinstance(value, str) else repr(value)


TEXTS = st.one_of(VALUES.map(shown), st.text(max_size=6)).filter(lambda text: "\0" not in text)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(where=st.sampled_from(FIELDS), text=TEXTS)
def test_any_text_on_the_command_line_is_right_or_named(where, text):
    path, field = where
    try:
        sweep.resolve(str(path), [f"--config.{field}={text}"])
    except SystemExit as end:
        assert names(said(end), field), said(end)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_seeds_are_what_every_generator_takes(path):
    config = ml_collections.ConfigDict(preset(path).to_dict())
    field = {"experiments.paper": "world_seed"}.get(run_config.script_of(config), "seed")
    if field in config:
        for seed in (-1, 2**31, 10**30):
            with config.ignore_type():
                config[field] = seed
            with pytest.raises(ValueError, match=f"{field}: expected an integer from 0 to"):
                run_config.finish(config, files=path in HERE)


@pytest.mark.parametrize("source", [{"path": 3.0}, {"hub": None}, {"world": 3}, {"path": "a\0b"}])
@pytest.mark.parametrize("field", ["data.train", "data.eval.test"])
def test_a_source_of_no_file_is_named(field, source):
    (tiny,) = [path for path in HERE if path.stem == "tiny"]
    config = ml_collections.ConfigDict(preset(tiny).to_dict())
    with config.ignore_type():
        config.update_from_flattened_dict({field: (source,)})
    with pytest.raises(ValueError, match=field):
        run_config.finish(config)


def test_groups_of_the_paper_are_those_that_there_are():
    from experiments.paper.systems import GROUPS
    from experiments.stages.settings import PAPER_GROUPS

    assert tuple(GROUPS) == PAPER_GROUPS


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_right_as_they_are(path):
    run_config.finish(preset(path), files=path in HERE)
