"""Makes folders that are laid out as released judges are, with weights that can judge.

They are the packaged models under other names: the markers of their turns are added tokens with
names of DeepSeek's kind, written by the folder's own chat template. So all that they write is known
from the packaged ones.
"""

import json
import pathlib
import shutil

from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models.description import ASSETS

TURN, END = "<｜Turn｜>", "<｜end▁of▁sentence｜>"
MARKERS = {"<start_of_turn>": TURN, "<end_of_turn>": END, "<bos>": "<｜begin▁of▁sentence｜>"}
CHAT = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'assistant' %}\
{{ '<｜Turn｜>model\\n' + message['content'] + '<｜end▁of▁sentence｜>' }}\
{% else %}\
{{ '<｜Turn｜>user\\n' + (message['content'] | trim) + '<｜end▁of▁sentence｜>\\n' }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Turn｜>model\\n' }}{% endif %}
"""
# templates as a user saves them: files, in words that are not the package's
TEMPLATES = {"pointwise": "tiny_pointwise", "single": "tiny_single", "meta": "tiny_meta"}


def released_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the folders of a judge and its Meta RM, without a grm.json; returns them."""
    return _renamed(folder, "grm"), _renamed(folder, "meta")


def released_templates(folder: pathlib.Path) -> dict[str, str]:
    """Writes a file for each role; returns {role: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for role, name in TEMPLATES.items():
        ((_, text), *rest) = load_template(name).files
        assert not rest
        path = folder / f"{role}.jinja"
        path.write_text(text)
        paths[role] = str(path)
    return paths


def _renamed(folder: pathlib.Path, name: str) -> pathlib.Path:
    target = folder / name
    target.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ASSETS / "tiny" / name / file, target / file)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = MARKERS.get(token["content"], token["content"])
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {MARKERS.get(t, t): i for t, i in vocabulary.items()}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = json.loads((target / "tokenizer_config.json").read_text())
    config = {k: MARKERS.get(v, v) if isinstance(v, str) else v for k, v in config.items()}
    config["chat_template"] = CHAT
    (target / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))
    return target
