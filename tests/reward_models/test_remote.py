"""The remote judge against a local server that misbehaves on demand."""

import asyncio
import email.utils
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models import remote
from grm_jax.reward_models.protocol import shown_order
from grm_jax.reward_models.remote import remote_judge
from tests.reward_models.judge_cases import choose, honest, record

KEY = "sk-very-secret-123"
TEMPLATES = {"template": load_template("pointwise"), "single_template": load_template("single")}


def completion(text, finish="stop", **more):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "model": "fake-1.0",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 200},
        **more,
    }


def good(request):
    return 200, completion(honest(request["messages"][0]["content"], (1, 2))[0])


class Server:
    """`answer(payload) -> (status, body, [headers])`; body: an object that becomes JSON, or bytes.
    Keeps requests, and how many were in flight.
    """

    def __init__(self):
        self.answer, self.requests, self.headers, self.times, self.in_flight, self.most = (
            good,
            [],
            [],
            [],
            0,
            0,
        )
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(payload)
                    server.headers.append(dict(self.headers) | {"path": self.path})
                    server.times.append(time.monotonic())
                    server.in_flight += 1
                    server.most = max(server.most, server.in_flight)
                try:
                    status, body, *headers = server.answer(payload)
                finally:
                    with server.lock:
                        server.in_flight -= 1
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in (headers[0] if headers else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                # the client gave up, as some tests want
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FAKE_API_KEY", KEY)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    one = Server()
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


@pytest.mark.parametrize(
    "body, failure",
    [
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
        ({"object": "error"}, "request_failed:malformed_reply"),
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
    five, one, two = rows_of(model(server), RECORDS)
    assert (
        (two["scores"], two["failure"]) == (None, failure)
        and two["attempts"] == 1
        and bool(two["error"]) == ("malformed" in failure)
    )
    assert five["scores"] == [5, 6, 10, 1, 2] and one["scores"] == [1] and len(server.requests) == 3
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


def test_the_concurrency_limit_is_reached_and_kept_and_blocks_come_early(server):
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


def test_a_consumer_may_stop_early(server):
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
    with pytest.raises(ValueError, match="answer is 'letter'; expected one of scores, ten, index"):
        model(server, answer="letter")
    with pytest.raises(ValueError, match="concurrency >= 1"):
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
