"""Measures sampling: generated tokens a second, the first call, and the memory of the process.

    python -m speed.sample --model=FOLDER --prompt_length=512 --samples=8 --new_tokens=128
        [--queue=FILE] [--rounds=5]

One prompt of `prompt_length` tokens of which `samples` completions of `new_tokens` tokens are
drawn, or the prompts of a queue: JSON Lines of {"prompt_ids": [...], "stops": [tokens of each
sample]}. Temperature 1, no stop token: every sample has its length. Prints one line of JSON:

    tokens_per_s                   tokens asked for / seconds of a call, the median of the rounds;
                                   tokens_per_s_rounds has all
    first_call_s                   seconds of the first call, with nothing compiled before
    second_process_first_call_s    the same in a second process, which finds the programs on disk
    compile_s, second_process_compile_s    how much longer these are than the median call: what a
                                   user waits for before the first token
    peak_rss_gib                   of this process, weights included
    computed_tokens                positions that prefill and decode ran over
    needed_tokens                  prompt tokens, each once, and tokens asked for
    check                          mean log-probability of a prompt's first tokens: the same
                                   weights give the same in every contender
"""

import json
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags

from grm_jax.checkpoint.huggingface import load_params
from grm_jax.models.config import Numerics
from grm_jax.models.hf_config import load_config
from grm_jax.reward_models.description import model_folder
from grm_jax.sampling.engine import Drawing, draw
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.rollout import Request, generate
from grm_jax.sampling.sampler import SamplingConfig
from grm_jax.training.logprobs import token_logprobs
from speed import turns, work

MODEL = flags.DEFINE_string("model", "tiny_base", "Hugging Face folder of a Gemma-2.")
PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 512, "Tokens of the prompt.")
SAMPLES = flags.DEFINE_integer("samples", 8, "Completions of the prompt.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Tokens of a completion.")
QUEUE = flags.DEFINE_string("queue", None, "JSON Lines of prompt_ids and stops.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed calls.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "To compute in.")
SCAN = flags.DEFINE_bool("scan_layers", False, "One compiled block of layers, or all unrolled.")
ROWS = flags.DEFINE_integer("rows", 32, "Completions at once, of a queue.")
ENGINE = flags.DEFINE_bool("engine", True, "The engine, or its slow twin, a batch at a time.")
FIRST = flags.DEFINE_bool("first_call_alone", False, "Used by the command itself.")


def sampling(params, cfg, queue, rows):
    """Returns the call that draws the queue, and the positions that it computes."""
    new_tokens = max(max(row["stops"]) for row in queue)
    requests = [
        Request(row["prompt_ids"], str(i), tuple(range(len(row["stops"]))), tuple(row["stops"]))
        for i, row in enumerate(queue)
    ]
    longest, samples = max(len(row["prompt_ids"]) for row in queue), len(queue[0]["stops"])
    buckets = tuple({256, 512, 1024} | {longest}) if len(queue) > 1 else (longest,)
    scfg, computed = SamplingConfig(new_tokens, temperature=1.0), {}
    if ENGINE.value:
        drawing = Drawing(cfg, scfg)

        def count(counts):
            computed[id(counts)] = counts.prefilled + counts.decoded

        def call():
            computed.clear()
            for _ in draw(drawing, params, requests, 0, buckets, rows, count):
                pass

        return call, computed
    sampler, rows = make_sampler(cfg, scfg), min(rows // samples, len(queue)) * samples

    def counted(params, prompts_PT, lengths_P, keys_Pk2, *limits):
        out = sampler(params, prompts_PT, lengths_P, keys_Pk2, *limits)
        done = prompts_PT.size + keys_Pk2[..., 0].size * int(out["length"].max())
        computed[len(computed)] = done
        return out

    def call():
        computed.clear()
        for _ in generate(counted, params, requests, 0, buckets, rows):
            pass

    return call, computed


def second_process(folder) -> float:
    """Makes the first call in a new process, with the programs that this one has left on disk."""
    command = [sys.executable, "-m", "speed.sample", *sys.argv[1:], "--first_call_alone"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "SPEED_TURNS": "0"}
    out = subprocess.run(command, env=env, capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])["first_call_s"]


def main(_):
    numerics = Numerics(DTYPE.value, SCAN.value).resolve(jax.default_backend())
    folder = model_folder(MODEL.value)
    cfg = load_config(folder, **numerics)
    params = jax.tree.map(jax.numpy.asarray, load_params(folder, cfg))
    queue, case = work.sample_queue(flags.FLAGS, cfg.vocab_size)
    call, computed = sampling(params, cfg, queue, ROWS.value)
    if FIRST.value:
        return turns.write({"first_call_s": turns.seconds_of(call)})
    with tempfile.TemporaryDirectory() as programs:
        jax.config.update("jax_compilation_cache_dir", programs)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        first, taken = turns.measure(call, ROUNDS.value)
        peak, again = turns.rss_gib(), second_process(programs)
    ids_1T = np.array([queue[0]["prompt_ids"][: work.CHECKED]], np.int32)
    pos_1T = np.arange(ids_1T.shape[1], dtype=np.int32)[None]
    check = token_logprobs(params, cfg, ids_1T, pos_1T)[0][0, 1:].mean()
    line = work.sample_line("grm_jax", case, queue, first, taken, float(check))
    usual = turns.spread(taken)["median"]
    turns.write(
        line
        | {
            "model": folder.name,
            "second_process_first_call_s": again,
            "compile_s": usual and first - usual,
            "second_process_compile_s": usual and again - usual,
            "peak_rss_gib": peak,
            "computed_tokens": sum(computed.values()),
            "engine": ENGINE.value,
            "device": jax.devices()[0].device_kind,
            "dtype": cfg.dtype,
            **turns.precision(),
        }
    )


if __name__ == "__main__":
    app.run(main)
