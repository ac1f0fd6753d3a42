"""Real clients, each in its own environment, against one server: what came out of each is what the
server's own verdict says.

`bash tests/clients/make_envs.sh` makes the environments; docs/clients.md has what is printed.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import httpx
import pytest

pytestmark = [pytest.mark.clients, pytest.mark.slow]

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
ENVS = REPO / ".cache/clients"
BASE = REPO / "grm_jax/assets/tiny_base"


@pytest.fixture(scope="module")
def server():
    """A client of `grm serve --model tiny`, which is started once."""
    command = [sys.executable, "-m", "grm_jax", "serve", "--model=tiny", "--port=0"]
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        for line in process.stderr:
            said = json.loads(line)
            if said["event"] == "listening":
                url = said["url"]
            if said["event"] == "ready":
                break
        # what it says of requests has to be read by somebody, or it waits
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        with httpx.Client(base_url=url, timeout=600) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)
        drain.wait(60)
        process.stderr.close()


def run(server, client, *arguments):
    """What the program of a client prints, by the Python of its environment."""
    python = ENVS / client / "bin/python"
    if not python.exists():
        pytest.skip(f"no environment: bash tests/clients/make_envs.sh {client}")
    environment = {name: x for name, x in os.environ.items() if name not in ("JAX_PLATFORMS",)}
    environment |= {
        "GRM_SERVER": str(server.base_url).rstrip("/"),
        "PYTHONPATH": str(REPO),
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, HERE / f"run_{client}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def judged(server, conversation, responses, **how):
    """(reply of /v1/judge, scores of each kept judgment in the order of the responses).

    The doors of trainers judge a list in its sorted order.
    """
    ordered = sorted(responses)
    body = {"conversation": conversation, "responses": ordered} | how
    reply = server.post("/v1/judge", json=body).raise_for_status().json()
    places = [ordered.index(response) for response in responses]
    kept = [j["scores"] for j in reply["judgments"] if j["kept"] and j["scores"]]
    return reply, [[scores[place] for place in places] for scores in kept]


def means(kept):
    return [sum(of) / len(kept) for of in zip(*kept)]


def wins(kept):
    """The share of comparisons that each wins, a tie being half a win, the slow way."""
    count = len(kept[0])
    points = [0.0] * count
    for scores in kept:
        for i in range(count):
            for j in range(count):
                if i != j:
                    points[i] += 1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
    return [of / (len(kept) * (count - 1)) for of in points]


def test_trl_grpo_is_rewarded_with_the_verdicts_and_leaves_failures_out(server):
    found = run(server, "trl", BASE)
    assert len(found["prompts"]) == 8
    failed, scored = 0, []
    for prompt in dict.fromkeys(found["prompts"]):
        members = [i for i, other in enumerate(found["prompts"]) if other == prompt]
        assert len(members) == 4
        completions = [found["completions"][i] for i in members]
        reply, kept = judged(server, prompt, completions, k=4, seed=3)
        given = {name: [found["rewards"][name][i] for i in members] for name in found["rewards"]}
        if reply["scores"] is None:
            failed += 1
            assert reply["failure"] == "too_long" and not kept
            assert all(map(math.isnan, given["grm"] + given["grm_async"]))
            assert [found["advantages"][i] for i in members] == [0.0] * 4
        else:
            assert given["grm"] == pytest.approx(wins(kept), rel=1e-6)
            assert given["grm_async"] == pytest.approx(means(kept), rel=1e-6)
            scored += [a + b for a, b in zip(given["grm"], given["grm_async"])]
    assert failed == 1 and len(scored) == 4
    # the failed group is in no mean that TRL logs
    assert found["logged"]["reward"] == pytest.approx(sum(scored) / 4, rel=1e-4)
