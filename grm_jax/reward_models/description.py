"""Reads what a model folder says of itself, and finds the folders of models.

`grm.json` beside config.json says how the model wants to be asked:

    {
        "kind": "pointwise_grm",
        "templates": {
            "pointwise": {"pointwise.jinja": TEXT, "_context.jinja": TEXT, ...},
            "single": ...
        },
        "answer": "scores",
        "chat": "gemma",
        "chat_args": null,
        "lengths": {"prompt": 6144, "completion": 2048},
        "temperature": 0.5,
        "k_meta": null,
        "meta": "../meta"
    }

kind: one of KINDS.
templates: by role; the first file is the one that is rendered, the others it includes.
answer: what its box holds (`judgment.parsing.ANSWERS`).
chat: the format of turns that its tokenizer writes: Gemma's (plain lines where it has no tokens for
    turns), or "template", the folder's own chat template; null: not said. A folder whose files have
    the other one is refused.
chat_args: switches of that template, {"enable_thinking": false}, say; null: none.
lengths: tokens, as it was trained; null: not said.
temperature: of its samples; null: not said.
k_meta: samples that its Meta RM keeps; null: half of them.
meta: folder of its Meta RM, from here; null: none.

All but "kind" may be left out. Nothing here needs JAX.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from grm_jax.chat import BUILT_IN_CHAT, OWN_CHAT
from grm_jax.json_files import cut, read_object, shown
from grm_jax.judgment.parsing import ANSWERS
from grm_jax.judgment.prompts import Template, template_from_files
from grm_jax.reward_models.packaged import ADAPTED, PACKAGED, imported
from grm_jax.settings import POSITIVE, SettingsError, check, one_of
from grm_jax.whole_files import write_json

FILE = "grm.json"
KINDS = ("pointwise_grm", "llm_judge", "meta_rm", "bradley_terry", "pair_rm", "cloud", "critic")
ROLES = ("pointwise", "single", "rubric", "judge", "meta")
CHATS = (BUILT_IN_CHAT, OWN_CHAT)
ASSETS = pathlib.Path(__file__).resolve().parents[1] / "assets"
TINY_BASE = ASSETS / "tiny_base"
# "tiny": the trained GRM and its Meta RM, made by the quick start from "tiny_base"
BUILT_IN = {"tiny": ASSETS / "tiny", "tiny_base": TINY_BASE}
BUILT_IN |= {name: ASSETS / part for name, part in ADAPTED.items() if (ASSETS / part).is_dir()}
# of a folder that has adapters in place of a model's weights
ADAPTERS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
JUDGES = ("grm", "bradley_terry", "pair_rm", "cloud")  # what judges, of the models of a work folder
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
# that ids are read from
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclasses.dataclass(frozen=True)
class Description:
    """Says how a model wants to be asked.

    The fields are those of grm.json, as the head of this file has them.

    templates: {role: Template}; a mapping of file names to texts becomes one.

    Raises ValueError with all fields that are wrong.
    """

    kind: str
    templates: Mapping[str, Template] = dataclasses.field(default_factory=dict)
    answer: str = "scores"
    chat: str | None = None
    chat_args: Mapping[str, Any] | None = None
    lengths: Mapping[str, int] | None = None
    temperature: float | None = None
    k_meta: int | None = None
    meta: str | None = None

    def __post_init__(self):
        check(
            self,
            {
                "kind": one_of(KINDS),
                "templates": ("templates by role", lambda x: _templates(x) is not None),
                "answer": one_of(ANSWERS),
                "chat": one_of(CHATS),
                "chat_args": (
                    "switches of a chat template by name",
                    lambda x: all(map(_is_text, x)),
                ),
                "lengths": ('{"prompt": tokens, "completion": tokens}', _are_lengths),
                "temperature": ("a number > 0, and at most 100", lambda x: 0 < x <= 100),
                "k_meta": POSITIVE,
                "meta": ("a path relative to this folder", _is_relative),
            },
        )
        object.__setattr__(self, "templates", _templates(self.templates))


def read_description(folder: str | os.PathLike) -> Description | None:
    """Reads the grm.json of a model folder; None where there is none.

    Raises ValueError, one line for each field that is wrong: the file, the field, what was expected
    and what was found.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    fields = read_object(path)
    known = [field.name for field in dataclasses.fields(Description)]
    problems = [
        f'{path}: field "{name}": unknown; {_nearest(name, known)}'
        for name in fields
        if name not in known
    ]
    if fields.get("kind") is None:
        problems.append(f'{path}: field "kind": missing; expected one of {", ".join(KINDS)}')
    # null is what a field has that is left out
    stated: dict[str, Any] = {"kind": KINDS[0]}
    stated |= {name: value for name, value in fields.items() if name in known and value is not None}
    try:
        description = Description(**stated)
    except SettingsError as error:
        for problem in error.problems:
            field, _, words = problem.partition(": ")
            problems.append(f'{path}: field "{field}": {words}')
    if problems:
        raise ValueError("\n".join(problems))
    return description


