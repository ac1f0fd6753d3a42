"""Chats by a folder's own template: the ids of transformers where contents hold no control string,
and no control id out of a content anywhere.
"""

import functools
import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.chat import ChatTemplate, read_chat_template, render, render_pieces, special_tokens
from grm_jax.checkpoint.tokenizer_files import write_tokenizer
from grm_jax.tokenizer import load_tokenizer
from tests.chat_formats import DS, FORMATS, IM, TEXTS, THINK, chat_folder

transformers = pytest.importorskip("transformers")
RECORDS = 1000
PARTS = [
    *("".join(TEXTS).split(" ")),
    *(" ", "  ", "\n", "\n\n", "\t", "<", ">", "<|", "|>", "|", "｜", "▁", "</", "[", "\r\n"),
    *("Wörter", "слова", "言葉", "كلمات", "คำ", "🦊", "e\u0301", "\u200b", "\u3000", "x = 10 ** 9"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    @functools.cache
    def folder(name, prefix=False):
        return chat_folder(tmp_path_factory.mktemp(name), name, prefix)

    return folder


def text_of(rng, most=40):
    return "".join(
        rng.choice(PARTS) + rng.choice(("", "", " ")) for _ in range(rng.randrange(most))
    )


def records(name, count):
    """Conversations of all shapes; no content holds what a template of `name` writes."""
    rng = random.Random(name)
    written = [*FORMATS[name].special, *FORMATS[name].plain]
    for _ in range(count):
        turns = []
        for i in range(rng.choice((1, 1, 2, 3, 5, 6))):
            text = text_of(rng)
            assert not any(token in text for token in written)
            turns.append((("user", "assistant")[i % 2], text))
        if name != "gemma" and rng.random() < 0.3:
            turns.insert(0, ("system", text_of(rng, 8)))
        yield turns


def apply(theirs, turns, prompt, **switches):
    messages = [{"role": role, "content": text} for role, text in turns]
    return theirs.apply_chat_template(
        messages, add_generation_prompt=prompt, return_dict=False, **switches
    )


@pytest.mark.parametrize(
    "name, prefix, count",
    [(name, False, RECORDS) for name in FORMATS] + [("chatml", True, 150), ("llama3", True, 150)],
)
def test_ids_are_those_of_transformers(folders, name, prefix, count):
    folder = folders(name, prefix)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    thinking = [{}] if name != "qwen3" else [{}, {"enable_thinking": False}]
    for switches in thinking:
        ours = load_tokenizer(folder, switches)
        for i, turns in enumerate(records(name, count // len(thinking))):
            if i % 2 or turns[0][0] == "system":
                assert ours.chat(turns) == apply(theirs, turns, False, **switches), turns
            else:
                (_, text) = turns[0]
                wanted = apply(theirs, turns[:1], True, **switches)
                assert ours.chat_prompt(text) == wanted, text


@pytest.mark.parametrize("name", FORMATS)
def test_stop_ids_and_the_end_of_a_turn(folders, name):
    ours = load_tokenizer(folders(name))
    library = tokenizers.Tokenizer.from_file(str(folders(name) / "tokenizer.json"))
    end = library.token_to_id(FORMATS[name].ends)
    eos = library.token_to_id(FORMATS[name].names["eos_token"])
    assert ours.stop_ids == tuple(dict.fromkeys((eos, end)))
    assert ours.chat_completion("yes")[-1] == end
    # prompt and completion are the chat that has both, as far as the end of the turn
    if name in ("chatml", "deepseek_v3"):  # llama3's line breaks merge with the words behind them
        whole = ours.chat([("user", "Hi."), ("assistant", "Yes?")])
        both = ours.chat_prompt_with_answer("Hi.", "Yes?")
        assert whole[: len(both)] == both


def fragments(name):
    tokens = [*FORMATS[name].special, *FORMATS[name].plain]
    rng = random.Random(0)
    cut = [t[:i] for t in tokens for i in (1, 2, len(t) - 1)]
    ends = [t[i:] for t in tokens for i in (1, 2, len(t) - 1)]
    return [*tokens, *tokens, *rng.sample(cut, 8), *rng.sample(ends, 8), " ", "\n", "a", "<", "＜"]


@pytest.mark.parametrize("name", FORMATS)
def test_no_control_id_comes_out_of_a_content(folders, name):
    ours = load_tokenizer(folders(name))
    library = tokenizers.Tokenizer.from_file(str(folders(name) / "tokenizer.json"))
    control = {library.token_to_id(t) for t in (*FORMATS[name].special, *FORMATS[name].plain)}
    roles = [("user",), ("user", "assistant"), ("user", "assistant", "user")]
    roles += [] if name == "gemma" else [("system", "user")]

    def controls(ids):
        return [i for i in ids if i in control]

    @settings(max_examples=120, deadline=None)
    @given(st.sampled_from(roles), st.data())
    def check(roles, data):
        text = st.lists(st.sampled_from(fragments(name)), max_size=6).map("".join)
        turns = [(role, data.draw(text)) for role in roles]
        plain = [(role, "x") for role in roles]
        assert controls(ours.chat(turns)) == controls(ours.chat(plain))
        asked = ours.chat_prompt(turns[-1][1])
        assert controls(asked) == controls(ours.chat_prompt("x"))
        # nothing of the text is lost
        if name in ("llama3", "chatml"):
            said = "".join(text.strip() if name == "llama3" else text for _, text in turns)
            kept = library.decode(ours.chat(turns), skip_special_tokens=False)
            assert len(kept) - len(said) == len(
                library.decode(ours.chat([(r, "") for r in roles]), skip_special_tokens=False)
            )

    check()


def test_a_join_of_content_and_template_is_no_control_string():
    """A template that writes half of a control string behind a content."""
    template = ChatTemplate("{{ messages[0].content }}end|>{{ messages[1].content }}<|", {})
    control = ("<|end|>", "|><|", "<|a|>")
    for first, second in (("<|", "x"), ("a<|", "<|end|"), ("<", "|>"), ("|><|end|>", "|>")):
        pieces = render_pieces(template, [("user", first), ("user", second)], False, control)
        assert "".join(pieces) == f"{first}end|>{second}<|"
        assert not any(token in piece for token in control for piece in pieces), pieces
    # an end that completes nothing is no cut
    assert len(render_pieces(template, [("user", "a <"), ("user", "b")], False, control)) == 1


def test_a_content_may_hold_the_marks_themselves(folders):
    ours = load_tokenizer(folders("chatml"))
    text = "\U000f0000<|im_end|>\U000f0001<|im_start|>\U000f0002"
    ids = ours.chat_prompt(text)
    assert text in ours.decode(ids)
    assert len([i for i in ids if i in ours.stop_ids]) == 2  # of the system turn and of this


def test_a_normalizer_makes_no_control_token(tmp_path):
    folder = chat_folder(tmp_path, "deepseek_v3", normalizer=tokenizers.normalizers.NFKC())
    spec = json.loads((folder / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["normalized"] = True  # such tokens are looked for in the normalized text
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    think = raw.token_to_id("<think>")
    full_width = "＜think＞"
    assert think in raw.encode(full_width, add_special_tokens=False).ids  # the danger is real
    assert think not in load_tokenizer(folder).chat_prompt(full_width)


def test_system_turns_go_into_the_next_where_a_template_refuses_them():
    text = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none here') }}"
        "{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    template = ChatTemplate(text, {}, "some/chat_template.jinja")
    turns = [("system", "Be brief. "), ("user", "Hi")]
    assert render(template, turns, False) == "[user:Be brief.\n\nHi]"
    never = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, "the/file")
    with pytest.raises(ValueError, match="the/file: turns of user: roles must alternate"):
        render(never, [("user", "Hi")], False)
    with pytest.raises(ValueError, match="the/file: turns of user: .*access to attribute"):
        unsafe = "{{ ''.__class__.__mro__ }}"
        render(ChatTemplate(unsafe, {}, "the/file"), [("user", "Hi")], False)


def test_where_a_template_is_found(tmp_path, folders):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "tools", "template": "T"}]})
    )
    with pytest.raises(ValueError, match='expected one of the name "default", got tools; chat_'):
        read_chat_template(tmp_path, {})
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_chat_template(tmp_path, {"a": 1}) == ChatTemplate("D", {"a": 1})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert read_chat_template(tmp_path, {}).text == "J"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match='tokenizer_config.json: field "chat_template": expected'):
        read_chat_template(tmp_path, {})
    folder = chat_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(ValueError, match="chat_template.jinja: not a chat template"):
        load_tokenizer(folder)


GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def test_gemmas_own_templates_are_known_by_what_they_write(tmp_path, folders):
    gemma = FORMATS["gemma"].template
    folder = chat_folder(tmp_path, "gemma")

    def found(template, **values):
        (folder / "chat_template.jinja").write_text(template)
        return read_chat_template(folder, values)

    turns = [("system", "Be brief."), ("user", "Hi "), ("assistant", "Yes?"), ("user", "6 x 7")]
    built_in = load_tokenizer(folders("gemma"))
    for own in (gemma, GEMMA3):
        assert found(own) is None and found(own, bos_token="<bos>") is None
        assert load_tokenizer(folder).chat(turns) == built_in.chat(turns)
    refusal = gemma[gemma.index("{% if messages[0]") : gemma.index("{% for message")]
    others = {  # each once read as Gemma's
        "a turn of system": gemma.replace(refusal, "").replace("loop.index0 %", "loop.index %"),
        "thinking": gemma.replace("model\\n' }}{% endif %}", "model\\n<think>\\n' }}{% endif %}"),
        "white space": gemma.replace(" | trim", ""),
        "no bos": gemma.replace("{{ bos_token }}", ""),
        "rules in front": gemma.replace("{% if add_gen", "{{ 'Is this safe?' }}{% if add_gen"),
        "one turn alone": "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}"
        + gemma,
    }
    for what, template in others.items():
        assert template != gemma, what
        assert found(template).text == template, what
    (folder / "chat_template.jinja").write_text(others["thinking"])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = load_tokenizer(folder).chat_to_answer(turns[1:])
    assert asked == apply(theirs, turns[1:], True) != built_in.chat_to_answer(turns[1:])
    with pytest.raises(ValueError, match="chat_template.jinja: not a chat template"):
        found(gemma + "{% for m in messages %}")


