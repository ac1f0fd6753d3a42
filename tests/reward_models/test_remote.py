"""The remote judge against a local server that misbehaves on demand."""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import pathlib
import re
import socket
import struct
import threading
import time

import pytest

from grm_jax.judgment.prompts import load_template
from grm_jax.judgment.records import Criterion
from grm_jax.reward_models import remote
from grm_jax.reward_models.load import wrong_fields
from grm_jax.reward_models.protocol import shown_order
from grm_jax.reward_models.remote import remote_judge
from grm_jax.reward_models.remote_config import RemoteConfig, request_body
from grm_jax.reward_models.replies import RemoteError
from tests.reward_models.chat_server import Server, completion
from tests.reward_models.judge_cases import choose, honest, record

KEY = "sk-very-secret-123"
TEMPLATES = {"template": load_template("pointwise"), "single_template": load_template("single")}


def good(request):
    return 200, completion(honest(request["messages"][0]["content"], (1, 2))[0])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FAKE_API_KEY", KEY)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    one = Server(good)
    yield one
    one.close()


def model(server, **more):
    settings = {
        "base_url": server.url,
        "model": "fake",
        "api_key_env": "FAKE_API_KEY",
        "timeout_s": 20.0,
        "retries": 2,
    }
    return remote_judge("remote", **settings | TEMPLATES | more)


def rows_of(judged, records, samples=(0,), **how):
    return sorted(
        (row for block in judged.judge(records, samples, **how) for row in block),
        key=lambda row: (row["id"], row["sample"]),
    )


RECORDS = [record("five", (5, 6, 10, 1, 2)), record("one", (1,)), record("two", (9, 2))]


def test_good_replies_become_rows(server):
    rows = rows_of(
        model(server, seed=3, top_p=0.9, max_tokens=77, price_per_million=(2.0, 10.0)),
        RECORDS,
        (0, 4),
        temperature=0.5,
    )
    assert [(row["id"], row["sample"]) for row in rows] == [
        (r.id, s) for r in RECORDS for s in (0, 4)
    ]
    for row in rows:
        one = next(r for r in RECORDS if r.id == row["id"])
        assert row["scores"] == list(one.rewards) == row["rewards"] and row["order"] == list(
            shown_order(3, one, row["sample"], False)
        )
        assert (row["tokens"], row["prompt_tokens"], row["served_model"], row["finish"]) == (
            200,
            1000,
            "fake-1.0",
            "stop",
        )
        assert (row["attempts"], row["error"]) == (1, "")
        assert (
            row["cost"] == pytest.approx(0.004)
            and 0 < row["latency_s"] < 20
            and row["failure"] is None
        )
        assert (
            row["principles"] == [["Accuracy", 0.6], ["Brevity", 0.4]]
            and row["text"].endswith("}")
            and row["critique"]
        )
    assert {payload["model"] for payload in server.requests} == {"fake"} and len(
        {payload["seed"] for payload in server.requests}
    ) == 6
    assert all(
        (p["temperature"], p["top_p"], p["max_tokens"]) == (0.5, 0.9, 77) and 0 <= p["seed"] < 2**31
        for p in server.requests
    )
    assert all(
        h["Authorization"] == f"Bearer {KEY}" and h["path"] == "/v1/chat/completions"
        for h in server.headers
    )
    assert (
        sum("score 1 when it is correct" in p["messages"][0]["content"] for p in server.requests)
        == 2
    )
    json.dumps(rows)
    alone = rows_of(model(server, seed=3), RECORDS[2:], [4], temperature=0.5)
    assert {name: alone[0][name] for name in ("order", "text", "scores")}.items() <= rows[
        5
    ].items() and alone[0]["cost"] is None
    assert server.requests[-1]["seed"] in {p["seed"] for p in server.requests[:-1]}
    assert (
        rows_of(model(server, seed=3), RECORDS[:1], [4], swapped=True)[0]["order"]
        == rows[1]["order"][::-1]
    )


