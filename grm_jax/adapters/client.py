"""Asks a reward server from a trainer's process: httpx, retries, and nothing of JAX.

One call asks for a group: the responses to one conversation, which are judged together. A response
that could not be scored is None; why, is in the reply.
"""

import asyncio
import functools
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx

from grm_jax.naming import nearest

HOW = ("k", "seed", "temperature", "k_meta", "deadline_s", "scalar")  # at every door of trainers
AGAIN = (408, 429, 502, 503, 504)
LATER = (429, 503)  # said by a server that is well: it is full, or not ready yet
DEADLINE_S = 300.0  # of a server, for requests that name none
SPARE_S = 30.0  # behind a deadline, in which what is there of a verdict comes
LONGEST_S = 30.0


class Unanswered(RuntimeError):
    """Says that the server gave no answer, and what it said instead."""


def address(base_url: str | None = None) -> str:
    """Returns where the server is: as given, else GRM_SERVER, else this machine's port 8000."""
    return (base_url or os.environ.get("GRM_SERVER") or "http://127.0.0.1:8000").rstrip("/")


def check_asked(asked: Mapping[str, Any], also: Sequence[str] = ()) -> None:
    """Checks that a door of trainers knows what it is asked; they pass over what they do not.

    also: names beside `HOW`. Raises ValueError with the nearest names.
    """
    for name in asked:
        if name not in (*HOW, *also):
            raise ValueError(f"unknown setting {name!r}; {nearest(name, (*HOW, *also))}")


def _headers() -> dict[str, str]:
    key = os.environ.get("GRM_API_KEY")
    # the same for all tries, so that what was drawn once is not drawn again
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


@functools.cache
def _client(timeout_s: float) -> httpx.Client:
    return httpx.Client(timeout=timeout_s)


def _patience(body: Mapping[str, Any], timeout_s: float | None) -> float:
    """Seconds after which a try is given up."""
    if timeout_s is not None:
        return timeout_s
    return (body.get("deadline_s") or DEADLINE_S) + SPARE_S


def _answer(reply: httpx.Response) -> dict[str, Any] | None:
    """The reply's JSON; None where it may be asked for again."""
    if reply.status_code in AGAIN:
        return None
    if reply.status_code != 200:
        raise Unanswered(f"{reply.url}: status {reply.status_code}: {reply.text[:500]}")
    return reply.json()


def _pause(tries: int, reply: httpx.Response | None) -> float:
    stated = reply.headers.get("Retry-After", "") if reply is not None else ""
    wait = float(stated) if stated.isdigit() else min(LONGEST_S, 0.5 * 2**tries)
    return wait * (1 + random.random() / 4)


async def _asked(
    url: str,
    tries: int,
    patience: float,
    post: Callable[[str, Mapping[str, str]], Awaitable[httpx.Response]],
    sleep: Callable[[float], Awaitable[None]],
) -> dict[str, Any]:
    """Posts until there is an answer: `tries` that fail at most, and for `patience` seconds where
    it is told to come later.
    """
    headers, began, attempt = _headers(), time.monotonic(), 0
    while True:
        reply = None
        try:
            reply = await post(url, headers)
            if (answer := _answer(reply)) is not None:
                return answer
            said = f"status {reply.status_code}: {reply.text[:500]}"
        except httpx.TransportError as error:
            said = repr(error)
        later = reply is not None and reply.status_code in LATER
        tries -= not later
        pause, waited = _pause(attempt, reply), time.monotonic() - began
        attempt += 1
        if tries < 1 or (later and waited + pause > patience):
            raise Unanswered(f"{url}: {attempt} tries in {waited:.0f} s; the last: {said}")
        await sleep(pause)


def ask(
    path: str,
    body: Mapping[str, Any],
    base_url: str | None = None,
    timeout_s: float | None = None,
    tries: int = 5,
) -> dict[str, Any]:
    """Posts a body, and returns the answer's JSON. Waits where the server says so.

    timeout_s: of a try; None is the deadline that the body names, or the server's own, and
        `SPARE_S` more: what a deadline cuts off is answered, and is no reason to ask again.
        A server that is full or not ready is asked again for as long in all.

    Raises Unanswered after that, after `tries` that fail otherwise, and at once for what another
    try cannot help.
    """
    patience = _patience(body, timeout_s)

    async def post(url: str, headers: Mapping[str, str]) -> httpx.Response:
        return _client(patience).post(url, json=body, headers=headers)

    async def sleep(seconds: float) -> None:
        time.sleep(seconds)

    try:  # nothing that it awaits suspends it, so that it needs no event loop
        _asked(address(base_url) + path, tries, patience, post, sleep).send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("what a blocking call awaits must not suspend it")


async def ask_async(
    path: str,
    body: Mapping[str, Any],
    base_url: str | None = None,
    timeout_s: float | None = None,
    tries: int = 5,
) -> dict[str, Any]:
    """Does what `ask` does, beside other coroutines."""
    patience = _patience(body, timeout_s)
    async with httpx.AsyncClient(timeout=patience) as client:

        async def post(url: str, headers: Mapping[str, str]) -> httpx.Response:
            return await client.post(url, json=body, headers=headers)

        return await _asked(address(base_url) + path, tries, patience, post, asyncio.sleep)


def text_of(completion: Any) -> str:
    """Returns the text of a completion: a text, or messages of which the last one's is taken."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"])


def turns_of(prompt: Any) -> list[dict[str, str]]:
    """Returns a prompt as turns: a text is the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def grouped(prompts: Sequence[Any]) -> list[list[int]]:
    """Returns the indices of equal prompts, group by group, in the order of their first ones."""
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(repr(turns_of(prompt)), []).append(i)
    return list(groups.values())


def group_body(
    prompts: Sequence[Any], completions: Sequence[Any], members: Sequence[int], asked: Mapping
) -> dict[str, Any]:
    """Returns the body that asks /compare for the completions of one prompt."""
    return {
        "conversation_history": turns_of(prompts[members[0]]),
        "response_objs": [text_of(completions[i]) for i in members],
        **asked,
    }