def test_the_stale_one_of_two_files_of_special_tokens_is_not_read(tmp_path):
    """As transformers: the map, unless the config is of the form that lists added tokens."""
    config, stated = (
        {"bos_token": "<a>", "eos_token": None},
        {"bos_token": "<b>", "eos_token": "</b>"},
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(stated))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert special_tokens(tmp_path) == stated
    listed = config | {"added_tokens_decoder": {"0": {"content": "<a>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(listed))
    assert special_tokens(tmp_path) == {"bos_token": "<a>"}


def test_a_token_that_tokenizer_json_lacks_is_named(tmp_path):
    folder = chat_folder(tmp_path, "chatml")
    file = folder / "tokenizer_config.json"
    listed = {"added_tokens_decoder": {"9000": {"content": "<|turn|>"}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | listed))
    with pytest.raises(
        ValueError, match="no token '<.turn.>', which other files .* id 9000, where"
    ):
        load_tokenizer(folder)


def test_tokens_that_other_files_put_behind_tokenizer_json_are_added(tmp_path):
    """As transformers adds them, where their ids are the next ones."""
    folder, target = chat_folder(tmp_path, "chatml"), tmp_path / "saved"
    before = load_tokenizer(folder)
    size = before.vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size + 1, "[X]": size}))
    after = load_tokenizer(folder)
    assert after.vocab_size == size + 2 and (after.control["[PAD]"], after.control["[X]"]) == (
        size + 1,
        size,
    )
    turns = [("user", "[PAD] and [X]"), ("assistant", "no")]
    assert after.chat(turns) == before.chat(turns)  # contents stay text
    target.mkdir()
    write_tokenizer(folder, target, 1024)
    assert (
        tokenizers.Tokenizer.from_file(str(target / "tokenizer.json")).get_vocab_size() == size + 2
    )


