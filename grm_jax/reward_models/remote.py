"""Puts a judge behind any OpenAI-compatible chat API: GPT-4o, or an open model on a server.

One request a judgment. The prompt is a template of ours, the reply is parsed as a policy's own text
is, and what the request cost is kept beside it. Requests run side by side in an event loop of their
own thread, so `judge` may be called with or without a running loop; it blocks its caller like any
other judge. docs/remote.md has the settings and the failures.
"""

import contextlib
import dataclasses
import difflib
import logging
import math
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, NamedTuple

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from grm_jax.judgment.parsing import ANSWERS, read_answer
from grm_jax.judgment.prompts import Template, render_prompt
from grm_jax.judgment.records import Record, seeded_digest
from grm_jax.reward_models.protocol import RewardModel, new_judgment, shown_order
from grm_jax.reward_models.replies import OURS, RemoteError, Reply, excerpt, read_reply, shown_model
from grm_jax.settings import FRACTION, NOT_NEGATIVE, POSITIVE, SettingsError, build, check, one_of

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
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
NOT_EXTRA = ("model", "messages", "n")  # fields of a request that are not for extra_body


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Says how a server is asked.

    base_url: such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
    model: the server's name of it.
    answer: as in `grm.Prompter`. With "index" a list is shown whole, and its best response named.
    api_key_env: name of the environment variable that holds the key, read when judging begins; None
        sends no key.
    top_p, max_tokens: parameters of a request, beside temperature and seed.
    system_prompt: sent before the prompt, as a turn of the system.
    rename: {"max_tokens": "max_completion_tokens"} sends one of temperature, top_p, max_tokens and
        seed under another name.
    extra_body: further fields of a request, or other values of those above; None leaves one out.
    extra_headers: further headers; "$NAME" is the value of an environment variable, as keys must
        be.
    stop_reasons: further finish reasons of the server that say that a text is whole.
    concurrency: requests in flight.
    timeout_s: seconds for a whole attempt.
    retries: further attempts after timeouts, connection errors and what passes (`read_reply`).
    failures_in_a_row: requests that fail, each after its retries, with none that succeeds between
        them, after which judging stops; None goes on.
    price_per_million: (input, output) tokens, in any currency.

    Raises SettingsError with every field that is wrong.
    """

    base_url: str
    model: str
    answer: str = "scores"
    api_key_env: str | None = None
    top_p: float = 1.0
    max_tokens: int = 2048
    system_prompt: str | None = None
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra_headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop_reasons: tuple[str, ...] = ()
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 5
    failures_in_a_row: int | None = 16
    price_per_million: tuple[float, float] | None = None

    def __post_init__(self):
        check(
            self,
            {
                "base_url": ("http(s)://host/path without user, password or query", _is_base_url),
                "model": ("the name of a model", lambda x: x.strip() and x.isprintable()),
                "answer": one_of(ANSWERS),
                "api_key_env": ("the name of an environment variable", _names_a_variable),
                "top_p": FRACTION,
                "max_tokens concurrency failures_in_a_row": POSITIVE,
                "timeout_s": ("seconds > 0", lambda x: x > 0),
                "retries": NOT_NEGATIVE,
                "rename": ("names of parameters", _are_names),
                "extra_body": ("fields of a request", _are_fields),
                "extra_headers": ("headers", _are_headers),
                "price_per_million": (
                    "(input, output) for a million tokens, numbers >= 0",
                    lambda x: len(x) == 2 and all(price >= 0 for price in x),
                ),
            },
        )


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
    name: str, *, template: Template, single_template: Template, seed: int = 0, **settings: Any
) -> RewardModel:
    """Asks a server: POST {base_url}/chat/completions, once for each record and sample.

    template, single_template: as in `grm.Prompter`.
    seed: of response orders, and of the `seed` field of a request, a function of (seed, record id,
        sample); many servers ignore it.
    settings: fields of `RemoteConfig`.

    Besides the fields of the protocol a judgment holds:

    principles, critique, finish, served_model, prompt_tokens
    cost: None where the server reports no usage ("tokens" is 0 then), or without a price.
    latency_s: of the last attempt, in seconds.
    attempts
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
    config = _config(settings)
    url = f"{config.base_url.rstrip('/')}/chat/completions"

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        headers, secrets = _headers(config)
        client = _client(headers, config.concurrency)
        server = _Server(name, url, config.concurrency)

        async def judged(record: Record, sample: int) -> tuple[dict, Reply]:
            order = shown_order(seed, record, sample, swapped)
            prompt = _prompt(config, template, single_template, record, order)
            digest = seeded_digest("remote_seed", seed, record.id, sample)[:4]
            payload = request_body(config, prompt, temperature, int.from_bytes(digest, "big") >> 1)
            reply, evidence = await _ask(client, server, config, payload, secrets)
            if reply.failure is None:
                read = read_answer(reply.text, order, config.answer, truncated=reply.cut)
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

    fewest = 2 if config.answer == "index" else 1
    return RewardModel(name, judge, sampled=True, accepts=lambda n: n >= fewest)


def estimate(
    records: Sequence[Record],
    samples: int,
    template: Template,
    single_template: Template,
    **settings: Any,
) -> Estimate:
    """Estimates what so many samples of each record would ask of the server of `remote_judge`."""
    config = _config(settings)
    around: dict[int, int] = {}  # number of responses: bytes of a prompt beside the record's texts
    size = 0
    for record in records:
        n = len(record.responses)
        texts = (*(turn.content for turn in record.conversation), *record.responses)
        own = sum(len(text.encode()) for text in texts)
        if n not in around:
            prompt = _prompt(config, template, single_template, record, range(n))
            around[n] = len(prompt.encode()) + len((config.system_prompt or "").encode()) - own
        size += around[n] + own
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


