"""What keeps a server in operation: metrics, idempotency keys, the cache of verdicts."""

import concurrent.futures
import http.client
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from grm_jax.serving.cache import Cache
from tests.serving.conftest import RIGHT, TASK, WRONG, body, running
from tests.serving.test_core import assert_same, eventually, held, idle


def metrics(served):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(served.get("/metrics").text)
        for sample in family.samples
    }


def test_metrics_count_what_was_done(served):
    idle(served)
    before = metrics(served)
    replies = [served.post("/v1/judge", json=body(k=4, seed=i)).json() for i in range(2)]
    served.post("/v1/judge", json=body(responses=[RIGHT, WRONG * 40], k=3))
    served.post("/v1/judge", json=body(k=1000))
    served.get(f"/{'x' * 50}")
    idle(served)
    after = metrics(served)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["grm_samples_total",] == 2 * 4 + 3
    written = sum(reply["usage"]["completion_tokens"] for reply in replies)
    assert grown["grm_tokens_decoded_total",] == written
    assert grown["grm_failures_total", ("name", "too_long")] == 3
    assert grown["grm_refused_total", ("reason", "invalid_request_error")] == 1
    path = ("path", "/v1/judge")
    assert grown["grm_requests_total", path, ("status", "200")] == 3
    assert grown["grm_requests_total", path, ("status", "422")] == 1
    assert grown["grm_requests_total", ("path", "other"), ("status", "404")] == 1
    assert grown["grm_request_seconds_count", path] == 4
    assert after["grm_ready",] == 1 and after["grm_samples_asked",] == 0
    assert after["grm_rows",] >= 1 and after["grm_rows_used",] == 0
    weights = served.get("/readyz").json()["weights"]
    assert after["grm_weights", ("model", "grm"), ("weights", weights)] == 1
    with held(served) as release, concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, "/v1/judge", json=body(k=4))
        eventually(lambda: metrics(served)["grm_samples_asked",] == 4)
        release()
        assert asked.result().status_code == 200


def test_a_key_is_answered_once_whoever_leaves(served):
    drawn, key = served.service.drawn, {"Idempotency-Key": "one"}
    headers, asked = {"Content-Type": "application/json"} | key, json.dumps(body(k=4))
    with held(served) as release, concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = http.client.HTTPConnection(served.base_url.host, served.base_url.port)
        first.request("POST", "/v1/judge", asked, headers)
        eventually(lambda: served.service.asked == 4)
        second = pool.submit(served.post, "/v1/judge", content=asked, headers=headers)
        eventually(lambda: served.server.config.app.known["one"].waiting == 2)
        first.close()  # leaves; the other waits for the same work
        eventually(lambda: served.server.config.app.known["one"].waiting == 1)
        assert served.service.asked == 4
        release()
    again = served.post("/v1/judge", content=asked, headers=headers)
    assert second.result().content == again.content and again.status_code == 200
    assert served.service.drawn == drawn + 4
    other = served.post("/v1/judge", json=body(k=5), headers=key)
    assert other.status_code == 422 and other.json()["error"]["type"] == "idempotency_key"
    idle(served)


