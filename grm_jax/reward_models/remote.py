"""Puts a judge behind any OpenAI-compatible chat API: GPT-4o, or an open model on a server.

One request a judgment. The prompt is a template of ours, the reply is parsed as a policy's own text
is, and what the request cost is kept beside it. Requests run side by side in an event loop of their
own thread, so `judge` may be called with or without a running loop; it blocks its caller like any
other judge.
"""

import contextlib
import email.utils
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, NamedTuple

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from grm_jax.judgment.parsing import ANSWERS, read_answer
from grm_jax.judgment.prompts import Template, render_prompt
from grm_jax.judgment.records import Record, seeded_digest
from grm_jax.reward_models.protocol import RewardModel, new_judgment, shown_order

ROWS_PER_BLOCK = 16  # finished requests that are yielded, and so kept, together
# before the first retry; it doubles for each further one, and is spread by a random factor of 0.5
# to 1.5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 120.0  # a server that asks for a longer pause (Retry-After) ends the retries
RETRIED = (408, 409, 429)  # and every 5xx
# too long, or refused by a filter: other requests may succeed
ABOUT_THIS_REQUEST = (400, 413, 422, 451)


class Attempt(NamedTuple):
    """Holds one exchange: the server's JSON object, or the failure's name and the server's words.

    With a failure it says whether and after how long to try again.
    """

    body: dict[str, Any] | None
    failure: str | None = None
    error: str = ""
    again: bool = False
    wait_s: float | None = None


def remote_judge(
    name: str,
    *,
    base_url: str,
    model: str,
    template: Template,
    single_template: Template,
    answer: str = "scores",
    api_key_env: str | None = None,
    seed: int = 0,
    top_p: float = 1.0,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    retries: int = 5,
    max_tokens: int = 2048,
    price_per_million: tuple[float, float] | None = None,
) -> RewardModel:
    """Asks a server: POST {base_url}/chat/completions, once for each record and sample.

    base_url: such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
    template, single_template, answer: as in `grm.Prompter`. With "index" a list is shown whole, and
        its best response named.
    api_key_env: name of the environment variable that holds the key, read when judging begins; None
        sends no key.
    seed: of response orders, and of the `seed` field of a request, a function of (seed, record id,
        sample); many servers ignore it.
    concurrency: requests in flight.
    timeout_s: seconds for a whole attempt.
    retries: further attempts after timeouts, connection errors and the statuses 408, 409, 429 and
        5xx, with exponential backoff, or as Retry-After says.
    price_per_million: (input, output) tokens, in any currency.

    Besides the fields of the protocol a judgment holds:

    principles, critique, finish, served_model, prompt_tokens
    cost: None where the server reports no usage ("tokens" is 0 then), or without a price.
    latency_s: of the last attempt, in seconds.
    attempts
    error: the server's words.

    A judgment that does not come is a named failure, "request_failed:" and timeout, connection,
    http_STATUS, malformed_reply (no chat completion in JSON) or no_text; text that does not parse
    has the parser's reason. A block of judgments is yielded every ROWS_PER_BLOCK requests, in the
    order in which they finish.

    Raises ValueError for settings that cannot work, and RuntimeError, with url and status, for an
    answer that every request would get: a redirect, 401, 403, 404 and other 4xx. No message holds
    the key.
    """
    url = _endpoint(base_url)
    if answer not in ANSWERS:
        raise ValueError(f"answer is {answer!r}; expected one of {', '.join(ANSWERS)}")
    if concurrency < 1 or retries < 0 or timeout_s <= 0:
        raise ValueError(
            f"{name}: expected concurrency >= 1, retries >= 0 and timeout_s > 0, got "
            f"{concurrency}, {retries} and {timeout_s}"
        )

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        key = _api_key(api_key_env)
        client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
            limits=httpx.Limits(max_connections=concurrency),
        )

        async def judged(record: Record, sample: int) -> dict:
            order = shown_order(seed, record, sample, swapped)
            prompt = render_prompt(
                single_template if len(order) == 1 and answer == "scores" else template,
                record,
                order,
            )
            payload = {
                "model": model,
                "messages": [{"role": "user", "content": prompt.strip()}],
                "temperature": temperature,
                "top_p": top_p,
                "max_tokens": max_tokens,
                "seed": int.from_bytes(
                    seeded_digest("remote_seed", seed, record.id, sample)[:4], "big"
                )
                >> 1,
            }
            evidence = await _chat(client, url, payload, key, timeout_s, retries)
            text, failure = evidence.pop("text"), evidence.pop("failure")
            if failure is None:
                read = read_answer(text, order, answer, truncated=evidence["finish"] == "length")
            else:
                read = {
                    "scores": None,
                    "failure": f"request_failed:{failure}",
                    "principles": [],
                    "critique": "",
                }
            counts = evidence["prompt_tokens"], evidence["tokens"]
            cost = (
                None
                if price_per_million is None or None in counts
                else sum(n * price / 1e6 for n, price in zip(counts, price_per_million))
            )
            return new_judgment(
                record,
                sample,
                order,
                temperature,
                text=text,
                **read,
                **evidence | {"tokens": evidence["tokens"] or 0, "cost": cost},
            )

        block, arguments = [], ((record, sample) for record in records for sample in samples)
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(client),
            contextlib.closing(_side_by_side(portal, judged, arguments, concurrency)) as finished,
        ):
            try:
                for one in finished:
                    block.append(one)
                    if len(block) == ROWS_PER_BLOCK:
                        yield block
                        block = []
            except RuntimeError:  # what was paid for is kept
                if block:
                    yield block
                raise
        if block:
            yield block

    return RewardModel(
        name, judge, sampled=True, accepts=lambda n: n >= (2 if answer == "index" else 1)
    )


