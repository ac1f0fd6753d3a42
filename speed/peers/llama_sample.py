"""Samples with llama.cpp, through the C interface that llama-cpp-python binds.

    ENVIRONMENT/bin/python -m speed.peers.llama_sample --model=FOLDER [as speed.sample] [--slots=4]

The weights are written to FOLDER/float32.gguf once. Each prompt is prefilled once; its samples
share the cells of the cache (`llama_memory_seq_cp`), and all rows that are alive are decoded
in one batch, of at most `slots` prompts of a queue at once: as its server does with parallel
slots. Each row has a sampler of its own (llama.cpp's "dist", in C). Two threads.
"""

import argparse
import ctypes
import json
import os
import pathlib

import llama_cpp as C
import numpy as np

from speed import turns, work


def write_gguf(folder: pathlib.Path) -> pathlib.Path:
    """Writes a Gemma-2 folder in float32 as GGUF, without a vocabulary of texts: ids alone."""
    path = folder / "float32.gguf"
    if path.is_file():
        return path
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    partial = path.with_suffix(f".{os.getpid()}")
    file = gguf.GGUFWriter(str(partial), "gemma2")
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(layers)
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(heads)
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_key_length(config["head_dim"])
    file.add_value_length(config["head_dim"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    file.add_final_logit_softcapping(config["final_logit_softcapping"])
    file.add_sliding_window(config["sliding_window"])
    file.add_rope_freq_base(config["rope_theta"])
    file.add_file_type(gguf.LlamaFileType.ALL_F32)
    file.add_tokenizer_model("no_vocab")
    file.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA2, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensor = tensor.astype(np.float32)
        if name.endswith("norm.weight"):
            tensor = tensor + 1  # llama.cpp multiplies by it, Gemma by 1 + it
        file.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    partial.rename(path)
    return path


class Rows:
    """The rows that are decoded together."""

    def __init__(self, path, rows, cells, threads):
        C.llama_backend_init()
        self.quiet = C.llama_log_callback(lambda *_: None)
        C.llama_log_set(self.quiet, None)
        self.model = C.llama_model_load_from_file(
            str(path).encode(), C.llama_model_default_params()
        )
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, 4096, 512
        params.n_seq_max, params.kv_unified = rows, True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = C.GGML_TYPE_F32
        params.swa_full, params.no_perf = False, True
        self.ctx = C.llama_init_from_model(self.model, params)
        assert self.ctx, "llama.cpp made no context"
        self.memory = C.llama_get_memory(self.ctx)
        self.vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.batch = C.llama_batch_init(max(4096, rows), 0, 1)

    def put(self, tokens, positions, sequences, wanted):
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, positions[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequences[i]
            batch.logits[i] = wanted[i]
        status = C.llama_decode(self.ctx, batch)
        assert status == 0, f"llama_decode: {status}"

    def prefill(self, ids, sequence):
        n = len(ids)
        self.put(ids, range(n), [sequence] * n, [0] * (n - 1) + [1])

    def logits(self, i):
        at = C.llama_get_logits_ith(self.ctx, i)
        return np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), (self.vocab,))


def draw(rows, queue, slots):
    """Draws a queue, `slots` prompts at once, and fills a slot when its rows are done."""
    k = len(queue[0]["stops"])
    samplers = [C.llama_sampler_init_dist(i) for i in range(slots * k)]
    waiting, alive = list(queue), {}  # row: [token, position, tokens left]
    free = list(range(slots))
    C.llama_memory_clear(rows.memory, True)
    while waiting or alive:
        while waiting and free:
            slot, job = free.pop(), waiting.pop(0)
            first = slot * k
            rows.prefill(job["prompt_ids"], first)
            n = len(job["prompt_ids"])
            for j, stop in enumerate(job["stops"]):
                if j:
                    C.llama_memory_seq_cp(rows.memory, first, first + j, -1, -1)
                token = C.llama_sampler_sample(samplers[first + j], rows.ctx, -1)
                alive[first + j] = [token, n, stop - 1]
        names = [row for row in sorted(alive) if alive[row][2]]
        if names:
            tokens, positions = zip(*(alive[row][:2] for row in names))
            rows.put(tokens, positions, names, [1] * len(names))
            for i, row in enumerate(names):
                alive[row][0] = C.llama_sampler_sample(samplers[row], rows.ctx, i)
                alive[row][1] += 1
                alive[row][2] -= 1
        for row in [row for row in alive if not alive[row][2]]:
            del alive[row]
            C.llama_memory_seq_rm(rows.memory, row, -1, -1)
        in_use = {row // k for row in alive}
        free = [slot for slot in range(slots) if slot not in in_use]
    for sampler in samplers:
        C.llama_sampler_free(sampler)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    flags = work.sample_flags(parser)
    folder = pathlib.Path(flags.model)
    config = json.loads((folder / "config.json").read_text())
    queue, case = work.sample_queue(flags, config["vocab_size"])
    slots, k = min(flags.slots, len(queue)), len(queue[0]["stops"])
    longest = max(len(row["prompt_ids"]) for row in queue)
    cells = slots * (longest + k * max(max(row["stops"]) for row in queue)) + 512
    rows = Rows(write_gguf(folder), slots * k, cells, flags.threads)
    # log-probability of the first tokens of a prompt: the same weights give the same
    ids = queue[0]["prompt_ids"][: work.CHECKED]
    rows.put(ids, range(len(ids)), [0] * len(ids), [1] * len(ids))
    logp = []
    for i, token in enumerate(ids[1:]):
        z = rows.logits(i).astype(np.float64)
        logp.append(z[token] - z.max() - np.log(np.exp(z - z.max()).sum()))
    first, taken = turns.measure(lambda: draw(rows, queue, slots), flags.rounds, warm=False)
    turns.write(work.sample_line("llama.cpp", case, queue, first, taken, float(np.mean(logp))))


if __name__ == "__main__":
    main()