def test_an_index_names_the_best_of_a_whole_list(server):
    server.answer = lambda request: (
        200,
        completion(choose(request["messages"][0]["content"], None)[0]),
    )
    judge = model(server, answer="index", template=load_template("judge"), api_key_env=None)
    rows = rows_of(judge, [RECORDS[0], RECORDS[2]], (0, 1, 2))
    assert [row["scores"] for row in rows] == [[0, 0, 1, 0, 0]] * 3 + [[1, 0]] * 3 and len(
        server.requests
    ) == 6
    assert (
        [judge.accepts(n) for n in (1, 2, 5)] == [False, True, True]
        and model(server).accepts(1)
        and judge.sampled
    )
    assert all("Authorization" not in headers for headers in server.headers)


def test_a_record_with_a_rubric_is_asked_by_its_template_and_scored_by_its_weights(server):
    def answer(request):
        prompt = request["messages"][0]["content"]
        assert "Name: worth\nWeight: 3\nhow much it is worth" in prompt
        worths = re.findall(r"I am worth (\d+)\.", prompt)
        text = f"Scores:\nworth: \\boxed{{{', '.join(worths)}}}\ntact: \\boxed{{5, 5}}"
        return 200, completion(text)

    server.answer = answer
    rubric = (Criterion("worth", 3, "how much it is worth"), Criterion("tact", 1))
    asked = dataclasses.replace(RECORDS[2], rubric=rubric)
    judge = model(server, rubric_template=load_template("rubric"), api_key_env=None)
    for row in rows_of(judge, [asked], (0, 1, 2)):
        assert row["criteria"] == [[int(worth) for worth in asked.rewards], [5, 5]]
        assert row["scores"] == [(3 * worth + 5) / 4 for worth in asked.rewards]
    settings = {"base_url": "http://x/v1", "model": "m", **TEMPLATES}
    plain = remote.estimate([RECORDS[2]], 1, **settings)
    told = remote.estimate(
        [asked, RECORDS[2]], 1, rubric_template=load_template("rubric"), **settings
    )
    own = len(server.requests[-1]["messages"][0]["content"].encode()) / remote.BYTES_PER_TOKEN
    assert told.prompt_tokens - plain.prompt_tokens == pytest.approx(own, abs=2)


@pytest.mark.parametrize(
    "body, failure",
    [  # what is no reply at all is asked again, what was paid for is not
        (completion("I would rather not say."), "no_box"),
        (completion("Scores: \\boxed{9, 2}", "length"), "truncated"),
        (completion("", "length"), "truncated"),
        (completion("Scores: \\boxed{9}"), "wrong_count"),
        (completion(None), "request_failed:no_text"),
        (completion("  \n"), "request_failed:no_text"),
        (b"<html>upstream said hello</html>", "request_failed:malformed_reply"),
        (b"\xff\xfe{", "request_failed:malformed_reply"),
        (b"null", "request_failed:malformed_reply"),
        (b"[" * 100_000, "request_failed:malformed_reply"),
        ({"object": "error"}, "request_failed:error_in_reply"),
        ({"choices": []}, "request_failed:malformed_reply"),
        ({"choices": [{"text": "an old completion"}]}, "request_failed:malformed_reply"),
        (
            {"choices": [{"message": {"content": [{"type": "text"}]}}]},
            "request_failed:malformed_reply",
        ),
    ],
)
def test_one_bad_reply_is_a_named_failure_and_voids_nothing(server, body, failure):
    server.answer = lambda request: (
        (200, body) if "worth 9" in request["messages"][0]["content"] else good(request)
    )
    completed = isinstance(body, dict) and body.get("choices")
    attempts = 1 if completed else 3
    five, one, two = rows_of(model(server), RECORDS)
    assert (
        (two["scores"], two["failure"]) == (None, failure)
        and two["attempts"] == attempts
        and bool(two["error"]) == ("malformed" in failure or "error" in failure)
    )
    assert five["scores"] == [5, 6, 10, 1, 2] and one["scores"] == [1]
    assert len(server.requests) == 2 + attempts
    json.dumps(two)


def test_text_that_no_file_can_hold_is_mended(server):
    server.answer = lambda request: (
        200,
        json.dumps(completion("half \ud83d Scores: \\boxed{9, 2}", model="\udc00")).encode(),
    )
    (row,) = rows_of(model(server), RECORDS[2:])
    json.dumps(row, ensure_ascii=False).encode()
    assert row["text"].startswith("half ? Scores") and sorted(row["scores"]) == [2, 9]


