"""docs/spct.md has every field of the 27B preset, with the value that it has there."""

import pathlib
import re

import ml_collections

from experiments.configs import spct_gemma2_27b

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs/spct.md").read_text()
ROWS = re.findall(r"^\| `([a-z]+(?:\.[a-z0-9_]+)?)` \| (.*?) \|", PAGE, re.MULTILINE)
# described, not printed: {field: what stands in its second cell}
IN_WORDS = {"data.train", "data.general", "data.eval", "data.max_left_out"}


def leaves() -> dict:
    found = {}
    for section, value in spct_gemma2_27b.get_config().items():
        nested = isinstance(value, ml_collections.ConfigDict)
        found |= {f"{section}.{k}": v for k, v in value.items()} if nested else {section: value}
    return found


def test_every_field_stands_there_once():
    assert sorted(field for field, _ in ROWS) == sorted(leaves())


def test_values_are_those_of_the_preset():
    preset = leaves()
    wrong = []
    for field, cell in ROWS:
        if field not in IN_WORDS:
            value = preset[field]
            value = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
            if eval(cell.strip("`")) != value:
                wrong.append((field, cell, value))
    assert wrong == []
    assert f"`{preset['data.max_left_out']}`" in PAGE
