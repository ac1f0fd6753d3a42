"""Real clients, each in its own environment, against one server: what came out of each is what the
server's own verdict says.

`bash tests/clients/make_envs.sh` makes the environments; docs/clients.md has what is printed.
"""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import httpx
import pytest

pytestmark = [pytest.mark.clients, pytest.mark.slow]

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
ENVS = REPO / ".cache/clients"
BASE = REPO / "grm_jax/assets/tiny_base"
NAME = "gpt-4o-2024-08-06"  # RewardBench asks for a model of its list alone


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A client of `grm serve --model tiny`, which is started once."""
    command = [sys.executable, "-m", "grm_jax", "serve", "--model=tiny", "--port=0"]
    command += [f"--name={NAME}"]
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with log.open("w") as file:
        environment = os.environ | {"XLA_FLAGS": ""}
        process = subprocess.Popen(command, stderr=file, env=environment, cwd=REPO)
    try:
        said = {}
        while "ready" not in said:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
            whole = log.read_text().split("\n")[:-1]
            said = {line["event"]: line for line in map(json.loads, whole)}
        with httpx.Client(base_url=said["listening"]["url"], timeout=600) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def program(server, tmp_path):
    """Runs the program of a client beside the packaged base, which has the name of the server's
    model there, and returns what it prints."""
    (tmp_path / NAME).symlink_to(BASE)
    return functools.partial(run, server, tmp_path)


def run(server, folder, client, *arguments):
    """What the program of a client prints, by the Python of its environment."""
    lock, made = HERE / f"{client}.txt", ENVS / client / "lock.txt"
    if not made.exists() or made.read_text() != lock.read_text():
        pytest.skip(f"no environment of this lock: bash tests/clients/make_envs.sh {client}")
    environment = os.environ | {
        "XLA_FLAGS": "",
        "GRM_SERVER": str(server.base_url).rstrip("/"),
        "PYTHONPATH": str(REPO),
        "HF_HUB_OFFLINE": "1",
    }
    command = [ENVS / client / "bin/python", HERE / f"run_{client}.py", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def judged(server, conversation, responses, **how):
    """(reply of /v1/judge, scores of each kept judgment in the order of the responses).

    The doors of trainers judge a list in its sorted order.
    """
    order = sorted(range(len(responses)), key=lambda i: responses[i])  # also of equal ones
    body = {"conversation": conversation, "responses": [responses[i] for i in order]} | how
    reply = server.post("/v1/judge", json=body).raise_for_status().json()
    places = [order.index(i) for i in range(len(responses))]
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


def test_trl_grpo_is_rewarded_with_the_verdicts_and_leaves_failures_out(server, program):
    found = program("trl", NAME)
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


def test_openai_s_client_is_given_the_judgment_whole_and_in_pieces(server, program):
    found = program("openai")
    reply, _ = judged(server, found["task"], found["responses"], k=1)
    verdict = found["verdict"]
    assert {**verdict, "cached": None} == {**reply, "cached": None}
    (judgment,) = verdict["judgments"]
    assert found["whole"] == found["streamed"] == judgment["text"] != ""
    assert found["weights"] == reply["weights"] and found["model"] == reply["model"] == NAME
    assert found["refused"] == "context_length_exceeded"


def test_verl_s_managers_give_the_verdicts_of_groups(server, program):
    found = program("verl", NAME)
    assert found["manager"] == "NaiveRewardManager"
    tasks, responses = found["tasks"], found["responses"]
    for task in dict.fromkeys(tasks):
        members = [i for i, other in enumerate(tasks) if other == task]
        texts = [responses[i] for i in members]
        _, kept = judged(server, task, texts, k=4, seed=3)
        assert [found["scores"][i] for i in members] == pytest.approx(wins(kept), rel=1e-6)
        _, kept = judged(server, task, texts)
        assert [found["route"][i] for i in members] == pytest.approx(means(kept), rel=1e-6)
    assert [one["grm_members"] for one in found["extra"]] == [3] * 6
    # no number of a judgment that failed, by either way: verl stops
    assert found["failed"] == "Unanswered: no score: too_long"
    assert found["route_failed"] == [{"reward_score": None}]
    assert found["route_assembled"].startswith("TypeError")


def test_tunix_is_rewarded_with_the_verdicts_and_learns_nothing_of_failures(server, program):
    found = program("tunix")
    assert len(found["prompts"]) == 8
    failures = []
    for prompt, task in found["tasks"].items():
        members = [i for i, other in enumerate(found["prompts"]) if other == prompt]
        assert len(members) == 4
        completions = [found["completions"][i] for i in members]
        rewards, by_function, advantages = (
            [found[name][i] for i in members] for name in ("rewards", "by_function", "advantages")
        )
        reply, kept = judged(server, task, completions, k=4, seed=3)
        failures.append(reply["failure"])
        if kept:
            assert rewards == by_function == pytest.approx(wins(kept), rel=1e-6)
            assert any(advantages)
        else:
            # its sum over functions has no word for it; the function's own figure has
            assert all(map(math.isnan, by_function)) and rewards == advantages == [0.0] * 4
    assert failures == [None, "too_long"]


def test_openrlhf_s_samples_of_one_prompt_get_the_verdict_on_their_group(server, program):
    found = program("openrlhf", NAME)
    reply, kept = judged(server, found["task"], found["responses"], k=4, seed=3)
    for road in ("url", "file"):
        samples = found[road]
        assert [s["reward"] for s in samples] == [pytest.approx([x], rel=1e-6) for x in wins(kept)]
        scores = [(x - 1) / 9 for x in means(kept)]
        assert [s["score"] for s in samples] == [pytest.approx([x], rel=1e-6) for x in scores]
        assert all(s["grm_members"] == [3] and s["grm_valid"] == [reply["valid"]] for s in samples)
    # null is no tensor: the URL's sample stops the trainer; the file's has no reward at all
    assert found["url_failed"] == [None] and found["url_held"] == "RuntimeError"
    assert found["file_failed"] is None and found["file_held"]["reward"] is None


def test_rewardbench_s_runner_counts_the_verdicts(server, program):
    task, responses = (
        "Reverse the list: 1.fox 2.ant 3.hen",
        ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"],
    )
    body = {"conversation": task, "responses": responses, "k": 1}
    (greedy,) = server.post("/v1/judge", json=body).json()["judgments"]
    prompt = f"[Judge from 1 to 10]\n[User] {task}\n"
    prompt += "".join(
        f"[Response {i}] {responses[at]}\n" for i, at in enumerate(greedy["order"], 1)
    )
    found = program("rewardbench", NAME, prompt)
    assert found["text"] == greedy["text"]
    expected = []
    for task, chosen, rejected in found["pairs"]:
        reply, kept = judged(server, task, [chosen, rejected], k=4, seed=3)
        difference = 0.0 if reply["scores"] is None else means(kept)[0] - means(kept)[1]
        expected.append(0.5 if difference == 0 else float(difference > 0))
    assert found["by_verdicts"] == expected and {0.0, 0.5, 1.0} == set(expected)
    # its own prompt is longer than the tiny judge reads: it hears so, and counts halves
    assert found["as_it_is"] == [0.5] * len(expected)


def test_nemo_gym_s_own_rewards_of_the_comparisons_are_the_verdict_s(server, program):
    found = program("nemo_gym")
    _, kept = judged(server, found["task"], found["responses"])
    compared = found["judged"]
    assert compared["rewards"] == pytest.approx(means(kept), rel=1e-6)
    assert compared["its_own"] == pytest.approx(means(kept), rel=1e-6)
    assert compared["pairs"] == 3 * len(kept)
    # its reply holds numbers alone: it refuses null, and scores nothing
    assert (
        found["failed"]["rewards"] == [None] * 3 and found["failed"]["refused"] == ["rewards"] * 3
    )
    assert found["failed"]["failures"] == ["too_long"] * 3
