"""Makes what speed is measured on: models with random weights, a queue, records, lengths.

    python -m speed.inputs FOLDER [--models=25m,129m] [--tokenizer=PATH] [--data=FOLDER]

    FOLDER/25m, 129m, tiny    Gemma-2 in float32, each weight drawn by a fixed seed
    FOLDER/queue.jsonl        16 prompts of 100 to 800 tokens, 4 samples each, stops 16 to 128
    FOLDER/lengths/           sft.json (512 tokens each), grpo.json (128 + 64), and real_text.json
                              where --data has it
    FOLDER/records.jsonl      records of RMB, in the order of a fixed seed, where --data has them

Random models are as fast as trained ones, but they do not stop. These do, so that judging meets
rows that end: one column of the embedding is the same for all tokens, and the stop token has a
larger value there, which gives it nearly the same probability at every step. Lengths are then
geometric, with a mean of about 290 tokens (25m) and 340 (129m) before the cut at 512.

--tokenizer: what `grm_jax.tokenizer.load_tokenizer` reads, of at most 32,768 ids: for judging a
real one (mistral_tokenizer/tokenizer.model.v1 of --data); without it that of tiny_base, which
serves for all that is given in ids.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
from absl import app, flags

from grm_jax.benchmarks import load_benchmark
from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import write_records
from grm_jax.models.config import from_sizes
from grm_jax.models.decoder import init_params
from grm_jax.reward_models.description import Description, model_folder, write_description
from grm_jax.tokenizer import load_tokenizer
from speed.work import SMALLEST_ID

MODELS = flags.DEFINE_list("models", ["25m", "129m"], "Of 25m, 129m and tiny.")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file; default: tiny_base's.")
DATA = flags.DEFINE_string("data", None, "Folder with rmb/ and lengths/, or none.")
RECORDS = flags.DEFINE_integer("records", 64, "Records that are written.")
SHAPES = {
    "25m": dict(d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, d_ff=1536),
    "129m": dict(d_model=768, n_layers=12, n_heads=12, n_kv_heads=4, d_ff=3072),
    "tiny": dict(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=128),
}
VOCAB, WINDOW, HEAD = 32_768, 512, 64
SHARED, STOP = 1.0, 2.0  # in the column that gives the stop token its probability


def make_model(folder: pathlib.Path, name: str, tokenizer) -> None:
    """Writes a model folder, with the template of real judging."""
    sizes = SHAPES[name] | dict(
        head_dim=HEAD, sliding_window=WINDOW, query_pre_attn_scalar=float(HEAD)
    )
    cfg = from_sizes(sizes, VOCAB)
    params = init_params(cfg, jax.random.key(0))
    embedding_VD = np.array(params["embedding"])
    embedding_VD[:, 0] = SHARED
    for index in load_tokenizer(tokenizer).stop_ids[-1:]:
        embedding_VD[index] = 0.0
        embedding_VD[index, 0] = STOP
    save_folder(folder, params | {"embedding": embedding_VD}, cfg, tokenizer)
    roles = ("pointwise", "single")
    description = Description(
        "pointwise_grm",
        {role: load_template(role) for role in roles},
        lengths={"prompt": 6144, "completion": 512},
        temperature=1.0,
    )
    write_description(folder, description)


def make_queue(path: pathlib.Path) -> None:
    """Writes the mixed queue: prompts and stops whose lengths are spread evenly, shuffled."""
    rng = np.random.default_rng(0)
    prompts = rng.permutation(np.linspace(100, 800, 16).astype(int))
    stops = rng.permutation(np.linspace(16, 128, 64).astype(int)).reshape(16, 4)
    with open(path, "w", encoding="utf-8") as file:
        for length, stops_k in zip(prompts, stops):
            ids = rng.integers(SMALLEST_ID, VOCAB, length).tolist()
            file.write(json.dumps({"prompt_ids": ids, "stops": stops_k.tolist()}) + "\n")


def make_records(path: pathlib.Path, data: pathlib.Path, number: int) -> None:
    """Writes records of RMB, pairs and lists as they come in its files."""
    records = load_benchmark({"name": "rmb", "kind": "rmb", "path": str(data)}).records
    order = np.random.default_rng(0).permutation(len(records))[:number]
    write_records(path, [records[i] for i in order])


def main(argv):
    (folder,) = argv[1:] or [None]
    if folder is None:
        raise app.UsageError("expected the folder that is made")
    folder = pathlib.Path(folder)
    (folder / "lengths").mkdir(parents=True, exist_ok=True)
    tokenizer = pathlib.Path(TOKENIZER.value or model_folder("tiny_base"))
    for name in MODELS.value:
        make_model(folder / name, name, tokenizer)
    make_queue(folder / "queue.jsonl")
    for name, prompt, completion in (("sft", 2, 510), ("grpo", 128, 64)):
        rows = [{"prompt": prompt, "completion": completion}] * 8
        (folder / "lengths" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    if DATA.value:
        data = pathlib.Path(DATA.value)
        shutil.copyfile(data / "lengths/real_text.json", folder / "lengths/real_text.json")
        make_records(folder / "records.jsonl", data / "rmb", RECORDS.value)


if __name__ == "__main__":
    app.run(main)
