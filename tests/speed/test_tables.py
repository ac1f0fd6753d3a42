"""Tables of docs/performance.md come from lines, and a page without lines says so."""

import re

import pytest

from speed import tables
from tests.conftest import REPO

PAGE = (REPO / "docs/performance.md").read_text(encoding="utf-8")


def test_every_table_of_the_page_is_known_and_each_is_on_it():
    assert set(re.findall("<!-- table: (.*?) -->", PAGE)) == set(tables.TABLES)
    assert PAGE.count("<!-- end -->") == len(tables.TABLES)


def test_the_page_has_what_the_lines_beside_it_say():
    lines = tables.read([REPO / "docs/performance.jsonl"])
    assert tables.fill(PAGE, lines) == PAGE, "python -m speed.tables"


def test_what_was_not_measured_says_so():
    page = tables.fill(PAGE, [])
    assert page.count(tables.NONE) >= len(tables.TABLES)
    assert tables.fill(page, []) == page


def test_an_unknown_table_is_an_error():
    with pytest.raises(ValueError, match="no table 'speed'"):
        tables.fill("<!-- table: speed -->\n<!-- end -->", [])


def test_a_case_has_its_contenders_with_spread_and_ratio():
    lines = [
        {"case": "queue", "contender": "grm_jax", "tokens_per_s_rounds": [1.0]},  # an earlier run
        {"case": "queue", "contender": "before", "tokens_per_s_rounds": [1.0]},
        {"case": "queue", "contender": "grm_jax", "tokens_per_s_rounds": [120.0, 110.0, 100.0]},
        {"case": "queue", "contender": "llama.cpp", "tokens_per_s_rounds": [80.0, 90.0, 100.0]},
        {"case": "queue", "times_as_fast_as": {"llama.cpp": {"all": [1.5, 1.2, 1.0]}}},
        {"case": "p512_k1", "contender": "llama.cpp", "absent": "not installed"},
    ]
    page = tables.fill("<!-- table: sampling -->\n<!-- end -->", lines)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| queue")]
    assert [row[1:4] for row in rows] == [
        ["grm_jax", "110 (100 to 120)", ""],
        ["llama.cpp", "90 (80 to 100)", "1.2 (1 to 1.5)"],
    ]
    assert "| p512_k1 | llama.cpp | not installed |" in page


def test_computed_and_needed_tokens_are_of_the_last_line():
    line = {"case": "rl", "packed": True, "computed_tokens": 1100, "needed_tokens": 1000}
    page = tables.fill(
        "<!-- table: tokens -->\n<!-- end -->", [line | {"computed_tokens": 9}, line]
    )
    assert "| rl | packed | 1,100 | 1,000 | 1.100 |" in page
