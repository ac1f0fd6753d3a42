"""The tests that docs/failures.md names are there."""

import pathlib
import re

REPO = pathlib.Path(__file__).resolve().parents[1]


def test_the_tests_that_the_page_names_are_there():
    page = (REPO / "docs/failures.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) >= 80
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (REPO / path).is_file() or f"def {test}" not in (REPO / path).read_text()
    ]
    assert missing == []


def test_every_row_names_a_test():
    rows = [
        line for line in (REPO / "docs/failures.md").read_text().splitlines() if "`tests/" in line
    ]
    tables = re.findall(
        r"^\| what goes wrong \|.*\n\|[-|]+\n((?:\|.*\n)+)",
        (REPO / "docs/failures.md").read_text(),
        flags=re.MULTILINE,
    )
    assert sum(len(table.splitlines()) for table in tables) == len(rows) >= 50