def test_usage_may_be_absent(server):
    server.answer = lambda request: (200, good(request)[1] | {"usage": None, "model": None})
    (row,) = rows_of(model(server, price_per_million=(1.0, 1.0)), RECORDS[2:])
    assert (
        row["tokens"],
        row["prompt_tokens"],
        row["cost"],
        row["served_model"],
        row["scores"],
    ) == (0, None, None, None, [9, 2])


def failing(times, *reply):
    """The first `times` requests fail, further ones succeed."""
    seen = iter(range(10**6))
    return lambda request: reply if next(seen) < times else good(request)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_passing_failures_are_retried(server, status):
    server.answer = failing(2, status, {"error": "busy"})
    (row,) = rows_of(model(server), RECORDS[2:])
    assert (row["scores"], row["attempts"], row["failure"]) == ([9, 2], 3, None)
    assert server.times[2] - server.times[1] > 0.01 * 2 * 0.5  # the pause doubles


def test_retries_are_bounded_and_then_the_failure_has_a_name(server):
    server.answer = lambda request: (
        (503, f"no {KEY} today".encode())
        if "worth 9" in request["messages"][0]["content"]
        else good(request)
    )
    five, one, two = rows_of(model(server), RECORDS)
    assert (two["failure"], two["scores"], two["attempts"], two["error"]) == (
        "request_failed:http_503",
        None,
        3,
        "no [API key] today",
    )
    assert (
        five["scores"]
        and one["scores"]
        and len(server.requests) == 5
        and KEY not in json.dumps([five, one, two])
    )


@pytest.mark.parametrize("header", ["0.4", "date"])
def test_retry_after_is_honored(server, header):
    def answer(request):
        if len(server.requests) > 1:
            return good(request)
        return (
            429,
            {},
            {
                "Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)
                if header == "date"
                else header
            },
        )

    server.answer = answer
    (row,) = rows_of(model(server), RECORDS[2:])
    assert row["attempts"] == 2 and server.times[1] - server.times[0] >= (
        0.9 if header == "date" else 0.4
    )


def test_a_retry_after_that_is_too_long_or_nonsense(server, monkeypatch):
    server.answer = lambda request: (429, {}, {"Retry-After": "86400"})
    (row,) = rows_of(model(server), RECORDS[2:])
    assert (row["failure"], row["attempts"]) == ("request_failed:http_429", 1)
    assert row["error"] == "it asks to wait 86,400 s, and 120 are waited for: {}"
    server.answer = lambda request: (429, {}, {"Retry-After": "1e999"})
    assert "asks to wait inf s" in rows_of(model(server), RECORDS[2:])[0]["error"]
    server.answer = lambda request: (429, {}, {"Retry-After": "soon"})
    assert rows_of(model(server), RECORDS[2:])[0]["attempts"] == 3


def test_timeouts_are_retried_and_named(server):
    def answer(request):
        time.sleep(0.6 if "worth 9" in request["messages"][0]["content"] else 0)
        return good(request)

    server.answer = answer
    five, one, two = rows_of(model(server, timeout_s=0.3, retries=1), RECORDS)
    assert (two["failure"], two["attempts"], two["error"]) == (
        "request_failed:timeout",
        2,
        "no whole reply within 0.3 s",
    )


def test_a_server_that_is_not_there_is_a_named_failure(server):
    server.close()
    rows = rows_of(model(server, retries=1), RECORDS)
    assert {(row["failure"], row["attempts"]) for row in rows} == {
        ("request_failed:connection", 2)
    } and "Connect" in rows[0]["error"]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_one_request_is_not_retried(server, status):
    server.answer = lambda request: (
        (status, {"error": "too long"})
        if "worth 9" in request["messages"][0]["content"]
        else good(request)
    )
    rows = rows_of(model(server), RECORDS)
    assert (
        (rows[2]["failure"], rows[2]["attempts"]) == (f"request_failed:http_{status}", 1)
        and "too long" in rows[2]["error"]
        and rows[0]["scores"]
    )


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_what_is_wrong_with_every_request_stops_at_once(server, status):
    server.answer = lambda request: (
        status,
        {"error": f"who is {KEY}?"},
        {"Location": "http://elsewhere"},
    )
    message = (
        rf"POST {re.escape(server.url)}/chat/completions: HTTP {status} .*model 'fake'.*who is "
        r"\[API key\]"
    )
    with pytest.raises(RuntimeError, match=message) as caught:
        list(model(server, concurrency=1).judge([record(f"r{i}", (1, 2)) for i in range(50)]))
    assert len(server.requests) == 1 and KEY not in str(caught.value)


