"""Writes the tokenizer of a model folder so that transformers' own calls give the ids of ours.

`AutoTokenizer.from_pretrained(folder)` reads there

- tokenizer.json, converted from a SentencePiece model where there is no other, whose plain call
  puts one BOS in front, cuts nothing, and knows the turn tokens;
- tokenizer_config.json, which names the control tokens, and the class that takes tokenizer.json as
  it is (for a Gemma-2 config.json transformers would else build Gemma's own from its vocabulary);
- chat_template.jinja, the turns of `Tokenizer.chat` and `Tokenizer.chat_prompt`.

A folder with a chat template of its own keeps its plain call: of such families some put no BOS.

What a source has beside is kept, and a file that is right already is copied byte for byte.
"""

import json
import logging
import pathlib
import shutil
import tempfile
from typing import Any

import sentencepiece
import tokenizers
from tokenizers.processors import TemplateProcessing

from grm_jax.json_files import read_object
from grm_jax.tokenizer import (
    END_OF_TURN,
    START_OF_TURN,
    Tokenizer,
    add_listed_tokens,
    find_tokenizer,
    is_legacy,
    load_tokenizer,
    sentencepiece_class,
)

log = logging.getLogger(__name__)
CONFIG, CHAT = "tokenizer_config.json", "chat_template.jinja"
# all that belongs to a tokenizer; the last two are copied as they are
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    CONFIG,
    CHAT,
    "special_tokens_map.json",
    "added_tokens.json",
)
# texts that a converted SentencePiece model must cut as the original does
PROBES = (
    "Sort the list: 1.fox 2.ant",
    " two  spaces,\ttab\n\n\nlines ",
    "é ü 你好 🦊 ▁ \\boxed{3, 9}",
    "don't <b>x</b> 1234567890 ==> \u200b\u00a0end",
)


def write_tokenizer(source: pathlib.Path, target: pathlib.Path, positions: int) -> Tokenizer:
    """Writes the tokenizer files of a model folder, and returns their tokenizer.

    source: folder or file that `load_tokenizer` reads. target: a folder. positions: that the model
    has. Raises as `load_tokenizer`.
    """
    tokenizer, file = load_tokenizer(source), find_tokenizer(source)
    beside = ("tokenizer.model",) if source.is_dir() else ()
    for name in (*beside, "special_tokens_map.json", "added_tokens.json"):
        if (file.parent / name).is_file():
            shutil.copyfile(file.parent / name, target / name)
    if file.suffix == ".json":
        library = tokenizers.Tokenizer.from_file(str(file))
        same = not add_listed_tokens(library, file)
    else:
        if file.parent != source:
            shutil.copyfile(file, target / "tokenizer.model")
        library, same = _converted(file, tokenizer), False
    if library is None:  # its settings and its template are as right as they were
        if (file.parent / CONFIG).is_file():
            shutil.copyfile(file.parent / CONFIG, target / CONFIG)
        if tokenizer.template is not None:
            (target / CHAT).write_text(tokenizer.chat_template, encoding="utf-8")
        return tokenizer
    if _set_right(library, tokenizer) or not same:
        library.save(str(target / "tokenizer.json"))
    else:
        shutil.copyfile(file, target / "tokenizer.json")
    stated = _stated(file.parent / CONFIG)
    config = _with_tokens(stated, library, tokenizer, positions)
    if config == stated:
        shutil.copyfile(file.parent / CONFIG, target / CONFIG)
    else:
        (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (target / CHAT).write_text(tokenizer.chat_template, encoding="utf-8")
    return tokenizer


def _stated(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _set_right(library: tokenizers.Tokenizer, tokenizer: Tokenizer) -> bool:
    """Makes a plain call [BOS, *ids of the text], in place; says whether anything was changed."""
    changed = library.truncation is not None or library.padding is not None
    library.no_truncation()
    library.no_padding()
    special = {token.content for token in library.get_added_tokens_decoder().values()}
    turns = (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id)
    if tokenizer.template is not None:
        return changed
    if None not in turns and not {START_OF_TURN, END_OF_TURN} <= special:
        library.add_special_tokens([START_OF_TURN, END_OF_TURN])
        changed = True
    plain = library.encode("a", add_special_tokens=False).ids
    if library.encode("a").ids != [tokenizer.bos_id, *plain]:
        bos = library.id_to_token(tokenizer.bos_id)
        library.post_processor = TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, tokenizer.bos_id)]
        )
        changed = True
    return changed


def _with_tokens(
    stated: dict[str, Any], library: tokenizers.Tokenizer, tokenizer: Tokenizer, positions: int
) -> dict[str, Any]:
    """tokenizer_config.json with what makes transformers' tokenizer ours."""
    config = {name: value for name, value in stated.items() if name != "chat_template"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if tokenizer.template is None:
        config["add_bos_token"] = True
        if config.get("add_eos_token"):
            config["add_eos_token"] = False
    else:  # which may write the name of a token that its folder does not state: nothing then
        ids = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    for name, index in ids.items():
        if config.get(f"{name}_token") is None:
            config[f"{name}_token"] = library.id_to_token(index)
    return {"model_max_length": positions, "clean_up_tokenization_spaces": False} | config


def _converted(file: pathlib.Path, tokenizer: Tokenizer) -> tokenizers.Tokenizer | None:
    """A SentencePiece model as a tokenizer of transformers; None, with a line of log, where that
    cuts text otherwise or knows other tokens.
    """
    import transformers  # takes a second

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pieces = model.vocab_size()
    names: dict[str, str | None] = {}
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(model, f"{name}_id")()
        names[f"{name}_token"] = model.id_to_piece(index) if index >= 0 else None
    if model.id_to_piece(model.piece_to_id("<mask>")) != "<mask>":
        names["mask_token"] = None
    # before transformers 5 the plain name is that of a class without the library's tokenizer
    kind = getattr(transformers, f"{sentencepiece_class(tokenizer)}Fast")
    legacy = is_legacy(file.parent)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(file, pathlib.Path(folder) / "tokenizer.model")
        # names of its own, which the model lacks, would become tokens behind the model's
        how: dict[str, Any] = names | {"legacy": legacy}
        library = kind.from_pretrained(folder, **how).backend_tokenizer
    added = sorted((i, text) for text, i in tokenizer.control.items() if i >= pieces)
    library.add_special_tokens([text for _, text in added])
    problem = "knows other tokens than the folder does"
    same = library.get_vocab_size() == pieces + len(added)
    if same and all(library.token_to_id(text) == i for i, text in added):
        before, bos = tokenizer.text_prefix, names["bos_token"]
        behind, answers = before if legacy else "", {}
        for text in PROBES:
            answers[text] = tokenizer.encode(before + text)
            if bos is not None:
                answers[bos + text] = [model.bos_id(), *tokenizer.encode(behind + text)]
        cut = ((text, library.encode(text, add_special_tokens=False).ids) for text in answers)
        wrong = next((text for text, ids in cut if ids != answers[text]), None)
        if wrong is None:
            return library
        problem = f"cuts {wrong!r} otherwise than SentencePiece"
    log.warning(
        "%s: no tokenizer.json is written, as transformers %s; other programs need the ids of "
        "grm_jax.tokenizer",
        file,
        problem,
    )
    return None
