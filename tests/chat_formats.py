"""Five public chat formats in their published behavior, and small tokenizers with their tokens."""

import dataclasses
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "Score the response from 1 to 10. <b>it's</b> 1234567\n\n\tif x < 3 and y > 2: return '|'",
    "user model assistant system\n\n The best response is: Response 2 | # ## \\boxed{7, 3}",
    "café naïve 生活的真谛是 Это тест. これはテストです。 이것은 시험이다 هذا اختبار ทดสอบ 🦊🚀",
] * 3

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """\
{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
# thinking of earlier rounds is left out; that behind the last question is written between marks
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thinking = '' %}
        {%- if '</think>' in content %}
            {%- set thinking = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thinking) %}
            {{- '<think>\\n' + thinking + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
    {%- else %}
        {{- content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# all system turns in front; of an answer that thinks, what is behind the thinking
DEEPSEEK = """\
{% set ns = namespace(system='') %}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}\
{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}\
{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}
"""


@dataclasses.dataclass(frozen=True)
class Format:
    """Holds a template and the tokens of a tokenizer that it is for.

    special, plain: added tokens. names: {"bos_token": text}. ends: what ends the model's turn.
    """

    template: str
    special: tuple[str, ...]
    names: dict[str, str]
    ends: str
    plain: tuple[str, ...] = ()


THINK = ("<think>", "</think>")
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
FORMATS = {
    "gemma": Format(
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "<end_of_turn>",
    ),
    "llama3": Format(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
        + ("<|eot_id|>", "<|eom_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "<|eot_id|>",
    ),
    "chatml": Format(
        CHATML,
        IM,
        {"bos_token": IM[1], "eos_token": IM[2], "unk_token": IM[0], "pad_token": IM[2]},
        "<|im_end|>",
    ),
    "qwen3": Format(
        QWEN3, IM, {"bos_token": IM[0], "eos_token": IM[2], "pad_token": IM[0]}, "<|im_end|>", THINK
    ),
    "deepseek_v3": Format(
        DEEPSEEK, DS, {"bos_token": DS[0], "eos_token": DS[1], "pad_token": DS[1]}, DS[1], THINK
    ),
}


def chat_folder(
    folder: pathlib.Path, name: str, prefix: bool = False, normalizer=None
) -> pathlib.Path:
    """Writes the tokenizer of a format: byte-level BPE, or SentencePiece's kind with a prefix."""
    chat = FORMATS[name]
    if prefix:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=None, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted(set("".join(TEXTS)) - {" "} | {"▁", *"<>｜abc"})
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.normalizer = normalizer
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500 + len(alphabet), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *chat.special, *chat.plain, chat.template], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in chat.special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in chat.plain])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | chat.names | {"chat_template": chat.template})
    )
    return folder
