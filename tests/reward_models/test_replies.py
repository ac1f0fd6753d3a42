"""What servers send back, of every vendor: a completion, a named failure, or one named error."""

import email.utils
import json
import math
import re

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grm_jax.judgment.parsing import FAILURE_REASONS, read_answer
from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models import remote
from grm_jax.reward_models.replies import (
    CUT,
    PASSING,
    REFUSED,
    WHOLE,
    RemoteError,
    read_reply,
    retry_after,
)
from tests.reward_models.judge_cases import record

KEY = 'sk-very/secret"123'
PLAIN = "sk-4f1d9c0aa7"
WHERE = "POST http://server/v1/chat/completions"
SENT = {"model": "m", "messages": [], "temperature": 0.0, "top_p": 1.0, "max_tokens": 9, "seed": 1}
TEXT = "Specific Criteria: Accuracy 1\nAnalysis: fine\nScores: \\boxed{9, 2}"


def read(body, status=200, headers=None, **more):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = {"where": WHERE, "sent": SENT, "secrets": [KEY, PLAIN]} | more
    return read_reply(status, headers or {}, content, **asked)


def completion(content=TEXT, finish="stop", **message):
    return {
        "choices": [{"message": {"content": content, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


# ---- finish reasons


@pytest.mark.parametrize("reason", [*WHOLE, "STOP", "Complete", None, ""])
def test_a_text_that_is_whole(reason):
    reply = read(completion(finish=reason))
    assert (reply.text, reply.failure, reply.cut, reply.tokens) == (TEXT, None, False, 5)


@pytest.mark.parametrize("reason", [*CUT, "MAX_TOKENS", {"type": "length"}])
def test_a_text_that_ends_at_a_limit_is_cut_whatever_it_holds(reason):
    for content in (TEXT, "", None):
        reply = read(completion(content, reason))
        assert reply.cut and reply.failure is None
        assert read_answer(reply.text, (0, 1), truncated=reply.cut)["failure"] == "truncated"


@pytest.mark.parametrize("reason", [*REFUSED, "SAFETY", "RECITATION", "PROHIBITED_CONTENT"])
def test_a_refusal_is_no_judgment_though_it_holds_a_box(reason):
    reply = read(completion(finish=reason))
    assert reply.failure == f"refused:{reason.lower()}" and not reply.again


@pytest.mark.parametrize("reason", PASSING)
def test_a_text_that_broke_off_is_asked_again(reason):
    reply = read(completion(finish=reason))
    assert reply.failure == f"request_failed:finish_{reason}" and reply.again


@pytest.mark.parametrize(
    "reason, name",
    [("tool_calls", "tool_calls"), ("OTHER", "other"), (7, "unknown"), (["x"], "unknown")]
    + [("a b", "unknown"), ({"reason": "pause_turn"}, "pause_turn")],
)
def test_of_an_unknown_reason_nothing_is_supposed(reason, name):
    reply = read(completion(finish=reason))
    assert reply.failure == f"request_failed:finish_{name}" and not reply.again
    if name != "unknown":
        assert read(completion(finish=reason), whole=[name]).failure is None


# ---- content


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "\\boxed{3, 9}"}, {"type": "text", "text": TEXT}],
        [{"type": "redacted_thinking", "data": "x"}, {"type": "output_text", "text": TEXT}],
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "\\boxed{1, 1}"}]},
            {"type": "text", "text": {"value": TEXT}},
        ],
        [{"type": "reasoning", "text": "\\boxed{1, 1}"}, TEXT],
        [{"type": "text", "text": TEXT[:30]}, {"type": "text", "text": TEXT[30:]}],
        [{"text": TEXT}, {"type": "tool_use", "text": "\\boxed{1, 1}"}],
        {"type": "text", "text": TEXT},
        {"parts": [{"text": "\\boxed{1, 1}", "thought": True}, {"text": TEXT}]},
    ],
)
def test_parts_of_text_are_joined_and_thoughts_left_out(content):
    reply = read(completion(content, reasoning_content="\\boxed{1, 1}", reasoning="\\boxed{2, 2}"))
    assert (reply.text, reply.failure) == (TEXT, None)


@pytest.mark.parametrize(
    "content, message, failure",
    [
        (None, {}, "request_failed:no_text"),
        ([], {}, "request_failed:no_text"),
        (" \n", {}, "request_failed:no_text"),
        (None, {"reasoning_content": "\\boxed{9, 2}"}, "request_failed:no_text"),
        ([{"type": "thinking", "thinking": TEXT}], {}, "request_failed:no_text"),
        (None, {"refusal": "I cannot"}, "refused:refusal"),
        ([{"type": "refusal", "refusal": "I cannot"}], {}, "refused:refusal"),
        (7, {}, "request_failed:malformed_reply"),
        ([7], {}, "request_failed:malformed_reply"),
        ([{"type": "text"}], {}, "request_failed:malformed_reply"),
    ],
)
def test_a_reply_without_text_is_named(content, message, failure):
    reply = read(completion(content, **message))
    assert (reply.text, reply.failure, reply.again) == ("", failure, False)


