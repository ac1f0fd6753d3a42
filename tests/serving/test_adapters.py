"""Adapters against a server: what a trainer gets for a group, for a failure, of a busy server."""

import asyncio
import json
import math
import threading
import time
import types

import httpx
import pytest

from grm_jax.adapters import client, nemo, openrlhf, rewardbench, trl, tunix, verl
from grm_jax.serving.rewards import How
from grm_jax.serving.settings import Serving
from tests.serving.conftest import RIGHT, TASK, WRONG
from tests.serving.test_rewards import CHAT, THIRD, numbers

SORT = [{"role": "user", "content": "Sort the list: 1.owl 2.bee"}]
SORTED = ["1.bee 2.owl", "1.owl 2.bee"]
PROMPTS = [TASK, SORT, TASK, SORT, TASK]
COMPLETIONS = [RIGHT, SORTED[0], [{"role": "assistant", "content": WRONG}], SORTED[1], THIRD]


@pytest.fixture(autouse=True)
def server(served, monkeypatch):
    monkeypatch.setenv("GRM_SERVER", str(served.base_url))


def sorting(tiny, name):
    verdict = tiny(SORT, sorted(SORTED), k=4)
    values = client_values(verdict, name)
    return [values[sorted(SORTED).index(text)] for text in SORTED]


def client_values(verdict, name):
    from grm_jax.serving.scalars import scalars

    return scalars(verdict, name, 2)[0]


def test_trl_and_tunix_get_a_number_for_each_completion(tiny):
    reversing = numbers(tiny, [RIGHT, WRONG, THIRD], "wins", k=4)
    others = sorting(tiny, "wins")
    expected = [reversing[0], others[0], reversing[1], others[1], reversing[2]]
    asked = {"k": 4, "scalar": "wins"}
    given = {"prompts": PROMPTS, "completions": COMPLETIONS, "trainer_state": None}
    assert trl.grm_reward(**asked)(**given) == expected
    assert asyncio.run(trl.grm_reward_async(**asked)(**given)) == expected
    # Tunix' prompts are texts of a chat
    sort = f"<|im_start|>user\n{SORT[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [CHAT if prompt == TASK else sort for prompt in PROMPTS]
    completions = [client.text_of(completion) for completion in COMPLETIONS]
    assert tunix.grm_reward(**asked)(prompts, completions, answer=[]) == expected
    assert tunix.grm_reward(**asked)([TASK] * 3, [RIGHT, WRONG, THIRD]) == reversing


def test_trl_s_groups_are_asked_for_at_once(monkeypatch):
    both_are_there = threading.Barrier(2, timeout=60)

    def ask(path, body, base_url):
        both_are_there.wait()
        return {"rewards": [float(text[0]) for text in body["response_objs"]]}

    async def ask_async(path, body, base_url):
        return await asyncio.to_thread(ask, path, body, base_url)

    monkeypatch.setattr(trl, "ask", ask)
    monkeypatch.setattr(trl, "ask_async", ask_async)
    prompts, completions = ["a", "b", "a"], ["1", "2", "3"]
    assert trl.grm_reward()(prompts, completions) == [1.0, 2.0, 3.0]
    assert asyncio.run(trl.grm_reward_async()(prompts, completions)) == [1.0, 2.0, 3.0]
    assert trl.grm_reward()([], []) == []


def test_a_failure_is_what_each_trainer_calls_none(tiny):
    prompts, completions = [TASK] * 2, [RIGHT, WRONG * 40]
    assert trl.grm_reward()(prompts, completions) == [None, None]
    assert asyncio.run(trl.grm_reward_async()(prompts, completions)) == [None, None]
    assert all(map(math.isnan, tunix.grm_reward()(prompts, completions)))
    rewards, valid = nemo.group_rewards(TASK, completions)
    assert valid == [False, False] and all(map(math.isnan, rewards))
    with pytest.raises(client.Unanswered, match="no score: too_long"):
        asyncio.run(verl.compute_score("", WRONG * 40, "", {"prompt": TASK, "n": 1}))
    with pytest.raises(client.Unanswered, match="2 of 2 without a score.*too_long"):
        openrlhf.grm_reward(group_size=2)([CHAT + text for text in completions], [CHAT] * 2)
    assert nemo.group_rewards(TASK, [RIGHT, WRONG], k=4)[0] == numbers(tiny, [RIGHT, WRONG], k=4)


