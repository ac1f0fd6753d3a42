"""Puts a judge behind any OpenAI-compatible chat API: GPT-4o, or an open model on a server.

One request a judgment. The prompt is a template of ours, the reply is parsed as a policy's own text
is, and what the request cost is kept beside it. Requests run side by side in an event loop of their
own thread, so `judge` may be called with or without a running loop; it blocks its caller like any
other judge. docs/remote.md has the settings and the failures.
"""

import contextlib
import logging
import math
import random
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, NamedTuple

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from grm_jax.judgment.parsing import CHOICES, read_answer
from grm_jax.judgment.prompts import Template, render_prompt
from grm_jax.judgment.records import Record, seeded_digest
from grm_jax.judgment.rubric import read_rubric
from grm_jax.reward_models.protocol import RewardModel, new_judgment, shown_order
from grm_jax.reward_models.remote_config import RemoteConfig, headers_of, read_config, request_body
from grm_jax.reward_models.replies import RemoteError, Reply, excerpt, read_reply, shown_model

log = logging.getLogger(__name__)
ROWS_PER_BLOCK = 16  # finished requests that are yielded, and so kept, together
YIELDS_EVERY_S = 3.0  # what is finished, or nothing: the caller may want to stop
# before the first retry; it doubles for each further one, and each wait is spread by a random
# factor of 0.5 to 1.5, on top of what Retry-After asks for
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 120.0  # a server that asks for a longer pause (Retry-After) ends the retries
SAID_EVERY_S = 30.0  # of a server that is down, after the first line
LONGEST_REPLY = 2**24  # bytes
BYTES_PER_TOKEN = 4.0  # of UTF-8, where tokens are estimated before anything is asked


