"""One server of the tiny judge for all tests of this folder that do not stop it."""

import contextlib
import threading
import time

import httpx
import jax
import pytest

import grm_jax
from grm_jax.parallel.mesh import make_mesh
from grm_jax.serving.run import listen, server
from grm_jax.serving.settings import Serving

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RIGHT, WRONG = "1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"


def load_tiny(**arguments):
    return grm_jax.load("tiny", mesh=make_mesh(devices=jax.devices()[:1]), **arguments)


@contextlib.contextmanager
def running(load=load_tiny, **settings):
    """A server in a thread; gives a client of it, whose `server` is uvicorn's."""
    listener = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    uvicorn_server = server(load, Serving(**settings))
    thread = threading.Thread(target=uvicorn_server.run, args=([listener],), daemon=True)
    thread.start()
    with httpx.Client(base_url=address, timeout=600) as client:
        client.server, client.thread = uvicorn_server, thread
        client.service = uvicorn_server.config.app.app.state.service
        try:
            deadline = time.monotonic() + 600
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline and "failed" not in client.service.state
                time.sleep(0.05)
            yield client
        finally:
            uvicorn_server.should_exit = True
            thread.join(30)
    listener.close()


@pytest.fixture(scope="session")
def served():
    with running() as client:
        yield client


@pytest.fixture(scope="session")
def tiny():
    return load_tiny()


def body(**fields):
    return {"conversation": TASK, "responses": [RIGHT, WRONG]} | fields