def test_what_was_paid_for_before_a_stop_is_kept(server):
    server.answer = lambda request: good(request) if len(server.requests) < 6 else (401, {})
    found = []
    with pytest.raises(RuntimeError, match="HTTP 401"):
        for block in model(server, concurrency=1).judge(
            [record(f"r{i}", (1, 2)) for i in range(50)]
        ):
            found += block
    assert [row["id"] for row in found] == [f"r{i}" for i in range(5)]


def test_the_concurrency_limit_is_reached_and_kept_and_blocks_come_early(server, monkeypatch):
    monkeypatch.setattr(remote, "YIELDS_EVERY_S", 600)

    def answer(request):
        time.sleep(0.05)
        return good(request)

    server.answer = answer
    blocks, served = [], []
    for block in model(server, concurrency=4).judge(
        [record(f"r{i:02}", (1, 2)) for i in range(24)], (0, 1)
    ):
        blocks.append(len(block))
        served.append(len(server.requests))
    assert server.most == 4 and blocks == [16, 16, 16] and served[0] <= 16 + 4


def test_a_consumer_may_stop_early(server, monkeypatch):
    monkeypatch.setattr(remote, "YIELDS_EVERY_S", 600)
    blocks = model(server, concurrency=2).judge([record(f"r{i}", (1, 2)) for i in range(1000)])
    assert len(next(blocks)) == 16
    blocks.close()
    time.sleep(0.1)
    asked = len(server.requests)
    assert asked <= 18 and not [
        thread for thread in threading.enumerate() if "portal" in thread.name
    ]


def test_it_works_inside_a_running_event_loop(server):
    async def inside():
        return rows_of(model(server), RECORDS)

    assert all(row["failure"] is None for row in asyncio.run(inside()))


def test_settings_that_cannot_work_are_refused(server, monkeypatch):
    for url in (
        "ftp://host/v1",
        "host/v1",
        "http://",
        "http://me:secret@host/v1",
        "http://host/v1?key=secret",
    ):
        with pytest.raises(ValueError, match="base_url") as caught:
            model(server, base_url=url)
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="answer: expected one of .*, index, .* got 'words'"):
        model(server, answer="words")
    with pytest.raises(ValueError, match="concurrency: expected a positive integer, got 0"):
        model(server, concurrency=0)
    for value in ("", "two\nlines", "caf\u00e9"):
        monkeypatch.setenv("FAKE_API_KEY", value)
        with pytest.raises(
            ValueError,
            match="the environment variable FAKE_API_KEY holds no "
            "API key; expected one line of ASCII",
        ):
            list(model(server).judge(RECORDS))
    assert not server.requests


# ---- parameters


def test_parameters_are_renamed_left_out_and_added(server, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "other-secret-9")
    judge = model(
        server,
        rename={"max_tokens": "max_completion_tokens", "seed": "random_seed"},
        extra_body={"temperature": None, "reasoning_effort": "low", "provider": {"only": ["x"]}},
        extra_headers={"X-Title": "grm", "api-key": "$OTHER_KEY"},
        system_prompt="You are fair.",
    )
    server.answer = lambda request: (200, completion(honest(asked(request), (1, 2))[0]))
    (row,) = rows_of(judge, RECORDS[2:])
    (request,) = server.requests
    assert row["scores"] == [9, 2]
    assert set(request) == {
        *("model", "messages", "top_p", "max_completion_tokens", "random_seed"),
        *("reasoning_effort", "provider"),
    }
    assert request["max_completion_tokens"] == 2048 and request["provider"] == {"only": ["x"]}
    assert request["messages"][0] == {"role": "system", "content": "You are fair."}
    assert [turn["role"] for turn in request["messages"]] == ["system", "user"]
    sent = {name.lower(): value for name, value in server.headers[0].items()}
    assert (sent["x-title"], sent["api-key"]) == ("grm", "other-secret-9")
    server.answer = lambda request: (503, b"other-secret-9 is wrong")
    assert rows_of(judge, RECORDS[2:])[0]["error"] == "[API key] is wrong"


