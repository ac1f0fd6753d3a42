"""A server that is killed, twice, under clients that ask again."""

import collections
import concurrent.futures
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from grm_jax.adapters import client
from grm_jax.data.world import make_records
from grm_jax.serving.run import listen
from tests.serving.test_core import assert_same

ITEMS, CLIENTS, K = 120, 12, 4


@contextlib.contextmanager
def process(port, cache):
    command = [sys.executable, "-m", "grm_jax", "serve", f"--port={port}", f"--cache={cache}"]
    # 1 of the 8 devices that the tests have, as the library's judge
    running = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=os.environ | {"XLA_FLAGS": ""}
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
def test_every_item_is_scored_once_by_a_server_that_is_killed_twice(
    tmp_path, tiny, capsys, monkeypatch
):
    """The verdicts are those of a server that nobody disturbed, and the file has each once."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    url, cache = f"http://127.0.0.1:{port}", tmp_path / "verdicts.db"
    bodies = [
        {
            "conversation": record.conversation[0].content,
            "responses": list(record.responses),
            "k": K,
        }
        for record in make_records("test", ITEMS, 2)
    ]
    replies: dict[int, list[dict]] = collections.defaultdict(list)
    waiting, pauses = threading.Semaphore(0), []
    monkeypatch.setattr(client, "_pause", lambda *_: pauses.append(1) or 0.2)

    def ask(i):
        replies[i].append(client.ask("/v1/judge", bodies[i], url, tries=10_000))
        waiting.release()

    def killed_after(running, answers):
        for _ in range(answers):
            assert waiting.acquire(timeout=600)
        running.send_signal(signal.SIGKILL)
        assert running.wait(60) == -signal.SIGKILL

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, i) for i in range(ITEMS)]
        for _ in range(2):
            with process(port, cache) as running:
                killed_after(running, ITEMS // 3)
        with process(port, cache):
            for one in asked:
                one.result()
    assert sorted(replies) == list(range(ITEMS))
    assert all(len(answers) == 1 for answers in replies.values())
    for i, (reply,) in replies.items():
        assert_same(reply, tiny(bodies[i]["conversation"], bodies[i]["responses"], k=K))
    with contextlib.closing(sqlite3.connect(cache)) as file:
        rows = file.execute("SELECT value FROM verdicts").fetchall()
    kept = collections.Counter(json.loads(value)["verdict"]["id"] for (value,) in rows)
    assert kept == collections.Counter(reply["id"] for (reply,) in replies.values())
    cached = sum(reply["cached"] for (reply,) in replies.values())
    assert len(pauses) >= 2 * (CLIENTS - 1)  # whoever waits when it is killed
    with capsys.disabled():
        print(
            f"\n{ITEMS} items, killed twice: {len(replies)} answered, {len(rows)} kept, "
            f"{cached} of them drawn before their reply was lost; calls that failed: {len(pauses)}"
        )