def _endpoint(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise ValueError(
            "base_url: expected http(s)://host/path without user, password or query, got "
            f"{url.copy_with(userinfo=b'', query=None)}"
        )
    return f"{base_url.rstrip('/')}/chat/completions"


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(
            f"the environment variable {variable} holds no API key; expected one line of ASCII text"
        )
    return key


def _side_by_side(
    portal: BlockingPortal, function: Callable, arguments: Iterable[tuple], concurrency: int
) -> Generator[Any, None, None]:
    """Yields results of an async function in the order in which they come.

    At most `concurrency` calls run at a time. The first exception ends it.
    """
    pending = set()

    def finished() -> list:
        done, rest = wait(pending, return_when=FIRST_COMPLETED)
        pending.intersection_update(rest)
        # what succeeded at the same time is not lost
        return sorted(done, key=lambda future: future.exception() is not None)

    try:
        for argument in arguments:
            pending.add(portal.start_task_soon(function, *argument))
            if len(pending) == concurrency:
                yield from (future.result() for future in finished())
        while pending:
            yield from (future.result() for future in finished())
    finally:
        for future in pending:
            future.cancel()


async def _chat(
    client: httpx.AsyncClient,
    url: str,
    payload: dict,
    key: str | None,
    timeout_s: float,
    retries: int,
) -> dict[str, Any]:
    """Makes one request with its retries.

    Returns {"text", "failure", "finish", "served_model", "prompt_tokens", "tokens", "latency_s",
    "attempts", "error"}.
    """
    for number in range(1, retries + 2):
        began = time.monotonic()
        attempt = await _attempt(client, url, payload, key, timeout_s)
        latency_s = time.monotonic() - began
        backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1.5))
        wait_s = backoff_s if attempt.wait_s is None else attempt.wait_s
        if not attempt.again or wait_s > LONGEST_WAIT_S or number == retries + 1:
            break
        await anyio.sleep(wait_s)
    evidence = {
        "text": "",
        "finish": None,
        "served_model": None,
        "prompt_tokens": None,
        "tokens": None,
    }
    failure, error = attempt.failure, attempt.error
    if attempt.body is not None:
        try:
            evidence |= _read_completion(attempt.body)
            failure = None if evidence["text"] or evidence["finish"] == "length" else "no_text"
        except (KeyError, IndexError, TypeError, AttributeError) as problem:
            failure, error = (
                "malformed_reply",
                (
                    f"not a chat completion ({type(problem).__name__}: {problem}): "
                    f"{_excerpt(str(attempt.body), key)}"
                ),
            )
    return evidence | {
        "failure": failure,
        "latency_s": latency_s,
        "attempts": number,
        "error": error,
    }


async def _attempt(
    client: httpx.AsyncClient, url: str, payload: dict, key: str | None, timeout_s: float
) -> Attempt:
    try:
        with anyio.fail_after(timeout_s):
            response = await client.post(url, json=payload)
    except TimeoutError:
        return Attempt(None, "timeout", f"no whole reply within {timeout_s:g} s", again=True)
    except httpx.RequestError as problem:
        return Attempt(
            None, "connection", _excerpt(f"{type(problem).__name__}: {problem}", key), again=True
        )
    status, said = response.status_code, _excerpt(response.text, key)
    if response.is_success:
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = None
        return (
            Attempt(body)
            if isinstance(body, dict)
            else Attempt(None, "malformed_reply", f"not a JSON object: {said}")
        )
    if status in RETRIED or status >= 500:
        return Attempt(
            None,
            f"http_{status}",
            said,
            again=True,
            wait_s=_retry_after(response.headers.get("Retry-After")),
        )
    if status in ABOUT_THIS_REQUEST:
        return Attempt(None, f"http_{status}", said)
    raise RuntimeError(
        f"POST {url}: HTTP {status} {response.reason_phrase}, model {payload['model']!r}: {said}"
    )


def _retry_after(header: str | None) -> float | None:
    """Returns the seconds that a server asks to wait, from a number or an HTTP date.

    None where it says nothing that can be read.
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
        except ValueError:
            return None


def _read_completion(body: dict) -> dict[str, Any]:
    """Returns the text and counts of a chat completion.

    Raises KeyError, IndexError, TypeError or AttributeError where it is none.
    """
    choice, usage = body["choices"][0], body["usage"] if isinstance(body.get("usage"), dict) else {}
    content, finish, served = (
        choice["message"]["content"] or "",
        choice.get("finish_reason"),
        body.get("model"),
    )
    return {
        "text": _encodable(content.strip() and content),
        "finish": None if finish is None else _encodable(finish),
        "served_model": None if served is None else _encodable(served),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "tokens": _count(usage.get("completion_tokens")),
    }


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _encodable(text: str) -> str:
    """Drops halves of surrogate pairs, which JSON may hold and a UTF-8 file may not."""
    return text.encode("utf-8", "replace").decode()


def _excerpt(text: str, key: str | None) -> str:
    text = _encodable(text if key is None else text.replace(key, "[API key]"))
    return text if len(text) <= 300 else text[:297] + "..."
