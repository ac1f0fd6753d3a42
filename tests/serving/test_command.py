"""`grm serve`, as it is started and stopped."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx

from grm_jax import cli
from tests.serving.conftest import body


def test_it_says_where_it_listens_reads_its_weights_anew_and_ends(monkeypatch):
    environment = os.environ | {"GRM_API_KEY": "secret", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "grm_jax", "serve", "--port=0", "--k=2", "--no-meta"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = (json.loads(line) for line in process.stderr)
    try:
        said = {line["event"]: line for line in (next(lines), next(lines))}
        url = said["listening"]["url"]
        assert url.startswith("http://127.0.0.1:") and said["ready"]["model"] == "tiny"
        with httpx.Client(base_url=url, timeout=600) as client:
            assert client.get("/readyz").json()["status"] == "ready"
            assert client.post("/v1/judge", json=body()).status_code == 401
            wrong = {"Authorization": "Bearer secre"}
            assert client.post("/v1/judge", json=body(), headers=wrong).status_code == 401
            client.headers["Authorization"] = "Bearer secret"
            reply = client.post("/v1/judge", json=body()).json()
            assert reply["k"] == 2 and reply["weights"] == said["ready"]["weights"]
            process.send_signal(signal.SIGHUP)
            line = next(line for line in lines if line["event"] == "weights")
            assert line["weights"] == line["before"] == reply["weights"]
            again = client.post("/v1/judge", json=body()).json()
            assert again["loaded"] > reply["loaded"] and again["scores"] == reply["scores"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_what_cannot_be_is_said_at_once(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", f"--port={port}"]) == cli.CANNOT
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert cli.main(["serve", "--k=9", "--samples=4"]) == cli.CANNOT
    assert "k: expected at most samples = 4" in capsys.readouterr().err
