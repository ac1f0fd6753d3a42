"""grm.json in and out, the folder that a name stands for, and digests that follow the content."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models import description as module
from grm_jax.reward_models.description import (
    TINY_BASE,
    Description,
    content_digest,
    meta_folder,
    model_folder,
    read_description,
    template_digest,
    tokenizer_digest,
    write_description,
)

WHOLE = Description(
    kind="pointwise_grm",
    templates={"pointwise": load_template("pointwise"), "single": load_template("tiny_single")},
    answer="ten",
    lengths={"prompt": 80, "completion": 128},
    temperature=0.5,
    k_meta=3,
    meta="../meta",
    chat="template",
    chat_args={"enable_thinking": False},
)


def folder(path):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_description_is_read_as_it_was_written(tmp_path):
    assert read_description(tmp_path) is None
    write_description(tmp_path, WHOLE)
    assert read_description(tmp_path) == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["grm.json"]
    on_file = json.loads((tmp_path / "grm.json").read_text())
    assert list(on_file["templates"]["pointwise"])[0] == "pointwise.jinja"
    assert "_context.jinja" in on_file["templates"]["pointwise"]
    write_description(tmp_path, Description("bradley_terry"))
    assert read_description(tmp_path) == Description("bradley_terry")
    (tmp_path / "grm.json").write_text('{"kind": "meta_rm", "meta": null, "lengths": null}')
    assert read_description(tmp_path) == Description("meta_rm")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "grm"}, "\"kind\": expected one of pointwise_grm, .*, got 'grm'"),
        ({"kind": None}, '"kind": missing; expected one of pointwise_grm'),
        ({"kinds": "x"}, "\"kinds\": unknown; did you mean 'kind'?"),
        (
            {"answer": "eleven"},
            "\"answer\": expected one of scores, ten, index, letter, got 'eleven'",
        ),
        (
            {"chat": ["gemma"]},
            r"\"chat\": expected one of gemma, template, or None, got \['gemma'\]",
        ),
        ({"chat_args": ["a"]}, r"\"chat_args\": expected switches of a chat .*got \['a'\]"),
        ({"lengths": {"prompt": 80}}, '"lengths": expected .*completion.*got .*80'),
        ({"lengths": {"prompt": 0, "completion": True}}, '"lengths": expected'),
        ({"temperature": 0}, '"temperature": expected a number > 0, .*got 0'),
        ({"k_meta": 2.0}, '"k_meta": expected a positive integer, or None, got 2.0'),
        ({"meta": "/meta"}, "\"meta\": expected a path relative to this .*got '/meta'"),
        ({"meta": "\ud800"}, '"meta": character 0 is half of a surrogate pair'),
        (
            {"templates": {"list": {"a": "x"}}},
            r"\"templates\": expected some of the roles pointwise, .*got 'list'",
        ),
        ({"templates": ["pointwise"]}, '"templates": expected templates by role, got'),
        ({"templates": {"meta": {}}}, r"\"templates\": meta: expected an object of file names"),
        ({"templates": {"meta": {"a": 1}}}, "\"templates\": meta: .*text of the file 'a', got 1"),
        ({"templates": {"meta": {"a": "{{"}}}, '"templates": meta: template a:1: '),
        ({"templates": {"meta": {"a": '{% include "b" %}'}}}, "includes 'b', which is not there"),
        (
            {"templates": {"meta": {"a": "\ud800"}}},
            '"templates.meta.a": character 0 is half of a surrogate pair',
        ),
    ],
)
def test_a_wrong_field_is_named_with_file_and_what_was_expected(change, message, tmp_path):
    write_description(tmp_path, WHOLE)
    path = tmp_path / "grm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        read_description(tmp_path)
    assert str(error.value).startswith(f'{path}: field "') and "\n" not in str(error.value)


def test_several_wrong_fields_are_one_error_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "grm.json"
    path.write_text('{"kind": "grm", "k_meta": 0, "tmperature": 1}')
    with pytest.raises(ValueError) as error:
        read_description(tmp_path)
    assert [line.split('"')[1] for line in str(error.value).splitlines()] == [
        "tmperature",
        "kind",
        "k_meta",
    ]
    for text in (b"{", b"\xff", b"[" * 100_000, b"[]", b"3", b'{"temperature": Infinity}'):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="grm.json: (not UTF-8 JSON|expected a JSON)"):
            read_description(tmp_path)


names = st.sampled_from(
    ["kind", "templates", "answer", "chat", "lengths", "temperature", "k_meta", "meta", "prompt"]
) | st.sampled_from(["completion", "pointwise", "single", "a.jinja", "pointwise_grm", "scores"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | names | st.text(max_size=8)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, anything) | anything)
def test_any_json_is_a_description_or_an_error_that_names_the_file(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any")
    (path / "grm.json").write_text(json.dumps(value))
    try:
        read = read_description(path)
    except ValueError as error:
        assert all(line.startswith(f"{path / 'grm.json'}: ") for line in str(error).splitlines())
    else:
        write_description(path, read)
        assert read_description(path) == read
    shutil.rmtree(path)


def test_a_name_is_built_in_a_folder_or_a_work_folder(tmp_path, monkeypatch):
    assert model_folder("tiny_base") == TINY_BASE
    grm, meta = folder(tmp_path / "run/models/grm"), folder(tmp_path / "run/models/meta")
    assert model_folder(grm) == model_folder(str(grm)) == model_folder(tmp_path / "run") == grm
    assert model_folder(tmp_path / "run", ("meta",)) == meta
    assert model_folder(tmp_path / "run/models") == grm
    # a run keeps its own config there, which is no model's
    own = tmp_path / "run/config.json"
    own.write_text(json.dumps({"digest": "4d", "inputs": {}, "files": {}, "config": {"seed": 0}}))
    assert model_folder(tmp_path / "run") == grm
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.json").write_bytes(own.read_bytes())
    with pytest.raises(FileNotFoundError, match="or a work folder with models/grm .* config.json"):
        model_folder(tmp_path / "begun")
    pairs = folder(tmp_path / "pairs/models/pair_rm")
    assert model_folder(tmp_path / "pairs") == pairs
    monkeypatch.chdir(tmp_path)
    assert model_folder("run").resolve() == grm
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder("~/run") == grm


def test_a_name_that_is_nothing_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="model 'tinny': no such folder; .*'tiny'"):
        model_folder("tinny")
    with pytest.raises(
        FileNotFoundError, match="/no/such/folder': no such folder; expected 'tiny'"
    ):
        model_folder("/no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="models/grm or .*, found an empty folder"):
        model_folder("empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file: expected a model folder .* found a file"):
        model_folder("file")


def test_a_hub_name_is_downloaded_and_offline_a_folder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        if name == "owner/gone":
            raise OSError("no route to host")
        return str(folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("owner/model-9b") == tmp_path / "snapshot"
    with pytest.raises(
        FileNotFoundError,
        match=r"'owner/gone': .*\(OSError: no route to host\); .*a folder is needed",
    ):
        model_folder("owner/gone")
    assert asked == ["owner/model-9b", "owner/gone"]


def test_the_meta_rm_beside_a_model(tmp_path):
    grm = folder(tmp_path / "grm")
    assert meta_folder(grm, None) is None
    meta = folder(tmp_path / "meta")
    assert meta_folder(grm, None) == meta_folder(grm, Description("pointwise_grm")) == meta
    other = folder(tmp_path / "rater")
    assert meta_folder(grm, Description("pointwise_grm", meta="../rater")).resolve() == other
    assert meta_folder(folder(tmp_path / "rft"), None) is None
    with pytest.raises(FileNotFoundError, match='grm.json: field "meta": .* found no .*gone'):
        meta_folder(grm, Description("pointwise_grm", meta="../gone"))


def test_digests_follow_the_content(tmp_path):
    shutil.copytree(TINY_BASE, tmp_path / "a")
    shutil.copytree(TINY_BASE, tmp_path / "b")
    before = content_digest(tmp_path / "a")
    assert sorted(before) == ["config", "tokenizer", "weights"]
    assert content_digest(tmp_path / "b") == before
    (tmp_path / "b/README.md").write_text("another card")
    assert content_digest(tmp_path / "b") == before
    with open(tmp_path / "b/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    text = (tmp_path / "b/tokenizer_config.json").read_text()
    (tmp_path / "b/tokenizer_config.json").write_text(text.replace("<eos>", "<end>"))
    after = content_digest(tmp_path / "b")
    assert {part for part in before if after[part] != before[part]} == {"weights", "tokenizer"}
    one, other = tmp_path / "a/tokenizer.json", tmp_path / "b/tokenizer_config.json"
    assert list(content_digest(one)) == ["file"] and content_digest(one) != content_digest(other)
    pointwise, ablated = load_template("pointwise"), load_template("pointwise_no_principles")
    assert template_digest(pointwise) == template_digest(load_template("pointwise"))
    assert template_digest(pointwise) != template_digest(ablated)


def test_a_tokenizer_is_known_by_what_ids_are_read_from(tmp_path):
    shutil.copytree(TINY_BASE, tmp_path / "a")
    whole = content_digest(tmp_path / "a")
    assert tokenizer_digest(tmp_path / "a") == {k: whole[k] for k in ("config", "tokenizer")}
    (tmp_path / "a/model.safetensors").unlink(), (tmp_path / "a/config.json").unlink()
    (tmp_path / "a/adapter_config.json").write_text("{}")
    assert tokenizer_digest(tmp_path / "a") == {"tokenizer": whole["tokenizer"]}
    file = tmp_path / "a/tokenizer.json"
    one = tokenizer_digest(file)
    assert one["file"] == content_digest(file)["file"] and list(one) == ["file", "beside"]
    (tmp_path / "a/config.json").write_text('{"eos_token_id": 1}')
    other = tokenizer_digest(file)
    assert other["file"] == one["file"] and other["beside"] != one["beside"]
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(file, tmp_path / "alone/tokenizer.json")
    assert tokenizer_digest(alone) == content_digest(alone)


def test_nothing_here_loads_jax():
    code = f"import sys, {module.__name__}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_norm_of_a_large_file_is_seen_wherever_it_lies(tmp_path):
    """Of a large file blocks are read, and all of its small tensors."""
    large, small = 3 << 27, 64
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, size in (("a", large), ("norm", small), ("b", large)):
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    digests = []
    for value in (1, 1, 2):
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.seek(8 + len(text) + large)
            file.write(bytes([value]) * small)
            file.truncate(8 + len(text) + at)  # of holes, which take no disk
        digests.append(content_digest(tmp_path)["weights"])
    assert digests[0] == digests[1] != digests[2]


def test_weights_that_differ_in_their_middle_are_others(tmp_path):
    digests = set()
    for changed in (None, 1_500_000):
        data = bytearray(3_000_000)
        if changed is not None:
            data[changed] = 1
        (tmp_path / "model.safetensors").write_bytes(data)
        digests.add(content_digest(tmp_path)["weights"])
    assert len(digests) == 2