# ---- errors in a reply of status 200


@pytest.mark.parametrize(
    "body, failure",
    [
        ({"error": {"code": 502, "message": "upstream"}}, "http_502"),
        ({"error": {"code": "429", "message": "slow"}}, "http_429"),
        ({"error": {"type": "overloaded_error", "message": "busy"}}, "http_503"),
        ({"error": {"code": 8, "status": "RESOURCE_EXHAUSTED"}}, "http_429"),
        ([{"error": {"code": 503, "status": "UNAVAILABLE"}}], "http_503"),
        ({"error": "busy", "code": 500}, "http_500"),
        ({"code": 500, "message": "busy"}, "http_500"),
        ({"object": "error", "message": "busy", "code": 500, "choices": None}, "http_500"),
        ({"error": "busy"}, "error_in_reply"),
        ({"error": {"message": "busy"}}, "error_in_reply"),
        ({"base_resp": {"status_code": 1002, "status_msg": "busy"}}, "error_in_reply"),
        ({"error_code": 17, "error_msg": "busy"}, "error_in_reply"),
        ({"choices": []}, "malformed_reply"),
        ({"choices": None}, "malformed_reply"),
        ({}, "malformed_reply"),
        (b"", "malformed_reply"),
        (b'{"choices": [{"mess', "malformed_reply"),
        (b"<html>busy</html>", "malformed_reply"),
        (b"data: {}\n\n", "malformed_reply"),
    ],
)
def test_an_error_in_a_reply_is_as_good_as_its_status(body, failure):
    reply = read(body)
    assert (reply.failure, reply.again, reply.text) == (f"request_failed:{failure}", True, "")
    assert reply.error


def test_an_error_beside_a_part_of_a_text_keeps_the_text_and_no_judgment():
    body = completion(finish="error")
    body["choices"][0]["error"] = {"code": 502, "message": "upstream"}
    reply = read(body, headers={"retry-after": "3"})
    assert (reply.text, reply.failure, reply.again) == (TEXT, "request_failed:http_502", True)
    assert (reply.wait_s, reply.tokens, reply.finish) == (3.0, 5, "error")
    assert read(completion() | {"error": "late"}).failure == "request_failed:error_in_reply"


@pytest.mark.parametrize("error", [None, {}, "", {"code": 0, "message": "ok"}, {"code": "200"}])
def test_an_error_that_is_none_voids_nothing(error):
    assert read(completion() | {"error": error}).failure is None


# ---- what is about this request, and about all of them


@pytest.mark.parametrize(
    "status, error",
    [
        (400, {"message": "maximum context length is 8192 tokens", "param": "messages"}),
        (400, {"message": "'max_tokens' is too large: 9; your request has 3000 input tokens"}),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (413, {"message": "Request too large"}),
    ],
)
def test_a_prompt_that_is_too_long_says_nothing_of_the_others(status, error):
    reply = read({"error": error}, status)
    assert (reply.failure, reply.only_this) == (f"request_failed:http_{status}", True)


@pytest.mark.parametrize(
    "status, error",
    [
        (400, {"code": "content_filter", "message": "triggering our content management policy"}),
        (403, {"code": 403, "message": "your input was flagged", "metadata": {}}),
        (451, {"message": "content policy"}),
        (200, {"code": 400, "message": "data_inspection_failed"}),
    ],
)
def test_a_filter_is_a_refusal(status, error):
    assert read({"error": error}, status).failure == "refused:content_filter"


@pytest.mark.parametrize(
    "status, body, named, advice",
    [
        (
            400,
            {"error": {"message": "Use 'max_completion_tokens' instead", "param": "max_tokens"}},
            "max_tokens = 9",
            "rename = {'max_tokens': 'max_completion_tokens'}",
        ),
        (
            400,
            {"error": {"message": "Unsupported value: 'temperature' does not support 0"}},
            "temperature = 0.0",
            "{'temperature': None} leaves it out",
        ),
        (
            422,
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "seed = 1",
            "rename = {'seed': 'NAME'}",
        ),
        (400, b"Unrecognized request argument supplied: top_p", "top_p = 1.0", "extra_body"),
        (
            200,
            {"error": {"code": 400, "message": "top_p: not allowed", "param": "top_p"}},
            "top_p = 1.0",
            "extra_body",
        ),
        (
            400,
            {"error": {"message": "reasoning_effort: no such", "param": "reasoning_effort"}},
            "reasoning_effort = 'high'",
            "extra_body = {'reasoning_effort': VALUE}",
        ),
    ],
)
def test_a_parameter_that_is_not_taken_ends_it_with_advice(status, body, named, advice):
    with pytest.raises(RemoteError) as caught:
        read(body, status, sent=SENT | {"reasoning_effort": "high"})
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: HTTP 4") and f"does not take {named}. " in message
    assert advice in message
    if "reasoning" in named:
        assert "rename" not in message.split("In the description")[1]