class Estimate(NamedTuple):
    """Says what judgments would ask of a server.

    requests: one a judgment, without retries.
    prompt_tokens: about; a token has some four bytes of text.
    completion_tokens: at most.
    cost: at most, for these tokens; None without a price.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def remote_judge(
    name: str,
    *,
    template: Template,
    single_template: Template,
    rubric_template: Template | None = None,
    seed: int = 0,
    **settings: Any,
) -> RewardModel:
    """Asks a server: POST {base_url}/chat/completions, once for each record and sample.

    template, single_template, rubric_template: as in `grm.Prompter`.
    seed: of response orders, and of the `seed` field of a request, a function of (seed, record id,
        sample); many servers ignore it.
    settings: fields of `RemoteConfig`.

    Besides the fields of the protocol a judgment holds:

    principles, critique: what was parsed of the text.
    finish, served_model, prompt_tokens: as the server says.
    cost: None where the server reports no usage ("tokens" is 0 then), or without a price.
    latency_s: of the last attempt, in seconds.
    attempts: how often it was asked.
    error: the server's words.

    A judgment that does not come is a named failure: "request_failed:" and timeout, connection or a
    name of `replies`, or "refused:" and the reason; text that does not parse has the parser's
    reason. A block of judgments is yielded every ROWS_PER_BLOCK requests, in the order in which
    they finish, and every few seconds what there is, which may be nothing. The first attempt that
    fails is said at once, as a warning of this module's logger.

    Raises ValueError for settings that cannot work, and RemoteError, with the server's words, for
    an answer that every request would get (`read_reply`), and after `failures_in_a_row`: these
    failures are not yielded, so that they are asked for again. No message and no judgment holds the
    key.
    """
    config = read_config(settings)
    url = f"{config.base_url.rstrip('/')}/chat/completions"

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        headers, secrets = headers_of(config)
        client = _client(headers, config.concurrency)
        server = _Server(name, url, config.concurrency)

        async def judged(record: Record, sample: int) -> tuple[dict, Reply]:
            order = shown_order(seed, record, sample, swapped)
            prompt = _prompt(config, template, single_template, rubric_template, record, order)
            digest = seeded_digest("remote_seed", seed, record.id, sample)[:4]
            payload = request_body(config, prompt, temperature, int.from_bytes(digest, "big") >> 1)
            reply, evidence = await _ask(client, server, config, payload, secrets)
            if reply.failure is None and record.rubric:
                read = read_rubric(reply.text, order, record.rubric, truncated=reply.cut)
            elif reply.failure is None:
                read = read_answer(reply.text, order, config.answer, reply.cut, config.parsing)
            else:
                read = {"scores": None, "failure": reply.failure, "principles": [], "critique": ""}
            into, out = reply.prompt_tokens, reply.tokens
            judgment = new_judgment(
                record,
                sample,
                order,
                temperature,
                text=reply.text,
                **read,
                finish=reply.finish,
                served_model=reply.served_model,
                prompt_tokens=reply.prompt_tokens,
                tokens=reply.tokens or 0,
                cost=None if into is None or out is None else _cost(config, into, out),
                error=reply.error,
                **evidence,
            )
            return judgment, reply

        block, withheld, yielded = [], [], time.monotonic()
        arguments = ((record, sample) for record in records for sample in samples)
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(client),
            contextlib.closing(
                _side_by_side(portal, judged, arguments, config.concurrency)
            ) as finished,
        ):
            try:
                for came in finished:
                    if came is not None and _is_of_the_server(came[1]):
                        withheld.append(came[0])
                        if len(withheld) == config.failures_in_a_row:
                            raise RemoteError(_gave_up(name, url, withheld))
                    elif came is not None:
                        block += [*withheld, came[0]]
                        withheld.clear()
                    late = time.monotonic() - yielded >= YIELDS_EVERY_S
                    if len(block) >= ROWS_PER_BLOCK or late:
                        yield block
                        block, yielded = [], time.monotonic()
            except RemoteError:  # what was paid for is kept
                if block:
                    yield block
                raise
        if block or withheld:
            yield block + withheld

    fewest = 2 if config.answer in CHOICES else 1
    return RewardModel(name, judge, sampled=True, accepts=lambda n: n >= fewest)


def estimate(
    records: Sequence[Record],
    samples: int,
    template: Template,
    single_template: Template,
    rubric_template: Template | None = None,
    **settings: Any,
) -> Estimate:
    """Estimates what so many samples of each record would ask of the server of `remote_judge`."""
    config = read_config(settings)
    # (number of responses, rubric): bytes of a prompt beside the record's texts
    around: dict[tuple, int] = {}
    size = 0
    for record in records:
        n = len(record.responses)
        texts = (*(turn.content for turn in record.conversation), *record.responses)
        own = sum(len(text.encode()) for text in texts)
        shape = n, record.rubric
        if shape not in around:
            prompt = _prompt(config, template, single_template, rubric_template, record, range(n))
            around[shape] = len(prompt.encode()) + len((config.system_prompt or "").encode()) - own
        size += around[shape] + own
    requests = samples * len(records)
    prompts = samples * math.ceil(size / BYTES_PER_TOKEN)
    limits = [
        value
        for field, value in config.extra_body.items()
        if "max" in field and "tokens" in field and isinstance(value, int)
    ]
    limit = max(limits, default=config.max_tokens)
    completions = requests * limit
    return Estimate(requests, prompts, completions, _cost(config, prompts, completions))


def total_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Adds estimates up; the cost is None where one has none."""
    costs = [one.cost for one in estimates]
    return Estimate(
        sum(one.requests for one in estimates),
        sum(one.prompt_tokens for one in estimates),
        sum(one.completion_tokens for one in estimates),
        None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def _prompt(
    config: RemoteConfig,
    template: Template,
    single_template: Template,
    rubric_template: Template | None,
    record: Record,
    order: Sequence[int],
) -> str:
    if record.rubric and rubric_template is not None:
        return render_prompt(rubric_template, record, tuple(order)).strip()
    alone = len(order) == 1 and config.answer == "scores"
    return render_prompt(single_template if alone else template, record, tuple(order)).strip()


def _cost(config: RemoteConfig, prompt_tokens: int, tokens: int) -> float | None:
    if config.price_per_million is None:
        return None
    into, out = config.price_per_million
    return (prompt_tokens * into + tokens * out) / 1e6


# ---- requests


def _client(headers: Mapping[str, str], concurrency: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=concurrency)
    return httpx.AsyncClient(headers=headers, timeout=None, limits=limits)


def _side_by_side(
    portal: BlockingPortal, function: Callable, arguments: Iterable[tuple], concurrency: int
) -> Generator[Any, None, None]:
    """Yields results of an async function in the order in which they come.

    At most `concurrency` calls run at a time. The first exception ends it. Where none comes for
    YIELDS_EVERY_S, None is yielded.
    """
    pending = set()

    def finished() -> Iterator[Any]:
        done, rest = wait(pending, timeout=YIELDS_EVERY_S, return_when=FIRST_COMPLETED)
        pending.intersection_update(rest)
        # what succeeded at the same time is not lost
        for future in sorted(done, key=lambda future: future.exception() is not None):
            yield future.result()
        if not done:
            yield None

    try:
        for argument in arguments:
            pending.add(portal.start_task_soon(function, *argument))
            while len(pending) == concurrency:
                yield from finished()
        while pending:
            yield from finished()
    finally:
        for future in pending:
            future.cancel()


class _Server:
    """What all requests know of the server: whether it answers. The lines about it are here.

    attempts: that failed since one succeeded. requests: that were given up since then.
    """

    def __init__(self, name: str, url: str, concurrency: int):
        self.name, self.url, self.concurrency = name, url, concurrency
        self.attempts = self.requests = 0
        self.said_at = -math.inf

    def answered(self) -> None:
        if self.attempts and self.said_at > -math.inf:
            log.warning("%s: answers again, after %d failed attempts", self.name, self.attempts)
            self.said_at = -math.inf
        self.attempts = self.requests = 0

    def failed(self, reply: Reply, wait_s: float | None) -> None:
        self.attempts += 1
        now = time.monotonic()
        if now - self.said_at >= SAID_EVERY_S:
            self.said_at = now
            then = "given up" if wait_s is None else f"asked again in {wait_s:.1f} s"
            log.warning(
                "%s: no judgment from %s, %d attempts in a row, %s: %s %s",
                *(self.name, self.url, self.attempts, then, reply.failure, reply.error),
            )


async def _ask(
    client: httpx.AsyncClient,
    server: _Server,
    config: RemoteConfig,
    payload: Mapping[str, Any],
    secrets: Sequence[str],
) -> tuple[Reply, dict[str, Any]]:
    """Makes one request with its retries.

    Returns the last reply, and {"latency_s", "attempts"}. A server that has failed as many requests
    as it is asked at a time gets no retries until it answers.
    """
    number = 0
    while True:
        number += 1
        began = time.monotonic()
        reply = await _attempt(client, server.url, payload, config, secrets)
        latency_s = time.monotonic() - began
        if not _is_of_the_server(reply):
            server.answered()
            break
        wait_s = None
        if reply.wait_s is not None and reply.wait_s > LONGEST_WAIT_S:
            asks = f"it asks to wait {reply.wait_s:,.0f} s, and {LONGEST_WAIT_S:.0f} are waited for"
            reply = reply._replace(error=f"{asks}: {reply.error}")
        if reply.again and number <= config.retries and server.requests < server.concurrency:
            wait_s = wait_before(number, reply.wait_s)
        server.failed(reply, wait_s)
        if wait_s is None:
            server.requests += 1
            break
        await anyio.sleep(wait_s)
    return reply, {"latency_s": latency_s, "attempts": number}


def wait_before(number: int, asked_s: float | None = None) -> float | None:
    """Draws the seconds to wait after attempt `number`; None where the server asks for too long.

    asked_s: what Retry-After says. All waits are spread, so that clients which failed together do
    not come back together.
    """
    if asked_s is not None and asked_s > LONGEST_WAIT_S:
        return None
    backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(number - 1, 30))
    return (asked_s or 0.0) + backoff_s * random.uniform(0.5, 1.5)


