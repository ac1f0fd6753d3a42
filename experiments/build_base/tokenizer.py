"""Train the tokenizer of the tiny base model on the world's text: byte-level BPE, so any other text
can be encoded too.

Short phrases, numbered items and bracketed headings are single pre-tokens, so that BPE can make
each a token of its own: the sequences stay short enough for a CPU. Called by
`experiments.build_base`.
"""

import json
import pathlib

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from grm_jax.chat import GEMMA

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
PRE_TOKEN = "|".join(
    (
        r"(?:user|model)\n",
        r"\n?\[[^\]\n]*\]",  # [Response 1], [User]
        r"\n?Response [0-9]+:",
        # a phrase: "Reverse the list:", "\nAnalysis:", " Definitely!"
        r"[ \n]?[A-Z][a-z]*(?: [A-Za-z]+)*[:.!]?",
        r" ?\\boxed\{",
        r" ?[0-9]+\.[a-z]+",  # a numbered item
        r" ?\([a-z]+\)",  # a mark
        r" ?[a-z]+:?",
        r" ?[0-9]+",
        r"[^\S\n]*[^\s\w]+",
        r"\s+",
        r".",
    )
)


def train_tokenizer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_bos(tokenizer)


def with_bos(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer, whose plain call in transformers puts <bos> in front, as Gemma's does."""
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos]
    )
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """tokenizer.json, and the tokenizer_config.json and chat_template.jinja that `transformers`
    needs beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text(GEMMA, encoding="utf-8")
