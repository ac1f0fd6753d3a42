"""The doors of trainers: the shapes that their clients read, and groups that are collected."""

import concurrent.futures
import contextlib
import dataclasses
import math
import time
import types

import httpx
import pytest

import grm_jax
from grm_jax.serving import groups
from grm_jax.serving.scalars import scalars
from grm_jax.serving.service import Refused
from grm_jax.serving.settings import Serving
from tests.serving.conftest import RIGHT, TASK, WRONG, body, running
from tests.serving.test_core import eventually, held, idle

CHAT = f"<bos><start_of_turn>user\n{TASK}<end_of_turn>\n<start_of_turn>model\n"
THIRD = "1.fox 2.hen 3.ant"
TURNS = [{"role": "user", "content": TASK}]


def numbers(tiny, responses, name="mean", **arguments):
    """By the library: responses in their own order."""
    ordered = sorted(responses)
    verdict = tiny(TASK, ordered, **{"k": 8} | arguments)
    values, failure = scalars(verdict, name, len(ordered))
    assert failure is None
    return [values[ordered.index(response)] for response in responses]


@contextlib.contextmanager
def settings(served, monkeypatch, **changes):
    with monkeypatch.context() as patch:
        patch.setattr(served.service, "settings",
                      dataclasses.replace(served.service.settings, **changes))  # fmt: skip
        yield


def test_openrlhf_sends_queries_of_a_batch(served, tiny):
    responses = [RIGHT, WRONG, THIRD]
    other = "Sort the list: 1.owl 2.bee"
    queries = [CHAT + response + "<end_of_turn>\n" for response in responses]
    prompts = [CHAT] * 3 + [other]
    reply = served.post(
        "/get_reward",
        json={"query": [*queries, other + "1.bee 2.owl"], "prompts": prompts, "labels": [""] * 4},
    ).json()
    expected = numbers(tiny, responses)
    assert reply["rewards"][:3] == expected and reply["failures"][:3] == [None] * 3
    assert reply["scores"][:3] == pytest.approx([(value - 1) / 9 for value in expected])
    single = tiny(other, ["1.bee 2.owl"], k=8)
    assert reply["rewards"][3] == single.scores[0] / sum(j.kept for j in single.judgments)
    assert reply["extra_logs"]["grm_members"] == [3, 3, 3, 1]
    assert reply["weights"] == tiny.asked()["model"]
    without = served.post("/get_reward", json={"query": queries}).json()
    assert without["rewards"] == expected
    for wrong in ({"query": []}, {"query": ["a"]}, {"query": ["a"], "prompts": ["b"]}, {}):
        assert served.post("/get_reward", json=wrong).status_code == 422


def test_what_a_body_cannot_say_the_address_says(served, tiny):
    responses = [RIGHT, WRONG, THIRD]
    body = {"query": [CHAT + text for text in responses], "prompts": [CHAT] * 3}
    found = served.post("/get_reward?k=4&scalar=wins&seed=3&temperature=0.7", json=body).json()
    assert found["rewards"] == numbers(tiny, responses, "wins", k=4, seed=3, temperature=0.7)
    # what the body says it says itself
    found = served.post("/get_reward?k=4&scalar=wins", json=body | {"k": 2}).json()
    assert found["rewards"] == numbers(tiny, responses, "wins", k=2)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        late = [0.0, 0.0, 0.6]  # later than a group without a size is judged

        def one(text, late_s):
            time.sleep(late_s)
            alone = {"query": [CHAT + text], "prompts": [CHAT], "labels": [""]}
            return served.post("/get_reward?group_size=3", json=alone).json()

        found = list(pool.map(one, responses, late))
    assert [reply["rewards"][0] for reply in found] == numbers(tiny, responses)
    for wrong in ("k=none", "k=0", "scalar=best", "group_siz=3", "seed=x", "group_size=65"):
        reply = served.post(
            f"/get_reward?{wrong}", json=body | {"query": [CHAT], "prompts": [CHAT]}
        )
        assert reply.status_code == 422, wrong
    assert "group_siz" in served.post("/get_reward?group_siz=3", json=body).text


