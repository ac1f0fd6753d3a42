"""Check a model folder: its size, how well it predicts a text, and that transformers agrees.

    python -m experiments.check_model FOLDER [--text=FILE] [--tokens=2048]

FOLDER is a Hugging Face folder of a supported family, or a name that grm_jax.load takes. One JSON
line on stdout (docs/judge.md has its fields); what is done meanwhile on stderr.
"""

import json
import pathlib
import sys

from absl import app, flags

TEXT = flags.DEFINE_string("text", None, "file in UTF-8; by default some English sentences")
TOKENS = flags.DEFINE_integer("tokens", 2048, "of the text that are read, at most", lower_bound=2)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("expected one model folder")
    from grm_jax.model_check import check_model, text_of
    from grm_jax.reward_models.description import model_folder

    file = {}
    if TEXT.value is not None:
        file = {"text": text_of(pathlib.Path(TEXT.value)), "where": f"--text {TEXT.value}"}
    found = check_model(model_folder(argv[1]), tokens=TOKENS.value, say=_say, **file)
    print(json.dumps(found, ensure_ascii=False, allow_nan=False))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    from experiments import ending
    from grm_jax import signals

    ending.install()
    with signals.ending():
        app.run(main)
