"""Stands before every door: ids, keys, the size of a body, clients that leave, a line of log.

A plain ASGI middleware: what it cancels is cancelled down to the rows of the engine.
"""

import asyncio
import collections
import dataclasses
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from grm_jax.serving.logs import log, request_id, say

Message = MutableMapping[str, Any]
OPEN = ("/healthz", "/readyz")  # asked by who has no key
BODY_S = 60.0  # in which a body has to come
ID = re.compile(r"[\w.:-]{1,128}")
BUSY_S = 1  # after which a request may come back that found too many others
REMEMBERED_BYTES = 64 * 2**20  # of replies, for their idempotency keys
AGAIN = (408, 429)  # a reply that says "again" is not kept, and neither is an error of the server


@dataclasses.dataclass(eq=False)
class Remembered:
    """A request of an idempotency key: what it asked, the work on it, and who waits for that.

    bytes: of its reply, once that is there.
    """

    digest: str
    work: asyncio.Future
    messages: list[Message]
    waiting: int = 0
    bytes: int = 0


class Gate:
    """Wraps an application.

    key: that requests have to bear; "" for none. body_bytes: at most. remembered: replies that are
    kept for their idempotency keys. requests: under way at once, at most. saw: called with path,
    status and seconds of each request. replayed: called where a kept reply is given again.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        key: str,
        body_bytes: int,
        remembered: int = 0,
        requests: int = 4096,
        saw: Callable[[str, int, float], object] = lambda path, status, seconds: None,
        replayed: Callable[[], object] = lambda: None,
    ):
        self.app, self.key, self.body_bytes = app, key, body_bytes
        self.most, self.saw, self.replayed = remembered, saw, replayed
        self.requests, self.under_way = requests, 0
        self.known: collections.OrderedDict[str, Remembered] = collections.OrderedDict()
        self.bytes = 0  # of all replies that are kept

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin1"): value for name, value in scope["headers"]}
        given = headers.get("x-request-id", b"").decode("latin1")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex
        began, status, whole = time.monotonic(), 0, False

        def ended(left: bool) -> None:
            nonlocal whole
            whole = True
            self.under_way -= 1
            seconds = time.monotonic() - began
            self.saw(scope["path"], 0 if left else status, seconds)
            quiet = scope["path"] in (*OPEN, "/metrics") and status == 200
            if not quiet:
                say(
                    "left" if left else "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(seconds, 4),
                )

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            elif not message.get("more_body") and not whole:
                ended(left=False)  # before its last piece: who has that may ask again, and look
            await send(message)

        token, left = request_id.set(name), False
        self.under_way += 1
        try:
            left = await self._handle(scope, headers, receive, answer)
        except Exception:  # raised once more by Starlette, behind its answer
            if not whole:
                raise
            log.exception("a request failed")  # and the connection is as good as before
        finally:
            if not whole:
                ended(left)
            request_id.reset(token)

    async def _handle(
        self, scope: dict, headers: dict[str, bytes], receive: Callable, send: Callable
    ) -> bool:
        """Whether the client left before its answer."""
        if self.key and scope["path"] not in OPEN and not self._knows(headers):
            await refuse(send, 401, "api_key", "expected the header Authorization: Bearer KEY")
            return False
        if self.under_way > self.requests and scope["path"] not in (*OPEN, "/metrics"):
            message = f"{self.requests} requests are under way; come back later"
            await refuse(send, 429, "busy", message, BUSY_S)
            return False
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body(headers, receive)
        except TimeoutError:
            await refuse(send, 408, "body", f"the body did not come within {BODY_S:.0f} s")
            return False
        except ValueError as error:
            await refuse(send, 413, "body", str(error))
            return False
        if body is None:
            return True
        name = headers.get("idempotency-key", b"").decode("latin1")
        if name and scope["method"] == "POST":
            return await self._once(name, scope, body, receive, send)
        return await self._run(scope, body, receive, send)

    async def _once(
        self, name: str, scope: dict, body: bytes, receive: Callable, send: Callable
    ) -> bool:
        """Answers requests of one idempotency key with one reply, whoever of them leaves."""
        asked = scope["path"].encode() + b"?" + scope.get("query_string", b"")
        digest = hashlib.sha256(asked + b"\0" + body).hexdigest()
        kept = self.known.get(name)
        if kept is not None and kept.digest != digest:
            message = "Idempotency-Key: it was used for another request"
            await refuse(send, 422, "idempotency_key", message)
            return False
        if kept is None:
            kept = self.known[name] = self._begin(name, digest, scope, body)
        else:
            self.replayed()
        kept.waiting += 1
        leaves = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((kept.work, leaves), return_when=asyncio.FIRST_COMPLETED)
            if not kept.work.done():
                return True
        finally:
            leaves.cancel()
            kept.waiting -= 1
            if not kept.waiting and not kept.work.done():
                self._forget(name, kept)
                kept.work.cancel()
        for message in kept.messages:  # of an error that nobody foresaw too
            await send(dict(message))
        kept.work.result()
        return False

    def _begin(self, name: str, digest: str, scope: dict, body: bytes) -> Remembered:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        async def work() -> None:
            try:
                await self.app(scope, _replay(body, asyncio.Event()), keep)
            except BaseException:
                self._forget(name, kept)
                raise
            status = messages[0]["status"]
            if status >= 500 or status in AGAIN:
                self._forget(name, kept)
                return
            if self.known.get(name) is kept:
                kept.bytes = sum(len(message.get("body", b"")) for message in messages)
                self.bytes += kept.bytes
            while len(self.known) > self.most or self.bytes > REMEMBERED_BYTES:
                oldest = next((n for n, one in self.known.items() if one.work.done()), None)
                if oldest is None:
                    break
                self._forget(oldest, self.known[oldest])

        kept = Remembered(digest, asyncio.ensure_future(work()), messages)
        return kept

    def _forget(self, name: str, kept: Remembered) -> None:
        if self.known.get(name) is kept:
            del self.known[name]
            self.bytes -= kept.bytes

    async def _run(self, scope: dict, body: bytes, receive: Callable, send: Callable) -> bool:
        """Runs the application, until it has answered or the client is gone."""
        gone = asyncio.Event()

        work = asyncio.ensure_future(self.app(scope, _replay(body, gone), send))
        leaves = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((work, leaves), return_when=asyncio.FIRST_COMPLETED)
            left = not work.done()
            if left:
                gone.set()
                work.cancel()
            await asyncio.gather(work, return_exceptions=left)
            return left
        finally:
            work.cancel()
            leaves.cancel()

    def _knows(self, headers: dict[str, bytes]) -> bool:
        bearer = headers.get("authorization", b"")
        given = bearer[7:] if bearer[:7].lower() == b"bearer " else headers.get("x-api-key", b"")
        return hmac.compare_digest(given.strip(), self.key.encode())

    async def _body(self, headers: dict[str, bytes], receive: Callable) -> bytes | None:
        """The whole body; None where the client left. Raises ValueError where it is too large."""
        problem = f"the body has more than {self.body_bytes} bytes"
        stated = headers.get("content-length", b"0")
        if stated.isdigit() and int(stated) > self.body_bytes:
            raise ValueError(problem)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.body_bytes:
                raise ValueError(problem)
            if not message.get("more_body", False):
                return b"".join(parts)


def _replay(body: bytes, gone: asyncio.Event) -> Callable[[], Awaitable[Message]]:
    """Receives a body that has come, and then that the client is gone, once it is."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def _left(receive: Callable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse(
    send: Callable, status: int, reason: str, message: str, retry_after: int | None = None
) -> None:
    """Answers with an error, outside of the application."""
    body = json.dumps(error_body(reason, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(reason: str, message: str) -> dict[str, Any]:
    """Returns the JSON of every error, in the shape that OpenAI's clients read."""
    return {"error": {"message": message, "type": reason, "code": reason, "param": None}}