def test_all_who_wait_for_a_key_leave_and_a_refusal_is_not_kept(served, monkeypatch):
    key = {"Idempotency-Key": "two"}
    with held(served), pytest.raises(httpx.ReadTimeout):
        served.post("/v1/judge", json=body(k=4), headers=key, timeout=0.5)
    eventually(lambda: "two" not in served.server.config.app.known)
    idle(served)
    with monkeypatch.context() as patch:
        patch.setattr(served.service, "state", "stopping")
        assert served.post("/v1/judge", json=body(k=2), headers=key).status_code == 503
    assert served.post("/v1/judge", json=body(k=2), headers=key).status_code == 200
    gate = served.server.config.app
    monkeypatch.setattr(gate, "most", 2)
    for name in "abc":
        served.post("/v1/judge", json=body(k=1000), headers={"Idempotency-Key": name})
    eventually(lambda: all(one.work.done() for one in gate.known.values()))
    assert len(gate.known) == 2 and "a" not in gate.known
    assert gate.bytes == sum(one.bytes for one in gate.known.values()) > 0
    monkeypatch.setattr("grm_jax.serving.gate.REMEMBERED_BYTES", gate.bytes // 2)
    served.post("/v1/judge", json=body(k=1000), headers={"Idempotency-Key": "d"})
    assert set(gate.known) == {"d"} and gate.bytes == gate.known["d"].bytes


def test_a_verdict_is_drawn_once_even_by_a_server_that_was_killed(tmp_path, tiny):
    """What the file holds outlives the process: nothing of it is in memory alone."""
    path = str(tmp_path / "verdicts.db")
    with running(cache=path) as client:
        first = client.post("/v1/judge", json=body(k=4)).json()
        late = client.post("/v1/judge", json=body(k=4, seed=1, deadline_s=1e-9)).json()
        assert late["failures"] == {"deadline": 4} and not late["cached"]
        other = client.post("/v1/judge", json=body(k=4, seed=1)).json()
        assert not other["cached"] and other["valid"]  # what a deadline cut off is not kept
        # as another process would, without a word to this one
        with running(cache=path) as second:
            again = second.post("/v1/judge", json=body(k=4)).json()
            assert again["cached"] and second.service.drawn == 0
            assert_same(json.loads(json.dumps(again)), tiny(TASK, [RIGHT, WRONG], k=4))
            assert {**again, "cached": False, "loaded": first["loaded"]} == first
            client.service.cache.file.execute("DROP TABLE verdicts")
            reply = second.post("/v1/judge", json=body(k=4, seed=2))
            assert reply.status_code == 200 and second.service.cache.errors == 2


def test_a_file_that_is_no_cache_is_said_at_the_start(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(ValueError, match="notes.txt.*not a cache"):
        Cache(str(path))


def test_every_door_has_its_name_in_the_metrics(served):
    doors = ["/get_reward", "/classify", "/compare", "/v1/completions", "/v1/chat/completions"]
    for door in doors:
        assert served.post(door, json={}).status_code == 422
    served.get("/metrics")
    seen = {name[1][1] for name in metrics(served) if name[0] == "grm_requests_total"}
    assert {*doors, "/metrics"} <= seen


def test_the_address_is_part_of_what_a_key_asks(served):
    asked = {"query": ["ab", "ac"], "prompts": ["a", "a"]}
    key = {"Idempotency-Key": "address"}
    assert served.post("/get_reward?k=1", json=asked, headers=key).status_code == 200
    other = served.post("/get_reward?k=2", json=asked, headers=key)
    assert other.status_code == 422 and other.json()["error"]["type"] == "idempotency_key"


def test_an_error_that_nobody_foresaw_is_answered_like_others(served, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(served.service, "how", broken)
    for headers in ({}, {"Idempotency-Key": "broken"}):
        reply = served.post("/v1/judge", json=body(), headers=headers)
        assert reply.status_code == 500 and reply.headers["X-Request-Id"]
        assert reply.json()["error"]["type"] == "internal_error" and "secret" not in reply.text


def test_too_many_at_once_are_told_to_come_back_before_anything_is_read(served, monkeypatch):
    monkeypatch.setattr(served.server.config.app, "requests", 1)
    with held(served) as release, concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.post, "/v1/judge", json=body(k=1))
        eventually(lambda: served.service.asked == 1)
        second = served.post("/v1/judge", json=body(k=1))
        assert second.status_code == 429 and second.headers["Retry-After"] == "1"
        assert second.json()["error"]["type"] == "busy" and second.headers["X-Request-Id"]
        assert served.get("/healthz").status_code == served.get("/metrics").status_code == 200
        release()
        assert first.result().status_code == 200
    assert served.post("/v1/judge", json=body(k=1)).status_code == 200


def test_a_damaged_row_of_the_cache_costs_no_answer(tmp_path):
    with running(cache=str(tmp_path / "verdicts.db")) as client:
        first = client.post("/v1/judge", json=body(k=1)).json()
        cache = client.service.cache
        for damaged in ("{", '{"verdict": {"judgments": [{"new": 1}], "scores": null}}', "[]"):
            cache.thread.submit(cache.file.execute, "UPDATE verdicts SET value = ?", (damaged,))
            again = client.post("/v1/judge", json=body(k=1)).json()
            assert not again["cached"] and again["scores"] == first["scores"]
        assert cache.errors == 3 and client.post("/v1/judge", json=body(k=1)).json()["cached"]
