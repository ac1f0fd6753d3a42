"""Draws short answers to the questions from a real model: whole sentences, each answer once."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping

PROMPT, TOKENS, TEMPERATURE, ROWS = 64, 56, 0.8, 64  # tokens, tokens, -, at once
SENTENCE = re.compile(r"""[^\n]*?[a-z0-9")][.!?]["')]?(?=\s|$)""")
MOST_SENTENCES = 3


def sentences(text: str) -> list[str]:
    """Returns the whole sentences at the beginning of a text, as long as they follow each other."""
    found, at = [], 0
    while match := SENTENCE.match(text.lstrip(), at):
        found.append(match.group().strip())
        at = match.end()
    return found


def answers(
    folder: pathlib.Path, asked: Mapping[str, str], samples: int, seed: int, path: pathlib.Path
) -> dict[str, list[str]]:
    """Returns {id of a question: answers of the model in `folder`}; those on file are not drawn.

    A draw is cut behind its last whole sentence, the third at most; one without any is left out.
    """
    drawn: dict[str, list[str]] = {}
    if path.is_file():
        drawn = {row["id"]: row["texts"] for row in read_rows(path)}
    missing = {name: question for name, question in asked.items() if name not in drawn}
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for name, texts in _draw(folder, missing, samples, seed):
                drawn[name] = texts
                file.write(json.dumps({"id": name, "texts": texts}) + "\n")
                file.flush()
    cut = {name: [" ".join(sentences(t)[:MOST_SENTENCES]) for t in drawn[name]] for name in asked}
    return {name: list(dict.fromkeys(filter(None, texts))) for name, texts in cut.items()}


def read_rows(path: pathlib.Path) -> list[dict]:
    """Reads a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _draw(
    folder: pathlib.Path, asked: Mapping[str, str], samples: int, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """Yields (id, texts) of the questions as they are complete."""
    # these take JAX; without them the other files are built in a moment
    from grm_jax.checkpoint.huggingface import load_params
    from grm_jax.compile_cache import enable_compile_cache
    from grm_jax.models.hf_config import load_config
    from grm_jax.models.table import abstract_params
    from grm_jax.parallel.mesh import make_mesh, param_shardings
    from grm_jax.sampling.engine import Drawing
    from grm_jax.sampling.requests import Request
    from grm_jax.sampling.rollout import generate
    from grm_jax.sampling.sampler import SamplingConfig
    from grm_jax.tokenizer import load_tokenizer

    enable_compile_cache()
    cfg, tokenizer = load_config(folder), load_tokenizer(folder)
    settings = SamplingConfig(
        TOKENS, TEMPERATURE, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id
    )
    requests = [
        Request(tokenizer.chat_prompt(question), name, tuple(range(samples)))
        for name, question in asked.items()
    ]
    mesh = make_mesh(replica=-1, fsdp=1)
    params = load_params(folder, cfg, param_shardings(mesh, abstract_params(cfg)))
    drawing = Drawing(cfg, settings, "shard_map", mesh)
    for indices, completions in generate(drawing, params, requests, seed, (PROMPT,), ROWS):
        texts = [tokenizer.decode(completion.token_ids) for completion in completions]
        for i, index in enumerate(indices):
            yield requests[index].item_id, texts[i * samples : (i + 1) * samples]