@pytest.mark.parametrize("name", ["mean", "share", "wins", "rank"])
def test_samples_that_come_one_at_a_time_are_judged_together(served, tiny, name):
    """Whatever their order, each gets its own number of the one verdict of the list."""
    responses = [RIGHT, WRONG, THIRD, RIGHT + " 4.owl"]
    expected, drawn = numbers(tiny, responses, name), served.service.drawn
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        fields = {"scalar": name, "group": f"{name} {order}", "group_size": 4}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = {}
            for i in order:
                query = {"query": [CHAT + responses[i]], "prompts": [CHAT]}
                asked[i] = pool.submit(served.post, "/get_reward", json=query | fields)
        for i, one in asked.items():
            assert one.result().json()["rewards"] == [pytest.approx(expected[i])]
    assert served.service.drawn - drawn == 2 * 8  # k for each list, not for each sample


def test_a_group_without_a_size_is_judged_once_its_window_ends(served, tiny, monkeypatch):
    with settings(served, monkeypatch, window_s=1.0):
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [
                pool.submit(
                    served.post,
                    "/classify",
                    json={"model": "grm", "input": CHAT + text, "use_activation": False},
                )
                for text in (RIGHT, WRONG, THIRD)
            ]
    replies = [one.result().json()["data"][0] for one in asked]
    # on a machine that is busy elsewhere one may come when the window has closed
    if {reply["members"] for reply in replies} == {3}:
        expected = numbers(tiny, [RIGHT, WRONG, THIRD])
        assert [reply["probs"][-1] for reply in replies] == expected
    assert {reply["failure"] for reply in replies} == {None}
    idle(served)


def test_vllm_s_shapes(served, tiny):
    ask = {"messages": [*TURNS, {"role": "assistant", "content": RIGHT}], "group_size": 1}
    raw = served.post("/classify", json=ask | {"use_activation": False}).json()
    single = tiny(TASK, [RIGHT], k=8)
    value = single.scores[0] / sum(j.kept for j in single.judgments)
    assert raw["object"] == "list" and raw["model"] == "grm"
    assert raw["data"] == [
        {"index": 0, "label": None, "probs": [value], "num_classes": 1, "failure": None,
         "members": 1}
    ]  # fmt: skip
    texts = [CHAT + RIGHT, CHAT + WRONG]
    both = served.post("/v1/classify", json={"input": texts}).json()
    expected = [(value - 1) / 9 for value in numbers(tiny, [RIGHT, WRONG])]
    assert [one["probs"][0] for one in both["data"]] == pytest.approx(expected)
    assert served.post("/classify", json=ask | {"model": "other"}).status_code == 404
    assert served.post("/classify", json={"input": "no chat"}).status_code == 422
    assert served.post("/classify", json={}).status_code == 422


def test_nemo_gym_compares(served, tiny):
    def response(text):
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
        part = {"type": "output_text", "text": text, "annotations": []}
        return {"output": [thought, {"type": "message", "role": "assistant", "content": [part]}]}

    responses = [WRONG, RIGHT, THIRD]
    ask = {"conversation_history": TURNS, "response_objs": [response(text) for text in responses]}
    reply = served.post("/compare", json=ask | {"principle": None}).json()
    assert reply["rewards"] == numbers(tiny, responses) and reply["failures"] == [None] * 3
    kept = {one["judge_idx"] for one in reply["comparison_results"]}
    assert len(reply["comparison_results"]) == 3 * len(kept) and len(kept) >= 1
    for one in reply["comparison_results"]:
        first, second = one["score_1"], one["score_2"]
        assert one["ranking"] == (3.5 if first == second else 1 if first > second else 6)
    one = served.post("/compare", json=ask | {"response_objs": [response(RIGHT)]}).json()
    assert len(one["rewards"]) == 1 and one["comparison_results"] is None
    for wrong in ({"response_objs": []}, {"response_objs": [{"output": []}]}):
        assert served.post("/compare", json=ask | wrong).status_code == 422


