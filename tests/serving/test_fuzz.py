"""Bodies of all kinds over all doors: none is an error of the server, and each is answered."""

import contextlib
import random

import numpy as np
import pytest

from grm_jax.sampling.requests import Completion
from tests.serving.fuzz import DOORS, hostile
from tests.serving.test_core import idle

WHOLE = (
    "body",
    "json",
    "responses",
    "idempotency-key",
)  # what a message says of a request that is none


@contextlib.contextmanager
def nothing_computed(served):
    """The engine answers at once, with nothing."""

    def answer(draw):
        request, none = draw.request, np.zeros(0, np.int32)
        draw.done([Completion(request.item_id, i, none, none, True) for i in request.samples])

    served.service.lane.submit = answer
    try:
        yield
    finally:
        del served.service.lane.submit


def fuzzed(served, path, bodies, seed):
    """The statuses of so many bodies. None may be one of 500; each error names what is wrong."""
    assert served.post(path, json=DOORS[path]).status_code == 200
    rng, seen = random.Random(f"{path} {seed}"), {}
    for _ in range(bodies):
        sent = hostile(rng, DOORS[path])
        headers = {name: value.encode("latin1") for name, value in sent.headers.items()}
        reply = served.post(path, content=sent.content, headers=headers, timeout=60)
        status = reply.status_code
        seen[status] = seen.get(status, 0) + 1
        # a text that is not there in time is no error of the server
        assert status < 500 or status == 504, (sent.content[:500], reply.text)
        if status >= 400:
            assert set(reply.json()) == {"error"}
            said = reply.json()["error"]["message"].lower()
            named = any(name in said for name in (*WHOLE, *(sent.changed or ())))
            assert named or sent.changed is None or status == 504, (sent, said)
            assert len(said) < 1000
    return seen


@pytest.mark.parametrize("path", DOORS)
def test_no_body_is_an_error_of_the_server(served, path):
    with nothing_computed(served):
        assert 422 in fuzzed(served, path, 60, 0)
    idle(served)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOORS)
def test_ten_thousand_bodies(served, path, capsys):
    """With the model behind the doors: of all doors together."""
    seen = fuzzed(served, path, -(-10_000 // len(DOORS)), 1)
    with capsys.disabled():
        print(f"\n{path}: {dict(sorted(seen.items()))}")
    idle(served)
