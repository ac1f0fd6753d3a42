"""Checks a model folder: what it holds, how well it predicts a text, and that transformers agrees.

All is computed in float32. The comparison needs torch, and is left out where that is not installed.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params, stored_dtypes
from grm_jax.checkpoint.peft import CONFIG as ADAPTERS
from grm_jax.json_files import looks_like, read_object
from grm_jax.models.config import ModelConfig, Numerics
from grm_jax.models.decoder import Decoder, lm_logits
from grm_jax.models.hf_config import load_config, read_config
from grm_jax.models.table import CAUSAL_LM, abstract_params
from grm_jax.parallel.mesh import make_mesh, param_shardings, shares
from grm_jax.progress import progress
from grm_jax.sampling.chunks import Drawing
from grm_jax.sampling.requests import Request
from grm_jax.sampling.rollout import generate
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.tokenizer import Tokenizer, find_tokenizer
from grm_jax.training.logprobs import token_logprobs

TEXT = """\
The history of bread is older than that of writing. People ground wild grain between stones, mixed
the meal with water, and baked flat cakes on hot rocks beside the fire. Much later somebody left a
bowl of dough standing for a day, and it rose: yeast from the air had begun to eat the sugar in it.
In the cities along the Nile bakers sold loaves in more than thirty shapes, and workers were paid in
bread and beer. Today a baker knows why the dough rises, how long it has to rest, and at what
temperature the crust turns brown, but the work begins as it always has, with flour, water, salt and
a pair of hands.
"""
TOKENS = 2048  # of a text that are read, unless more are asked for
COMPARED = 1024  # tokens whose logits are compared: transformers' are held whole
PROMPT, NEW = 64, 32  # tokens of the text that are gone on from, and tokens that are written
SMALL = 2**31  # bytes in float32: a smaller model is whole on one device
CHUNK = 128  # positions whose logits are compared at once


def text_of(path: pathlib.Path) -> str:
    """Reads a text in UTF-8; a byte order mark in front is passed over.

    Raises ValueError that names the file and the first byte that is wrong.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = looks_like(raw) or f"byte 0x{raw[error.start]:02x} at {error.start}"
        raise ValueError(f"{path}: expected a text in UTF-8, got {what}") from None


