"""Draws short answers to the questions from a real model: whole sentences, each answer once."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from grm_jax.json_files import check_fields, decode, read_object, shown
from grm_jax.reward_models.description import content_digest

PROMPT, TOKENS, TEMPERATURE, ROWS = 64, 56, 0.8, 64  # tokens, tokens, -, at once
SENTENCE = re.compile(r"""[^\n]*?[a-z0-9")][.!?]["')]?(?=\s|$)""")
MOST_SENTENCES = 3
ANSWERS = {"id": str, "texts": list}  # fields of a line of answers


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
    A torn last line is cut from the file. Raises ValueError where the file is of another model,
    seed or number of samples, or has answers to another question of the same id; for a line that is
    none of answers, naming file, line and field.
    """
    model = {f"model.{part}": digest for part, digest in content_digest(folder).items()}
    claim(path, {**model, "samples": samples, "seed": seed})
    drawn: dict[str, list[str]] = {}
    if path.is_file():
        _cut_torn_line(path)
    for row in read_rows(path, ANSWERS) if path.is_file() else ():
        question = asked.get(row["id"])
        if question is not None and row.get("asked", question) != question:
            raise ValueError(
                f'{path}: id {row["id"]!r}: field "asked": expected {shown(question)}, got '
                f"{shown(row['asked'])}; choose another folder"
            )
        drawn[row["id"]] = row["texts"]
    missing = {name: question for name, question in asked.items() if name not in drawn}
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for name, texts in _draw(folder, missing, samples, seed):
                drawn[name] = texts
                row = {"id": name, "asked": asked[name], "texts": texts}
                file.write(json.dumps(row) + "\n")
                file.flush()
    cut = {name: [" ".join(sentences(t)[:MOST_SENTENCES]) for t in drawn[name]] for name in asked}
    return {name: list(dict.fromkeys(filter(None, texts))) for name, texts in cut.items()}


def claim(path: pathlib.Path, of: Mapping[str, Any]) -> None:
    """Writes beside a file, FILE.of.json, what it is of: plain JSON.

    Raises ValueError, naming the first field that differs, where the file is there and of something
    else, or of who knows what.
    """
    beside, plain = path.with_suffix(".of.json"), json.loads(json.dumps(of))
    if not path.is_file():
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        return
    if not beside.is_file():
        raise ValueError(
            f"{path}: no {beside.name} beside it says what it is of; expected "
            f"{json.dumps(plain)} there. Write it, where that is so, or choose another folder"
        )
    found = read_object(beside)
    for field in dict.fromkeys([*plain, *found]):
        if found.get(field) != plain.get(field):
            raise ValueError(
                f'{beside}: field "{field}": expected {shown(plain.get(field))}, got '
                f"{shown(found.get(field))}, so {path.name} is of another run; choose another "
                "folder"
            )


def read_rows(path: pathlib.Path, kinds: Mapping[str, Any] = {}) -> list[dict]:
    """Reads a file of JSON lines, each of which has fields of these kinds.

    Raises ValueError, naming file, line and field, for a line that is none.
    """
    with path.open("rb") as file:
        lines = ((f"{path}:{number}", line) for number, line in enumerate(file, start=1))
        return [check_fields(decode(line, where), kinds, where, kinds) for where, line in lines]


def _cut_torn_line(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


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