def test_verl_s_samples_find_their_group(tiny):
    responses = [RIGHT, WRONG, THIRD]

    async def all_of_them(info, **asked):
        # the last comes when a group without a size would have been judged
        late = [asyncio.sleep(0), asyncio.sleep(0), asyncio.sleep(0.6)]

        async def score(text, late):
            await late
            return await verl.compute_score("world", text, "", info, k=4, **asked)

        return await asyncio.gather(*map(score, responses, late))

    for info, asked in (({"uid": "verl", "n": 3}, {}), ({}, {"n": 3}), ({"n": 3}, {"n": 2})):
        found = asyncio.run(all_of_them(info | {"prompt": TASK}, **asked))
        assert [one["score"] for one in found] == numbers(tiny, responses, k=4)
        assert [one["grm_members"] for one in found] == [3, 3, 3]
    with pytest.raises(ValueError, match="extra_info: expected the prompt"):
        asyncio.run(verl.compute_score("world", RIGHT, "", {}))
    with pytest.raises(ValueError, match="expected n, the samples of a prompt"):
        asyncio.run(verl.compute_score("world", RIGHT, "", {"prompt": TASK}))
    # validation draws one, which no other can win against
    info = {"prompt": TASK, "n": 1}
    one = verl.compute_score("world", RIGHT, "", info | {"scalar": "mean"}, k=4, scalar="wins")
    assert 0 <= asyncio.run(one)["score"] <= 1
    with pytest.raises(client.Unanswered, match="no score: alone"):
        asyncio.run(verl.compute_score("world", RIGHT, "", info, k=4, scalar="wins"))


@pytest.mark.parametrize("name", ("scaler", "rubric", "group"))
def test_a_setting_that_no_door_knows_is_said_when_it_is_made(name):
    """The doors pass over fields that they do not know: their clients send many."""
    asked = {name: "wins"}
    for make in (
        trl.grm_reward,
        trl.grm_reward_async,
        tunix.grm_reward,
        lambda **asked: openrlhf.grm_reward(group_size=2, **asked),
        lambda **asked: nemo.group_rewards(TASK, [RIGHT], **asked),
        lambda **asked: asyncio.run(verl.compute_score("", RIGHT, "", {"prompt": TASK}, **asked)),
    ):
        with pytest.raises(ValueError, match=f"unknown setting '{name}'"):
            make(**asked)
    assert {*client.HOW, "group", "group_size"} == {*How.model_fields}


def test_trl_s_groups_are_whole_where_their_size_is_known():
    prompts, completions = [TASK] * 3, [RIGHT, WRONG, THIRD]
    assert len(trl.grm_reward(group_size=3)(prompts, completions)) == 3
    for reward in (
        trl.grm_reward(group_size=2),
        lambda *given: asyncio.run(trl.grm_reward_async(group_size=2)(*given)),
    ):
        with pytest.raises(ValueError, match="3 completions of a prompt; expected whole groups of"):
            reward(prompts, completions)


@pytest.mark.torch
def test_openrlhf_gets_tensors(tiny):
    import torch

    queries = [CHAT + text + "<end_of_turn>" for text in (RIGHT, WRONG)]
    found = openrlhf.grm_reward(group_size=2)(queries, [CHAT] * 2, ["", ""])
    expected = torch.tensor(numbers(tiny, [RIGHT, WRONG]))
    assert torch.equal(found["rewards"], expected)
    assert torch.allclose(found["scores"], (expected - 1) / 9)
    asked = {"k": 4, "seed": 3, "scalar": "wins", "group_size": 2}
    found = openrlhf.grm_reward(**asked)(queries, [CHAT] * 2)
    expected = numbers(tiny, [RIGHT, WRONG], "wins", k=4, seed=3)
    assert torch.equal(found["rewards"], torch.tensor(expected))


