"""What docs/evaluation.md says of the fields of results.json and sweep.json."""

import pathlib
import re
from collections.abc import Mapping

DOCS = (pathlib.Path(__file__).resolve().parents[2] / "docs/evaluation.md").read_text()
PARTS = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
TABLES = {  # {heading: fields in the first column of its table}
    heading: re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\|([^|]*)\|", body, re.MULTILINE)))
    for heading, body in PARTS
}
LISTS = [heading for heading in TABLES if heading != "top" and not heading.startswith("sweep")]


def check(results: Mapping) -> None:
    """Asserts that a results.json has the documented fields, and no others."""
    assert sorted(results) == sorted(TABLES["top"])
    for table in LISTS:
        for row in results[table]:
            assert sorted(row) == sorted(TABLES[table]), table
