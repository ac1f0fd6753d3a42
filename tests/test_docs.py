"""Every Python snippet of docs/ runs: here, or in the test that ELSEWHERE names.

Links and anchors are checked by `mkdocs build --strict`, commands by experiments/test_configs.py.
"""

import pathlib
import re

import jax
import pytest

import grm_jax
from grm_jax.parallel.mesh import make_mesh
from tests.evaluation import fabricated
from tests.reward_models.released import released_folders, released_templates

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
ELSEWHERE = {
    "benchmarks.md": "benchmarks/test_benchmarks.py",
    "config.md": "experiments/test_configs.py",
    "extend.md": "test_extend.py",
    "first_hour/evaluator.md": "first_hour/test_evaluator.py",
    "first_hour/loss.md": "first_hour/test_loss.py",
    "first_hour/preferences.md": "first_hour/test_preferences.py",
    "judge.md": "test_judge.py",
    "losses.md": "losses/test_loss_docs.py",
    "remote.md": "reward_models/test_remote.py",
}


def snippets(page: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


HERE = {str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md"))}
HERE = {page for page in HERE - set(ELSEWHERE) if snippets(page)}


@pytest.mark.parametrize("page,test", ELSEWHERE.items())
def test_snippets_that_run_elsewhere(page, test):
    assert snippets(page)
    name = pathlib.PurePath(page)
    text = (DOCS.parent / "tests" / test).read_text()
    assert name.name in text or f'read("{name.stem}")' in text


@pytest.mark.parametrize("page", sorted(HERE))
def test_snippets_run(page, tmp_path, monkeypatch, loaded):
    """All of a page in one namespace, in a folder of its reader's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grm_jax, "load", loaded, raising=False)
    names = {"grm_jax": grm_jax}
    for snippet in snippets(page):
        exec(compile(snippet, f"docs/{page}", "exec"), names)
    if page == "evaluation.md":
        made = fabricated.evaluation(tmp_path, items=2, samples=8)
        results = names["figures"](*made, tmp_path)
        assert results["rows"] and (tmp_path / "report.html").is_file()
    if "get_config" in names:
        assert names["get_config"]().data.train


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """grm_jax.load, of models that the pages name and the reader has."""
    folder, load, models = tmp_path_factory.mktemp("models"), grm_jax.load, {}

    def of_the_reader(name, **arguments):
        if name == "runs/tiny_rubric":
            name, arguments = "tiny", {"templates": {"rubric": "tiny_rubric"}}
        elif name.startswith("models/deepseek_grm"):
            grm, meta = released_folders(folder)
            templates = released_templates(folder / "templates")
            assert arguments.keys() == {"meta", "parsing", "temperature", "templates"}
            assert arguments["templates"].keys() == templates.keys()
            lengths = {"prompt": 512, "completion": 96}
            name, arguments = (
                str(grm),
                arguments | {"meta": str(meta), "templates": templates} | lengths,
            )
        if (name, *arguments) not in models:
            mesh = make_mesh(devices=jax.devices()[:1])
            models[(name, *arguments)] = load(name, **arguments, mesh=mesh)
        return models[(name, *arguments)]

    return of_the_reader