def write_description(folder: str | os.PathLike, description: Description) -> None:
    """Writes grm.json into a model folder; the file appears whole or not at all."""
    fields = {
        field.name: getattr(description, field.name) for field in dataclasses.fields(description)
    }
    fields["templates"] = {
        role: dict(template.files) for role, template in description.templates.items()
    }
    fields["lengths"] = None if description.lengths is None else dict(description.lengths)
    if description.chat_args is None:
        del fields["chat_args"]
    else:
        fields["chat_args"] = dict(description.chat_args)
    write_json(pathlib.Path(folder) / FILE, fields)


def model_folder(name: str | os.PathLike, parts: Sequence[str] = JUDGES) -> pathlib.Path:
    """Finds the Hugging Face folder of a model by its name.

    `name` is one of:

    - "tiny", the trained GRM in the package, or "tiny_base", the base model there;
    - "smollm2", which comes as a package of its own and is imported to the cache, or "smollm2-grm",
      adapters in this package that make a GRM of it;
    - a folder with config.json, or with the adapters of a model (`layers_of`);
    - the work folder of a run, of whose models the first of `parts` is taken;
    - a model of the Hugging Face hub, "owner/name", which is downloaded.

    Raises FileNotFoundError, with all that was tried.
    """
    if name in PACKAGED:
        return imported(os.fspath(name))
    folder = BUILT_IN.get(os.fspath(name), pathlib.Path(name).expanduser())
    tried = [folder, *(folder / "models" / part for part in parts), *(folder / p for p in parts)]
    for path in tried:
        if _is_model(path):
            return path
    if folder.exists():
        raise FileNotFoundError(
            f"{folder}: expected a model folder with config.json, or a work folder with "
            f"{' or '.join(f'models/{part}' for part in parts)}, found "
            + (_listing(folder) if folder.is_dir() else "a file")
        )
    if name in BUILT_IN:
        raise FileNotFoundError(f"model {name!r}: this installation has no {folder}")
    return _from_hub(os.fspath(name))