def asked(request):
    """The prompt, also behind a turn of the system."""
    return request["messages"][-1]["content"]


def test_a_parameter_may_be_given_another_value(server):
    rows_of(model(server, extra_body={"max_tokens": 7, "seed": None}), RECORDS[2:])
    assert server.requests[0]["max_tokens"] == 7 and "seed" not in server.requests[0]
    rename = {"max_tokens": "n_tokens"}
    rows_of(model(server, rename=rename, extra_body={"n_tokens": None}), RECORDS[2:])
    assert not {"max_tokens", "n_tokens"} & set(server.requests[1])


def test_a_server_that_wants_other_parameters_says_so_once(server):
    server.answer = lambda request: (
        (400, {"error": {"message": "Use max_completion_tokens", "param": "max_tokens"}})
        if "max_tokens" in request
        else good(request)
    )
    many = [record(f"r{i}", (1, 2)) for i in range(50)]
    with pytest.raises(RemoteError, match=r"rename = {'max_tokens': 'max_completion_tokens'}"):
        list(model(server, concurrency=1).judge(many))
    assert len(server.requests) == 1
    judge = model(server, rename={"max_tokens": "max_completion_tokens"})
    assert all(row["scores"] for row in rows_of(judge, many))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"concurrency": "8"}, "concurrency: expected a positive integer, got '8'"),
        ({"retries": -1}, "retries: expected a number >= 0, got -1"),
        ({"timeout_s": 0}, "timeout_s: expected seconds > 0, got 0"),
        ({"max_tokens": 0}, "max_tokens: expected a positive integer, got 0"),
        ({"max_token": 5}, "max_token: no such field; nearest: max_tokens"),
        ({"model": "a\nb"}, "model: expected the name of a model"),
        ({"price_per_million": (1.0,)}, r"price_per_million: expected \(input, output\)"),
        ({"price_per_million": (1.0, float("nan"))}, "price_per_million: expected"),
        ({"rename": {"max_token": "x"}}, "rename: .* got 'max_token'; nearest: max_tokens"),
        ({"rename": {"seed": "top_p"}}, "rename: expected names that differ"),
        ({"extra_body": {"messages": []}}, "extra_body: expected no field 'messages'"),
        ({"extra_body": {"n": 4}}, "extra_body: expected no field 'n'"),
        ({"extra_body": {"stream": True}}, "extra_body: expected no stream"),
        ({"extra_body": {"x": {1, 2}}}, 'extra_body: must be plain JSON: field "x": .* a set'),
        (
            {"extra_body": {"x": float("inf")}},
            'extra_body: must be plain JSON: field "x": .* got inf',
        ),
        ({"extra_headers": {"a b": "x"}}, "extra_headers: expected names of headers"),
        ({"extra_headers": {"X-A": "a\nb"}}, "extra_headers: X-A: expected one line"),
        ({"extra_headers": {"api-key": KEY}}, "extra_headers: api-key: expected .NAME"),
        ({"extra_headers": {"X-Auth": f"${KEY}"}}, "extra_headers: X-Auth: expected the name"),
        ({"api_key_env": KEY}, "api_key_env: expected the name of an environment variable"),
        ({"api_key_env": "gsk_verysecret123"}, "api_key_env: expected the name of an environ"),
        ({"concurrency": 0, "retries": -1}, "concurrency: .*; retries: "),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_asked_and_no_secret_with_it(
    server, wrong, message
):
    with pytest.raises(ValueError, match=message) as caught:
        model(server, **wrong)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert not server.requests


# ---- a server that is down


def test_a_server_that_is_down_is_said_at_once_and_stops_the_run(server, caplog):
    server.close()
    many = [record(f"r{i:03}", (1, 2)) for i in range(3000)]
    with pytest.raises(RemoteError) as caught:
        list(model(server, retries=1, failures_in_a_row=20).judge(many))
    first = caplog.records[0].getMessage()
    port = server.url.split(":")[-1].split("/")[0]
    assert f"127.0.0.1:{port} refuses the connection" in first and "1 attempts in a row" in first
    assert len(caplog.records) == 1  # and not a line for each request
    message = str(caught.value)
    assert message.startswith(f"remote: 20 requests in a row failed at {server.url}/chat/compl")
    assert "refuses the connection" in message and "is kept" in message and "\n" not in message