def request_body(
    config: RemoteConfig, prompt: str, temperature: float, seed: int
) -> dict[str, Any]:
    """Makes the body of a request: our parameters, renamed, and those of the user, None left out.

    temperature, seed: of this request.
    """
    turns = [] if config.system_prompt is None else [("system", config.system_prompt)]
    ours = dict(zip(OURS, (temperature, config.top_p, config.max_tokens, seed), strict=True))
    extra = dict(config.extra_body)
    renamed = {
        config.rename.get(name, name): value
        for name, value in ours.items()
        if name in config.rename or extra.get(name, value) is not None
    }
    body = {
        "model": config.model,
        "messages": [
            {"role": role, "content": content} for role, content in [*turns, ("user", prompt)]
        ],
        **renamed,
        **extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def _config(settings: Mapping[str, Any]) -> RemoteConfig:
    """Checks settings; all that is wrong stands on one line."""
    try:
        return build(RemoteConfig, settings)
    except SettingsError as error:
        raise ValueError("; ".join(error.problems)) from None


def _prompt(
    config: RemoteConfig,
    template: Template,
    single_template: Template,
    record: Record,
    order: Sequence[int],
) -> str:
    alone = len(order) == 1 and config.answer == "scores"
    return render_prompt(single_template if alone else template, record, tuple(order)).strip()


def _cost(config: RemoteConfig, prompt_tokens: int, tokens: int) -> float | None:
    if config.price_per_million is None:
        return None
    into, out = config.price_per_million
    return (prompt_tokens * into + tokens * out) / 1e6


# ---- settings


def _is_base_url(base_url: str) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"expected http(s)://host/path: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise ValueError(  # what is left out may be secret
            "expected http(s)://host/path without user, password or query, got "
            f"{url.copy_with(userinfo=b'', query=None)}"
        )
    return True


def _names_a_variable(variable: str) -> bool:
    if VARIABLE.fullmatch(variable) and (variable.isupper() or variable in os.environ):
        return True
    raise ValueError(  # who writes the key itself here must not find it in a log
        "expected the name of an environment variable, such as OPENAI_API_KEY, got a text of "
        f"{len(variable)} characters that is none"
    )


def _are_names(rename: Mapping[str, str]) -> bool:
    for ours, theirs in rename.items():
        if ours not in OURS:
            near = difflib.get_close_matches(str(ours), OURS, 1, 0.0)[0]
            raise ValueError(
                f"expected some of {', '.join(OURS)}, got {ours!r}; nearest: {near}. Other fields "
                "of a request go into extra_body"
            )
        if not isinstance(theirs, str) or not theirs or theirs in NOT_EXTRA:
            raise ValueError(f"expected another name of {ours}, got {theirs!r}")
    names = [rename.get(name, name) for name in OURS]
    if len(set(names)) < len(names):
        raise ValueError(f"expected names that differ, got {dict(rename)}")
    return True


def _are_fields(extra_body: Mapping[str, Any]) -> bool:
    for name, value in extra_body.items():
        if not isinstance(name, str) or name in NOT_EXTRA:
            raise ValueError(f"expected no field {name!r}: {', '.join(NOT_EXTRA)} are set here")
        if name == "stream" and value:
            raise ValueError("expected no stream: a reply is read whole")
    return _is_json(dict(extra_body))


def _is_json(value: Any) -> bool:
    """Tells whether a value is plain JSON with finite numbers. Raises ValueError."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_json(one) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {value!r}")
    if value is None or isinstance(value, (str, int, float)):
        return True
    raise ValueError(f"expected plain JSON, got a {type(value).__name__}")


def _are_headers(headers: Mapping[str, str]) -> bool:
    for name, value in headers.items():
        if not isinstance(name, str) or not HEADER.fullmatch(name):
            raise ValueError(f"expected names of headers, got {name!r}")
        plain = isinstance(value, str) and value.isascii() and value.isprintable()
        if not plain:
            raise ValueError(f"{name}: expected one line of ASCII text")
        if value.startswith("$"):
            try:
                _names_a_variable(value[1:])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        elif SECRET_HEADER.search(name):
            raise ValueError(
                f"{name}: expected $NAME, the name of an environment variable that holds it: what "
                "is written here is written into results.json"
            )
    return True


def _headers(config: RemoteConfig) -> tuple[dict[str, str], list[str]]:
    """Returns the headers of all requests, and the secrets in them."""
    headers, secrets = {}, []
    if config.api_key_env is not None:
        secrets.append(_secret(config.api_key_env))
        headers["Authorization"] = f"Bearer {secrets[0]}"
    for name, value in config.extra_headers.items():
        if value.startswith("$"):
            value = _secret(value[1:])
            secrets.append(value)
        headers[name] = value
    return headers, secrets


def _secret(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(
            f"the environment variable {variable} holds no API key; expected one line of ASCII text"
        )
    return key


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
                "%s: no judgment from %s, %d in a row, %s: %s %s",
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
    return f"{type(problem).__name__} at {address}: {problem}"


def _is_for_good(problem: httpx.RequestError) -> bool:
    """Tells whether TLS can never succeed: a certificate that is not trusted, or no TLS at all."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or (isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER")
        for cause in _causes(problem)
    )