def layers_of(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Lists the folders that a model is made of: one with config.json, and adapters upon it.

    The last is the folder itself, and often it is the only one. What adapters were trained upon is
    what `model_folder` finds by the name in adapter_config.json; that may be adapters again. Raises
    FileNotFoundError and ValueError, naming file and field.
    """
    layers = [folder]
    while not (layers[0] / "config.json").is_file():
        below = _below(layers[0])
        if any(below.samefile(layer) for layer in layers):
            raise ValueError(f"{_base_field(layers[0])}: adapters upon themselves, through {below}")
        layers.insert(0, below)
    if all((layers[0] / name).is_file() for name in (ADAPTERS, ADAPTER_WEIGHTS)):
        raise ValueError(
            f"{layers[0] / 'config.json'}: a model, and {ADAPTER_WEIGHTS} beside it, adapters that "
            f"transformers would merge into it; expected {ADAPTERS} and {ADAPTER_WEIGHTS} in a "
            'folder of their own, with the model\'s as "base_model_name_or_path"'
        )
    return tuple(layers)


def tokenizer_home(layers: Sequence[pathlib.Path]) -> pathlib.Path:
    """Finds the last of a model's folders that has a tokenizer; where none has, it is the first."""
    for folder in reversed(layers):
        if any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
            return folder
    return layers[0]


def _below(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the model that adapters were trained upon."""
    stated = read_object(folder / ADAPTERS).get("base_model_name_or_path")
    where = _base_field(folder)
    if not isinstance(stated, str) or not stated:
        raise ValueError(f"{where}: expected the name or folder of a model, got {shown(stated)}")
    try:
        return model_folder(stated)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _base_field(folder: pathlib.Path) -> str:
    return f'{folder / ADAPTERS}: field "base_model_name_or_path"'


def meta_folder(folder: pathlib.Path, description: Description | None) -> pathlib.Path | None:
    """Finds the Meta RM that lies beside a model; None where there is none.

    It lies where the model's grm.json says, else in the folder `meta` beside its folder `grm`.
    Raises FileNotFoundError where grm.json names a folder that is not there.
    """
    if description is not None and description.meta is not None:
        meta = folder / description.meta
        if not _is_model(meta):
            raise FileNotFoundError(
                f'{folder / FILE}: field "meta": expected the folder of a Meta RM, found no '
                f"{meta / 'config.json'}"
            )
        return meta
    beside = folder.absolute().parent / "meta"
    is_beside = folder.absolute().name == "grm" and _is_model(beside)
    return beside if is_beside else None


def content_digest(path: str | os.PathLike) -> dict[str, str]:
    """Digests what a model's answers depend on.

    Returns {"weights", "config", "tokenizer"} of a model folder, as far as it has them; {"file"} of
    a file. Weight files of up to 256 MiB are read whole. Larger ones are known by name, size, their
    first and last MiB, 256 blocks of 64 KiB spread over the rest, and all tensors of up to 1 MiB: a
    retrained model differs in them, and so does one with another norm.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return {"file": _digest(path)}
    weights = sorted(path.glob("*.safetensors"))
    config, tokenizer = [path / "config.json", path / ADAPTERS], _in(path, TOKENIZER_FILES)
    return _digests({"weights": weights, "config": config, "tokenizer": tokenizer})


def tokenizer_digest(path: str | os.PathLike) -> dict[str, str]:
    """Digests what ids are read from.

    Returns {"tokenizer", "config"} of a folder as `content_digest` does, the second where it has a
    config.json, as that of adapters says nothing of ids; {"file", "beside"} of a file, the second
    where files that are read with it lie beside it.
    """
    path = pathlib.Path(path)
    if path.is_file():
        names = (*TOKENIZER_FILES[2:], *(["config.json"] if path.suffix == ".json" else []))
        return _digests({"file": [path], "beside": _in(path.parent, names)})
    has_config = (path / "config.json").is_file()
    config = [path / "config.json", path / ADAPTERS] if has_config else []
    return _digests({"config": config, "tokenizer": _in(path, TOKENIZER_FILES)})


def template_digest(template: Template) -> str:
    """Digests a template's files, names and texts."""
    return hashlib.sha256(json.dumps(template.files).encode()).hexdigest()[:16]


def _in(folder: pathlib.Path, names: Sequence[str]) -> list[pathlib.Path]:
    return [folder / name for name in names]


def _digests(parts: Mapping[str, Sequence[pathlib.Path]]) -> dict[str, str]:
    """The digest of each part's files, as far as they are there; without those that have none."""
    present = {part: [file for file in files if file.is_file()] for part, files in parts.items()}
    return {part: _digest(*files) for part, files in present.items() if files}


def _digest(*files: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= 1 << 28:
                digest.update(file.read())
                continue
            digest.update(file.read(1 << 20))
            for start, end in _small_tensors(file):
                file.seek(start)
                digest.update(file.read(end - start))
            for i in range(256):
                file.seek(size * (i + 1) // 257)
                digest.update(file.read(1 << 16))
            file.seek(size - (1 << 20))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _small_tensors(file: BinaryIO) -> list[tuple[int, int]]:
    """Where the tensors of up to 1 MiB lie in a safetensors file; [] in another."""
    try:
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > 1 << 27:  # no header is so long
            return []
        header = json.loads(file.read(length))
        spans = [about["data_offsets"] for name, about in header.items() if name != "__metadata__"]
        begin = 8 + length
        return sorted((begin + a, begin + b) for a, b in spans if b - a <= 1 << 20)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_model(path: pathlib.Path) -> bool:
    if (path / "config.json").is_file():
        return not _is_of_a_run(path / "config.json")
    return (path / ADAPTERS).is_file()


def _is_of_a_run(path: pathlib.Path) -> bool:
    """Whether a config.json is that of a work folder, which says what the run is."""
    try:
        config = read_object(path)
    except ValueError:  # whoever reads the model says so
        return False
    return "model_type" not in config and {"digest", "config"} <= config.keys()


def _from_hub(name: str) -> pathlib.Path:
    names = (*BUILT_IN, *PACKAGED)
    expected = (
        f"expected {' or '.join(map(repr, names))}, a model folder, the work folder of a run, "
        "or a model of the Hugging Face hub (owner/name)"
    )
    if not HUB_ID.fullmatch(name):
        near = difflib.get_close_matches(name, names, n=1)
        raise FileNotFoundError(
            f"model {name!r}: no such folder"
            + (f"; did you mean {near[0]!r}?" if near else f"; {expected}")
        )
    import huggingface_hub  # heavy, and most models lie in a folder

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    # whatever keeps a download from succeeding: no network, no such model, no right to read it
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model {name!r}: no such folder, and the Hugging Face hub gave nothing "
            f"({type(error).__name__}: {cut(said, 200)}); {expected}. Without a network a "
            "folder is needed"
        ) from error


def _templates(roles: Mapping[str, Any]) -> dict[str, Template]:
    """Returns {role: Template} of templates or their files.

    Raises ValueError, naming the role.
    """
    if unknown := [role for role in roles if role not in ROLES]:
        raise ValueError(f"expected some of the roles {', '.join(ROLES)}, got {unknown[0]!r}")
    templates = {}
    for role, files in roles.items():
        try:
            templates[role] = files if isinstance(files, Template) else _template(files)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error
    return templates


def _template(files: Any) -> Template:
    if not isinstance(files, Mapping) or not files:
        raise ValueError(f"expected an object of file names and texts, got {shown(files)}")
    for name, text in files.items():
        if not isinstance(text, str):
            raise ValueError(f"expected the text of the file {name!r}, got {shown(text)}")
        if not _is_text(name + text):
            raise ValueError(f"file {name!r}: half of a surrogate pair is not text")
    return template_from_files(files)


def _are_lengths(lengths: Mapping[str, Any]) -> bool:
    return set(lengths) == {"prompt", "completion"} and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 1
        for value in lengths.values()
    )


def _is_relative(path: str) -> bool:
    return path != "" and _is_text(path) and not os.path.isabs(path)


def _is_text(text: str) -> bool:
    return text.encode("utf-8", "ignore").decode() == text


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"


def _listing(folder: pathlib.Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "an empty folder"
