"""docs/evaluation.md has every field of results.json and sweep.json, and no other."""

import pytest

from grm_jax.evaluation.merge import merge
from tests.evaluation import fabricated, schema


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    where = fabricated.evaluation(folder, ("test", "single"), items=4, samples=2)
    return fabricated.results_of(*where, (1, 2), draws=50)


def test_every_field_of_results_json_is_documented(results):
    assert len(schema.LISTS) == 9 and all(results[table] for table in schema.LISTS), (
        "the fabricated evaluation has rows of all kinds"
    )
    schema.check(results)


def test_every_field_of_sweep_json_is_documented(results):
    merged = merge({"one": results})
    assert sorted(schema.TABLES["sweep.json"]) == sorted(merged)
    for table in ("rows", "paired", "meta_rm"):
        for row in merged[table]:
            assert sorted(schema.TABLES[f"sweep.json {table}"]) == sorted(row)