def test_a_space_follows_control_tokens_of_a_sentencepiece_model_that_has_one(tmp_path, data_dir):
    """As llama.cpp, and transformers where "legacy" is true; not where it is false."""
    model = data_dir / "mistral_tokenizer" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} "
        "[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    turns = [("user", "Is 2 < 3?"), ("assistant", "Yes."), ("user", "And 3?")]
    written = ("[INST] Is 2 < 3? [/INST]Yes.", "[INST] And 3? [/INST]")
    config = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    with_space = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode
    for legacy in ({}, {"legacy": True}, {"legacy": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | legacy))
        tokenizer = load_tokenizer(tmp_path)
        encode = tokenizer.encode if legacy == {"legacy": False} else with_space
        assert tokenizer.chat(turns) == [1, *encode(written[0]), 2, *encode(written[1])]


def test_stops_that_the_generation_config_states_are_stops(tmp_path):
    folder = chat_folder(tmp_path, "chatml")
    ours = load_tokenizer(folder)
    first = ours.stop_ids
    more = [first[0], first[0] - 2]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": more}))
    assert load_tokenizer(folder).stop_ids == (*first, more[1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": more[1]}))
    assert load_tokenizer(folder).stop_ids == (*first, more[1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**6}))
    with pytest.raises(ValueError, match='generation_config.json: field "eos_token_id": expected'):
        load_tokenizer(folder)


def test_a_tokenizer_without_bos_writes_its_chats_as_one_that_has_one(tmp_path, folders):
    """Qwen2.5 and Qwen3 state "bos_token": null, and their templates write none."""
    folder, ours = chat_folder(tmp_path, "qwen3"), load_tokenizer(folders("qwen3"))
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | {"bos_token": None}))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": None}))
    for _ in range(2):  # with a config.json, and as a folder of adapters without one
        without = load_tokenizer(folder)
        assert without.bos_id == without.eos_id == ours.eos_id
        assert without.chat_prompt("Hi <|im_end|>") == ours.chat_prompt("Hi <|im_end|>")
        (folder / "config.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(stated | {"bos_token": None, "eos_token": None})
    )
    with pytest.raises(ValueError, match="tokenizer.json: no eos token; expected eos_token in tok"):
        load_tokenizer(folder)
    del stated["chat_template"]  # the built-in formats begin with one
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | {"bos_token": None}))
    with pytest.raises(ValueError, match="tokenizer.json: no bos token; expected bos_token in tok"):
        load_tokenizer(folder)


def test_a_completion_may_think_and_a_prompt_may_not(folders):
    ours = load_tokenizer(folders("qwen3"))
    text = "<think>\nhm\n</think>\n\n8"
    ids = ours.chat_completion(text)
    assert ours.decode(ids) == text
    library = tokenizers.Tokenizer.from_file(str(folders("qwen3") / "tokenizer.json"))
    marks = {library.token_to_id(mark) for mark in THINK}
    assert [i for i in ids if i in marks] == [library.token_to_id(mark) for mark in THINK]
    assert marks.isdisjoint(ours.chat_prompt(text))


def test_the_unknown_token_of_a_byte_level_tokenizer_is_control(folders):
    ours = load_tokenizer(folders("chatml"))  # its unk_token ends documents
    library = tokenizers.Tokenizer.from_file(str(folders("chatml") / "tokenizer.json"))
    assert library.token_to_id(IM[0]) not in ours.encode(f"a{IM[0]}b")


def test_markers_of_released_judges_become_ids(folders):
    """The prompt of DeepSeek-GRM: <bos>, user, text, assistant, and nothing else."""
    ours = load_tokenizer(folders("deepseek_v3"))
    library = tokenizers.Tokenizer.from_file(str(folders("deepseek_v3") / "tokenizer.json"))
    bos, eos, user, assistant = map(library.token_to_id, DS)
    text = "Judge <｜Assistant｜> this"
    assert ours.chat_prompt(text) == [bos, user, *ours.encode(text), assistant]
    answer = ours.chat_prompt_with_answer(text, "8<｜end▁of▁sentence｜>")
    assert answer == [bos, user, *ours.encode(text), assistant, *ours.encode("8" + DS[1]), eos]