def test_a_failure_is_null_and_has_a_name(served):
    long = RIGHT * 60
    reply = served.post("/get_reward", json={"query": [CHAT + long, CHAT + RIGHT]}).json()
    assert reply["rewards"] == reply["scores"] == [None, None]
    assert reply["failures"] == ["too_long"] * 2
    with held(served):
        ask = {"query": [CHAT + RIGHT], "deadline_s": 0.2, "group_size": 1}
        late = served.post("/get_reward", json=ask).json()
    assert late["rewards"] == [None] and late["failures"] == ["deadline"]
    idle(served)


def test_a_missing_member_holds_nobody_for_long(served, tiny, monkeypatch):
    """The two that are there are judged together when the group has waited; the last one comes too
    late, is alone, and gets no number of another scale.
    """
    fields = {"group": "missing", "group_size": 3, "prompts": [CHAT]}
    with settings(served, monkeypatch, group_s=1.0):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(served.post, "/get_reward", json=fields | {"query": [CHAT + text]})
                for text in (RIGHT, WRONG)
            ]
        replies = [one.result().json() for one in asked]
        if [reply["extra_logs"]["grm_members"] for reply in replies] == [[2], [2]]:
            assert [r["rewards"][0] for r in replies] == numbers(tiny, [RIGHT, WRONG])
        late = served.post("/get_reward", json=fields | {"query": [CHAT + THIRD]}).json()
    assert late["rewards"] == [None] and late["failures"] == ["alone"]


def test_a_member_that_leaves_does_not_count(served, tiny, monkeypatch):
    fields = {"group": "leaves", "group_size": 3, "prompts": [CHAT]}
    groups = served.service
    with settings(served, monkeypatch, group_s=2.0), pytest.raises(httpx.ReadTimeout):
        served.post("/get_reward", json=fields | {"query": [CHAT + THIRD]}, timeout=0.3)
    eventually(lambda: not groups.waits)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(served.post, "/get_reward", json=fields | {"query": [CHAT + text]})
            for text in (RIGHT, WRONG, THIRD)
        ]
    rewards = [one.result().json()["rewards"][0] for one in asked]
    assert rewards == numbers(tiny, [RIGHT, WRONG, THIRD])


def test_each_member_is_answered_by_its_own_deadline(served):
    fields = {"group": "deadlines", "group_size": 2, "prompts": [CHAT]}
    began = time.monotonic()
    reply = served.post(
        "/get_reward", json=fields | {"query": [CHAT + RIGHT], "deadline_s": 0.3}
    ).json()
    assert reply["rewards"] == [None] and reply["failures"] == ["deadline"]
    assert time.monotonic() - began < served.service.settings.group_s
    too_many = fields | {"query": [CHAT + RIGHT], "group_size": 65}
    assert served.post("/get_reward", json=too_many).status_code == 422


def test_a_group_is_taken_or_refused_as_a_whole(served, tiny, monkeypatch):
    """Whoever belongs to a group that was taken finds room, however full the queue is; one that was
    refused makes a group again.
    """
    responses = [RIGHT, WRONG, THIRD]

    def post(name, text):
        fields = {"group": name, "group_size": 3, "prompts": [CHAT], "k": 2}
        return served.post("/get_reward", json=fields | {"query": [CHAT + text]})

    few = settings(served, monkeypatch, queue=10, samples=10)
    with few, held(served) as release, concurrent.futures.ThreadPoolExecutor(7) as pool:
        taken = [pool.submit(post, "taken", RIGHT)]
        eventually(lambda: served.service.asked == 2)
        full = pool.submit(served.post, "/v1/judge", json=body(k=8))
        eventually(lambda: served.service.asked == 10)
        refused = [post("refused", text) for text in responses]
        assert [reply.status_code for reply in refused] == [429] * 3
        taken += [pool.submit(post, "taken", text) for text in responses[1:]]
        eventually(lambda: served.service.held == 3)
        release()
        assert full.result().status_code == 200
        eventually(lambda: served.service.asked == 0)
        time.sleep(max(int(reply.headers["Retry-After"]) for reply in refused))
        again = [pool.submit(post, "refused", text) for text in responses]
        for asked in (taken, again):
            replies = [one.result().json() for one in asked]
            assert [reply["rewards"][0] for reply in replies] == numbers(tiny, responses, k=2)
    idle(served)


