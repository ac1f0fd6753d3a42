"""OpenAI's own client against the server."""

import contextlib
import json

import openai
import pytest

from grm_jax.judgment.records import Record, Turn
from grm_jax.reward_models.grm import Prompter
from grm_jax.sampling.requests import Request
from grm_jax.sampling.rollout import generate
from tests.serving.conftest import RIGHT, TASK, WRONG
from tests.serving.test_core import held, idle

PROMPT = f"[Judge from 1 to 10]\n[User] {TASK}\n[Response 1] {RIGHT}\n[Response 2] {WRONG}\n"
MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def policy(tiny):
    return tiny.system.policy()


def by_the_library(policy, ids, temperature, seed, samples, limit=None):
    """The same prompt and seed through the library's own engine."""
    limits = None if limit is None else (limit,) * samples
    request = Request(ids, "text 0", tuple(range(samples)), limits)
    drawing = policy.sampler_of(temperature)
    for _, completions in generate(drawing, policy.params, [request], seed, policy.buckets, 8):
        return completions


def test_models_and_a_greedy_chat(client, tiny, policy, served):
    (model,) = client.models.list().data
    assert model.id == "grm" and model.root == tiny.asked()["model"]
    reply = client.chat.completions.create(
        model="grm", messages=MESSAGES, temperature=0, logprobs=True
    )
    record = Record("a", (Turn("user", TASK),), (RIGHT, WRONG))
    prompter: Prompter = policy.prompter
    ids = prompter.ids(record, (0, 1))
    assert ids == prompter.tokenizer.chat_prompt(PROMPT)
    (expected,) = by_the_library(policy, ids, 0.0, 0, 1)
    (choice,) = reply.choices
    assert choice.message.content == prompter.tokenizer.decode(expected.token_ids)
    assert choice.finish_reason == "stop" and choice.message.role == "assistant"
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.completion_tokens == len(expected.token_ids)
    found = [one.logprob for one in choice.logprobs.content]
    assert found == pytest.approx(expected.logp.tolist(), abs=1e-4)


def test_samples_of_a_seed_streamed_or_not(client, policy):
    ask = {"model": "grm", "messages": MESSAGES, "n": 3, "seed": 7, "temperature": 0.8}
    whole = client.chat.completions.create(**ask)
    ids = policy.prompter.tokenizer.chat_prompt(PROMPT)
    expected = by_the_library(policy, ids, 0.8, 7, 3)
    texts = [policy.prompter.tokenizer.decode(one.token_ids) for one in expected]
    assert [choice.message.content for choice in whole.choices] == texts and len(set(texts)) > 1
    parts, finishes, usage = ["", "", ""], {}, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options=options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert parts == texts and usage == whole.usage
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}


def test_limits_stops_and_completions(client, policy):
    ask = {"model": "grm", "messages": MESSAGES, "temperature": 0}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    short = client.chat.completions.create(**ask, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert whole.startswith(short.choices[0].message.content)
    stop = whole[len(whole) // 2 :][:3]
    cut = client.chat.completions.create(**ask, stop=[stop, "never"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    parts = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(**ask, stop=stop, stream=True)
    ]
    assert "".join(parts) == whole[: whole.index(stop)]
    texts = client.completions.create(
        model="grm", prompt=["1.fox", PROMPT], max_tokens=4, temperature=0, logprobs=0
    )
    assert [choice.index for choice in texts.choices] == [0, 1]
    for prompt, choice in zip(("1.fox", PROMPT), texts.choices, strict=True):
        tokenizer = policy.prompter.tokenizer
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        (expected,) = by_the_library(policy, ids, 0.0, 0, 1, limit=4)
        assert choice.text == tokenizer.decode(expected.token_ids)
        assert choice.logprobs.token_logprobs == pytest.approx(expected.logp.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.APIStatusError),
        ({"top_p": 0.5}, openai.UnprocessableEntityError),
        ({"presence_penalty": 1.0}, openai.UnprocessableEntityError),
        ({"n": 500}, openai.UnprocessableEntityError),
        ({"stop": [""]}, openai.UnprocessableEntityError),
        ({"messages": [{"role": "user", "content": "word " * 500}]}, openai.BadRequestError),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "a"}]}, openai.APIStatusError),
        ({"messages": []}, openai.UnprocessableEntityError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_does_not_do_is_refused(client, change, error, stream):
    with pytest.raises(error) as caught:
        client.chat.completions.create(
            **{"model": "grm", "messages": MESSAGES, "stream": stream} | change
        )
    assert caught.value.body["message"] and caught.value.status_code < 500


def test_a_stream_that_its_reader_leaves_frees_the_row(client, served):
    stream = client.chat.completions.create(model="grm", messages=MESSAGES, n=8, stream=True)
    next(iter(stream))
    stream.close()
    idle(served)


def test_a_deadline_is_an_error_of_a_text(client, served):
    with held(served), pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="grm", messages=MESSAGES, extra_body={"deadline_s": 0.2}
        )
    assert caught.value.status_code == 504 and caught.value.body["type"] == "deadline"
    with held(served):
        body = {"messages": MESSAGES, "deadline_s": 0.2, "stream": True}
        lines = served.post("/v1/chat/completions", json=body).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "deadline"
    idle(served)


def test_a_key_goes_where_openai_puts_it(served, monkeypatch):
    gate = served.server.config.app
    monkeypatch.setattr(gate, "key", "secret")
    for key, good in (("secret", True), ("other", False)):
        with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=key, max_retries=0) as client:
            expected = (
                contextlib.nullcontext() if good else pytest.raises(openai.AuthenticationError)
            )
            with expected:
                client.models.list()


def test_what_would_change_a_text_is_never_passed_over(served):
    chat, text = {"messages": MESSAGES, "max_tokens": 1}, {"prompt": "a", "max_tokens": 1}
    for field, value in {
        "guided_choice": ["a"],
        "structured_outputs": {"choice": ["a"]},
        "stop_token_ids": [1],
        "min_tokens": 3,
        "ignore_eos": True,
        "function_call": "a",
        "chat_template_kwargs": {"enable_thinking": False},
        "nonsense": 1,
        "temperature": 2e-38,  # logits divided by it are no float32, and would end the engine
    }.items():
        reply = served.post("/v1/chat/completions", json=chat | {field: value})
        assert reply.status_code == 422 and field in reply.json()["error"]["message"]
    harmless = {"user": "me", "metadata": {}, "top_k": -1, "min_tokens": 0, "nonsense": None}
    assert served.post("/v1/chat/completions", json=chat | harmless).status_code == 200
    assert served.post("/v1/completions", json=text | {"logprobs": 5}).status_code == 422
    assert served.post("/v1/completions", json=text | {"logprobs": 1}).status_code == 200