def test_what_failed_when_the_server_went_down_is_asked_again_and_the_rest_is_kept(server):
    def answer(request):
        return good(request) if len(server.requests) <= 21 else (502, b"down")

    server.answer, found = answer, []
    many = [record(f"r{i:02}", (1, 2)) for i in range(60)]
    settings = {"retries": 0, "concurrency": 1, "failures_in_a_row": 5}
    with pytest.raises(RemoteError, match="5 requests in a row failed at .*http_502 down"):
        for block in model(server, **settings).judge(many):
            found += block
    assert [row["id"] for row in found] == [f"r{i:02}" for i in range(21)]
    assert all(row["failure"] is None for row in found) and len(server.requests) == 26


def test_failures_that_are_not_in_a_row_stop_nothing(server):
    server.answer = lambda request: (
        good(request) if len(server.requests) % 5 == 0 else (502, b"busy")
    )
    many = [record(f"r{i:02}", (1, 2)) for i in range(40)]
    settings = {"retries": 0, "concurrency": 1, "failures_in_a_row": 5}
    rows = rows_of(model(server, **settings), many)
    assert sum(row["failure"] == "request_failed:http_502" for row in rows) == 32
    server.answer = lambda request: (502, b"busy")
    assert len(rows_of(model(server, **settings | {"failures_in_a_row": None}), many)) == 40


def test_prompts_that_are_too_long_and_refusals_are_no_sign_of_a_server_that_is_down(server):
    replies = [(400, {"error": "maximum context length"}), (200, completion("", "safety"))]
    server.answer = lambda request: replies[len(server.requests) % 2]
    many = [record(f"r{i:02}", (1, 2)) for i in range(40)]
    rows = rows_of(model(server, failures_in_a_row=3), many)
    assert {row["failure"] for row in rows} == {"request_failed:http_400", "refused:safety"}


def test_a_server_that_is_down_gets_no_retries_until_it_answers(server):
    server.answer = lambda request: (502, b"down")
    many = [record(f"r{i:02}", (1, 2)) for i in range(40)]
    with pytest.raises(RemoteError):
        list(model(server, retries=3, concurrency=2, failures_in_a_row=10).judge(many))
    # the third begins before the second is given up, and one is on its way
    assert len(server.requests) <= 3 * 4 + 7 + 1


def test_every_wait_is_spread_and_bounded(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 1.0)
    for number, asked_s in [(1, None), (4, None), (30, None), (10**6, None), (1, 0.0), (2, 60.0)]:
        waits = {remote.wait_before(number, asked_s) for _ in range(50)}
        assert len(waits) == 50, "clients that failed together come back together"
        least = (asked_s or 0.0) + 0.5 * min(120.0, 2.0 ** min(number - 1, 30))
        assert least <= min(waits) and max(waits) <= (asked_s or 0.0) + 1.5 * 120
    assert remote.wait_before(1, 121.0) is None and remote.wait_before(1, float("inf")) is None


def test_a_reply_that_stalls_in_its_body_is_a_timeout_that_says_so(server):
    data = json.dumps(completion("\\boxed{9, 2}")).encode()
    with slow_server([b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + data[:40]]) as url:
        (row,) = rows_of(model(server, base_url=url, timeout_s=2.0, retries=0), RECORDS[2:])
    assert row["failure"] == "request_failed:timeout"
    assert row["error"] == "no whole reply within 2 s; HTTP 200 came, and 40 bytes of its body"


@pytest.mark.parametrize("end, said", [("close", "without sending complete"), ("reset", "reset")])
def test_a_body_that_is_cut_off_is_a_connection_that_broke(server, end, said):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"
    with slow_server([head + b'{"choices"'], end) as url:
        (row,) = rows_of(model(server, base_url=url, retries=1), RECORDS[2:])
    assert (row["failure"], row["attempts"]) == ("request_failed:connection", 2)
    assert said in row["error"]