def test_rewardbench_gets_a_letter_whatever_the_places(tiny):
    def chat(text, *turns):
        return [{"role": "user", "content": TASK}, *turns, {"role": "assistant", "content": text}]

    pair = rewardbench.grm_judge(k=4, seed=3)
    winner, request, judgment = pair(TASK, chat(RIGHT), chat(WRONG), "any")
    assert (winner, request) == ("A", TASK)
    verdict = tiny(TASK, sorted([RIGHT, WRONG]), k=4, seed=3)
    assert json.loads(judgment)["scores"] == list(verdict.scores)
    assert pair(TASK, chat(WRONG), chat(RIGHT), "any")[0] == "B"
    failed = pair(TASK, chat(RIGHT), chat(WRONG * 40), "any", model_modifier=None)
    assert failed[0] == "error" and json.loads(failed[2])["failure"] == "too_long"
    longer = chat(WRONG, {"role": "assistant", "content": "?"}, {"role": "user", "content": "!"})
    with pytest.raises(ValueError, match="answers to different conversations"):
        pair(TASK, chat(RIGHT), longer, "any", multi_turn=True)


def test_a_busy_server_is_asked_again_and_a_wrong_question_is_not(monkeypatch):
    seen, pauses, answers = [], [], []

    def handle(request):
        seen.append(request.headers["Idempotency-Key"])
        return answers.pop(0) if answers else httpx.Response(200, json={"rewards": [1.0]})

    async def pause(seconds):
        pauses.append(seconds)

    def beside_others(path, body, **how):
        return asyncio.run(client.ask_async(path, body, **how))

    transport, asynchronous = httpx.MockTransport(handle), httpx.AsyncClient
    monkeypatch.setattr(client, "_client", lambda s: httpx.Client(transport=transport))
    monkeypatch.setattr(
        client.httpx, "AsyncClient", lambda timeout: asynchronous(transport=transport)
    )
    # in place of the modules: the server in this process sleeps too
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr(client, "time", clock)
    monkeypatch.setattr(client, "asyncio", types.SimpleNamespace(sleep=pause))
    for ask in (client.ask, beside_others):
        seen.clear(), pauses.clear()
        answers[:] = [httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(503)]
        assert ask("/compare", {}) == {"rewards": [1.0]}
        assert len(seen) == 3 and len(set(seen)) == 1
        assert 3 <= pauses[0] <= 3.75 and 1 <= pauses[1] <= 1.25
        answers[:] = [httpx.Response(422, text="wrong")]
        with pytest.raises(client.Unanswered, match="status 422: wrong"):
            ask("/compare", {})
        # a full server is asked again until the deadline and half a minute have passed
        answers[:] = [httpx.Response(429, headers={"Retry-After": "3"})] * 9
        assert ask("/compare", {}) == {"rewards": [1.0]}
        answers[:] = [httpx.Response(503, text="loading", headers={"Retry-After": "9"})] * 9
        with pytest.raises(client.Unanswered, match="1 tries in 0 s; the last: status 503: load"):
            ask("/compare", {}, timeout_s=8)
        answers[:] = [httpx.Response(502, text="gateway")] * 9
        with pytest.raises(client.Unanswered, match="5 tries in 0 s; the last: status 502: gate"):
            ask("/compare", {})


def test_a_blocking_call_needs_no_loop_and_bears_one(served):
    async def within():
        return client.ask("/compare", body)

    body = {"conversation_history": SORT, "response_objs": SORTED, "k": 2}
    assert asyncio.run(within())["rewards"] == client.ask("/compare", body)["rewards"]
    nobody = "http://127.0.0.1:9"
    with pytest.raises(client.Unanswered, match="1 tries in 0 s; the last: ConnectError"):
        client.ask("/compare", body, nobody, tries=1)


def test_a_try_outlasts_the_deadline_of_what_it_asks(monkeypatch):
    """What a deadline cuts off is answered at the deadline: who hangs up before it loses it."""
    seen = []
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={}))

    def remember(timeout_s):
        seen.append(timeout_s)
        return httpx.Client(transport=transport)

    monkeypatch.setattr(client, "_client", remember)
    client.ask("/compare", {})
    client.ask("/compare", {"deadline_s": 900})
    client.ask("/compare", {"deadline_s": 900}, timeout_s=5)
    assert seen[0] > Serving().deadline_s and seen[1:] == [930, 5]
