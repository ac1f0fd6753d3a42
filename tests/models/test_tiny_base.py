"""The tiny base model that ships with the package is an ordinary Hugging Face Gemma-2 folder, and a
judge of the world.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import grm_jax
from grm_jax.checkpoint.huggingface import load_params
from grm_jax.data.world import make_records
from grm_jax.judgment.prompts import load_template
from grm_jax.models import Decoder, lm_logits
from grm_jax.models.hf_config import load_config
from grm_jax.reward_models.grm import Prompter, judge
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.tokenizer import load_tokenizer
from tests.reward_models.judge_cases import shuffled_asks

FOLDER = pathlib.Path(grm_jax.__file__).parent / "assets" / "tiny_base"


@pytest.fixture(scope="module")
def base():
    cfg = load_config(FOLDER, scan_layers=False)
    tokenizer = load_tokenizer(FOLDER)
    prompter = Prompter(tokenizer, load_template("tiny_pointwise"), load_template("tiny_single"))
    return cfg, load_params(FOLDER, cfg), prompter


def greedy(base, records):
    cfg, params, prompter = base
    settings = SamplingConfig(
        max_new_tokens=128,
        temperature=0.0,
        stop_ids=prompter.tokenizer.stop_ids,
        pad_id=prompter.tokenizer.pad_id,
    )
    asks = shuffled_asks(records, 1, 0)
    batches = judge(
        make_sampler(cfg, settings),
        params,
        prompter,
        asks,
        seed=0,
        temperature=0.0,
        buckets=(80,),
        rows=64,
    )
    return [one for batch in batches for one in batch]


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6


def test_it_judges_the_world_somewhat(base):
    drawn = greedy(base, make_records("test", 64, seed=123))
    assert sum(one.judgment["failure"] is None for one in drawn) >= 60
    # better than always wrong, far from always right
    assert 16 < sum(one.judgment["correct"] for one in drawn) < 54
    assert all(one.judgment["principles"] for one in drawn if one.judgment["failure"] is None)


@pytest.mark.torch
def test_transformers_loads_it_with_the_same_logits_and_the_same_greedy_text(base):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg, params, prompter = base
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    drawn = greedy(base, make_records("test", 3, seed=5))
    for one in drawn:
        ids = [*one.prompt_ids, *one.completion_ids.tolist()]
        hidden, _ = Decoder(cfg).apply(
            {"params": params}, jnp.array([ids]), jnp.arange(len(ids))[None]
        )
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].numpy()
            made = model.generate(
                torch.tensor([one.prompt_ids]), max_new_tokens=128, do_sample=False
            )[0, len(one.prompt_ids) :]
        np.testing.assert_allclose(np.asarray(lm_logits(params, cfg, hidden))[0], theirs, atol=1e-4)
        assert made.tolist() == one.completion_ids.tolist()
        assert tokenizer.decode(made, skip_special_tokens=True) == one.judgment["text"]
