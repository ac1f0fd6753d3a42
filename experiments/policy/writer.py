"""A small policy that writes responses to the queries of the checkable world: its fine-tuning on
right and wrong ones, and what it draws.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from grm_jax.checkpoint.huggingface import load_params, save_folder
from grm_jax.data.examples import instruction_examples
from grm_jax.data.world.writing import make_answers
from grm_jax.models.config import ModelConfig, Numerics
from grm_jax.models.hf_config import load_config
from grm_jax.models.lora import LoraConfig
from grm_jax.models.table import abstract_params
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.reward_models.description import model_folder
from grm_jax.sampling.engine import Drawing
from grm_jax.sampling.requests import Completion, Request
from grm_jax.sampling.rollout import generate
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.tokenizer import Tokenizer, load_tokenizer
from grm_jax.training.loop import TrainSetup, fit
from grm_jax.training.optimizer import OptimizerConfig
from grm_jax.training.settings import FitConfig
from grm_jax.training.step import rft_loss

PROMPT, COMPLETION, SEQUENCE = 16, 24, 40  # tokens
ROWS = 128


class Writer(NamedTuple):
    """What the policy is, but for its weights."""

    cfg: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh

    def drawing(self, temperature: float) -> Drawing:
        settings = SamplingConfig(
            max_new_tokens=COMPLETION,
            temperature=temperature,
            stop_ids=self.tokenizer.stop_ids,
            pad_id=self.tokenizer.pad_id,
        )
        return Drawing(self.cfg, settings)


class Drawn(NamedTuple):
    """One response: its text and what it was drawn as."""

    text: str
    prompt_ids: Sequence[int]
    completion: Completion


def base_folder() -> pathlib.Path:
    return pathlib.Path(model_folder("tiny_base"))


def make_writer() -> Writer:
    folder = base_folder()
    cfg = load_config(folder, **Numerics(scan_layers=False).resolve("cpu"))
    return Writer(cfg, load_tokenizer(folder), make_mesh(devices=jax.devices()[:1]))


def load(writer: Writer, folder: pathlib.Path) -> dict:
    shardings = param_shardings(writer.mesh, abstract_params(writer.cfg))
    return load_params(folder, writer.cfg, shardings)


def save(writer: Writer, folder: pathlib.Path, params: dict) -> None:
    """Write a Hugging Face folder, which transformers reads as well."""
    save_folder(folder, params, writer.cfg, tokenizer_files_from=base_folder())


def train_setup(
    writer: Writer, folder: pathlib.Path, seed: int, steps: int, every: int, of: str
) -> TrainSetup:
    """Makes the setup of a training; of: all that its result depends on, beside the seed."""
    return TrainSetup(
        folder=folder,
        mesh=writer.mesh,
        model_cfg=writer.cfg,
        optimizer=OptimizerConfig(warmup_steps=min(5, steps), b2=0.98),
        lora=LoraConfig(rank=0),
        seed=seed,
        sequence_buckets=(SEQUENCE,),
        every=every,
        keep=1,
        digest=f"policy of seed {seed}: {of}",
        sinks=("jsonl",),
    )


def fine_tune(
    writer: Writer, folder: pathlib.Path, seed: int, steps: int, answers: int, p_right: float
) -> dict:
    """Teach the tiny base to answer, right with probability `p_right`, wrong otherwise."""
    of = f"{answers} answers, {p_right} right, {steps} steps"
    settings = FitConfig(learning_rate=1e-3, batch_size=64, micro_batch=64, steps=steps)
    rows = make_answers(answers, seed, p_right)
    examples = instruction_examples(writer.tokenizer, rows)
    setup = train_setup(writer, folder, seed, steps, steps, of)
    base = load(writer, base_folder())
    loss = rft_loss(writer.cfg)
    return fit(setup, "sft", base, loss, {"answers": examples}, {"answers": 1.0}, settings).params


def draw(
    writer: Writer,
    params: dict,
    prompts: Sequence[str],
    samples: int,
    seed: int,
    name: str,
    temperature: float = 1.0,
) -> list[list[Drawn]]:
    """Draw responses to each prompt; (seed, name, place of the prompt, sample) fix each of them."""
    requests = [
        Request(writer.tokenizer.chat_prompt(prompt), f"{name}/{p}", tuple(range(samples)))
        for p, prompt in enumerate(prompts)
    ]
    drawn: list[list[Drawn]] = [[] for _ in prompts]
    places = {request.item_id: p for p, request in enumerate(requests)}
    sampler = writer.drawing(temperature)
    for _, completions in generate(sampler, params, requests, seed, (PROMPT,), ROWS):
        for completion in completions:
            p = places[completion.item_id]
            text = writer.tokenizer.decode(completion.token_ids)
            drawn[p].append(Drawn(text, requests[p].prompt_ids, completion))
    return [sorted(row, key=lambda one: one.completion.sample) for row in drawn]