def test_a_bad_request_that_names_nothing_is_a_failure_of_its_own():
    reply = read({"error": {"message": "seedling", "param": "tools"}}, 400)
    assert (reply.failure, reply.again, reply.only_this) == (
        "request_failed:http_400",
        False,
        False,
    )


@pytest.mark.parametrize(
    "status, body",
    [
        (401, {}),
        (402, {"error": "insufficient credits"}),
        (404, b"no such page"),
        (400, {"error": {"message": "unknown", "param": "model"}}),
        (200, {"error": {"code": 401, "message": "no such key"}}),
        (200, {"error": {"code": "invalid_api_key"}}),
        (429, {"error": {"code": "insufficient_quota", "message": "check your billing"}}),
        (301, b""),
        (308, {"error": "moved"}),
    ],
)
def test_what_every_request_would_get_ends_it(status, body):
    with pytest.raises(RemoteError, match=f"^{WHERE}: HTTP [34]"):
        read(body, status, {"location": f"http://elsewhere/{KEY}"})


# ---- waiting


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1e400"}, math.inf),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "5, 5"}, None),
        ({"retry-after": email.utils.formatdate(1060, usegmt=True)}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1.0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, seconds):
    assert retry_after(headers, now=1000.0) == seconds


# ---- secrets


def test_no_secret_is_kept_in_any_spelling():
    echoes = [KEY, json.dumps(KEY), json.dumps(KEY).replace("/", "\\/")]
    for echo in echoes:
        for body, status in [
            (completion(f"{TEXT} {echo}", model=echo) | {"model": echo}, 200),
            (completion(finish=echo), 200),
            (completion(refusal=echo, content=None), 200),
            ({"error": echo}, 503),
            (echo.encode(), 400),
            (echo.encode(), 200),
        ]:
            reply = read(body, status)
            for kept in (str(reply), json.dumps(reply)):
                assert "very" not in kept and "secret" not in kept
        with pytest.raises(RemoteError) as caught:
            read({"error": echo}, 307, {"location": echo})
        assert "secret" not in str(caught.value)


# ---- anything at all

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([TEXT, PLAIN, "error", "length", "429", "max_tokens", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
finishes = st.sampled_from([*WHOLE, *CUT, *REFUSED, *PASSING, "tool_calls", "SAFETY", None])
parts = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "thinking", "reasoning", "refusal", "tool_use"]),
        "text": st.sampled_from([TEXT, "", None, {"value": TEXT}]) | json_values,
        "thinking": json_values,
        "refusal": json_values,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "content": st.sampled_from([TEXT, "", None]) | st.lists(parts, max_size=3) | json_values,
        "refusal": st.sampled_from([None, "I cannot"]) | json_values,
        "reasoning_content": json_values,
    },
)
errors = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {},
        optional={
            "code": st.integers(395, 605) | json_values,
            "type": st.sampled_from(["rate_limit_error", "overloaded", "x"]) | json_values,
            "status": json_values,
            "message": st.sampled_from(["context length", "max_tokens", PLAIN]) | json_values,
            "param": st.sampled_from(["max_tokens", "model", "messages"]) | json_values,
            "detail": json_values,
        },
    ),
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "message": messages | json_values,
        "finish_reason": finishes | json_values,
        "error": errors,
    },
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(choices, max_size=2) | json_values,
        "error": errors,
        "usage": json_values,
        "model": json_values,
        "object": st.sampled_from(["error", "chat.completion"]),
        "message": json_values,
        "detail": json_values,
    },
)
contents = st.one_of(
    bodies.map(lambda body: json.dumps(body).encode()),
    st.tuples(bodies, st.integers(0, 40)).map(
        lambda pair: json.dumps(pair[0]).encode()[: -pair[1] or None]
    ),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)
statuses = st.sampled_from([200] * 8 + [201, 204, 100, 302, 400, 401, 403, 404, 408, 413]) | (
    st.integers(100, 999)
)
header_sets = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "content-type", "location"]),
    st.sampled_from(["3", "1e999", "nan", "x", PLAIN, "text/html", "Thu, 01 Jan 1970 00:00:00 GMT"])
    | st.text(max_size=12),
)
FAILURE = re.compile(
    r"refused:[a-z_]+|request_failed:(http_[0-9]{3}|error_in_reply|malformed_reply|no_text|"
    r"finish_[a-z][a-z0-9_]*)"
)