def check_model(
    folder: pathlib.Path,
    text: str = TEXT,
    tokens: int = TOKENS,
    where: str = "text",
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Checks a Hugging Face folder on a text, and returns what was found as plain JSON.

    Args:
      folder: of a model that writes, with its tokenizer.
      text: read as plain text: the name of a control token in it is ordinary characters. Behind
        BOS where the tokenizer puts one in front of a text.
      tokens: of the text that are read, at most. What the model's positions do not hold goes into
        windows, each behind BOS or else the token before.
      where: what errors of the text begin with.
      say: is told what is done next.

    Returns:
      model_type, parameters, dtype, context: the second a number, the third of the files, the last
        in positions.
      tokens, bytes, windows: of what was read.
      scored: tokens with one before them, to which nll_per_token and nll_per_byte, in nats, refer.
      prompt, continuation: text that is gone on from, and what is written behind it, greedily.
      transformers: its version; None without torch.
      compared: tokens of which max_abs is the largest difference of two logits; 0 and None without.
      greedy_equal: whether it writes the same; None without.

    Raises FileNotFoundError and ValueError, naming file and field, for a folder that is none or has
    adapters alone, a family that is not known, a model that does not write, missing or damaged
    weights, and a text of fewer than two tokens.
    """
    if (folder / ADAPTERS).is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: adapters alone; expected the folder of a whole model")
    platform = jax.default_backend()
    layers = load_config(folder).n_layers
    numerics = Numerics(scan_layers=platform != "cpu" or layers > 8)
    cfg = load_config(folder, **numerics.resolve(platform))
    _refuse_heads(folder, cfg)
    tokenizer = load_own_tokenizer(folder, cfg)
    ids = tokenizer.encode(tokenizer.text_prefix + text)
    if len(ids) < 2:
        raise ValueError(f"{where}: {len(ids)} tokens; expected a text of 2 or more")
    if tokens < 2:
        raise ValueError(f"tokens: expected 2 or more, got {tokens}")
    cut, ids = len(ids) > tokens, ids[:tokens]
    front = [tokenizer.bos_id] if puts_bos(folder, tokenizer) else []
    read = tokenizer.decode(ids) if cut else text
    n_bytes = len(read.encode())
    unscored = 0 if front else len(tokenizer.decode(ids[:1]).encode())

    abstract = abstract_params(cfg)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    mesh = make_mesh(devices=jax.devices()[:1] if 4 * parameters < SMALL else None)
    say(f"reading {parameters:,} parameters of {folder}")
    params = load_params(folder, cfg, param_shardings(mesh, abstract))
    windows = list(cut_windows(ids, front, cfg.max_positions))
    say(f"predicting {len(ids):,} tokens in {len(windows)} window{'s' * (len(windows) > 1)}")
    with jax.default_matmul_precision("highest"):
        nll = sum_nll(params, cfg, windows)
        prompt = [*front, *ids[: min(PROMPT, len(ids) // 2, max(1, cfg.max_positions // 2))]]
        new = max(1, min(NEW, cfg.max_positions - len(prompt)))
        say(f"writing up to {new} tokens")
        written = continuation(params, cfg, tokenizer, mesh, prompt, new)
        compared = {"transformers": None, "compared": 0, "max_abs": None, "greedy_equal": None}
        if importlib.util.find_spec("torch") is None:
            say("torch is not installed: nothing to compare with")
        else:
            say("transformers computes the same")
            compared = compare(
                params, cfg, folder, windows[0][:COMPARED], prompt, written, tokenizer
            )
    scored = len(ids) - (not front)
    return {
        "folder": str(folder),
        "model_type": cfg.model_type,
        "parameters": parameters,
        "dtype": ", ".join(stored_dtypes(folder)),
        "context": cfg.max_positions,
        "tokens": len(ids),
        "bytes": n_bytes,
        "windows": len(windows),
        "scored": scored,
        "nll_per_token": nll / scored,
        "nll_per_byte": nll / (n_bytes - unscored),
        "prompt": tokenizer.decode(prompt),
        "continuation": tokenizer.decode(written),
    } | compared


def puts_bos(folder: pathlib.Path, tokenizer: Tokenizer) -> bool:
    """Says whether the tokenizer of a folder puts BOS in front of a plain text."""
    file = find_tokenizer(folder)
    if file.suffix == ".json":
        return tokenizers.Tokenizer.from_file(str(file)).encode("a").ids[:1] == [tokenizer.bos_id]
    stated = file.parent / "tokenizer_config.json"
    return not stated.is_file() or read_object(stated).get("add_bos_token") is not False


def cut_windows(ids: Sequence[int], front: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Yields windows of up to `positions` ids, in which each id stands behind another once.

    They begin with `front` or, where that is empty, the last id of the window before; the first
    then stands behind nothing. A model of one position has no such windows: ValueError.
    """
    if positions < 2:
        raise ValueError(f"a model of {positions} position predicts nothing; expected 2 or more")
    if front:
        step = positions - len(front)
        yield from ([*front, *ids[i : i + step]] for i in range(0, len(ids), step))
        return
    step = positions - 1
    yield from (list(ids[i : i + positions]) for i in range(0, len(ids) - 1, step))


def sum_nll(params: dict, cfg: ModelConfig, windows: Sequence[Sequence[int]]) -> float:
    """Sums -log p of every token of the windows but the first of each, in nats."""
    width = max(map(len, windows))
    score = jax.jit(token_logprobs, static_argnums=1)
    total = 0.0
    with progress("predict", len(windows), "windows") as advance:
        for window in windows:
            behind = (0, width - len(window))
            tokens_1T = np.pad(np.array(window, np.int32), behind)[None]
            pos_1T = np.pad(np.arange(len(window), dtype=np.int32), behind, constant_values=-1)[
                None
            ]
            logp_1T, _ = score(params, cfg, tokens_1T, pos_1T)
            total -= float(np.sum(np.asarray(logp_1T)[0, 1 : len(window)], dtype=np.float64))
            advance()
    return total


def continuation(
    params: dict, cfg: ModelConfig, tokenizer: Tokenizer, mesh: Any, prompt: Sequence[int], new: int
) -> list[int]:
    """Writes up to `new` tokens behind a prompt, the most likely ones; ids, a stop id included."""
    settings = SamplingConfig(
        max_new_tokens=new, temperature=0.0, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id
    )
    drawing = Drawing(cfg, settings) if mesh.size == 1 else Drawing(cfg, settings, "jit", mesh)
    requests = [Request(tuple(prompt), "continuation")]
    drawn = generate(drawing, params, requests, 0, [len(prompt)], shares(mesh))
    return [int(i) for _, (completion,) in drawn for i in completion.token_ids]


def compare(
    params: dict,
    cfg: ModelConfig,
    folder: pathlib.Path,
    ids: Sequence[int],
    prompt: Sequence[int],
    written: Sequence[int],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Compares a model with what transformers makes of a folder, in float32.

    ids: whose logits are compared. prompt, written: what was gone on from, and how.
    """
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    theirs_TV = logits_of(model, ids)
    new = max(len(written), 1)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    with torch.no_grad():
        prompt_1T = torch.tensor([list(prompt)])
        out_1T = model.generate(prompt_1T, attention_mask=torch.ones_like(prompt_1T))
    return {
        "transformers": transformers.__version__,
        "compared": len(ids),
        "max_abs": max_difference(params, cfg, ids, theirs_TV),
        "greedy_equal": out_1T[0, len(prompt) :].tolist() == list(written),
    }


def logits_of(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Computes the logits [T, V] of a torch model of transformers, float32."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()


def max_difference(
    params: dict, cfg: ModelConfig, ids: Sequence[int], theirs_TV: np.ndarray
) -> float:
    """Finds the largest difference of two logits, ours and given ones, over all positions."""
    tokens_1T = np.array([ids], np.int32)
    pos_1T = np.arange(len(ids), dtype=np.int32)[None]
    hidden_1TD = jax.jit(lambda params, *x: Decoder(cfg).apply({"params": params}, *x)[0])(
        params, tokens_1T, pos_1T
    )
    head = jax.jit(lambda params, hidden: lm_logits(params, cfg, hidden))
    largest = 0.0
    for first in range(0, len(ids), CHUNK):
        some = slice(first, first + CHUNK)
        ours_TV = np.asarray(head(params, hidden_1TD[0, some]))
        # not max of Python, which passes over NaN
        largest = float(np.maximum(largest, np.abs(ours_TV - theirs_TV[some]).max()))
    return largest


def _refuse_heads(folder: pathlib.Path, cfg: ModelConfig) -> None:
    stated, expected = read_config(folder).get("architectures"), getattr(cfg.family, CAUSAL_LM)
    if stated and expected not in stated:
        raise ValueError(
            f'{folder / "config.json"}: field "architectures": expected {expected}, a model that '
            f"writes, got {', '.join(stated)}"
        )