def read_request(connection):
    """Reads a request to its end: what is left unread makes a close a reset."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)


@contextlib.contextmanager
def slow_server(replies, end="silence"):
    """A server of raw bytes: each connection gets the replies, and then silence, its end or a
    reset.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    read_request(connection)
                    for reply in replies:
                        connection.sendall(reply)
                    if end == "reset":
                        at_once = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                    if end != "silence":
                        connection.close()
                    kept.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        for connection in kept:
            connection.close()


def test_a_reply_without_end_is_given_up(server, monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_REPLY", 1000)
    server.answer = lambda request: (200, b" " * 5000)
    (row,) = rows_of(model(server), RECORDS[2:])
    assert row["failure"] == "request_failed:malformed_reply" and "1,000 bytes" in row["error"]


def test_tls_that_can_never_succeed_ends_it_and_a_host_without_address_is_named(server):
    with pytest.raises(RemoteError, match=r"no TLS with 127.0.0.1:\d+: "):
        rows_of(model(server, base_url=server.url.replace("http", "https")), RECORDS[2:])
    settings = {"base_url": "http://nowhere.invalid/v1", "retries": 0, "timeout_s": 120.0}
    (row,) = rows_of(model(server, **settings), RECORDS[2:])
    assert row["failure"] == "request_failed:connection"
    assert "no address of the host nowhere.invalid" in row["error"]


def test_lines_about_a_server_hold_no_key(server, caplog):
    server.answer = failing(2, 503, {"error": f"who is {KEY}?"})
    rows_of(model(server), RECORDS[2:])
    said = [entry.getMessage() for entry in caplog.records]
    assert len(said) == 2 and "[API key]" in said[0] and KEY not in "".join(said)
    assert said[1] == "remote: answers again, after 2 failed attempts"


# ---- what it would cost


def test_requests_tokens_and_cost_are_estimated_without_asking(server):
    judge_of = {"base_url": server.url, "model": "fake", "max_tokens": 100}
    price = {"price_per_million": (1.0, 10.0)}
    told = remote.estimate(RECORDS, 3, **TEMPLATES, **judge_of, **price)
    assert (told.requests, told.completion_tokens) == (9, 900) and not server.requests
    assert told.cost == pytest.approx((told.prompt_tokens + 10 * 900) / 1e6)
    rows_of(model(server, max_tokens=100), RECORDS, (0, 1, 2))
    letters = sum(len(asked(request).encode()) for request in server.requests)
    assert told.prompt_tokens == pytest.approx(letters / 4, abs=3)
    more = {"system_prompt": "x" * 400, "extra_body": {"max_completion_tokens": 7}}
    longer = remote.estimate(RECORDS, 3, **TEMPLATES, **judge_of, **more)
    assert longer.prompt_tokens == pytest.approx(told.prompt_tokens + 900, abs=9)
    assert longer.completion_tokens == 63 and longer.cost is None


def test_the_page_about_it_describes_a_system_and_every_field(monkeypatch):
    page = (pathlib.Path(__file__).parents[2] / "docs/remote.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    assert wrong_fields(names["SYSTEM"]) is None
    own = {k: v for k, v in names["SYSTEM"].items() if k not in ("name", "kind", "templates")}
    body = request_body(RemoteConfig(**own), "p", 0.5, 7)
    assert set(body) == {
        *("model", "messages", "max_completion_tokens", "seed", "reasoning_effort")
    }
    table = page.split("| field |")[1].split("\n\n")[0]
    told = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE))))
    fields = {field.name for field in dataclasses.fields(RemoteConfig)}
    assert fields <= told <= fields | {"templates"}


def test_a_caller_may_stop_while_a_server_says_nothing(server, monkeypatch):
    monkeypatch.setattr(remote, "YIELDS_EVERY_S", 0.05)
    release = threading.Event()

    def answer(request):
        if len(server.requests) > 2:
            release.wait(20)
        return good(request)

    server.answer = answer
    blocks = model(server, concurrency=2).judge([record(f"r{i}", (1, 2)) for i in range(9)])
    sizes = []
    while sum(sizes) < 2 or sizes[-1]:  # what came, and then nothing, long before the timeout
        sizes.append(len(next(blocks)))
    assert sum(sizes) == 2
    blocks.close()
    release.set()
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name]