def check_any_reply(status, headers, content):
    """A completion, a named failure or one named error, and no secret in it."""
    try:
        reply = read(content, status, headers)
    except RemoteError as error:
        assert str(error).startswith(WHERE) and "\n" not in str(error)
        assert PLAIN not in str(error)
        return
    line = json.dumps(reply, ensure_ascii=False, allow_nan=reply.wait_s is not None).encode()
    assert PLAIN.encode() not in line and len(reply.error) < 3000
    assert reply.wait_s is None or reply.wait_s >= 0
    if reply.failure is not None:
        assert FAILURE.fullmatch(reply.failure)
        return
    # what is read as an answer: a 2xx, JSON, no error in it, and a reason that says it is whole
    body = json.loads(content)
    (choice, *_), reason = body["choices"], reply.finish
    assert 200 <= status < 300
    assert all(
        not error or isinstance(error, dict) for error in (body.get("error"), choice.get("error"))
    )
    assert reason is None or reason.lower() in (*WHOLE, *CUT)
    assert reply.cut == (reason is not None and reason.lower() in CUT)
    read_as = read_answer(reply.text, (0, 1), truncated=reply.cut)
    assert (read_as["scores"] is None) == (read_as["failure"] in FAILURE_REASONS)
    if read_as["scores"] is not None:
        content = choice["message"]["content"]
        assert "boxed" in json.dumps(content)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(statuses, header_sets, contents)
@example(200, {}, json.dumps(completion()).encode())
@example(200, {}, b"9" * 5000)
@example(200, {}, b'{"usage": {"completion_tokens": ' + b"9" * 4000 + b"}}")
@example(200, {}, b"[" * 100_000)
def test_any_reply_is_a_judgment_a_named_failure_or_one_named_error(status, headers, content):
    check_any_reply(status, headers, content)


# ---- the same through the judge

exchanges = st.tuples(statuses, header_sets, contents) | st.sampled_from(
    [
        httpx.ConnectError(f"refused {PLAIN}"),
        httpx.ReadError(""),
        httpx.RemoteProtocolError("gone"),
        httpx.DecodingError("zip"),
        (200, {"content-encoding": "gzip"}, b"no gzip"),
        (200, {"content-type": "application/json; charset=undefined"}, b"{}"),
        (200, {}, json.dumps(completion()).encode()),
        (200, {}, json.dumps(completion()).encode()),
        (200, {}, json.dumps(completion()).encode()),
    ]
)
RECORDS = [record(f"r{i}", (1, 2)) for i in range(6)]


def check_any_exchanges(script, monkeypatch):
    """Every record has a judgment or a named failure, once; or one named error says why not."""
    waiting = iter(script)

    def handle(request):
        came = next(waiting, (200, {}, json.dumps(completion()).encode()))
        if isinstance(came, Exception):
            raise came
        status, headers, content = came
        pairs = [(name, value.encode("utf-8", "replace")) for name, value in headers.items()]
        return httpx.Response(status, headers=pairs, content=content)

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(remote, "_client", lambda *_: httpx.AsyncClient(transport=transport))
    monkeypatch.setattr(remote, "wait_before", lambda *_: 0.0)
    monkeypatch.setenv("PLAIN_KEY", PLAIN)
    judge = remote.remote_judge(
        "x",
        base_url="http://server/v1",
        model="m",
        api_key_env="PLAIN_KEY",
        template=load_template("pointwise"),
        single_template=load_template("single"),
        retries=1,
        failures_in_a_row=4,
        concurrency=2,
    )
    rows, error = [], None
    try:
        for block in judge.judge(RECORDS):
            rows += block
    except RemoteError as problem:
        error = str(problem)
        assert "http://server/v1" in error and "\n" not in error and PLAIN not in error
    assert len({row["id"] for row in rows}) == len(rows)
    assert error is not None or len(rows) == len(RECORDS)
    for row in rows:
        assert PLAIN not in json.dumps(row, ensure_ascii=False, allow_nan=False)
        json.dumps(row, ensure_ascii=False).encode()
        reasons = (*FAILURE_REASONS, "request_failed:connection")
        assert (row["scores"] is None) == (row["failure"] is not None)
        if row["failure"] is not None:
            assert row["failure"] in reasons or FAILURE.fullmatch(row["failure"])


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(exchanges, max_size=12))
def test_any_exchanges_end_in_judgments_or_one_named_error(script, monkeypatch):
    check_any_exchanges(script, monkeypatch)
