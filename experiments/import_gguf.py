"""Import a GGUF file, llama.cpp's form of a model, as a Hugging Face folder.

    python -m experiments.import_gguf FILE --out=FOLDER

The folder has the dequantized weights in safetensors, config.json, generation_config.json, and the
tokenizer and chat template of the file. Needs the package gguf: pip install 'grm_jax[gguf]'.
"""

import pathlib

from absl import app, flags

OUT = flags.DEFINE_string("out", None, "folder to write, absent or empty", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "of the weights; float32 is as dequantized"
)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("expected one GGUF file")
    from grm_jax.checkpoint.gguf import import_gguf

    print(import_gguf(pathlib.Path(argv[1]), pathlib.Path(OUT.value), DTYPE.value))


if __name__ == "__main__":
    from experiments import ending
    from grm_jax import signals

    ending.install()
    with signals.ending():
        app.run(main)
