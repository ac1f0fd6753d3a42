"""Measures what llama.cpp gives for a GGUF file: the figures of llama_cpp.json.

    python tests/checkpoint/make_llama_cpp.py FILE

Needs llama-cpp-python and gguf, which may be in an environment of their own. Prints, for the file
and for the same weights in float32, the mean negative log-likelihood of the English text. On the
latter llama.cpp rounds nothing to 8 bits, and here keeps keys and values in float32.
"""

import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).parent
F16, F32 = 1, 0  # GGML's numbers of types


def in_float32(source: str, target: pathlib.Path) -> None:
    """Writes a GGUF file with the metadata of another, and its weights dequantized."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    left_out = ("general.architecture", "general.file_type")
    for name, field in reader.fields.items():
        if name not in left_out and not name.startswith("GGUF."):
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            of_items = {"sub_type": field.types[-1]} if is_array else {}
            writer.add_key_value(name, field.contents(), field.types[0], **of_items)
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(array))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def mean_nll(file: str, text: str, kv: int) -> float:
    """Computes the mean -log p of the tokens of a text behind its first."""
    model = llama_cpp.Llama(
        file, n_ctx=512, logits_all=True, verbose=False, flash_attn=False, type_k=kv, type_v=kv
    )
    adds_bos = model.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    ids = model.tokenize(text.encode(), add_bos=adds_bos, special=False)
    model.eval(ids)
    logits = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
    most = logits.max(-1, keepdims=True)
    normalizer = most[:, 0] + np.log(np.exp(logits - most).sum(-1))
    return float((normalizer - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


if __name__ == "__main__":
    english = json.loads((HERE / "llama_cpp.json").read_text(encoding="utf-8"))["english"]
    print("nll", mean_nll(sys.argv[1], english, F16))
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / "float32.gguf"
        in_float32(sys.argv[1], whole)
        print("nll_float32", mean_nll(str(whole), english, F32))
