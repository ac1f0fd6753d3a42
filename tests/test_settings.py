"""Settings check themselves: each wrong field is named, with what was expected and what it is."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

from grm_jax.evaluation.settings import EvalConfig
from grm_jax.models.config import Numerics
from grm_jax.sampling.settings import Lengths, Sampling
from grm_jax.settings import (
    POSITIVE,
    SettingsError,
    build,
    check,
    function_in,
    one_of,
    some_of,
    wrong_arguments,
)

TABLE = {"mean": sum}


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = 1
    rate: float = 0.5
    name: str = "mean"
    kind: str | None = None
    parts: tuple[str, ...] = ("a",)
    switch: bool = True
    batch: int = 4

    def __post_init__(self):
        check(
            self,
            {
                "count batch": POSITIVE,
                "name": function_in(TABLE),
                "kind": one_of(("x", "y")),
                "parts": some_of(("a", "b")),
            },
            [("batch count", "a multiple of count = {count}", lambda b, c: b % c == 0)],
        )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"count": 0}, "count: expected a positive integer, got 0"),
        ({"count": "2"}, "count: expected a positive integer, got '2'"),
        ({"count": True}, "count: expected a positive integer, got True"),
        ({"count": 2.0}, "count: expected a positive integer, got 2.0"),
        ({"count": None}, "count: expected a positive integer, got None"),
        ({"rate": "0.5"}, "rate: expected a number, got '0.5'"),
        ({"rate": math.inf}, "rate: expected a number, got inf"),
        ({"switch": 1}, "switch: expected True or False, got 1"),
        ({"kind": "z"}, "kind: expected one of x, y, got 'z'"),
        ({"kind": 3}, "kind: expected one of x, y, or None, got 3"),
        ({"parts": "ab"}, "parts: expected some of a, b, got 'ab'"),
        ({"parts": ("a", "c")}, "parts: expected some of a, b, got c"),
        ({"parts": ()}, "parts: expected some of a, b, got none"),
        (
            {"name": "maen"},
            "name: unknown name 'maen'; did you mean mean?, or write package.module:function",
        ),
        ({"name": "no.such:mean"}, "name: 'no.such:mean': no module named 'no' on the import path"),
        ({"batch": 5, "count": 2}, "batch: expected a multiple of count = 2, got 5"),
    ],
)
def test_a_wrong_field_is_named(wrong, message):
    with pytest.raises(SettingsError) as error:
        Example(**wrong)
    assert error.value.problems == (message,)


def test_all_wrong_fields_are_in_one_error():
    with pytest.raises(ValueError) as error:
        Example(count=0, rate=None, parts=("c",))
    assert str(error.value) == (
        "3 wrong fields in Example\n"
        "  count: expected a positive integer, got 0\n"
        "  rate: expected a number, got None\n"
        "  parts: expected some of a, b, got c"
    )


def test_settings_are_built_from_a_mapping():
    assert build(Example, {"count": 2, "parts": ["a", "b"]}) == Example(2, parts=("a", "b"))
    with pytest.raises(SettingsError) as error:
        build(Lengths, {"prompt": 8, "buckets": [8], "sequenecs": [], "completion": 0})
    assert error.value.problems == (
        "sequenecs: no such field; nearest: sequences",
        "completion: expected a positive integer, got 0",
    )
    with pytest.raises(SettingsError) as error:
        build(Lengths, {"prompt": 8, "buckets": (8,)})
    assert error.value.problems == ("completion: expected an integer, got nothing",)


def test_right_values_pass():
    Example()
    Example(rate=np.float32(0.5), count=np.int64(2))
    Example(rate=1, kind="x", name="grm_jax.naming:resolve", parts=("b", "a"), batch=6, count=3)


def test_lengths_of_sequences_end_in_the_longest():
    lengths = Lengths(80, 128, (32, 80), (48, 96, 256))
    assert lengths.sequence_buckets == (48, 96, 208)
    assert Lengths(80, 128, (80,)).sequence_buckets == (208,)


@pytest.mark.parametrize("buckets", [(), (32, 64), (80, 32), (0, 80), (80, 80)])
def test_buckets_grow_up_to_the_prompt(buckets):
    with pytest.raises(
        ValueError, match="buckets: expected growing lengths that end in prompt = 80, got"
    ):
        Lengths(80, 128, buckets)


@pytest.mark.parametrize(
    "settings, wrong, message",
    [
        (Sampling, {"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0.0"),
        (Sampling, {"sampler": "vmap"}, "sampler: expected one of jit, pmap, shard_map, got"),
        (Numerics, {"attention": "flash"}, "attention: expected one of auto, reference, blocked"),
        (Numerics, {"dtype": "float16"}, "dtype: expected one of float32, bfloat16, got 'float16'"),
    ],
)
def test_choices_and_ranges(settings, wrong, message):
    with pytest.raises(ValueError, match=message):
        settings(**wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"ks": (2, 4)}, "ks: expected growing integers from 1, against which gains are measured"),
        ({"ks": (1, 4, 4)}, "ks: expected growing integers from 1"),
        ({"ks": ()}, "ks: expected growing integers from 1"),
        ({"temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
        ({"seeds": (1, 1)}, r"seeds: expected different integers, got \(1, 1\)"),
        ({"seeds": ()}, r"seeds: expected different integers, got \(\)"),
        ({"bootstrap": 10}, "bootstrap: expected at least 100 resamples, got 10"),
        ({"swap": True, "greedy": False}, "swap: expected False, as it compares with greedy"),
        ({"samples_per_order": 3}, "samples_per_order: expected a divisor of the largest of ks"),
        ({"anytime": 1.0}, "anytime: expected a probability below 1, got 1.0"),
        ({"anytime": 0.1, "samples_per_order": 2}, "anytime: expected 0, or samples_per_order=1"),
        ({"retry": "request_failed"}, "retry: expected a tuple of texts, got 'request_failed'"),
    ],
)
def test_evaluation_settings(wrong, message):
    EvalConfig((1, 2, 8), 1.0, samples_per_order=16)  # more than the largest k: all share an order
    with pytest.raises(ValueError, match=message):
        EvalConfig(**{"ks": (1, 2, 8), "temperature": 1.0} | wrong)


def by_default(inputs, cfg, width=1, name="a", sharp=True, pair=(1, 2), free=None):
    pass


def by_annotation(inputs, cfg, width: float | None, steps: int = 3, mode: "Mode" = 1, *, on: bool):  # noqa: F821
    pass


def annotated(inputs, cfg, width: float | None, steps: int = 3, where: pathlib.Path = None, **rest):
    pass


@pytest.mark.parametrize(
    "function, values, problems",
    [
        (by_default, {}, []),
        (by_default, {"width": 0.5, "name": "b", "sharp": False, "pair": [1], "free": {}}, []),
        (by_default, {"width": "wide"}, ["width: expected a number, got 'wide'"]),
        (by_default, {"width": True}, ["width: expected a number, got True"]),
        (by_default, {"width": float("nan")}, ["width: expected a number, got nan"]),
        (
            by_default,
            {"name": 1, "sharp": 1, "pair": 1},
            [
                "name: expected a text, got 1",
                "sharp: expected True or False, got 1",
                "pair: expected a tuple, got 1",
            ],
        ),
        # what is annotated is what is meant: None where it says so, no fraction for an integer
        (annotated, {"width": None, "steps": 3, "where": 1, "other": "x"}, []),
        (annotated, {"width": "x"}, ["width: expected a number, or None, got 'x'"]),
        (annotated, {"steps": 0.5}, ["steps: expected an integer, got 0.5"]),
        # an annotation that cannot be read here tests nothing, a default does
        (
            by_annotation,
            {"width": "x", "on": 1, "steps": "x"},
            ["steps: expected a number, got 'x'"],
        ),
    ],
)
def test_arguments_are_of_the_types_that_a_function_says(function, values, problems):
    assert wrong_arguments(function, values) == problems