def test_all_of_a_refused_group_are_told_one_time(monkeypatch):
    clock, full = [100.0], True

    @contextlib.contextmanager
    def admitted(samples):
        if full:
            raise Refused(429, "queue_full", "", 60)
        yield

    service = types.SimpleNamespace(admitted=admitted, settings=Serving(group_s=7.0))
    monkeypatch.setattr(groups, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    collecting = groups.Groups(service)

    def told(name):
        with pytest.raises(Refused) as caught:
            collecting._room((name, ""), {"samples": (0,)})
        return caught.value.retry_after

    # twice the time that a group waits for its members, however long the queue is
    assert told("a") == 14
    clock[0], full = 104.5, False
    assert told("a") == 10  # there is room by now, and the others were told to come later
    collecting._room(("b", ""), {"samples": (0,)}).close()
    clock[0] = 114.0
    collecting._room(("a", ""), {"samples": (0,)}).close()
    assert not collecting.refused


def test_more_than_the_queue_can_ever_hold_is_no_reason_to_come_back(served, monkeypatch):
    prompts = [f"Sort the list: {i}.owl" for i in range(5)]
    asked = {"query": [prompt + "a" for prompt in prompts], "prompts": prompts, "k": 2}
    with settings(served, monkeypatch, queue=8, samples=8):
        reply = served.post("/get_reward", json=asked)
        assert reply.status_code == 422 and "10 samples of 5 conversations" in reply.text
        assert "send them in several requests" in reply.text
        fewer = {name: x[:4] if name != "k" else x for name, x in asked.items()}
        assert served.post("/get_reward", json=fewer).status_code == 200


def test_a_response_alone_has_no_rivals_whichever_door(served):
    asked = {"conversation_history": TURNS, "response_objs": [RIGHT]}
    reply = served.post("/compare", json=asked | {"scalar": "wins"}).json()
    assert reply["rewards"] == [None] and reply["failures"] == ["alone"]
    assert 0 <= served.post("/compare", json=asked).json()["rewards"][0] <= 1
    with running(scalar="wins", k=2) as client:  # whoever names the number
        assert client.post("/compare", json=asked).json()["failures"] == ["alone"]


def test_judges_of_other_scores_than_from_1_to_10(monkeypatch):
    """Those whose scores have no bounds are put into [0, 1] as vLLM does, and have no shares."""
    with running(lambda: grm_jax.load({"kind": "tests.fabricated_judge:honest"}), k=1) as client:
        asked = {"query": ["-2a", "-2b"], "prompts": ["-", "-"]}
        chosen = {"conversation_history": TURNS, "response_objs": ["4", "2"]}
        share = client.post("/compare", json=chosen | {"scalar": "share"})
        assert share.status_code == 422 and "may score below 0" in share.text
        assert client.post("/compare", json=chosen).json()["rewards"] == [4, 2]
        scores = client.post("/get_reward", json=asked).json()["scores"]
        assert scores == pytest.approx([1 / (1 + math.exp(-1))] * 2)
        lane = client.service.lane
        system = lane.judge.system._replace(bounds=lambda n: (0, n - 1))  # of wins against others
        monkeypatch.setattr(lane, "judge", dataclasses.replace(lane.judge, system=system))
        asked = {"query": ["-1", "-0"], "prompts": ["-", "-"]}
        assert client.post("/get_reward", json=asked).json()["scores"] == [1, 0]