def _is_of_the_server(reply: Reply) -> bool:
    """Tells whether a reply is a failure that says something of the server, not of the prompt."""
    failure = reply.failure or ""
    return failure.startswith("request_failed:") and not reply.only_this


def _gave_up(name: str, url: str, failures: Sequence[Mapping[str, Any]]) -> str:
    last = failures[-1]
    return (
        f"{name}: {len(failures)} requests in a row failed at {url}, the last with "
        f"{last['failure']} {last['error']}".rstrip(". ")
        + ". What was judged before is kept, and these are asked for again when the program is "
        "started again; failures_in_a_row of the system says how many end it"
    )


async def _attempt(
    client: httpx.AsyncClient,
    url: str,
    payload: Mapping[str, Any],
    config: RemoteConfig,
    secrets: Sequence[str],
) -> Reply:
    status, headers, content = None, httpx.Headers(), b""
    try:
        with anyio.fail_after(config.timeout_s):
            async with client.stream("POST", url, json=payload) as response:
                status, headers = response.status_code, response.headers
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LONGEST_REPLY:
                        words = f"more than {LONGEST_REPLY:,} bytes in one reply"
                        return Reply(failure="request_failed:malformed_reply", error=words)
    except TimeoutError:
        words = f"no whole reply within {config.timeout_s:g} s"
        if status is not None:
            words += f"; HTTP {status} came, and {len(content):,} bytes of its body"
        return Reply(failure="request_failed:timeout", error=words, again=True)
    except httpx.RequestError as problem:
        words = excerpt(_words_of(problem, url), secrets)
        if _is_for_good(problem):
            model = shown_model(payload)
            raise RemoteError(f"POST {url}, model {model}: {words}") from None
        return Reply(failure="request_failed:connection", error=words, again=True)
    return read_reply(
        status,
        headers,
        content,
        where=f"POST {url}",
        sent=payload,
        secrets=secrets,
        whole=[reason.lower() for reason in config.stop_reasons],
    )


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and all that led to it, those of a group too."""
    seen = set()
    waiting = [problem]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__, *getattr(one, "exceptions", ())]


def _words_of(problem: httpx.RequestError, url: str) -> str:
    """Says what went wrong with a connection: which host, and the system's own words."""
    where = httpx.URL(url)
    address = f"{where.host}:{where.port}" if where.port else where.host
    for cause in _causes(problem):
        if isinstance(cause, ssl.SSLError):
            return f"{type(problem).__name__}: no TLS with {address}: {cause.reason or cause}"
        if isinstance(cause, socket.gaierror):
            return f"{type(problem).__name__}: no address of the host {where.host}: {cause}"
        if isinstance(cause, ConnectionRefusedError):
            return f"{type(problem).__name__}: {address} refuses the connection"
    words = (str(cause) for cause in _causes(problem))  # of a connection reset, the system's alone
    return f"{type(problem).__name__} at {address}: {next(filter(None, words), 'it broke off')}"


def _is_for_good(problem: httpx.RequestError) -> bool:
    """Tells whether TLS can never succeed: a certificate that is not trusted, or no TLS at all."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or (isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER")
        for cause in _causes(problem)
    )
